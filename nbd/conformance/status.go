package conformance

import (
	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

var statusChecks = []*Check{
	{"status/in-range", Must, sectionChunks, "one chunk of extents comes for the context, none empty, only the last beyond what was asked for", needContext | needSize, statusInRange},
	{"status/req-one", Must, sectionRequests, "with REQ_ONE one extent comes, no longer than asked for", needContext | needSize, statusReqOne},
	{"status/walk", Must, sectionRequests, "whoever goes on where the extents end gets to the end of the export", needContext | needSize, statusWalk},
	{"status/contexts", Must, sectionChunks, "with several contexts, each has exactly one chunk", needContext | needContexts | needSize, statusContexts},
	{"status/alignment", Should, sectionRequests, "extents are multiples of the minimum block size and, inside, of 512 bytes", needContext | needSize, statusAlignment},
	{"status/neighbours", Should, sectionRequests, "neighbouring extents have different flags", needContext | needSize, statusNeighbours},
	{"status/count", Should, sectionChunks, "a chunk has at most 2^20 extents", needContext | needSize, statusCount},
	{"status/flags", Should, sectionMeta, "base:allocation has no flags but HOLE and ZERO", needContext | needSize, statusFlags},
	{"status/zeroes", Must, sectionMeta, "what is called zero reads as zero", needContext | needSize, statusZeroes},
	{"status/zero-length", Should, sectionRequests, "a length of 0 is answered", needContext | needSize, statusZeroLength},
	{"status/past-end", Should, sectionRequests, "past the end is EINVAL", needContext | needSize, statusPastEnd},
	{"status/unaligned", Should, sectionSizes, "what is not aligned to the minimum block size is EINVAL", needContext | needSize | needBlocks, statusUnaligned},
	{"status/unknown-flag", Should, sectionErrors, "unknown flags and flags of other commands are EINVAL", needContext | needSize, statusUnknownFlag},
}

// statusModes are those in which block status can be asked for.
func (t *trial) inStatusModes(f func(*probe.Conn)) {
	for _, m := range t.modes()[1:] {
		t.where = m.String()
		f(t.open(m, wire.BaseAllocation))
	}
	t.where = ""
}

// extents asks for the block status of a range, and returns that of the first context.
func (t *trial) extents(c *probe.Conn, off, n uint64, f wire.CommandFlags) []probe.Extent {
	r := over(wire.CmdBlockStatus, off, n)
	r.Flags = f
	return t.done(c, r, nil).Status[c.Contexts[0].ID]
}

// walk goes over the extents of the export, up to a number that bounds the time it takes, and ends where each returns false.
func (t *trial) walk(c *probe.Conn, each func(off uint64, e probe.Extent, first bool) bool) {
	const most = 1 << 10
	step := uint64(1<<30) / t.facts.block() * t.facts.block()
	end := c.Size / t.facts.block() * t.facts.block()
	for off, n := uint64(0), 0; off < end && n < most; n++ {
		for i, e := range t.extents(c, off, min(step, end-off), 0) {
			if !each(off, e, i == 0) {
				return
			}
			off += e.Length
		}
	}
}

// find looks for a piece of the export with certain flags and returns at most most bytes of it; n is 0 where there is none as long.
func (t *trial) find(c *probe.Conn, fits func(flags uint64) bool, most uint64) (off, n uint64) {
	t.walk(c, func(at uint64, e probe.Extent, _ bool) bool {
		if fits(e.Flags) && e.Length >= most {
			off, n = at, most
		}
		return n == 0
	})
	return off, n
}

func statusInRange(t *trial) {
	b := t.facts.block()
	t.inStatusModes(func(c *probe.Conn) {
		end := c.Size / b * b
		for _, x := range [][2]uint64{{0, b}, {end - b, b}, {b, smallExport - b}, {0, min(end, 1<<31)}, {end / 2 / b * b, b}} {
			t.extents(c, x[0], x[1], 0) // package probe judges the extents
		}
	})
}

func statusReqOne(t *trial) {
	b := t.facts.block()
	t.inStatusModes(func(c *probe.Conn) {
		end := c.Size / b * b
		for _, x := range [][2]uint64{{0, b}, {end - b, b}, {b, smallExport - b}, {0, min(end, 1<<31)}} {
			t.extents(c, x[0], x[1], wire.FlagReqOne)
		}
	})
}

func statusWalk(t *trial) {
	t.inStatusModes(func(c *probe.Conn) {
		t.walk(c, func(uint64, probe.Extent, bool) bool { return true })
	})
}

func statusContexts(t *trial) {
	c := t.open(t.best(), t.facts.contexts...)
	if len(c.Contexts) < 2 {
		t.skipf("one context can be selected at a time")
	}
	t.done(c, over(wire.CmdBlockStatus, 0, smallExport), nil)
	r := over(wire.CmdBlockStatus, 0, smallExport)
	r.Flags = wire.FlagReqOne
	t.done(c, r, nil)
}

func statusAlignment(t *trial) {
	t.inStatusModes(func(c *probe.Conn) {
		unit := t.facts.block()
		t.walk(c, func(off uint64, e probe.Extent, _ bool) bool {
			if e.Length%unit != 0 && off+e.Length != c.Size {
				t.failf("an extent of %d bytes is at %d", e.Length, off)
			}
			return true
		})
	})
}

func statusNeighbours(t *trial) {
	t.inStatusModes(func(c *probe.Conn) {
		var before uint64
		t.walk(c, func(off uint64, e probe.Extent, first bool) bool {
			if !first && e.Flags == before {
				t.failf("the extents before and after byte %d have the flags %d", off, before)
			}
			before = e.Flags
			return true
		})
	})
}

func statusCount(t *trial) {
	t.inStatusModes(func(c *probe.Conn) {
		if n := len(t.extents(c, 0, min(c.Size, 1<<31)/t.facts.block()*t.facts.block(), 0)); n > wire.MaxExtents {
			t.failf("%d extents came", n)
		}
	})
}

func statusFlags(t *trial) {
	t.inStatusModes(func(c *probe.Conn) {
		t.walk(c, func(off uint64, e probe.Extent, _ bool) bool {
			if e.Flags > 3 {
				t.failf("the extent at %d has the flags %#x", off, e.Flags)
			}
			return true
		})
	})
}

// statusZeroes reads what is called zero up to a number of bytes, by simple replies: others may stand on the very extents that are tried.
func statusZeroes(t *trial) {
	const window, most = 1 << 20, 96 << 20
	var zeroes []probe.Piece
	t.walk(t.open(t.best(), wire.BaseAllocation), func(off uint64, e probe.Extent, _ bool) bool {
		if e.Flags&uint64(wire.StateZero) != 0 {
			zeroes = append(zeroes, probe.Piece{Offset: off, Length: e.Length})
		}
		return true
	})
	if len(zeroes) == 0 {
		t.skipf("nothing is called zero")
	}
	c := t.open(probe.Simple)
	b := t.facts.block()
	share := max(most/uint64(len(zeroes)), window)
	read := uint64(0)
	for _, z := range zeroes {
		for at, end := z.Offset, z.Offset+min(z.Length, share); at < end && read < most; {
			n := min(window, end-at) / b * b
			if n == 0 {
				break
			}
			if !probe.IsZero(t.done(c, over(wire.CmdRead, at, n), nil).Data) {
				t.failf("of the %d bytes at %d, which are called zero, %d at %d are not all zero", z.Length, z.Offset, n, at)
			}
			read += n
			at += n
		}
	}
}

func statusZeroLength(t *trial) {
	t.inStatusModes(func(c *probe.Conn) {
		for _, off := range []uint64{0, t.facts.block(), c.Size} {
			t.endured(c, over(wire.CmdBlockStatus, off, 0), nil)
		}
	})
}

func statusPastEnd(t *trial) {
	b := t.facts.block()
	t.inStatusModes(func(c *probe.Conn) {
		end := c.Size / b * b
		for _, x := range [][2]uint64{{end - b, 3 * b}, {end + b, b}, {1 << 63, b}, {-b, 4 * b}} {
			t.denied(c, over(wire.CmdBlockStatus, x[0], x[1]), nil, wire.EINVAL)
		}
	})
}

func statusUnaligned(t *trial) {
	b := t.facts.block()
	t.inStatusModes(func(c *probe.Conn) {
		t.denied(c, over(wire.CmdBlockStatus, 1, b), nil, wire.EINVAL)
		t.denied(c, over(wire.CmdBlockStatus, 0, b-1), nil, wire.EINVAL)
	})
}

func statusUnknownFlag(t *trial) {
	t.inStatusModes(func(c *probe.Conn) {
		for _, f := range []wire.CommandFlags{1 << 15, wire.FlagDF, wire.FlagNoHole, wire.FlagFastZero} {
			r := over(wire.CmdBlockStatus, 0, t.facts.block())
			r.Flags = f
			t.denied(c, r, nil, wire.EINVAL)
		}
	})
}
