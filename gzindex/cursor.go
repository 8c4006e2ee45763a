package gzindex

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/inflate"
)

// input reads a file from off on: in the largest pieces until soft, where what is wanted ends, and in small ones beyond.
type input struct {
	ctx  context.Context
	file block.Device
	off  int64
	soft int64
}

const smallRead = 4 << 10

func (in *input) Read(p []byte) (int, error) {
	left := in.file.Size() - in.off
	if left <= 0 {
		return 0, io.EOF
	}
	wanted := in.soft - in.off
	if wanted <= 0 {
		wanted = smallRead
	}
	p = p[:min(int64(len(p)), left, wanted)]
	if err := in.file.Read(in.ctx, p, in.off); err != nil {
		return 0, err
	}
	in.off += int64(len(p))
	return len(p), nil
}

// cursor decodes one span, a piece after another. It is used by one goroutine at a time, and rests between two pieces.
type cursor struct {
	d      decoder
	in     input
	unpack unpacker

	sp   span
	at   int64  // bytes of the span that were returned
	crc  uint32 // of them
	past []byte // the window before at, and what is decoded beyond
	over int    // how much of past that is

	buf []byte // what next returns lies in it
}

// detach leaves what next has returned to the caller.
func (c *cursor) detach() { c.buf = nil }

// cursorSize is about how much memory a cursor takes, in bytes, without the pieces that it decodes.
const cursorSize = 256<<10 + 3*windowLen + 128<<10

// enter makes the cursor begin a span.
func (c *cursor) enter(ctx context.Context, file block.Device, x *Index, sp span) error {
	c.sp, c.at, c.crc, c.over = sp, 0, 0, 0
	c.past = c.past[:0]
	c.in = input{ctx: ctx, file: file, off: sp.bit / 8, soft: min(sp.bitEnd/8+smallRead, file.Size())}
	if sp.kind == atMember {
		c.d.start(&c.in, sp.bit/8, sp.summed)
		c.d.z.StopAtMarks(sp.flushed())
		return nil
	}
	lens, window, err := c.unpack.unpack(&sp.state, x.source)
	if err != nil {
		return err
	}
	c.past = append(c.past, window...)
	err = c.d.resume(&c.in, inflate.Point{In: sp.bit, Out: int64(len(window)), Stored: int(sp.state.left), Final: sp.final,
		Block: sp.kind.block(), NLit: int(sp.state.nlit), Lens: lens})
	c.d.z.StopAtMarks(sp.flushed())
	return sp.blame(err)
}

// next decodes the next n bytes of the span, which has as many. They are valid until the next call, or for good after detach.
func (c *cursor) next(ctx context.Context, n int) ([]byte, error) {
	c.in.ctx = ctx
	before := len(c.past) - c.over
	c.buf = slices.Grow(c.buf[:0], before+n+2*Slop)
	buf := c.buf[:before+n+2*Slop]
	at := copy(buf, c.past)
	for at-before < n {
		k, err := c.step(buf[:before+n+Slop], at)
		if err != nil {
			return nil, err
		}
		at += k
	}
	p := buf[before : before+n : before+n]
	if c.sp.summed {
		c.crc = crc32.Update(c.crc, crc32.IEEETable, p)
	}
	c.at += int64(n)
	c.over = at - before - n
	c.past = append(c.past[:0], buf[max(0, before+n-windowLen):at]...)
	return p, nil
}

// step decodes some bytes, or enters the next member. Where the file ends, the span has not been what it was said to be.
func (c *cursor) step(buf []byte, at int) (int, error) {
	if err := c.in.ctx.Err(); err != nil {
		return 0, err
	}
	if !c.d.open {
		err := c.d.begin()
		if err == io.EOF {
			err = errShortSpan
		}
		return 0, c.sp.blame(err)
	}
	n, err := c.d.fill(buf, at)
	return n, c.sp.blame(err)
}

var (
	errShortSpan = errors.New("the file ends early")
	errPlace     = errors.New("it does not end where the next one begins")
	errSum       = errors.New("its CRC-32 is another")
	errZeros     = errors.New("what should be zero is not")
)

// check returns whether the span, all of which was returned, was what it was said to be.
func (c *cursor) check() error {
	if c.sp.summed && c.crc != c.sp.crc {
		return c.sp.blame(errSum)
	}
	if !c.sp.exact && !c.sp.flushed() {
		return nil
	}
	// No byte more may come before the place where the next span begins.
	if c.over > 0 {
		return c.sp.blame(errPlace)
	}
	buf := make([]byte, len(c.past)+Slop+1)
	copy(buf, c.past)
	for {
		if done, err := c.arrived(); done || err != nil {
			return c.sp.blame(err)
		}
		n, err := c.step(buf, len(c.past))
		if err != nil {
			return err
		}
		if n > 0 {
			return c.sp.blame(errPlace)
		}
	}
}

// arrived reports whether the cursor stands where the next span begins.
func (c *cursor) arrived() (bool, error) {
	if c.d.open {
		at := c.d.bit()
		if at > c.sp.bitEnd {
			return false, errPlace
		}
		return at == c.sp.bitEnd && c.sp.flushed(), nil
	}
	err := c.d.padding()
	if err != nil && err != io.EOF {
		return false, err
	}
	at := c.d.offset() * 8
	if at > c.sp.bitEnd || err == io.EOF && at < c.sp.bitEnd {
		return false, errPlace
	}
	return at == c.sp.bitEnd, nil
}

// blame returns err as one that says which span failed, where the reason may be what is known of the span rather than the file.
func (sp *span) blame(err error) error {
	var damage *block.CorruptError
	if err == nil || errors.As(err, &damage) && damage.Part == "span" {
		return err
	}
	if err != errShortSpan && err != errPlace && err != errSum && err != errZeros && damage == nil && !errors.Is(err, block.ErrNotFormat) {
		return err // of reading
	}
	what := "the index does not fit the file, or the file is damaged"
	if sp.table != "" {
		what = "the file's " + sp.table + " table does not fit it, or it is damaged"
	}
	return block.Corrupt(format, "span", sp.bit/8, "%s: %d bytes from byte %d of the image: %w", what, sp.len, sp.image, err)
}
