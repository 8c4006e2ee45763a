package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// fuzzed are the images that fuzz tests begin with.
func fuzzed(f *testing.F, size int64) []files {
	var list []files
	for _, k := range []kindOfImage{
		{options: "cluster_size=512"},
		{options: "compat=0.10,cluster_size=1k", backing: 100 << 10},
		{options: "cluster_size=16k,extended_l2=on", backing: 150 << 10},
		{options: "cluster_size=4k,refcount_bits=1"},
		{options: "cluster_size=4k,data_file=data", dataFile: true},
		{options: "cluster_size=2k,refcount_bits=64,compression_type=zstd"},
	} {
		list = append(list, k.template(f, size))
	}
	return list
}

// FuzzOpen changes tables and headers of images, and uses them: nothing may panic, or take for ever.
func FuzzOpen(f *testing.F) {
	const size = 200 << 10
	list := fuzzed(f, size)
	for _, g := range list { // with something in them
		d := g.open(f, true)
		ok(f, d.Write(ctx, bytes.Repeat([]byte("data "), 5000), 3000, 0))
		ok(f, d.Zero(ctx, 60000, 30000, 0))
		ok(f, d.Close())
	}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), []byte{0, 20, 0, 0, 0, 0, 63})
	f.Add(uint8(2), []byte{2, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 3, 8, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9})
	f.Fuzz(func(t *testing.T, kind uint8, script []byte) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		g := list[int(kind)%len(list)].clone()
		mutate(t, g.image, script)
		for _, write := range []bool{false, true} {
			d, err := Open(ctx, block.NoClose(g.image), formats.OpenOptions{Write: write, Refer: g.refer, Memory: 1 << 20})
			if err != nil {
				continue
			}
			use(ctx, d, write)
			d.Close()
			if ctx.Err() != nil {
				t.Fatal("too slow")
			}
		}
	})
}

// mutate changes 8 bytes at places that script chooses.
func mutate(t *testing.T, m *block.Memory, script []byte) {
	h, err := ondisk.ReadHeader(ctx, m)
	ok(t, err)
	const step = 11
	for ; len(script) > 0; script = script[min(step, len(script)):] {
		var p [step]byte
		copy(p[:], script)
		var off int64
		switch p[0] % 6 {
		case 1:
			off = int64(h.L1TableOffset)
		case 2:
			off = int64(get64m(m, h.L1TableOffset) & ondisk.OffsetMask)
		case 3:
			off = int64(h.RefcountTableOffset)
		case 4:
			off = int64(get64m(m, h.RefcountTableOffset))
		}
		off += int64(binary.LittleEndian.Uint16(p[1:])) &^ 3
		if off < 0 || off > m.Size()-8 {
			continue
		}
		ok(t, m.Write(ctx, p[3:], off, 0))
	}
}

func get64m(m *block.Memory, off uint64) uint64 {
	var p [8]byte
	if m.Read(ctx, p[:], int64(off)) != nil {
		return 0
	}
	return binary.BigEndian.Uint64(p[:])
}

// use does a bit of everything with a device; errors are its right.
func use(ctx context.Context, d block.Device, write bool) {
	var list []block.Extent
	var err error
	for off, calls := int64(0), 0; off < d.Size() && calls < 100; calls++ {
		if list, err = d.Extents(ctx, block.Map{}, off, d.Size()-off, list[:0]); err != nil {
			break
		}
		off = list[len(list)-1].End()
	}
	p := make([]byte, 20000)
	for off := int64(0); off <= d.Size()-int64(len(p)) && off < 1<<20; off += int64(len(p)) {
		d.Read(ctx, p, off)
	}
	if !write {
		return
	}
	for i, off := range []int64{0, 5000, 64 << 10, 150 << 10, d.Size() - int64(len(p))} {
		if off < 0 || off > d.Size()-int64(len(p)) {
			continue
		}
		switch i % 3 {
		case 0:
			d.Write(ctx, p[:1+i*4000], off, 0)
		case 1:
			d.Zero(ctx, off, 10000, 0)
		default:
			d.Discard(ctx, off, 20000)
		}
		d.Flush(ctx)
	}
	d.Resize(ctx, d.Size()+100000)
	d.Resize(ctx, max(0, min(d.Size(), 1<<20)-150000))
}

// FuzzDrive lets a script choose what is done to an image, and compares with a model.
func FuzzDrive(f *testing.F) {
	const size = 200 << 10
	list := fuzzed(f, size)
	f.Add(uint8(0), []byte("some operations, whatever they are"))
	f.Add(uint8(2), bytes.Repeat([]byte{1, 7, 33, 99, 250, 4, 0, 180}, 20))
	f.Fuzz(func(t *testing.T, kind uint8, script []byte) {
		g := list[int(kind)%len(list)].clone()
		d := g.open(t, true)
		if err := blocktest.Drive(ctx, blocktest.Config{Size: size, Content: g.content(size)}, d, script[:min(len(script), 4000)]); err != nil {
			t.Fatal(err)
		}
		ok(t, d.Close())
		res, err := check.Check(ctx, g.image, formats.CheckOptions{})
		if err != nil || res.Leaks+res.Corruptions+res.CheckErrors > 0 {
			t.Fatalf("check: %+v, %v", res, err)
		}
	})
}
