//go:build unix

package raw_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
	"github.com/imgtool/imgtool/source/file"
)

// blocks returns how many bytes of the disk the file takes.
func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return int64(fi.Sys().(*syscall.Stat_t).Blocks) * 512
}

func TestPreallocation(t *testing.T) {
	const size = 1<<20 + 5
	for _, c := range []struct {
		p    string
		want bool
	}{{"", false}, {"off", false}, {"falloc", true}, {"full", true}} {
		p, err := file.Create(filepath.Join(t.TempDir(), "x.raw"), file.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Abort()
		values := map[string]string{"preallocation": c.p}
		if c.p == "" {
			values = nil
		}
		dev, err := raw.Driver().Create(ctx, &store{p.Device()}, formats.CreateOptions{Size: size, Values: values})
		if err != nil {
			t.Fatalf("preallocation=%s: %v", c.p, err)
		}
		if n := blocks(t, p.Device().File()); dev.Size() != size || (n >= size) != c.want {
			t.Errorf("preallocation=%s: size %d, %d bytes on the disk", c.p, dev.Size(), n)
		}
		zeros := make([]byte, size)
		zeros[77] = 1
		if err := dev.Read(ctx, zeros, 0); err != nil || !block.IsZero(zeros) {
			t.Errorf("preallocation=%s: %v, or not zero", c.p, err)
		}
		grow, ok := block.As[formats.Preallocator](dev)
		if !ok {
			t.Fatal("the device does not preallocate")
		}
		before := blocks(t, p.Device().File())
		if err := grow.ResizePreallocated(ctx, 3*size, formats.Preallocation(c.p+map[bool]string{true: "off"}[c.p == ""])); err != nil {
			t.Errorf("grow with preallocation=%s: %v", c.p, err)
		}
		if n := blocks(t, p.Device().File()) - before; dev.Size() != 3*size || (n >= 2*size-4096) != c.want {
			t.Errorf("grown with preallocation=%s: size %d, %d bytes more on the disk", c.p, dev.Size(), n)
		}
	}
}
