package qcow2

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// TestPreallocate grows images in every way.
func TestPreallocate(t *testing.T) {
	for _, options := range []string{"", "compat=0.10,cluster_size=512", "extended_l2=on,cluster_size=16k", "cluster_size=4k,refcount_bits=1"} {
		for _, p := range []formats.Preallocation{formats.PreallocMetadata, formats.PreallocFalloc, formats.PreallocFull} {
			path := filepath.Join(t.TempDir(), "image")
			create(t, path, options, "1000k")
			d := openPath(t, path, true)
			image, _ := block.As[*Device](d)
			want := make([]byte, 5<<20)
			copy(want, noise(rand.New(rand.NewPCG(1, 1)), 1000<<10))
			ok(t, d.Write(ctx, want[:1000<<10], 0, 0))
			ok(t, d.Discard(ctx, 100<<10, 500<<10)) // leaves clusters with something in them to be used again
			clear(want[128<<10 : 576<<10])
			ok(t, d.Read(ctx, want[:1000<<10], 0))
			ok(t, image.ResizePreallocated(ctx, 5<<20, p))
			all, err := d.Extents(ctx, block.Map{}, 1<<20, 4<<20, nil)
			ok(t, err)
			for _, e := range all {
				if e.Flags&block.ExtAlloc == 0 {
					t.Errorf("%s, %s: %+v", options, p, e)
				}
			}
			same(t, contents(t, d, rand.New(rand.NewPCG(1, 2))), want)
			if err := image.ResizePreallocated(ctx, 1<<20, p); err == nil {
				t.Errorf("%s, %s: it got smaller", options, p)
			}
			ok(t, d.Close())
			clean(t, path, options)
		}
	}
}

// TestResizeLimits refuses sizes that cannot be, and changes nothing.
func TestResizeLimits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	create(t, path, "cluster_size=512", "1M")
	qemuIO(t, path, "write -P 1 0 1M")
	qemuImg(t, "snapshot", "-c", "one", path)
	d := openPath(t, path, true)
	for _, size := range []int64{-1, 1 << 62, 1 << 40, 512 << 10} {
		if err := d.Resize(ctx, size); err == nil {
			t.Errorf("%d bytes", size)
		}
	}
	ok(t, d.Resize(ctx, 100<<30))
	same(t, contents(t, openPrefix(t, d), rand.New(rand.NewPCG(1, 2))), bytes.Repeat([]byte{1}, 1<<20))
	ok(t, d.Write(ctx, []byte("at the end"), 100<<30-10, 0))
	ok(t, d.Close())
	clean(t, path, "grown")
	d = openPath(t, path, false, "snapshot=one")
	if d.Size() != 1<<20 {
		t.Errorf("the snapshot has %d bytes", d.Size())
	}
	if err := d.Resize(ctx, 2<<20); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("%v", err)
	}
}

func openPrefix(t *testing.T, d block.Device) block.Device {
	w, err := block.NewWindow(d, 0, 1<<20)
	ok(t, err)
	return w
}
