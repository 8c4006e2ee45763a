package raw_test

import (
	"errors"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/raw"
)

func TestPreallocationRefused(t *testing.T) {
	d := raw.Driver()
	for _, p := range []string{"metadata", "nonsense"} {
		if _, err := d.Create(ctx, &store{block.NewMemory(0)}, formats.CreateOptions{Size: 1, Values: map[string]string{"preallocation": p}}); err == nil {
			t.Errorf("preallocation=%s is accepted", p)
		}
	}
	disk, err := block.NewWindow(block.NewMemory(2000), 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Create(ctx, &store{disk}, formats.CreateOptions{Size: 777, Values: map[string]string{"preallocation": "full"}}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a disk is preallocated: %v", err)
	}
	mem := block.NewMemory(1000)
	dev, err := d.Open(ctx, mem, formats.OpenOptions{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	grow, _ := block.As[formats.Preallocator](dev)
	for _, p := range []formats.Preallocation{formats.PreallocFalloc, formats.PreallocFull} {
		if err := grow.ResizePreallocated(ctx, 999, p); !errors.Is(err, errors.ErrUnsupported) || dev.Size() != 1000 {
			t.Errorf("shorter with preallocation=%s: %v", p, err)
		}
	}
	if err := grow.ResizePreallocated(ctx, 2000, formats.PreallocMetadata); !errors.Is(err, errors.ErrUnsupported) || dev.Size() != 1000 {
		t.Errorf("preallocation=metadata: %v", err)
	}
	if err := grow.ResizePreallocated(ctx, 500, formats.PreallocOff); err != nil || dev.Size() != 500 {
		t.Errorf("shorter: %v", err)
	}
}

// TestPreallocationOfAFullDisk leaves the image as long as it was.
func TestPreallocationOfAFullDisk(t *testing.T) {
	full := errors.New("no space left")
	for p, op := range map[formats.Preallocation]blocktest.Op{formats.PreallocFalloc: blocktest.OpZero, formats.PreallocFull: blocktest.OpWrite} {
		bad := blocktest.NewFaulty(block.NewMemory(1000), blocktest.Fault{Ops: op, Bytes: 1 << 20, Err: full})
		dev, err := raw.Driver().Open(ctx, bad, formats.OpenOptions{Write: true})
		if err != nil {
			t.Fatal(err)
		}
		grow, _ := block.As[formats.Preallocator](dev)
		if err := grow.ResizePreallocated(ctx, 2<<20, p); !errors.Is(err, full) || dev.Size() != 1000 {
			t.Errorf("preallocation=%s: %v, size %d", p, err, dev.Size())
		}
	}
}
