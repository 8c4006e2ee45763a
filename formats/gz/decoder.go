package gz

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"

	"github.com/imgtool/imgtool/block"
)

// decoder decodes the members of a gzip file one after another and knows where in the file it is.
type decoder struct {
	base int64 // where src began in the file
	src  counter
	in   *bufio.Reader
	z    *gzip.Reader
	open bool  // a member has begun
	err  error // sticky
	out  int64 // bytes decoded

	started func(fileOff, out int64) // where set, told where each member begins in the file and in what is decoded
}

// counter counts what is read through it.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// newDecoder returns a decoder of r, whose first byte is the one at base of the file and where a member begins.
func newDecoder(r io.Reader, base int64) *decoder {
	d := &decoder{base: base, src: counter{r: r}}
	d.in = bufio.NewReaderSize(&d.src, 256<<10)
	return d
}

// offset returns where in the file the decoder is.
func (d *decoder) offset() int64 { return d.base + d.src.n - int64(d.in.Buffered()) }

// Read implements io.Reader. io.EOF comes only after the last member's checksum was right. What follows the last member must be zero bytes,
// with which tapes and devices pad.
func (d *decoder) Read(p []byte) (int, error) {
	for d.err == nil {
		if !d.open {
			if d.err = d.next(); d.err != nil {
				break
			}
		}
		n, err := d.z.Read(p)
		if err == io.EOF {
			d.open, err = false, nil
		} else if err != nil {
			d.err = d.corrupt(err)
		}
		if n > 0 {
			d.out += int64(n)
			return n, nil
		}
	}
	return 0, d.err
}

// next begins the next member.
func (d *decoder) next() error {
	start := d.offset()
	first := d.z == nil
	if !first {
		if done, err := d.padding(); done || err != nil {
			if err == nil {
				err = io.EOF
			}
			return err
		}
		start = d.offset()
	}
	var err error
	if first {
		d.z, err = gzip.NewReader(d.in)
	} else {
		err = d.z.Reset(d.in)
	}
	switch {
	case err == io.EOF, err == io.ErrUnexpectedEOF:
		return block.Corrupt(Name, "header", start, "%w", io.ErrUnexpectedEOF)
	case errors.Is(err, gzip.ErrHeader) && first:
		return block.ErrNotFormat
	case errors.Is(err, gzip.ErrHeader):
		return block.Corrupt(Name, "file", start, "what follows the last member is neither a member nor padding")
	case err != nil:
		return err
	}
	d.z.Multistream(false)
	d.open = true
	if d.started != nil {
		d.started(start, d.out)
	}
	return nil
}

// padding skips zero bytes and reports whether the file ends with them.
func (d *decoder) padding() (bool, error) {
	for {
		p, err := d.in.Peek(1)
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		if p[0] != 0 {
			return false, nil
		}
		p, _ = d.in.Peek(d.in.Buffered())
		n := len(p) - len(bytes.TrimLeft(p, "\x00"))
		if _, err := d.in.Discard(n); err != nil {
			return false, err
		}
	}
}

// corrupt says where the decoder was when err came.
func (d *decoder) corrupt(err error) error {
	var data flate.CorruptInputError
	switch {
	case errors.Is(err, gzip.ErrChecksum):
		return block.Corrupt(Name, "trailer", d.offset()-trailerLen, "CRC32 or ISIZE does not fit the content")
	case err == io.ErrUnexpectedEOF, err == io.EOF:
		return block.Corrupt(Name, "DEFLATE data", d.offset(), "the file is truncated: %w", io.ErrUnexpectedEOF)
	case errors.As(err, &data):
		return block.Corrupt(Name, "DEFLATE data", d.offset(), "not a valid code")
	}
	return err
}

// stream is the content of a gzip file as a block.Stream.
type stream struct {
	d   *decoder
	buf []byte
}

// Size is not known: ISIZE is modulo 2^32, of the last member, and at the end.
func (s *stream) Size() (int64, bool) { return 0, false }

// Next implements block.Stream.
func (s *stream) Next(ctx context.Context) (block.Run, error) {
	n := 0
	for n < len(s.buf) {
		if err := ctx.Err(); err != nil {
			return block.Run{}, err
		}
		k, err := s.d.Read(s.buf[n:])
		n += k
		if err != nil {
			if n > 0 && err == io.EOF {
				break // again at the next call
			}
			return block.Run{}, err
		}
	}
	if block.IsZero(s.buf[:n]) {
		return block.Run{Len: int64(n), Zero: true}, nil
	}
	return block.Run{Len: int64(n), Data: s.buf[:n]}, nil
}

// Close implements block.Stream.
func (s *stream) Close() error { return nil }
