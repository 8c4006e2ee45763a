package gz

import (
	"context"
	"io"
	"os"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzindex"
)

const (
	history   = 32 << 10 // how far back DEFLATE refers, bytes
	ahead     = 4        // buffers that are decoded before they are asked for
	maxPiece  = 1 << 20  // bytes of a buffer
	minPiece  = 64 << 10
	zeroPiece = 64 << 10 // the shortest run of zeros that is told as one
)

// stream is the content of a gzip file as a block.Stream. A goroutine of its own decodes ahead.
type stream struct {
	scan *gzindex.Scanner
	done func(*gzindex.Index) error // called with the index at the end; nil for none
	size int                        // bytes of a piece

	started bool
	pieces  chan piece
	free    chan []byte
	stop    context.CancelFunc
	err     error // sticky

	piece piece  // whose bytes are being given
	rest  []byte // of them
}

// piece is a buffer: the history, the bytes that follow it, and room for the decoder.
type piece struct {
	buf  []byte
	data []byte // in buf
	err  error  // after data
}

// newStream returns the content of r. memory bounds its buffers, 0 means as large as is useful. done is given the index, which o must ask for, once
// all was read; the stream fails where it does.
func newStream(r io.Reader, memory int64, o gzindex.ScanOptions, done func(*gzindex.Index) error) *stream {
	s := &stream{scan: gzindex.NewScanner(r, o), done: done, size: maxPiece}
	if memory > 0 {
		s.size = int(max(minPiece, min(maxPiece, memory/ahead)))
	}
	return s
}

// Size is not known: ISIZE is modulo 2^32, of the last member, and at the end.
func (s *stream) Size() (int64, bool) { return 0, false }

// Next implements block.Stream.
func (s *stream) Next(ctx context.Context) (block.Run, error) {
	if !s.started {
		s.start()
	}
	for len(s.rest) == 0 {
		if s.piece.buf != nil {
			s.free <- s.piece.buf
			s.piece.buf = nil
		}
		if s.err != nil {
			return block.Run{}, s.err
		}
		select {
		case p, ok := <-s.pieces:
			if !ok {
				return block.Run{}, os.ErrClosed
			}
			s.piece, s.rest, s.err = p, p.data, p.err
		case <-ctx.Done():
			return block.Run{}, ctx.Err()
		}
	}
	return s.run(), nil
}

// run takes what is alike from the front of s.rest: zeros, or data.
func (s *stream) run() block.Run {
	zero, n := false, 0
	for n < len(s.rest) {
		k := min(n+zeroPiece, len(s.rest))
		if z := block.IsZero(s.rest[n:k]); n == 0 {
			zero = z
		} else if z != zero {
			break
		}
		n = k
	}
	r := block.Run{Len: int64(n), Zero: zero, Data: s.rest[:n]}
	if zero {
		r.Data = nil
	}
	s.rest = s.rest[n:]
	return r
}

// start lets the decoder run.
func (s *stream) start() {
	s.started = true
	s.pieces, s.free = make(chan piece), make(chan []byte, ahead)
	for range ahead {
		s.free <- nil
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go s.decode(ctx)
}

// decode sends the whole content, and an error after it.
func (s *stream) decode(ctx context.Context) {
	defer close(s.pieces)
	var last []byte // what was decoded before, as far as it can be referred to
	for {
		var buf []byte
		select {
		case buf = <-s.free:
		case <-ctx.Done():
			return
		}
		if buf == nil {
			buf = make([]byte, history+s.size+gzindex.Slop)
		}
		begin := copy(buf, last)
		end, err := s.fill(ctx, buf, begin)
		last = buf[max(0, end-history):end]
		select {
		case s.pieces <- piece{buf, buf[begin:end], err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// fill decodes until buf is full, and returns where the bytes in it end. At the end of the file it hands over the index.
func (s *stream) fill(ctx context.Context, buf []byte, at int) (int, error) {
	for len(buf)-at > gzindex.Slop {
		if err := ctx.Err(); err != nil {
			return at, err
		}
		n, err := s.scan.Fill(buf, at)
		at += n
		if err == io.EOF && s.done != nil {
			if failed := s.done(s.scan.Index()); failed != nil {
				err = failed
			}
		}
		if err != nil {
			return at, err
		}
	}
	return at, nil
}

// Close implements block.Stream. It waits for a read of the file that is under way.
func (s *stream) Close() error {
	if s.started {
		s.stop()
		for range s.pieces { // until the decoder has seen it
		}
	}
	return nil
}
