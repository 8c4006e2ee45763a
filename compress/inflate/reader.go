package inflate

import (
	"bufio"
	"io"
)

const (
	inputSize = 256 << 10 // bytes of the Reader's input buffer
	pieceSize = 256 << 10 // bytes that Next's buffer holds besides the window before them
)

// A Reader decodes forward, from an io.Reader, in bounded memory: about 600 KiB, less for who uses Fill.
//
// Each stream starts with [Reader.Begin] or [Reader.Resume]. Its output is taken with Fill, into the caller's buffers, or with Next and Read, from
// the Reader's own; not with both.
//
// What the input yields is read ahead, up to 256 KiB. An error of the input other than io.EOF is returned as it is.
type Reader struct {
	c     core
	f     Framing
	phase phase
	sum   uint32 // of the output since Begin
	out   int64  // OutputOffset
	err   error  // what Fill, Next and Read return from now on
	stood int64  // if so, the bit up to which data was decoded
	trace int64  // OutputOffset at which Trace was called

	buf    []byte // of Next: buf[:at] was decoded
	at     int
	unread []byte // what Next returned to Read and Read has not passed on
}

type phase uint8

const (
	phaseIdle   phase = iota // before Begin
	phaseStream              // in the data
	phaseEnd                 // behind the trailer
)

// NewReader returns a Reader of what r yields. Its buffers are made when they are needed.
func NewReader(r io.Reader) *Reader {
	z := new(Reader)
	z.Reset(r)
	return z
}

// Reset makes the Reader as new, but for its buffers, which it keeps.
func (z *Reader) Reset(r io.Reader) {
	z.restart(r, 0)
	z.c.marks = false
}

// restart makes the Reader ready for an input of which r yields the bytes from off on.
func (z *Reader) restart(r io.Reader, off int64) {
	c := &z.c
	c.reset()
	c.src, c.err = r, nil
	c.in, c.ip, c.off = c.in[:0], 0, off
	z.phase, z.err = phaseIdle, nil
	z.out = 0
	z.at, z.unread = 0, nil
}

// Begin reads the header of the stream that starts where the input stands: at a byte, after another stream behind its trailer.
//
// The error is io.EOF where the input ends before the first byte, io.ErrUnexpectedEOF where it ends inside the header, and *[Error] with
// Part "header" where this is no header, or has more than 64 KiB of FNAME or FCOMMENT. Raw data has no header, and Begin does not fail.
// Another framing than the three is an error too.
//
// A Header's Extra, Name and Comment are allocated anew, and are the caller's.
func (z *Reader) Begin(f Framing) (Header, error) {
	c := &z.c
	c.align()
	c.reset()
	z.allocateInput()
	z.phase, z.err = phaseIdle, nil
	z.f, z.sum, z.out = f, f.firstSum(), 0
	z.at, z.unread = 0, nil
	switch {
	case f > Gzip:
		return Header{}, errFraming
	case f == Raw:
		z.phase = phaseStream
		return Header{}, nil
	}
	if err := c.atEnd(); err != nil {
		return Header{}, err
	}
	h, err := c.framingHeader(f)
	if err != nil {
		return Header{}, err
	}
	z.phase = phaseStream
	return h, nil
}

func (z *Reader) allocateInput() {
	if cap(z.c.in) == 0 {
		z.c.in = make([]byte, 0, inputSize)
	}
}

func (z *Reader) allocateOutput() {
	if z.buf == nil {
		z.buf = make([]byte, windowSize+pieceSize+Slop)
	}
}

// Fill decodes into buf[at:] and returns how many bytes it has decoded. It returns when fewer than [Slop] bytes are left in buf, at the end of
// the stream, and, with StopAtMarks, where the compressor flushed. What is in buf behind the decoded bytes may be overwritten.
// Over endless empty blocks one call goes on for as long as the input does: who wants to stop it makes the input's Read fail.
//
// buf[:at] holds the output before: all of it, or its last 32768 bytes at least. A caller who changes buffers copies them over.
//
// At the end of the stream the error is io.EOF, and n may be more than 0: the trailer was read, and the checksum and size in it are right.
// Other errors come with n = 0, after all that was decoded before the damage: *[Error], io.ErrUnexpectedEOF where the input ends, what
// the input returns, or io.ErrShortBuffer where at is negative or there are not Slop bytes behind it.
func (z *Reader) Fill(buf []byte, at int) (n int, err error) {
	return z.fill(buf, at, false)
}

func (z *Reader) fill(buf []byte, at int, eager bool) (int, error) {
	switch {
	case z.err != nil:
		return 0, z.err
	case z.phase != phaseStream:
		return 0, errNotBegun
	case at < 0 || len(buf)-at < Slop:
		return 0, io.ErrShortBuffer
	}
	c := &z.c
	c.out, c.op, c.stop = buf, at, len(buf)-Slop
	c.low = int(max(0, int64(at)-z.out))
	c.eager = eager
	if z.out-z.trace >= windowSize {
		c.trace.end()
	}
	c.trace.from = at - int(z.out-z.trace)
	stop, err := c.run()
	n := c.op - at
	c.out = nil
	z.out += int64(n)
	if z.f != Raw {
		z.sum = z.f.sum(z.sum, buf[at:at+n])
	}
	z.stood = c.bitOffset()
	if err != nil && c.block == Between {
		z.stood = c.begin // parts of the header were taken
	}
	if err == nil && stop == stopEnd && (n == 0 || !eager) { // the trailer may have to be waited for
		if err = c.trailer(z.f, z.sum, z.out); err == nil {
			z.phase, err = phaseEnd, io.EOF
		}
	}
	z.err = err
	if n > 0 && err != io.EOF {
		return n, nil
	}
	return n, err
}

// Next returns the next piece of the output, which is valid until the next call of a method other than Point and the offsets. At the end of the
// stream, after the last piece, the error is io.EOF; otherwise errors are those of Fill.
//
// Next does not wait for input while it has output, not even for the trailer. The piece is empty only where StopAtMarks is on, and one mark
// follows another or the input at hand ended before the mark.
func (z *Reader) Next() ([]byte, error) {
	if len(z.unread) > 0 {
		p := z.unread
		z.unread = nil
		return p, nil
	}
	z.allocateOutput()
	if len(z.buf)-z.at < 2*Slop {
		copy(z.buf, z.buf[z.at-windowSize:z.at])
		z.at = windowSize
	}
	n, err := z.fill(z.buf, z.at, true)
	p := z.buf[z.at : z.at+n]
	z.at += n
	if n > 0 {
		return p, nil // io.EOF comes again
	}
	return nil, err
}

// Read implements io.Reader over Next.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(z.unread) == 0 {
		var err error
		if z.unread, err = z.Next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, z.unread)
	z.unread = z.unread[n:]
	return n, nil
}

// Peek returns the next n bytes of the input without taking them, valid until the next call. It works between streams. Where the input
// has fewer, it returns these with io.EOF, or with the input's error; more than 256 KiB are bufio.ErrBufferFull.
func (z *Reader) Peek(n int) ([]byte, error) {
	if z.phase == phaseStream {
		return nil, errInsideStream
	}
	if n > inputSize {
		return nil, bufio.ErrBufferFull
	}
	c := &z.c
	z.allocateInput()
	c.align()
	for len(c.in)-c.ip < n {
		if err := c.more(); err != nil {
			return c.in[c.ip:], err
		}
	}
	return c.in[c.ip : c.ip+n], nil
}

// Discard takes n bytes of the input, between streams. The error is io.EOF where there are fewer, or the input's.
func (z *Reader) Discard(n int) error {
	if z.phase == phaseStream {
		return errInsideStream
	}
	c := &z.c
	z.allocateInput()
	c.align()
	for n > 0 {
		if c.ip == len(c.in) {
			if err := c.more(); err != nil {
				return err
			}
		}
		m := min(n, len(c.in)-c.ip)
		c.ip += m
		n -= m
	}
	return nil
}

// InputOffset returns how many bytes of the input were taken. Between streams it is exact, within one it is where the byte lies that holds the next bit.
// After Resume it counts on from the Point.
func (z *Reader) InputOffset() int64 { return z.c.bitOffset() / 8 }

// OutputOffset returns how many bytes of the stream were decoded: since Begin, whether or not Read has passed them on, or with Point.Out after Resume.
func (z *Reader) OutputOffset() int64 { return z.out }

// StopAtMarks makes Fill and Next return where an empty stored block, which a compressor leaves where it flushes, has been passed (but for the last
// block of a stream). They may then have decoded nothing.
func (z *Reader) StopAtMarks(on bool) { z.c.marks = on }
