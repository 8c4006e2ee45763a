package conformance

import (
	"bytes"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

const (
	sectionRequests = "Request types"
	sectionErrors   = "Error values"
	sectionCommand  = "Command flags"
	sectionChunks   = "Structured reply types"
)

var readChecks = []*Check{
	{"read/in-range", Must, sectionRequests, "the first, the last and any block can be read", needExport | needSize, readInRange},
	{"read/same", Must, sectionRequests, "all forms of replies bring the same bytes", needExport | needSize | needStructured, readSame},
	{"read/bytes", Should, sectionSizes, "with a minimum block size of 1, single bytes can be read anywhere", needExport | needSize | needBytes, readBytes},
	{"read/unaligned", Should, sectionErrors, "what is not aligned to the minimum block size is EINVAL", needExport | needSize | needBlocks, func(t *trial) {
		t.unaligned(wire.CmdRead)
	}},
	{"read/zero-length", Should, sectionRequests, "a length of 0 is answered", needExport | needSize, func(t *trial) { t.zeroLength(wire.CmdRead) }},
	{"read/past-end", Should, sectionErrors, "past the end is EINVAL", needExport | needSize, func(t *trial) { t.pastEnd(wire.CmdRead, wire.EINVAL) }},
	{"read/overflow", Should, sectionErrors, "an offset whose sum with the length is over 2^64 is EINVAL", needExport | needSize, func(t *trial) { t.overflow(wire.CmdRead, wire.EINVAL) }},
	{"read/huge-length", Quality, sectionSizes, "a length of nearly 4 GiB, past the end, is EINVAL, and not an end of the connection", needExport | needSize, readHuge},
	{"read/32m", Should, sectionSizes, "without other limits 32 MiB can be read", needExport | needLarge, readLarge},
	{"read/oversize", Should, sectionErrors, "more than the maximum payload is read, or is EINVAL or EOVERFLOW", needExport | needLarge, readOversize},
	{"read/unknown-flag", Should, sectionErrors, "an unknown flag is EINVAL", needExport | needSize, func(t *trial) { t.flagged(wire.CmdRead, 1<<15, 1<<9) }},
	{"read/foreign-flag", Should, sectionErrors, "flags of other commands are EINVAL", needExport | needSize, func(t *trial) {
		t.flagged(wire.CmdRead, wire.FlagReqOne, wire.FlagNoHole, wire.FlagFastZero)
	}},
	{"read/df-unoffered", Should, sectionErrors, "DF that is not offered is EINVAL", needExport | needSize, readDFUnoffered},
	{"read/df", Must, sectionRequests, "with DF, 64 KiB come in one chunk of data, holes as zeroes", needStructured | needSize, readDF},
	{"read/df-large", Must, sectionRequests, "with DF, more comes in one chunk or is EOVERFLOW", needStructured | needLarge, readDFLarge},
	{"read/chunks", Must, sectionRequests, "chunks of structured replies cover what was asked for, do not overlap, and stay inside", needStructured | needSize, readChunks},
	{"read/chunk-alignment", Should, sectionRequests, "inner borders of chunks are multiples of 512 bytes", needStructured | needSize, readChunkAlignment},
	{"read/holes", Quality, sectionRequests, "what block status calls a hole that reads as zero is sent as a hole", needStructured | needContext | needSize, readHoles},
	{"read/error-chunk", Must, "Structured reply chunk message", "with structured replies the errors of READ are chunks, those of unknown flags too", needStructured | needSize, readErrorChunk},
	{"read/error-text", Quality, "Structured reply chunk message", "errors come with a message for people", needStructured | needSize, readErrorText},
}

// over returns a request for n bytes at off.
func over(cmd wire.Command, off, n uint64) wire.Request {
	return wire.Request{Type: cmd, Offset: off, Length: n}
}

// payload returns what a request of a command carries: WRITE has as many bytes as its length says.
func payload(r wire.Request) []byte {
	if r.Type != wire.CmdWrite {
		return nil
	}
	return bytes.Repeat([]byte{0xa5}, int(r.Length))
}

// unaligned tries requests that are not aligned to a minimum block size over 1.
func (t *trial) unaligned(cmd wire.Command) {
	b := t.facts.block()
	t.inModes(func(c *probe.Conn) {
		for _, r := range []wire.Request{over(cmd, 1, b), over(cmd, 0, b-1), over(cmd, c.MinBlock/2, b)} {
			t.denied(c, r, payload(r), wire.EINVAL)
		}
	})
}

// zeroLength tries requests of no bytes: at the beginning, in the middle and at the end.
func (t *trial) zeroLength(cmd wire.Command) {
	t.inModes(func(c *probe.Conn) {
		for _, off := range []uint64{0, t.facts.block(), c.Size} {
			t.endured(c, over(cmd, off, 0), payload(over(cmd, off, 0)))
		}
	})
}

// pastEnd tries requests of which some bytes, or all, are beyond the end.
func (t *trial) pastEnd(cmd wire.Command, want wire.Errno) {
	b := t.facts.block()
	t.inModes(func(c *probe.Conn) {
		end := c.Size / b * b
		for _, r := range []wire.Request{over(cmd, end-b, 3*b), over(cmd, end+b, b), over(cmd, end+1<<40, b), over(cmd, 1<<63, b)} {
			t.denied(c, r, payload(r), want)
		}
	})
}

// overflow tries requests whose last byte has no number.
func (t *trial) overflow(cmd wire.Command, want ...wire.Errno) {
	b := t.facts.block()
	t.inModes(func(c *probe.Conn) {
		for _, r := range []wire.Request{over(cmd, -b, b), over(cmd, -b, 4*b)} {
			t.denied(c, r, payload(r), want...)
		}
	})
}

// flagged tries flags that a command has not.
func (t *trial) flagged(cmd wire.Command, flags ...wire.CommandFlags) {
	t.inModes(func(c *probe.Conn) {
		for _, f := range flags {
			r := over(cmd, 0, t.facts.block())
			if cmd == wire.CmdFlush {
				r.Length = 0
			}
			r.Flags = f
			t.denied(c, r, payload(r), wire.EINVAL)
		}
	})
}

func readInRange(t *trial) {
	b := t.facts.block()
	t.inModes(func(c *probe.Conn) {
		end := c.Size / b * b
		for _, r := range [][2]uint64{{0, b}, {end - b, b}, {end / 2 / b * b, b}, {b, smallExport - b}} {
			t.done(c, over(wire.CmdRead, r[0], r[1]), nil)
		}
	})
}

func readSame(t *trial) {
	window := min(t.facts.size, 1<<20) / t.facts.block() * t.facts.block()
	var first []byte
	t.inModes(func(c *probe.Conn) {
		data := t.done(c, over(wire.CmdRead, 0, window), nil).Data
		if first == nil {
			first = data
		} else if !bytes.Equal(first, data) {
			t.failf("the first %d bytes are others than in simple mode", window)
		}
	})
}

func readBytes(t *trial) {
	t.inModes(func(c *probe.Conn) {
		whole := t.done(c, over(wire.CmdRead, 0, 8192), nil).Data
		for _, x := range [][2]uint64{{1, 1}, {511, 2}, {4095, 1026}, {3, 8000}} {
			r := over(wire.CmdRead, x[0], x[1])
			a, err := c.Do(r, nil)
			t.check(err, describeRequest(r))
			if a.Errno != wire.OK || !bytes.Equal(a.Data, whole[r.Offset:r.Offset+r.Length]) {
				t.failf("%s is answered with %s, or with other bytes", describeRequest(r), a)
			}
		}
		t.done(c, over(wire.CmdRead, c.Size-1, 1), nil)
	})
}

func readHuge(t *trial) {
	if t.facts.size >= 1<<32-512 {
		t.skipf("the export is as large as the longest request")
	}
	t.inModes(func(c *probe.Conn) {
		t.denied(c, over(wire.CmdRead, 0, 1<<32-t.facts.block()), nil, wire.EINVAL)
	})
}

// longest is the payload that the server takes, in whole blocks, in bytes.
func (f *facts) longest() uint64 {
	return min(uint64(f.maxLength), wire.DefaultMaxPayload) / f.block() * f.block()
}

func readLarge(t *trial) {
	t.inModes(func(c *probe.Conn) { t.done(c, over(wire.CmdRead, 0, t.facts.longest()), nil) })
}

func readOversize(t *trial) {
	n := max(uint64(t.facts.maxLength), wire.DefaultMaxPayload) + t.facts.block()
	if n > t.facts.size || n > 1<<30 {
		t.skipf("the export is not larger than the maximum payload")
	}
	t.inModes(func(c *probe.Conn) {
		t.denied(c, over(wire.CmdRead, 0, n), nil, wire.OK, wire.EINVAL, wire.EOVERFLOW)
	})
}

func readDFUnoffered(t *trial) {
	if t.facts.flags&wire.SendDF != 0 {
		t.skipf("DF is offered without structured replies, which flags/df-simple tells")
	}
	c := t.open(probe.Simple)
	r := over(wire.CmdRead, 0, t.facts.block())
	r.Flags = wire.FlagDF
	t.denied(c, r, nil, wire.EINVAL)
}

// openDF enters transmission with DF, or skips the check.
func (t *trial) openDF() *probe.Conn {
	c := t.haggle()
	t.negotiate(c, t.best())
	if t.enter(c).flags&wire.SendDF == 0 {
		t.skipf("the export does not offer DF")
	}
	return c
}

func readDF(t *trial) {
	c := t.openDF()
	r := over(wire.CmdRead, 0, smallExport)
	r.Flags = wire.FlagDF
	t.done(c, r, nil)
	r.Offset = (c.Size - smallExport) / t.facts.block() * t.facts.block()
	t.done(c, r, nil)
}

func readDFLarge(t *trial) {
	c := t.openDF()
	r := over(wire.CmdRead, 0, t.facts.longest())
	r.Flags = wire.FlagDF
	t.denied(c, r, nil, wire.OK, wire.EOVERFLOW)
}

// windows reads the export in pieces, all of a small one and samples of a large one.
func (t *trial) windows(c *probe.Conn, each func(*probe.Answer)) {
	const window, most = 1 << 20, 32
	step := max(window, c.Size/most/window*window)
	for off := uint64(0); off < c.Size; off += step {
		n := min(window, c.Size-off) / t.facts.block() * t.facts.block()
		if n == 0 {
			return
		}
		each(t.done(c, over(wire.CmdRead, off, n), nil))
	}
}

func readChunks(t *trial) {
	t.windows(t.open(t.best()), func(*probe.Answer) {}) // package probe judges the chunks
}

func readChunkAlignment(t *trial) {
	t.windows(t.open(t.best()), func(a *probe.Answer) {
		for _, p := range a.Pieces {
			if p.Offset%512 != 0 || p.Length%512 != 0 {
				t.failf("%s comes with a chunk of %d bytes at %d", describeRequest(a.Request), p.Length, p.Offset)
			}
		}
	})
}

func readHoles(t *trial) {
	c := t.open(t.best(), wire.BaseAllocation)
	off, n := t.find(c, func(flags uint64) bool { return flags&3 == uint64(wire.StateHole|wire.StateZero) }, smallExport)
	if n == 0 {
		t.skipf("the export has no hole of %d bytes", smallExport)
	}
	for _, p := range t.done(c, over(wire.CmdRead, off, n), nil).Pieces {
		if p.Hole {
			return
		}
	}
	t.failf("the hole at %d is sent as %d bytes of data", off, n)
}

func readErrorChunk(t *trial) {
	c := t.open(probe.Structured)
	r := over(wire.CmdRead, c.Size/512*512+1<<20, 512)
	if _, err := c.Do(r, nil); t.left(err, describeRequest(r)) {
		t.skipf("the server hangs up on errors")
	}
	r = over(wire.CmdRead, 0, t.facts.block())
	r.Flags = 1 << 15
	if _, err := c.Do(r, nil); t.left(err, describeRequest(r)) {
		t.skipf("the server hangs up on errors")
	}
}

func readErrorText(t *trial) {
	c := t.open(t.best())
	a := t.denied(c, over(wire.CmdRead, c.Size/512*512+1<<20, t.facts.block()), nil, wire.EINVAL)
	if a.Text == "" {
		t.failf("EINVAL has no message")
	}
}
