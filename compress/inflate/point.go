package inflate

import (
	"bytes"
	"errors"
	"io"
)

// A Point is a place between two symbols of a stream, at which decoding can resume.
type Point struct {
	In     int64     // of the next bit, counted in bits from where the Reader's input began
	Out    int64     // bytes decoded before it, counted from Begin
	Stored int       // bytes that are left of the stored block in which the point lies, 1 to 65535; else 0
	Final  bool      // BFINAL of the block in which the point lies; of one Between blocks: the data has ended
	Block  BlockType // in what the point lies
	NLit   int       // Dynamic: how many of Lens are of the literal/length code, HLIT+257
	Lens   []byte    // Dynamic: the code lengths as they came, NLit and then HDIST+1 of the distance code
}

var (
	errPointOffset = errors.New("offset out of range")
	errPointStored = errors.New("not a place in a stored block")
	errPointLens   = errors.New("not the code lengths of a dynamic block")
	errPointBlock  = errors.New("unknown type of block")
)

// Point returns where the Reader stands: at the end of all that it has decoded, some of which Read may not have passed on yet. It is valid
// after Begin, and after Fill, Next and Read have returned. Behind the end of the stream it is where its data ends, before the trailer, and
// where the stream is damaged it is before the block header or symbol that is not good.
func (z *Reader) Point() Point {
	c := &z.c
	p := Point{In: c.bitOffset(), Out: z.out, Final: c.final, Block: c.block}
	if z.err != nil {
		p.In = z.stood
	}
	switch c.block {
	case Stored:
		p.Stored = c.stored
	case Dynamic:
		p.NLit = c.nlit
		p.Lens = bytes.Clone(c.lens[:c.nlit+c.ndist])
	}
	return p
}

// Resume goes on at p. r yields the input from byte p.In/8 on, the one that holds the next bit, and offsets count on from the point's.
//
// window is the output before p, at most its last 32768 bytes, for Next and Read; less is enough where the stream refers to less. A caller of
// Fill brings it in his buffer instead.
//
// The stream is taken as Raw: it has no checksum that could be checked, and where its data ends, with io.EOF, the input stands at the trailer.
//
// The error is *[Error] with Part "point" where p is no point of any stream, or that of reading the first byte.
func (z *Reader) Resume(r io.Reader, p Point, window []byte) error {
	if p.In < 0 || p.Out < 0 {
		return &Error{Part: partPoint, Off: p.In / 8, Err: errPointOffset}
	}
	z.restart(r, p.In/8)
	z.allocateInput()
	z.f, z.sum = Raw, 0
	if err := z.c.resume(p); err != nil {
		return err
	}
	z.out = p.Out
	if len(window) > 0 {
		z.allocateOutput()
		z.at = copy(z.buf, window[max(0, len(window)-windowSize):])
	}
	z.phase = phaseStream
	return nil
}

// resume makes the core stand at p.
func (c *core) resume(p Point) error {
	skip := int(p.In % 8)
	wrong := func(err error) error { return &Error{Part: partPoint, Off: p.In / 8, Err: err} }
	switch p.Block {
	case Between:
	case Stored:
		if skip != 0 || p.Stored < 1 || p.Stored > 0xffff {
			return wrong(errPointStored)
		}
		c.stored = p.Stored
	case Fixed:
		c.fixed()
	case Dynamic:
		c.nlit, c.ndist = p.NLit, len(p.Lens)-p.NLit
		if c.nlit < endOfBlock+1 || c.nlit > maxLit || c.ndist < 1 || c.ndist > maxDist {
			return wrong(errPointLens)
		}
		for i, n := range p.Lens {
			if n > maxCode {
				return wrong(errPointLens)
			}
			c.lens[i] = n
		}
		if err := c.dynamic(p.In); err != nil {
			return wrong(errors.Unwrap(err))
		}
	default:
		return wrong(errPointBlock)
	}
	c.block, c.final = p.Block, p.Final
	if skip > 0 {
		if err := c.need(skip); err != nil {
			return err
		}
		c.drop(skip)
	}
	return nil
}

// Trace makes the Reader note which of the 32768 bytes before the place where it stands are referred to by the next 32768 bytes of output, which
// are all that can: seen[i] is set for the byte i+1 before that place, and left as it is for a byte that no match begins at or runs over.
// A window for Resume needs only the bytes that were seen; the others may be anything, for example zero.
//
// Tracing slows the decoding of these 32768 bytes. nil ends it, and so do Begin, Resume and Reset.
func (z *Reader) Trace(seen *[windowSize]bool) {
	z.c.trace.seen = seen
	z.trace = z.out
}

// Traced reports whether nothing more will be seen: 32768 bytes were decoded since Trace, or the stream has ended, or cannot be read on.
func (z *Reader) Traced() bool {
	return z.phase != phaseStream || z.err != nil || z.out-z.trace >= windowSize
}
