package plan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/segment"
)

// NewStream returns an image of what src yields, all of which counts as its own layer. The disk has o.Size bytes, or as many as the stream where
// o.Size is negative; a stream that turns out longer than o.Size is an error. It needs an output that can be written at any place:
// o.OneWay gives errors.ErrUnsupported. The plan is written once, and ctx bounds its reading of src.
func NewStream(ctx context.Context, src block.Stream, o formats.CreateOptions, opts Options) (*segment.Plan, error) {
	if o.OneWay {
		return nil, block.WithHint(block.ErrorOf(errors.ErrUnsupported,
			"the image begins with what is known when its source has ended: it is not written from a pipe to a pipe"), "save the source, or the image, to a file")
	}
	size, known := src.Size()
	if !known || o.Size > size {
		size = max(o.Size, -1)
	}
	g, err := opts.resolve(size, o.Compress)
	if err != nil {
		return nil, err
	}
	if g.DataFile != "" {
		return nil, errDataFile
	}
	s := &streamed{geometry: g, src: src}
	w := newWriter(ctx, g, nil)
	w.runs = func() iter.Seq2[*run, error] { return s.runs(ctx) }
	w.recycle = func(p []byte) { s.buffers.Put(&p) }
	p := w.plan()
	p.Buffer += g.runLen(nil) // as it comes
	return p, nil
}

// streamed makes runs of a stream.
type streamed struct {
	*geometry
	src     block.Stream
	buffers sync.Pool // of *[]byte
	yield   func(*run, error) bool

	off     int64  // where the next byte of the stream goes
	sent    int64  // bytes of the disk that have been dealt with
	covered int64  // bytes of the disk that runs have counted as work
	buf     []byte // of the run in which off lies, from its start on; nil where there are only zeros yet
}

// errStopped: the plan's reader wants no more runs.
var errStopped = errors.New("no more runs are wanted")

// runs reads the stream to its end.
func (s *streamed) runs(ctx context.Context) iter.Seq2[*run, error] {
	return func(yield func(*run, error) bool) {
		s.yield = yield
		if err := s.readAll(ctx); err != nil && err != errStopped {
			yield(nil, err)
		}
	}
}

func (s *streamed) readAll(ctx context.Context) error {
	for {
		r, err := s.src.Next(ctx)
		if err == io.EOF {
			return s.end()
		}
		if err != nil {
			return err
		}
		end, ok := block.Add(s.off, r.Len)
		switch {
		case !ok || !r.Zero && r.Len != int64(len(r.Data)):
			return fmt.Errorf("run of %d bytes at byte %d, of which %d are there", r.Len, s.off, len(r.Data))
		case s.size >= 0 && end > s.size:
			return fmt.Errorf("the source is longer than the %d bytes of the disk", s.size)
		}
		if err := s.checkSize(end); err != nil {
			return err
		}
		if r.Zero {
			err = s.zeros(r.Len)
		} else {
			err = s.bytes(r.Data)
		}
		if err != nil {
			return err
		}
	}
}

// bytes adds data.
func (s *streamed) bytes(p []byte) error {
	length := s.runLen(nil)
	for len(p) > 0 {
		in := s.off % length
		if s.buf == nil {
			if b, ok := s.buffers.Get().(*[]byte); ok {
				s.buf = (*b)[:in]
				clear(s.buf)
			} else {
				s.buf = make([]byte, in, length)
			}
		}
		n := min(length-in, int64(len(p)))
		s.buf = append(s.buf, p[:n]...)
		p = p[n:]
		s.off += n
		if in+n == length {
			if err := s.send(s.off); err != nil {
				return err
			}
		}
	}
	return nil
}

// zeros adds n zeros.
func (s *streamed) zeros(n int64) error {
	length := s.runLen(nil)
	for n > 0 {
		in := s.off % length
		k := min(n, length-in)
		switch {
		case s.buf != nil:
			s.buf = append(s.buf, make([]byte, k)...)
		case in == 0 && n > length:
			k = min(block.RoundDown(n, length), s.batch()-s.off%s.batch())
		}
		s.off, n = s.off+k, n-k
		if s.off%length == 0 {
			if err := s.send(s.off); err != nil {
				return err
			}
		}
	}
	return nil
}

// end completes the disk.
func (s *streamed) end() error {
	if s.size > s.off {
		if err := s.zeros(s.size - s.off); err != nil {
			return err
		}
	}
	s.size, _ = block.RoundUp(s.off, ondisk.SectorSize) // it is inside the limits, which are sectors
	return s.send(s.off)
}

// send yields what has come since the last run, up to end: data, or zeros in whole runs unless the disk ends.
func (s *streamed) send(end int64) error {
	start, length := s.sent, s.runLen(nil)
	s.sent = end
	if s.buf != nil {
		p := s.buf
		s.buf = nil
		return s.run(start, end, data, p)
	}
	k := s.kindOf(block.Extent{Flags: block.ExtZero})
	switch {
	case k == data || s.prealloc == formats.PreallocFull: // to be written
		for off := start; off < end; off += length {
			if err := s.run(off, min(off+length, end), k, []byte{}); err != nil {
				return err
			}
		}
	case start < end && s.listed(k):
		return s.run(start, end, k, nil)
	}
	return nil
}

// run yields a run of one kind. Where p is set it is filled from there.
func (s *streamed) run(start, end int64, k kind, p []byte) error {
	r := &run{first: start / s.ClusterSize, work: end - s.covered, kind: k, source: p}
	r.n = (end+s.ClusterSize-1)/s.ClusterSize - r.first
	s.covered = end
	if p != nil {
		r.units = slices.Repeat([]kind{k}, int(r.n*s.ClusterSize/s.unit()))
	}
	if !s.yield(r, nil) {
		return errStopped
	}
	return nil
}
