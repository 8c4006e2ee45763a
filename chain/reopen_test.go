package chain

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
)

// TestReopen looks at a target before it has its name, and at the further file that it refers to.
func TestReopen(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "disk.img")
	tg := target(t, path, "ref=disk.data\n", CreateOptions{})
	defer tg.Abort()
	further, err := tg.Create(ctx, "disk.data")
	if err != nil {
		t.Fatal(err)
	}
	if err := further.Write(ctx, []byte("further"), 0, 0); err != nil {
		t.Fatal(err)
	}
	refers := raw.Driver()
	refers.Name = "refers"
	refers.Open = func(ctx context.Context, dev block.Device, o formats.OpenOptions) (block.Device, error) {
		p := make([]byte, dev.Size())
		if err := dev.Read(ctx, p, 0); err != nil {
			return nil, err
		}
		_, name, _ := strings.Cut(strings.TrimSpace(string(p)), "=")
		return o.Refer.Open(ctx, formats.Ref{Kind: "data file", Name: name, From: o.Name}, false)
	}
	o := Options{Registry: formats.Registry{refers, raw.Driver()}}
	for format, want := range map[string]string{"raw": "ref=disk.data\n", "refers": "further"} {
		o.Format = format
		img, err := tg.Reopen(ctx, o)
		if err != nil {
			t.Fatalf("%s: %v", format, err)
		}
		p := make([]byte, img.Device.Size())
		if err := img.Device.Read(ctx, p, 0); err != nil || string(p) != want {
			t.Errorf("%s: %q, %v", format, p, err)
		}
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := tg.Device.Write(ctx, []byte("ref=other.data"), 0, 0); err != nil {
		t.Fatal(err)
	}
	o.Format = "refers"
	if _, err := tg.Reopen(ctx, o); !errors.Is(err, block.ErrDenied) {
		t.Errorf("a file that is not the target's is opened without a gate: %v", err)
	}
	o.Format, o.Write = "raw", true
	img, err := tg.Reopen(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Device.Write(ctx, []byte("REF"), 0, 0); err != nil {
		t.Error(err)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	if err := tg.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); got != "REF=other.data" {
		t.Errorf("the file holds %q", got)
	}
	pipe, err := Create(ctx, Standard, CreateOptions{Stdout: func() *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		return w
	}()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.Reopen(ctx, o); err == nil {
		t.Error("a pipe is read again")
	}
}
