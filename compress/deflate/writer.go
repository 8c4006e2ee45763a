package deflate

import (
	"errors"
	"fmt"
	"hash"
	"io"
)

// Writer compresses a stream of any length. It collects 1 MiB of input before it compresses it, with what lies up to Window bytes before as history;
// with its [Encoder] it holds 3 to 6 MiB, at levels 8 and 9 up to 18. Whoever writes the same bytes gets the same stream, however they are spread over calls of Write;
// where Flush is called shows. It is used by one goroutine at a time.
type Writer struct {
	w       io.Writer
	framing Framing
	e       *Encoder
	buf     []byte // history, and from the index from on what waits
	from    int
	out     []byte // the encoder's output, kept for its room
	begun   bool   // the header has been written
	sum     hash.Hash32
	n       int64 // written in all
	err     error
}

var errClosed = errors.New("deflate: the Writer is closed")

// NewWriter returns a Writer to w, or an error where the options are out of range. What is written reaches w at the latest with Flush or Close.
func NewWriter(w io.Writer, f Framing, o Options) (*Writer, error) {
	if f > Gzip {
		return nil, fmt.Errorf("deflate: framing %d is not known", f)
	}
	e, err := NewEncoder(o)
	if err != nil {
		return nil, err
	}
	z := &Writer{framing: f, e: e, buf: make([]byte, 0, e.options.Window+partLen), sum: f.newSum()}
	z.Reset(w)
	return z, nil
}

// Reset makes z write a new stream to w, with the same options.
func (z *Writer) Reset(w io.Writer) {
	z.w, z.err = w, nil
	z.buf, z.from, z.n, z.begun = z.buf[:0], 0, 0, false
	z.e.w.bitWriter = bitWriter{}
	if z.sum != nil {
		z.sum.Reset()
	}
}

// Write adds p to the stream. An error is that of the underlying writer, and stays.
func (z *Writer) Write(p []byte) (n int, err error) {
	if z.err != nil {
		return 0, z.err
	}
	for len(p) > 0 {
		if len(z.buf) == cap(z.buf) {
			if z.encode(false); z.err != nil {
				return n, z.err
			}
		}
		k := copy(z.buf[len(z.buf):cap(z.buf)], p)
		z.buf = z.buf[:len(z.buf)+k]
		if z.sum != nil {
			z.sum.Write(p[:k])
		}
		p = p[k:]
		n += k
		z.n += int64(k)
	}
	return n, nil
}

// Flush writes all there is, so that a reader gets every byte that has been written, and ends on a byte boundary with an empty stored block.
func (z *Writer) Flush() error {
	if z.err != nil {
		return z.err
	}
	z.begin()
	z.e.encode(z.buf, z.from, false)
	z.e.w.sync()
	z.forward()
	return z.err
}

// Close writes all there is and ends the stream. It does not close the underlying writer. A second Close does nothing.
func (z *Writer) Close() error {
	if z.err == errClosed {
		return nil
	}
	if z.err != nil {
		return z.err
	}
	z.encode(true)
	if z.err == nil {
		z.err = errClosed
		return nil
	}
	return z.err
}

// encode compresses what waits.
func (z *Writer) encode(final bool) {
	z.begin()
	z.e.encode(z.buf, z.from, final)
	if final {
		z.e.w.align()
		z.e.w.out = z.framing.appendTrailer(z.e.w.out, z.sum, z.n)
	}
	z.forward()
}

// begin makes the encoder write behind what is left of the byte before.
func (z *Writer) begin() {
	z.e.w.out = z.out[:0]
	if !z.begun {
		z.e.w.out = z.framing.appendHeader(z.e.w.out, z.e.options)
		z.begun = true
	}
}

// forward passes the encoder's output on, and keeps the history.
func (z *Writer) forward() {
	z.out, z.e.w.out = z.e.w.out, nil
	_, z.err = z.w.Write(z.out)
	z.from = copy(z.buf, z.buf[max(0, len(z.buf)-z.e.options.Window):])
	z.buf = z.buf[:z.from]
}
