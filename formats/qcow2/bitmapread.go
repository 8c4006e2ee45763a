package qcow2

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// bitmapExtents is Extents of a bitmap.
func (d *Device) bitmapExtents(ctx context.Context, name string, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if d.o.Values["snapshot"] != "" {
		return buf, block.ErrorOf(errors.ErrUnsupported, "bitmap %q is not of the snapshot that is shown", name)
	}
	b, err := d.loadBitmaps(ctx)
	if err != nil {
		return buf, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.find(name); err != nil {
		return buf, block.ErrorOf(errors.ErrUnsupported, "%w", err)
	}
	m, err := b.findUsable(name)
	if err == nil && len(m.pages) > 0 {
		if err = b.spill(ctx, m); err == nil {
			m, err = b.findUsable(name) // it may have turned out to be damaged
		}
	}
	if err != nil {
		return buf, err
	}
	s := bitScan{bitmaps: b, m: m}
	return s.extents(ctx, off, n, buf)
}

// scanPiece is about how many bytes of bits one call of Extents reads at most.
const scanPiece = 1 << 20

// bitScan reads the bits of a bitmap in the file.
type bitScan struct {
	*bitmaps
	m     *bitmap
	table []byte // a part of the bitmap table
	first int64  // the entry with which it begins
	bits  []byte
}

// tablePart is how many entries of a bitmap table are read at once.
const tablePart = 512

// entry returns an entry of the bitmap table.
func (s *bitScan) entry(ctx context.Context, i int64) (uint64, error) {
	if k := i - s.first; s.table == nil || k < 0 || k >= int64(len(s.table)/8) {
		s.first = i
		s.table = make([]byte, 8*min(tablePart, int64(s.m.BitmapTableSize)-i))
		if err := s.d.file.Read(ctx, s.table, int64(s.m.BitmapTableOffset)+8*i); err != nil {
			s.table = nil
			return 0, err
		}
	}
	entry := binary.BigEndian.Uint64(s.table[8*(i-s.first):])
	return entry, s.checkEntry(s.m, i, entry)
}

// checkEntry checks entry i of a bitmap table.
func (b *bitmaps) checkEntry(m *bitmap, i int64, entry uint64) error {
	off := int64(entry & ondisk.OffsetMask)
	at := int64(m.BitmapTableOffset) + 8*i
	switch {
	case entry&ondisk.BitmapTableReserved != 0, off != 0 && entry&ondisk.BitmapTableAllOnes != 0, off&(b.d.clusterSize-1) != 0:
		return b.d.corrupt("bitmap table", at, "entry %d is %#x, which cannot be", i, entry)
	case off != 0 && block.CheckRange(off, b.d.clusterSize, b.d.file.Size()) != nil:
		return b.d.corrupt("bitmap table", at, "the bits at byte %d leave the file, which has %d bytes", off, b.d.file.Size())
	}
	return nil
}

func (s *bitScan) extents(ctx context.Context, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	base := len(buf)
	span := s.d.clusterSize * 8 << s.m.GranularityBits // bytes of the disk for which a cluster of bits stands
	for scanned := int64(0); n > 0 && len(buf)-base < extentBatch && scanned < scanPiece; {
		if err := ctx.Err(); err != nil {
			return buf, err
		}
		entry, err := s.entry(ctx, off/span)
		if err != nil {
			return buf, err
		}
		k := min(n, span-off%span)
		if host := int64(entry & ondisk.OffsetMask); host != 0 {
			var read int64
			buf, k, read, err = s.bitExtents(ctx, host, off, k, buf, base)
			scanned += read
		} else {
			buf = block.AppendExtent(buf, base, dirtyExtent(off, k, entry == ondisk.BitmapTableAllOnes))
		}
		if err != nil {
			return buf, err
		}
		off, n = off+k, n-k
	}
	return buf, nil
}

// bitExtents describes the range, or the first part of it, by bits of the cluster at host. It returns how long that is, and how many bytes it read.
func (s *bitScan) bitExtents(ctx context.Context, host, off, n int64, buf []block.Extent, base int) (_ []block.Extent, described, read int64, err error) {
	g := s.m.GranularityBits
	mask := s.d.clusterSize*8 - 1
	bit, end := off>>g&mask, (off+n-1)>>g&mask+1
	start := bit &^ 7
	s.bits = append(s.bits[:0], make([]byte, (end-start+7)/8)...)
	if err := s.d.file.Read(ctx, s.bits, host+start/8); err != nil {
		return buf, 0, 0, err
	}
	first := off &^ (s.d.clusterSize*8<<g - 1) // the byte of the disk for which the cluster begins
	pos := off
	for pos < off+n && len(buf)-base < extentBatch {
		stop := endOfRun(s.bits, bit-start, end-start) + start
		to := off + n
		if stop < end {
			to = first + stop<<g
		}
		buf = block.AppendExtent(buf, base, dirtyExtent(pos, to-pos, bitIsSet(s.bits, bit-start)))
		pos, bit = to, stop
	}
	return buf, pos - off, int64(len(s.bits)), nil
}

func dirtyExtent(off, n int64, dirty bool) block.Extent {
	e := block.Extent{Off: off, Len: n}
	if dirty {
		e.Flags = block.ExtDirty
	}
	return e
}
