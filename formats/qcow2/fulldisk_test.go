package qcow2

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
)

// partition is a device that cannot grow.
type partition struct{ block.Filter }

func (p *partition) Info() block.Info {
	i := p.Device.Info()
	i.Caps.Grow, i.Caps.Resize = false, false
	return i
}

func (p *partition) Write(ctx context.Context, q []byte, off int64, f block.Flags) error {
	if err := block.CheckRange(off, int64(len(q)), p.Size()); err != nil {
		return err
	}
	return p.Device.Write(ctx, q, off, f)
}

// TestFullDisk fills a device that ends where a refcount block would begin to count. What it has taken is there.
func TestFullDisk(t *testing.T) {
	f := kindOfImage{options: "cluster_size=512,refcount_bits=64"}.template(t, 200<<10)
	ok(t, f.image.Resize(ctx, 64<<10))
	d, err := Open(ctx, &partition{block.Filter{Device: block.NoClose(f.image)}}, formats.OpenOptions{Write: true, Memory: 1 << 20})
	ok(t, err)
	want := noise(rand.New(rand.NewPCG(1, 1)), 64<<10)
	full := int64(0)
	for ; err == nil; full += 512 {
		err = d.Write(ctx, want[full:full+512], full, 0)
	}
	full -= 512
	if !errors.Is(err, syscall.ENOSPC) || full < 50<<10 {
		t.Fatalf("full after %d bytes: %v", full, err)
	}
	ok(t, d.Flush(ctx))
	ok(t, d.Close())
	got := make([]byte, full)
	ok(t, f.open(t, false).Read(ctx, got, 0))
	same(t, got, want[:full])
	f.verify(t, "full")
}

// noPunch is a file system without holes.
type noPunch struct{ block.Filter }

func (f *noPunch) Info() block.Info {
	i := f.Device.Info()
	i.Caps.Discard = false
	return i
}

// TestTrimFails: an end of the file that could not be cut off is not taken for zeros.
func TestTrimFails(t *testing.T) {
	f := kindOfImage{options: "cluster_size=64k"}.template(t, 4<<20)
	faulty := blocktest.NewFaulty(block.NoClose(&noPunch{block.Filter{Device: f.image}}))
	d, err := Open(ctx, faulty, formats.OpenOptions{Write: true, Memory: 1 << 20})
	ok(t, err)
	ok(t, d.Write(ctx, bytes.Repeat([]byte{7}, 4<<20), 0, 0))
	ok(t, d.Flush(ctx))
	faulty.Plan(blocktest.Fault{Ops: blocktest.OpResize, Err: syscall.EIO})
	if err := d.Resize(ctx, 1<<20); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	faulty.Plan()
	ok(t, d.Resize(ctx, 4<<20))
	ok(t, d.Write(ctx, []byte{1}, 3<<20, 0))
	got := make([]byte, 64<<10)
	ok(t, d.Read(ctx, got, 3<<20))
	same(t, got, append([]byte{1}, make([]byte, 64<<10-1)...))
	ok(t, d.Close())
}

// TestOldRefcountTable: a refcount table that a longer one has replaced belongs to nobody else before the next commit, as one may be about to write to it.
func TestOldRefcountTable(t *testing.T) {
	f := kindOfImage{options: "cluster_size=512,refcount_bits=64"}.template(t, 8<<20)
	d := f.open(t, true).(*Device)
	old := d.refs.tableOff
	p := noise(rand.New(rand.NewPCG(1, 1)), 4096)
	off := int64(0)
	for ; d.refs.tableOff == old; off += 4096 {
		ok(t, d.Write(ctx, p, off, 0))
	}
	if n, err := d.oldCount(ctx, old>>d.clusterBits); err != nil || n != 1 {
		t.Errorf("the old table is used %d times: %v", n, err)
	}
	for range 2 {
		ok(t, d.Write(ctx, p, off, 0))
		ok(t, d.Flush(ctx))
	}
	ok(t, d.Close())
	f.verify(t, "grown")
}
