package qcow2

import (
	"context"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
)

// TestBitmapFaults fails every read, write and flush of every change of bitmaps, and writes to the disk afterwards. The image stays whole, and a
// bitmap that says it is complete has what was written.
func TestBitmapFaults(t *testing.T) {
	const written = 500000 // where
	fresh := kindOfImage{options: "cluster_size=4k", backing: 64 << 10}.template(t, 1<<20)
	image := make([]byte, fresh.image.Size())
	ok(t, fresh.image.Read(ctx, image, 0))
	for name, change := range map[string]func(ctx context.Context, d *Device) error{
		"clear":   func(ctx context.Context, d *Device) error { return d.ClearBitmap(ctx, "b") },
		"remove":  func(ctx context.Context, d *Device) error { return d.RemoveBitmap(ctx, "b") },
		"disable": func(ctx context.Context, d *Device) error { return d.EnableBitmap(ctx, "b", false) },
		"add":     func(ctx context.Context, d *Device) error { return d.AddBitmap(ctx, "c", 4096, true) },
		"merge":   func(ctx context.Context, d *Device) error { return d.MergeBitmap(ctx, "b", d, "b") },
		"resize":  func(ctx context.Context, d *Device) error { return d.Resize(ctx, 2<<20) },
	} {
		for _, kind := range []blocktest.Op{blocktest.OpWrite, blocktest.OpRead, blocktest.OpFlush} {
			for nth := 1; ; nth++ {
				f := fresh
				f.image = block.NewMemory(int64(len(image)))
				ok(t, f.image.Write(ctx, image, 0, 0))
				faulty := blocktest.NewFaulty(block.NoClose(f.image))
				dev, err := Open(ctx, faulty, formats.OpenOptions{Write: true, Memory: 1 << 20, Refer: f.refer})
				ok(t, err)
				d := dev.(*Device)
				ok(t, d.AddBitmap(ctx, "b", 4096, true))
				ok(t, d.Write(ctx, make([]byte, 10000), 0, 0))
				ok(t, d.Flush(ctx))
				faulty.Plan(blocktest.Fault{Ops: kind, Nth: nth, Times: 1, Err: syscall.EIO})
				_ = change(ctx, d) // it may fail
				hit := faulty.Hits()[0] > 0
				faulty.Plan()
				if !hit {
					ok(t, d.Close())
					break
				}
				wrote := d.Write(ctx, noise(rand.New(rand.NewPCG(1, 1)), 5000), written, 0)
				_ = d.Close() // which may fail as well
				f.checkBitmap(t, written, wrote == nil)
				if t.Failed() {
					t.Fatalf("%s, %v %d failed", name, kind, nth)
				}
			}
		}
	}
}

// checkBitmap checks the image, and that its bitmap b, where it says that it is complete and records, has the change at off.
func (f files) checkBitmap(t *testing.T, off int64, changed bool) {
	t.Helper()
	g, err := Open(ctx, block.NoClose(f.image), formats.OpenOptions{Refer: f.refer})
	ok(t, err)
	defer g.Close()
	if ref, _ := g.(*Device).Backing(); ref.Name != "backing" {
		t.Errorf("the backing file is %q", ref.Name)
	}
	for _, b := range g.(*Device).Bitmaps() {
		if b.Name != "b" || b.InUse || !b.Enabled || !changed {
			continue
		}
		ext, err := g.Extents(ctx, block.Map{Bitmap: "b"}, off, 1, nil)
		if err != nil || ext[0].Flags&block.ExtDirty == 0 {
			t.Errorf("the bitmap is not in use, and has not what was written: %+v, %v", ext, err)
		}
	}
	res, err := check.Check(ctx, f.image, formats.CheckOptions{})
	if err != nil || res.Corruptions > 0 || res.CheckErrors > 0 {
		t.Errorf("check: %+v, %v", res, err)
	}
}
