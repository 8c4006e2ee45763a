package gzipmod

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"sync"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/crcmath"
	"github.com/imgtool/imgtool/segment"
)

// PlanStream returns a file of what src yields, whose size may be unknown and in which nothing is kept. The index is written when all is
// known, into room that was left for it; an output that cannot seek is a plain gzip file. The plan is written once, and ctx bounds its reading of src.
func PlanStream(ctx context.Context, src block.Stream, o Options) (*segment.Plan, error) {
	level, err := o.level()
	if err != nil {
		return nil, err
	}
	w := &streamWriter{fileWriter: fileWriter{Layout: &Layout{ChunkSize: minChunk, headerLen: maxHeader}, level: level}, ctx: ctx, src: src}
	work, _ := src.Size()
	return &segment.Plan{
		Work:   work,
		Buffer: 2 * minChunk,
		Segments: func(yield func(segment.Segment, error) bool) {
			w.yield = yield
			header := gzipHeader(mtime(o.ModTime))
			header = binary.LittleEndian.AppendUint16(header, maxHeader-subfieldOff)
			if !yield(segment.Segment{Bytes: appendPadding(header, maxHeader)}, nil) {
				return
			}
			if err := w.run(); err == errStopped {
				return
			} else if err != nil {
				yield(segment.Segment{}, err)
				return
			}
			yield(segment.Segment{Late: w.tail}, nil)
		},
		Patches: func() ([]segment.Patch, error) {
			if !w.Complete { // more data than any index can list
				return nil, nil
			}
			index := w.marshalIndex()
			p := binary.LittleEndian.AppendUint16([]byte(subfieldID), uint16(len(index)))
			return []segment.Patch{{Off: subfieldOff, Bytes: appendPadding(append(p, index...), maxHeader-subfieldOff)}}, nil
		},
	}, nil
}

// appendPadding appends a subfield that holds nothing, so that p has n bytes. There is room for its header, or no room to fill.
func appendPadding(p []byte, n int) []byte {
	if len(p) == n {
		return p
	}
	p = append(p, paddingID...)
	p = binary.LittleEndian.AppendUint16(p, uint16(n-len(p)-2))
	return append(p, make([]byte, n-len(p))...)
}

// errStopped: the plan's reader wants no more segments.
var errStopped = errors.New("no more segments are wanted")

// streamWriter makes the segments of a file whose regions are found on the way.
type streamWriter struct {
	fileWriter
	ctx     context.Context
	src     block.Stream
	yield   func(segment.Segment, error) bool
	buffers sync.Pool // of *[minChunk]byte

	regions []streamRegion
	off     int64           // in the image, of what follows the regions
	zeros   int64           // that are still to be written, as a hole or as data
	data    *[minChunk]byte // the chunk that is being filled
	filled  int
}

// streamRegion is a region whose chunks are not all placed yet.
type streamRegion struct {
	kind   Kind
	len    int64
	chunks []*Chunk // the writer fills them in
}

// run reads the stream to its end.
func (w *streamWriter) run() error {
	for {
		r, err := w.src.Next(w.ctx)
		switch {
		case err == io.EOF:
			if err := w.endZeros(); err != nil {
				return err
			}
			return w.endChunk()
		case err != nil:
			return err
		case r.Zero:
			w.zeros += r.Len
			continue
		}
		for p := r.Data; len(p) > 0; {
			n := min(len(p), minHole)
			if block.IsZero(p[:n]) {
				w.zeros += int64(n)
			} else if err := w.put(p[:n]); err != nil {
				return err
			}
			p = p[n:]
		}
	}
}

// holeRegions is after how many holes only longer ones become regions of their own, so that the index has room for them.
const holeRegions = 50

// endZeros writes the zeros that have come together: as a hole where they are many, else as data.
func (w *streamWriter) endZeros() error {
	shortest := int64(minHole) << min(len(w.regions)/holeRegions, 40)
	n := w.zeros
	w.zeros = 0
	if n < shortest {
		zero := make([]byte, min(n, minHole))
		for ; n > 0; n -= int64(len(zero)) {
			if err := w.append(zero[:min(n, int64(len(zero)))]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := w.endChunk(); err != nil {
		return err
	}
	w.regions = append(w.regions, streamRegion{kind: Hole, len: n})
	w.off += n
	if !eachHoleSegment(n, func(s segment.Segment) bool { return w.yield(s, nil) }) {
		return errStopped
	}
	return nil
}

// put adds data, after the zeros before it.
func (w *streamWriter) put(p []byte) error {
	if err := w.endZeros(); err != nil {
		return err
	}
	return w.append(p)
}

// append adds to the chunk that is being filled.
func (w *streamWriter) append(p []byte) error {
	for len(p) > 0 {
		if w.data == nil {
			w.data, _ = w.buffers.Get().(*[minChunk]byte)
			if w.data == nil {
				w.data = new([minChunk]byte)
			}
		}
		room := int(minChunk - w.off%minChunk)
		n := copy(w.data[w.filled:room], p)
		w.filled += n
		p = p[n:]
		if w.filled == room {
			if err := w.endChunk(); err != nil {
				return err
			}
		}
	}
	return nil
}

// endChunk yields the chunk that is being filled, if there is one.
func (w *streamWriter) endChunk() error {
	if w.filled == 0 {
		return nil
	}
	data, n := w.data, w.filled
	w.data, w.filled = nil, 0
	if k := len(w.regions); k == 0 || w.regions[k-1].kind != Data {
		w.regions = append(w.regions, streamRegion{kind: Data})
	}
	c := new(Chunk)
	r := &w.regions[len(w.regions)-1]
	r.len += int64(n)
	w.off += int64(n)
	r.chunks = append(r.chunks, c)
	if !w.yield(segment.Segment{
		Work: int64(n),
		Fill: func(_ context.Context, buf []byte) ([]byte, error) {
			defer w.buffers.Put(data)
			pk, err := w.packer()
			if err != nil {
				return nil, err
			}
			defer w.packers.Put(pk)
			c.CRC = crc32.ChecksumIEEE(data[:n])
			return pk.pack(buf, data[:n]), nil
		},
		Placed: func(_, fileLen int64) { c.FileLen = uint32(fileLen) },
	}, nil) {
		return errStopped
	}
	return nil
}

// tail makes the layout of what was found, and returns what ends the file.
func (w *streamWriter) tail() ([]byte, error) {
	l := w.Layout
	for _, s := range w.regions {
		r := Region{Kind: s.kind, Off: l.Size, Len: s.len, chunk: len(l.Chunks)}
		if s.kind == Hole {
			r.CRC = crcmath.Zeros(s.len)
		}
		for k, c := range s.chunks {
			_, n := l.chunkRange(r, k)
			r.CRC = crcmath.Combine(r.CRC, c.CRC, n)
			l.Chunks = append(l.Chunks, *c)
		}
		l.Regions = append(l.Regions, r)
		l.Size = r.End()
	}
	// Between the index and the end of the header lies nothing, or a subfield with a header of its own.
	for fits := func(n int64) bool { return n == maxIndex || n <= maxIndex-subfieldHeader }; !fits(indexLen(int64(len(l.Regions)), int64(len(l.Chunks)))); {
		if l.ChunkSize == maxChunk || indexLen(int64(len(l.Regions)), 0) > maxIndex/2 {
			return marshalTail(l.CRC(), l.Size), nil
		}
		l.coarsen()
	}
	if err := l.place(); err != nil {
		return nil, err
	}
	l.Complete = true
	return marshalTail(l.CRC(), l.Size), nil
}
