package qcow2

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
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

// TestPreallocateFails fails each write and each zero of a preallocation: the disk has its old size and content.
func TestPreallocateFails(t *testing.T) {
	fresh := kindOfImage{options: "cluster_size=4k"}.template(t, 1<<20)
	image := make([]byte, fresh.image.Size())
	ok(t, fresh.image.Read(ctx, image, 0))
	want := noise(rand.New(rand.NewPCG(1, 1)), 1<<20)
	for _, p := range []formats.Preallocation{formats.PreallocMetadata, formats.PreallocFalloc, formats.PreallocFull} {
		for _, kind := range []blocktest.Op{blocktest.OpWrite, blocktest.OpZero, blocktest.OpResize} {
			for nth := 1; ; nth++ {
				memory := block.NewMemory(int64(len(image)))
				ok(t, memory.Write(ctx, image, 0, 0))
				faulty := blocktest.NewFaulty(block.NoClose(memory))
				d, err := Open(ctx, faulty, formats.OpenOptions{Write: true})
				ok(t, err)
				ok(t, d.Write(ctx, want, 0, 0))
				ok(t, d.Flush(ctx))
				faulty.Plan(blocktest.Fault{Ops: kind, Nth: nth, Times: 1, Err: syscall.ENOSPC})
				failed := d.(*Device).ResizePreallocated(ctx, 2<<20, p)
				hit := faulty.Hits()[0] > 0
				faulty.Plan()
				if !hit {
					ok(t, failed)
					ok(t, d.Close())
					break
				}
				_ = d.Close() // which may fail as well
				d, err = Open(ctx, block.NoClose(memory), formats.OpenOptions{})
				ok(t, err)
				if failed != nil && d.Size() != int64(len(want)) {
					t.Fatalf("%s, %v %d failed (%v): the disk has %d bytes", p, kind, nth, failed, d.Size())
				}
				same(t, contents(t, openPrefix(t, d), rand.New(rand.NewPCG(1, 2))), want)
				if res, err := check.Check(ctx, memory, formats.CheckOptions{}); err != nil || res.Corruptions > 0 {
					t.Fatalf("%s, %v %d failed (%v): %+v, %v", p, kind, nth, failed, res, err)
				}
			}
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
	for _, size := range []int64{-1, 1 << 62, 1 << 40} {
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

// TestShrinkSnapshots makes a disk smaller whose snapshots keep what it had.
func TestShrinkSnapshots(t *testing.T) {
	for _, options := range []string{"", "cluster_size=512", "cluster_size=16k,extended_l2=on"} {
		path := filepath.Join(t.TempDir(), "image")
		create(t, path, options, "4M")
		qemuIO(t, path, "write -P 1 0 3M")
		qemuImg(t, "snapshot", "-c", "one", path)
		qemuIO(t, path, "write -P 2 1M 1M")
		d := openPath(t, path, true)
		ok(t, d.Resize(ctx, 1<<20+512))
		same(t, contents(t, d, rand.New(rand.NewPCG(1, 3))), append(bytes.Repeat([]byte{1}, 1<<20), bytes.Repeat([]byte{2}, 512)...))
		ok(t, d.Close())
		clean(t, path, options)
		d = openPath(t, path, false, "snapshot=one")
		same(t, contents(t, d, rand.New(rand.NewPCG(1, 4))), append(bytes.Repeat([]byte{1}, 3<<20), make([]byte, 1<<20)...))
	}
	path := filepath.Join(t.TempDir(), "old")
	create(t, path, "compat=0.10", "4M")
	qemuImg(t, "snapshot", "-c", "one", path)
	if err := openPath(t, path, true).Resize(ctx, 1<<20); err == nil {
		t.Error("version 2 does not keep the size of a snapshot")
	}
}

func openPrefix(t *testing.T, d block.Device) block.Device {
	w, err := block.NewWindow(d, 0, 1<<20)
	ok(t, err)
	return w
}
