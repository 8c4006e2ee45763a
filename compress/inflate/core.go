package inflate

import (
	"encoding/binary"
	"io"
)

// core is a decoder between two symbols: the input from the next bit on, the output so far, and the block.
//
// A Decoder gives it the whole input and has it fill the output exactly. A Reader gives it an io.Reader and buffers.
type core struct {
	in   []byte
	ip   int    // in[ip:] is the input after what is in bits
	bits uint64 // the next bits, the next one lowest. Those above the first n are zero, or what in[ip:] begins with
	n    uint64 // the lowest 6 bits of it: how many bits there are. What is above means nothing

	out  []byte
	op   int // out[:op] is decoded
	low  int // matches may come from out[low:op]
	stop int // run returns where op is higher; a Decoder's symbols stop at the end of out

	begin  int64 // bit of the input at which the last header of a block began
	block  BlockType
	final  bool // BFINAL of the block
	stored int  // bytes that are left of a stored block
	marks  bool // stop after an empty stored block
	eager  bool // stop, if there is output, rather than wait for input

	t     *tables // of the block: own or the fixed ones
	nlit  int
	ndist int
	lens  [maxLens]uint8 // of a dynamic block: nlit of the literal/length code, then ndist of the distance code
	trace trace

	src io.Reader // yields the input after in; nil: there is none
	off int64     // of in[0] in the input
	err error     // why src yields no more

	portable bool // use fastGo, whatever the processor can do

	own  tables
	pre  [preSize]uint32
	work workspace
}

// margin is how many bytes of input the fast loop wants to see, so that it can take 8 at a time without looking where the end is.
const margin = 32

// Slop is how many bytes of room a [Reader]'s Fill needs behind what it writes: the longest match, and what wide copies write too much.
const Slop = 320

// reset makes the core ready for a stream that begins in[ip] (in the Reader's case with what follows), at a block header.
func (c *core) reset() {
	c.bits, c.n = 0, 0
	c.block, c.final, c.stored = Between, false, 0
	c.trace.end()
}

// count returns how many bits there are in c.bits.
func (c *core) count() int { return int(c.n & 63) }

// bitOffset returns where the next bit stands in the input.
func (c *core) bitOffset() int64 { return (c.off+int64(c.ip))*8 - int64(c.count()) }

// damage is damage in a structure that begins where the core stands.
func (c *core) damage(part string, err error) error {
	return c.damageAt(c.bitOffset(), part, err)
}

// damageAt is damage in a structure that begins at a bit of the input.
func (c *core) damageAt(bit int64, part string, err error) error {
	return &Error{Part: part, Off: bit / 8, Err: err}
}

// drop takes n bits, which are there.
func (c *core) drop(n int) {
	c.bits >>= n
	c.n = uint64(c.count() - n)
}

// top puts into bits what is at hand: at least 56 of them, or all of in.
func (c *core) top() {
	n := c.count()
	if len(c.in)-c.ip >= 8 {
		c.bits |= binary.LittleEndian.Uint64(c.in[c.ip:]) << n
		c.ip += (63 - n) >> 3
		c.n = uint64(n | 56)
		return
	}
	for n < 56 && c.ip < len(c.in) {
		c.bits |= uint64(c.in[c.ip]) << n
		c.ip++
		n += 8
	}
	c.n = uint64(n)
}

// need waits until there are n bits, at most 48. The error is io.ErrUnexpectedEOF, or src's.
func (c *core) need(n int) error {
	for c.count() < n {
		c.top()
		if c.count() >= n {
			return nil
		}
		if err := c.moreData(); err != nil {
			return err
		}
	}
	return nil
}

// align drops what is left of a byte and gives whole bytes back to in.
func (c *core) align() {
	c.ip -= c.count() >> 3
	c.bits, c.n = 0, 0
}

// unread gives whole bytes back to in, so that what is before ip can be forgotten.
func (c *core) unread() {
	n := c.count()
	c.ip -= n >> 3
	c.bits &= 1<<(n&7) - 1
	c.n = uint64(n & 7)
}

// more gets more input behind what is at hand, or returns why there is none: io.EOF, or src's error. It may move in.
func (c *core) more() error {
	if c.src == nil {
		return io.EOF
	}
	if c.err != nil {
		return c.err
	}
	c.unread()
	keep := c.ip
	if c.count() > 0 {
		keep-- // the byte of which these bits are left
	}
	c.in = c.in[:copy(c.in, c.in[keep:])]
	c.ip -= keep
	c.off += int64(keep)
	have := len(c.in)
	for range 100 {
		n, err := c.src.Read(c.in[have:cap(c.in)])
		c.in = c.in[:have+n]
		c.err = err
		if n > 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
	c.err = io.ErrNoProgress
	return c.err
}

// moreData is more inside a structure, where the end of the input is unexpected.
func (c *core) moreData() error {
	err := c.more()
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// stop says why run returned.
type stop uint8

const (
	stopEnd  stop = iota // the data ended
	stopFull             // op is above c.stop, or the next symbol yields more than there is room for
	stopMark             // an empty stored block was passed, and marks is set
	stopWait             // there is output, eager is set, and src would have to be read
)

// run decodes until one of the reasons to stop. It stands between two symbols then, or if there was no room for all that a match yields, after
// the part for which there was.
func (c *core) run() (stop, error) {
	start := c.op
	for {
		switch c.block {
		case Between:
			switch {
			case c.final:
				return stopEnd, nil
			case c.op > c.stop:
				return stopFull, nil
			case c.eager && c.op > start && !c.headerAtHand():
				return stopWait, nil
			}
			if err := c.header(); err != nil {
				return 0, err
			}
			if c.marks && c.block == Stored && c.stored == 0 && !c.final {
				c.block = Between
				return stopMark, nil
			}
		case Stored:
			if s, done, err := c.copyStored(start); done || err != nil {
				return s, err
			}
		default:
			if s, done, err := c.decode(start); done || err != nil {
				return s, err
			}
		}
	}
}

// waits reports whether run, which began at start, returns what it has rather than wait for input.
func (c *core) waits(start int) bool {
	return c.eager && c.op > start && c.ip == len(c.in)
}

// copyStored copies what is left of a stored block. done says that run returns.
func (c *core) copyStored(start int) (s stop, done bool, err error) {
	for c.stored > 0 {
		if c.op > c.stop || c.op == len(c.out) {
			return stopFull, true, nil
		}
		if c.ip == len(c.in) {
			if c.waits(start) {
				return stopWait, true, nil
			}
			if err := c.moreData(); err != nil {
				return 0, true, err
			}
		}
		n := copy(c.out[c.op:], c.in[c.ip:min(len(c.in), c.ip+c.stored)])
		c.op += n
		c.ip += n
		c.stored -= n
	}
	c.block = Between
	return 0, false, nil
}

// decode decodes the symbols of a block. done says that run returns, otherwise the block has ended.
func (c *core) decode(start int) (s stop, done bool, err error) {
	for {
		if len(c.in)-c.ip >= margin && len(c.out)-c.op >= Slop {
			switch {
			case c.trace.on(c.op):
				fastTraced(c)
			case c.portable:
				fastGo(c)
			default:
				fast(c)
			}
		}
		if c.op > c.stop {
			return stopFull, true, nil
		}
		s, err := c.symbol()
		switch {
		case err != nil:
			return 0, true, err
		case s == symbolEnd:
			c.block = Between
			return 0, false, nil
		case s == symbolFull:
			return stopFull, true, nil
		case s == symbolShort:
			if c.waits(start) {
				return stopWait, true, nil
			}
			if err := c.moreData(); err != nil {
				return 0, true, err
			}
		}
	}
}

// What symbol met.
type met uint8

const (
	symbolOK    met = iota
	symbolEnd       // end of block
	symbolFull      // there is no room, or there was not enough
	symbolShort     // the input at hand ends within it; nothing was taken
)

// symbol decodes one literal, or one length and distance. It looks at every bound, and is where every kind of damage is found.
func (c *core) symbol() (met, error) {
	c.top()
	at, n, b := c.bitOffset(), c.count(), c.bits
	e := c.t.lit[b&(1<<litBits-1)]
	if e&flagSub != 0 {
		b >>= litBits
		n -= litBits
		e = c.t.lit[(e>>shiftValue+uint32(b)&(1<<(e>>8&15)-1))&(litSize-1)]
	}
	code := int(e >> 8 & 15)
	switch {
	case e&flagLit != 0:
		code = int(e & 63)
		if code > n {
			return symbolShort, nil
		}
		if c.op == len(c.out) {
			return symbolFull, nil
		}
		c.out[c.op] = byte(e >> shiftValue)
		c.op++
		c.bits, c.n = b>>code, uint64(n-code)
		return symbolOK, nil
	case e&flagEnd != 0:
		if code > n {
			return symbolShort, nil
		}
		c.bits, c.n = b>>code, uint64(n-code)
		return symbolEnd, nil
	case e&flagExcept != 0:
		return c.noSymbol(at, n, code, partLit, errLenSymbol)
	}
	size := int(e & 63)
	if size > n {
		return symbolShort, nil
	}
	length := int(e>>shiftValue) + int(b&(1<<size-1)>>code)
	b >>= size
	n -= size

	e = c.t.dist[b&(1<<distBits-1)]
	if e&flagSub != 0 {
		b >>= distBits
		n -= distBits
		e = c.t.dist[(e>>shiftValue+uint32(b)&(1<<(e>>8&15)-1))&(distSize-1)]
	}
	code, size = int(e>>8&15), int(e&63)
	if e&flagExcept != 0 {
		return c.noSymbol(at, n, code, partDist, errDistSymbol)
	}
	if size > n {
		return symbolShort, nil
	}
	dist := int(e>>shiftValue) + int(b&(1<<size-1)>>code)
	if dist > c.op-c.low {
		return 0, c.damageAt(at, partDist, errTooFar)
	}
	room := len(c.out) - c.op
	if room == 0 {
		return symbolFull, nil
	}
	c.bits, c.n = b>>size, uint64(n-size)
	c.trace.note(c.op, dist, length)
	end := c.op + min(length, room)
	copyMatch(c.out[:end], c.op, dist)
	c.op = end
	if length > room {
		return symbolFull, nil
	}
	return symbolOK, nil
}

// noSymbol is for bits that are no symbol, of the n at hand: those of a reserved symbol, whose code has code bits, or none at all (code is 0).
func (c *core) noSymbol(at int64, n, code int, part string, reserved error) (met, error) {
	switch {
	case code == 0 && n > 0:
		return 0, c.damageAt(at, part, errNoCode)
	case code > 0 && n >= code:
		return 0, c.damageAt(at, part, reserved)
	}
	return symbolShort, nil
}

// copyMatch fills out[op:] with what begins dist bytes before, a byte at a time as it were: where that is too short it repeats.
func copyMatch(out []byte, op, dist int) {
	for from := op - dist; op < len(out); {
		op += copy(out[op:], out[from:op])
	}
}
