package qcow2

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/source/file"
)

var ctx = context.Background()

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// follow opens references as a user who trusts them would.
func follow(ctx context.Context, ref formats.Ref, write bool) (block.Device, error) {
	name := ref.Name
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(ref.From), name)
	}
	f, err := file.Open(ctx, name, file.Options{Write: write})
	if err != nil || ref.Format != Name {
		return f, err
	}
	d, err := Open(ctx, f, formats.OpenOptions{Name: name, Write: write, Refer: follow})
	if err != nil {
		f.Close()
	}
	return d, err
}

// openPath opens an image. It is closed with the test, unless that has done so.
func openPath(t testing.TB, path string, write bool, values ...string) block.Device {
	t.Helper()
	f, err := file.Open(ctx, path, file.Options{Write: write})
	ok(t, err)
	o := formats.OpenOptions{Name: path, Write: write, Refer: follow, Values: map[string]string{}}
	for _, v := range values {
		key, value, _ := strings.Cut(v, "=")
		o.Values[key] = value
	}
	d, err := Open(ctx, f, o)
	if err != nil {
		f.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// qemuImg runs qemu-img, quietly.
func qemuImg(t testing.TB, args ...string) []byte {
	t.Helper()
	return peers.Run(t, "qemu-img", args...)
}

// create makes an image with qemu-img.
func create(t testing.TB, path, options, size string, more ...string) {
	t.Helper()
	args := []string{"create", "-q", "-f", Name}
	if options != "" {
		args = append(args, "-o", options)
	}
	qemuImg(t, append(append(args, more...), path, size)...)
}

// io runs commands of qemu-io on an image.
func qemuIO(t testing.TB, path string, commands ...string) {
	t.Helper()
	args := []string{"-f", Name}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := peers.Run(t, "qemu-io", append(args, path)...)
	if bytes.Contains(out, []byte("failed")) {
		t.Fatalf("qemu-io %v: %s", commands, out)
	}
}

// rawOf returns what qemu-img reads from an image.
func rawOf(t testing.TB, path string, more ...string) []byte {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	qemuImg(t, append(append([]string{"convert", "-f", Name, "-O", "raw"}, more...), path, raw)...)
	p, err := os.ReadFile(raw)
	ok(t, err)
	return p
}

// contents reads a device in pieces of many lengths.
func contents(t testing.TB, d block.Device, r *rand.Rand) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	for off := int64(0); off < d.Size(); {
		n := min(1+r.Int64N(1<<uint(1+r.IntN(20))), d.Size()-off)
		if err := d.Read(ctx, p[off:off+n], off); err != nil {
			t.Fatalf("read of %d bytes at %d: %v", n, off, err)
		}
		off += n
	}
	return p
}

// same compares what is read with what is wanted.
func same(t testing.TB, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("byte %d is %#02x, want %#02x", i, got[i], want[i])
		}
	}
}

func noise(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

// text is noise that can be compressed.
func text(r *rand.Rand, n int) []byte {
	p := make([]byte, 0, n+16)
	for len(p) < n {
		p = append(p, fmt.Sprintf("%d ", r.IntN(3000))...)
	}
	return p[:n]
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// memoryDir returns a folder in memory where the system has one: flushes cost nothing there.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "qcow2")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
