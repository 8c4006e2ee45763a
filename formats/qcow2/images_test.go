package qcow2

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

// TestImages compares real images with the raw one that qemu-img made them of.
func TestImages(t *testing.T) {
	dir := peers.Images(t)
	raw, err := os.Open(filepath.Join(dir, "small.raw"))
	ok(t, err)
	defer raw.Close()
	for _, name := range []string{"small.qcow2", "small.zlib.qcow2", "small.zstd.qcow2", "small.extl2.qcow2"} {
		d := openPath(t, filepath.Join(dir, name), false)
		got, want := make([]byte, 1<<20), make([]byte, 1<<20)
		for off := int64(0); off < d.Size(); off += int64(len(got)) {
			got, want := got[:min(1<<20, d.Size()-off)], want[:min(1<<20, d.Size()-off)]
			ok(t, d.Read(ctx, got, off))
			_, err := raw.ReadAt(want, off)
			ok(t, err)
			if !bytes.Equal(got, want) {
				t.Fatalf("%s: the MiB at %d differs", name, off)
			}
		}
	}
}
