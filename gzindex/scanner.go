package gzindex

import (
	"io"

	"github.com/imgtool/imgtool/compress/inflate"
)

// ScanOptions for NewScanner.
type ScanOptions struct {
	// Index makes the Scanner build an index. That costs a few percent of time.
	Index bool
	// Span is how many bytes of the image lie between two points, about; 0 means DefaultSpan, and less than 64 KiB means 64 KiB.
	Span int64
	// Limit is how many bytes the index may take in memory; 0 means DefaultLimit. Where it would take more, every second point goes and
	// the span doubles.
	Limit int64
}

const (
	// DefaultSpan is the distance between points, in bytes of the image: decoding as much takes 2 to 4 ms.
	DefaultSpan = 2 << 20
	// DefaultLimit is how much memory an index takes at most, in bytes.
	DefaultLimit = 24 << 20

	minSpan  = 64 << 10
	minLimit = 256 << 10
)

// Slop is how many bytes of room Scanner.Fill needs behind what it writes.
const Slop = inflate.Slop

// A Scanner decodes a gzip file from front to back, all its members. It is used by one goroutine at a time.
type Scanner struct {
	d   decoder
	b   *builder // nil without an index
	id  *identifier
	err error // sticky
}

// NewScanner returns a Scanner of the gzip file that r yields. It reads ahead of what it decodes, in pieces of 256 KiB.
func NewScanner(r io.Reader, o ScanOptions) *Scanner {
	s := &Scanner{}
	if o.Index {
		s.id = newIdentifier(r)
		s.b = newBuilder(o)
		r = s.id
	}
	s.d.start(r, 0, o.Index)
	return s
}

// Fill decodes into buf[at:] and returns how many bytes. buf[:at] holds what came before, at least the last 32 KiB of it where there is as
// much: the caller copies them over when it changes buffers. It returns io.ErrShortBuffer where buf[at:] has no more than Slop bytes;
// else n is at least 1 or there is an error.
//
// io.EOF comes only after the last member's CRC32 and ISIZE were right, as those of all before it, and where nothing but zero bytes
// follows. The first error stays. It is block.ErrNotFormat for what is no gzip file, a *block.CorruptError for a damaged one, with the
// offset in the file, or the reader's own.
func (s *Scanner) Fill(buf []byte, at int) (n int, err error) {
	if len(buf)-at <= Slop {
		return 0, io.ErrShortBuffer
	}
	for s.err == nil && len(buf)-at-n > Slop {
		k := 0
		k, s.err = s.step(buf, at+n)
		n += k
	}
	if n > 0 {
		return n, nil
	}
	return 0, s.err
}

// step enters the next member, or decodes until the buffer is full or something is to be noted.
func (s *Scanner) step(buf []byte, at int) (int, error) {
	if !s.d.open {
		err := s.d.begin()
		if err == io.EOF && s.b != nil {
			s.b.finish(s.id)
		}
		if err == nil && s.b != nil {
			s.b.member(s.d.member)
		}
		return 0, err
	}
	if s.b == nil {
		return s.d.fill(buf, at)
	}
	buf = s.b.room(buf, at)
	n, err := s.d.fill(buf, at)
	if err != nil {
		return n, err
	}
	return n, s.b.add(&s.d, buf[:at+n], n)
}

// Offset returns how many bytes of the file have been taken, about.
func (s *Scanner) Offset() int64 { return s.d.offset() }

// Index returns the index, which is complete after io.EOF; nil without ScanOptions.Index.
func (s *Scanner) Index() *Index {
	if s.b == nil {
		return nil
	}
	return s.b.ix
}
