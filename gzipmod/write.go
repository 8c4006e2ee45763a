package gzipmod

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/deflate"
	"github.com/imgtool/imgtool/internal/crcmath"
	"github.com/imgtool/imgtool/segment"
)

// storedBatch is how much of a kept range one worker turns into stored blocks at a time.
const storedBatch = 16 * StoredLen

// Plan returns the file as segments. They read src, which must not change, and fill in the layout; it is complete when the plan is
// written. A layout is planned once.
func (l *Layout) Plan(src block.Device, o Options) (*segment.Plan, error) {
	level, err := o.level()
	if err != nil {
		return nil, err
	}
	w := &fileWriter{Layout: l.fine(), whole: l, src: src, level: level}
	header := l.marshalHeader(mtime(o.ModTime))
	return &segment.Plan{
		Work:   l.Size,
		Buffer: 2 * minChunk, // as it is read, and as it is written
		Segments: func(yield func(segment.Segment, error) bool) {
			if !yield(segment.Segment{Bytes: header}, nil) {
				return
			}
			for i := range w.Regions {
				if !w.region(i, yield) {
					return
				}
			}
			yield(segment.Segment{Late: w.tail}, nil)
		},
		Patches: func() ([]segment.Patch, error) {
			return []segment.Patch{{Off: indexOff, Bytes: l.marshalIndex()}}, nil
		},
	}, nil
}

// level returns the effort of compression.
func (o Options) level() (int, error) {
	if o.Level == 0 {
		return DefaultLevel, nil
	}
	if o.Level < deflate.MinLevel || o.Level > deflate.MaxLevel {
		return 0, fmt.Errorf("compression level %d is not in %d to %d", o.Level, deflate.MinLevel, deflate.MaxLevel)
	}
	return o.Level, nil
}

// mtime returns t for MTIME, 0 where it does not fit.
func mtime(t time.Time) uint32 {
	if s := t.Unix(); !t.IsZero() && s > 0 && s <= 1<<32-1 {
		return uint32(s)
	}
	return 0
}

// fileWriter makes the segments of a file.
type fileWriter struct {
	*Layout         // the fine one
	whole   *Layout // the planned one, which is filled in at the end
	src     block.Device
	level   int
	packers sync.Pool
}

// region yields the segments of region i.
func (w *fileWriter) region(i int, yield func(segment.Segment, error) bool) bool {
	// The writer sets CRC while the segments of the region are still being made here.
	r, crc := w.Regions[i], &w.Regions[i].CRC
	switch r.Kind {
	case Hole:
		*crc = crcmath.Zeros(r.Len)
		return eachHoleSegment(r.Len, func(s segment.Segment) bool { return yield(s, nil) })
	case Kept:
		for off := r.Off; off < r.End(); off += storedBatch {
			if !yield(w.stored(r, crc, off, min(storedBatch, r.End()-off)), nil) {
				return false
			}
		}
		return true
	}
	for k := range w.chunks(r) {
		if !yield(w.chunk(r, crc, k), nil) {
			return false
		}
	}
	return true
}

// eachHoleSegment yields the segments of a hole of n bytes.
func eachHoleSegment(n int64, yield func(segment.Segment) bool) bool {
	z := deflate.Zeros(n)
	return (len(z.Prefix) == 0 || yield(segment.Segment{Bytes: z.Prefix})) &&
		(z.Middle == 0 || yield(segment.Segment{Zeros: z.Middle})) &&
		yield(segment.Segment{Bytes: z.Suffix, Work: n})
}

// chunk returns the segment of chunk k of a Data region, which adds its CRC to sum.
func (w *fileWriter) chunk(r Region, sum *uint32, k int) segment.Segment {
	c := &w.Chunks[r.chunk+k]
	off, n := w.chunkRange(r, k)
	return segment.Segment{
		Work: n,
		Fill: func(ctx context.Context, buf []byte) ([]byte, error) {
			pk, err := w.packer()
			if err != nil {
				return nil, err
			}
			defer w.packers.Put(pk)
			p := pk.room(int(n))
			if err := w.src.Read(ctx, p, off); err != nil {
				return nil, err
			}
			c.CRC = crc32.ChecksumIEEE(p)
			return pk.pack(buf, p), nil
		},
		Placed: func(_, fileLen int64) {
			c.FileLen = uint32(fileLen)
			*sum = crcmath.Combine(*sum, c.CRC, n)
		},
	}
}

func (w *fileWriter) packer() (*packer, error) {
	if pk, ok := w.packers.Get().(*packer); ok {
		return pk, nil
	}
	return newPacker(w.level)
}

// stored returns the segment of the stored blocks that hold n bytes from off of a kept region, which adds their CRC to sum.
func (w *fileWriter) stored(r Region, sum *uint32, off, n int64) segment.Segment {
	var crc uint32
	return segment.Segment{
		Work: n,
		Fill: func(ctx context.Context, buf []byte) ([]byte, error) {
			for left := n; left > 0; {
				k := min(left, StoredLen)
				buf = appendStoredHeader(buf, int(k))
				at := len(buf)
				buf = append(buf, make([]byte, k)...)
				if err := w.src.Read(ctx, buf[at:], off+n-left); err != nil {
					return nil, err
				}
				crc = crc32.Update(crc, crc32.IEEETable, buf[at:])
				left -= k
			}
			return buf, nil
		},
		Placed: func(int64, int64) { *sum = crcmath.Combine(*sum, crc, n) },
	}
}

// appendStoredHeader appends the header of a stored block of n bytes that starts on a byte boundary and is not final.
func appendStoredHeader(buf []byte, n int) []byte {
	return append(buf, 0, byte(n), byte(n>>8), ^byte(n), ^byte(n>>8))
}

// tail completes the layout and returns what ends the file.
func (w *fileWriter) tail() ([]byte, error) {
	if err := w.whole.complete(w.Layout); err != nil {
		return nil, err
	}
	return marshalTail(w.whole.CRC(), w.whole.Size), nil
}

// marshalTail returns the final block, CRC32 and ISIZE.
func marshalTail(crc uint32, size int64) []byte {
	p := binary.LittleEndian.AppendUint32([]byte(finalBlock), crc)
	return binary.LittleEndian.AppendUint32(p, uint32(size))
}
