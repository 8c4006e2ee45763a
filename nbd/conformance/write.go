package conformance

import (
	"bytes"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

var writeChecks = []*Check{
	{"write/read-only", Must, sectionFlags, "a read-only export refuses WRITE", needReadOnly | needSize, writeReadOnly},
	{"write/read-only-error", Should, sectionErrors, "a read-only export answers WRITE with EPERM", needReadOnly | needSize, writeReadOnlyError},
	{"write/read-back", Must, sectionRequests, "what was written is read, and what is beside it stays as it was", needWrite | needSize, writeReadBack},
	{"write/fua", Must, sectionCommand, "WRITE with FUA succeeds", needWrite | needSize | needFUA, writeFUA},
	{"write/fua-unoffered", Should, sectionErrors, "FUA that is not offered is EINVAL", needWrite | needSize, func(t *trial) { t.fuaUnoffered(wire.CmdWrite) }},
	{"write/bytes", Should, sectionSizes, "with a minimum block size of 1, single bytes can be written anywhere", needWrite | needSize | needBytes, writeBytes},
	{"write/unaligned", Should, sectionErrors, "what is not aligned to the minimum block size is EINVAL", needWrite | needSize | needBlocks, func(t *trial) { t.unaligned(wire.CmdWrite) }},
	{"write/zero-length", Should, sectionRequests, "a length of 0 is answered", needWrite | needSize, func(t *trial) { t.zeroLength(wire.CmdWrite) }},
	{"write/past-end", Should, sectionErrors, "past the end is ENOSPC", needWrite | needSize, func(t *trial) { t.pastEnd(wire.CmdWrite, wire.ENOSPC) }},
	{"write/overflow", Should, sectionErrors, "an offset whose sum with the length is over 2^64 is ENOSPC or EINVAL", needWrite | needSize, func(t *trial) {
		t.overflow(wire.CmdWrite, wire.ENOSPC, wire.EINVAL)
	}},
	{"write/failed-payload", Should, sectionErrors, "1 MiB of a WRITE that is refused is read over, and the next request understood", needWrite | needSize, writeFailedPayload},
	{"write/unknown-flag", Should, sectionErrors, "an unknown flag is EINVAL, and nothing is written", needWrite | needSize, writeUnknownFlag},
	{"write/foreign-flag", Should, sectionErrors, "flags of other commands are EINVAL", needWrite | needSize, func(t *trial) {
		t.flagged(wire.CmdWrite, wire.FlagReqOne, wire.FlagNoHole, wire.FlagDF, wire.FlagFastZero)
	}},
	{"write/32m", Should, sectionSizes, "without other limits 32 MiB can be written", needWrite | needLarge, writeLarge},
	{"write/oversize", Should, sectionSizes, "a payload of up to 32 MiB is no reason to hang up, even over the maximum", needWrite | needLarge, writeOversize},
	{"write/concurrent", Must, "Transmission", "64 writes in flight all arrive", needWrite | needSize, writeConcurrent},
	{"write/vanishing-client", Quality, sectionDisconnect, "a client that vanishes within a payload does no harm", needWrite | needSize, writeVanishing},
	{"write/not-zero", Must, sectionMeta, "what was just written is not called zero", needWrite | needContext | needSize, writeNotZero},
}

// pattern returns n bytes none of which is zero.
func (t *trial) pattern(n int, seed byte) []byte {
	const period = 65521 // which is no multiple of any block, so that blocks differ
	b := make([]byte, min(n, period))
	for i := range b {
		b[i] = byte(i*7+i>>8)<<1 ^ seed<<3 | 1
	}
	return bytes.Repeat(b, (n+period-1)/period)[:n]
}

func writeReadOnly(t *trial) {
	t.inModes(func(c *probe.Conn) {
		r := over(wire.CmdWrite, 0, t.facts.block())
		same := t.done(c, over(wire.CmdRead, 0, r.Length), nil).Data // a server that writes all the same does no harm
		a, err := c.Do(r, same)
		if !t.left(err, describeRequest(r)) && a.Errno == wire.OK {
			t.failf("%s succeeds", describeRequest(r))
		}
	})
}

func writeReadOnlyError(t *trial) {
	t.inModes(func(c *probe.Conn) {
		r := over(wire.CmdWrite, 0, t.facts.block())
		t.denied(c, r, t.done(c, over(wire.CmdRead, 0, r.Length), nil).Data, wire.EPERM)
	})
}

// changed writes a background, makes a request that changes a range of it, and makes sure that the range became want and the rest stayed. A nil
// want is not looked at.
func (t *trial) changed(c *probe.Conn, r wire.Request, data, want []byte) {
	back := t.pattern(smallExport, 5)
	t.done(c, over(wire.CmdWrite, 0, smallExport), back)
	t.done(c, r, data)
	now := t.done(c, over(wire.CmdRead, 0, smallExport), nil).Data
	end := r.Offset + r.Length
	switch {
	case want != nil && !bytes.Equal(now[r.Offset:end], want):
		t.brokenf("after %s other bytes are read", describeRequest(r))
	case !bytes.Equal(now[:r.Offset], back[:r.Offset]) || !bytes.Equal(now[end:], back[end:]):
		t.brokenf("%s changes bytes beside its range", describeRequest(r))
	}
}

func writeReadBack(t *trial) {
	t.inModes(func(c *probe.Conn) {
		data := t.pattern(int(t.facts.block()), 9)
		for _, block := range []uint64{0, 1} {
			t.changed(c, over(wire.CmdWrite, block*t.facts.block(), t.facts.block()), data, data)
		}
	})
}

func writeFUA(t *trial) {
	t.inModes(func(c *probe.Conn) {
		r := over(wire.CmdWrite, 0, t.facts.block())
		r.Flags = wire.FlagFUA
		data := t.pattern(int(r.Length), 3)
		t.changed(c, r, data, data)
	})
}

// fuaUnoffered tries FUA where the export does not offer it.
func (t *trial) fuaUnoffered(cmd wire.Command) {
	if t.facts.flags&wire.SendFUA != 0 {
		t.skipf("the export offers FUA")
	}
	t.flagged(cmd, wire.FlagFUA)
}

func writeBytes(t *trial) {
	t.inModes(func(c *probe.Conn) {
		for _, x := range [][2]uint64{{1, 1}, {511, 2}, {4097, 8190}} {
			data := t.pattern(int(x[1]), 11)
			t.changed(c, over(wire.CmdWrite, x[0], x[1]), data, data)
		}
	})
}

func writeFailedPayload(t *trial) {
	t.inModes(func(c *probe.Conn) {
		n := min(1<<20, t.facts.longest())
		r := over(wire.CmdWrite, 1<<62, n)
		t.denied(c, r, payload(r), wire.ENOSPC, wire.EINVAL)
	})
}

func writeUnknownFlag(t *trial) {
	t.inModes(func(c *probe.Conn) {
		before := t.pattern(int(t.facts.block()), 2)
		r := over(wire.CmdWrite, 0, t.facts.block())
		t.done(c, r, before)
		r.Flags = 1 << 15
		t.denied(c, r, payload(r), wire.EINVAL)
		if !bytes.Equal(before, t.done(c, over(wire.CmdRead, 0, r.Length), nil).Data) {
			t.failf("%s is refused, but writes", describeRequest(r))
		}
	})
}

func writeLarge(t *trial) {
	c := t.open(t.best())
	r := over(wire.CmdWrite, 0, t.facts.longest())
	data := t.pattern(int(r.Length), 4)
	t.done(c, r, data)
	if !bytes.Equal(data, t.done(c, over(wire.CmdRead, 0, r.Length), nil).Data) {
		t.brokenf("after %s other bytes are read", describeRequest(r))
	}
}

func writeOversize(t *trial) {
	if t.facts.maxLength >= wire.DefaultMaxPayload {
		t.skipf("the maximum payload is %d bytes", t.facts.maxLength)
	}
	r := over(wire.CmdWrite, 0, wire.DefaultMaxPayload)
	t.endured(t.open(probe.Simple), r, payload(r))
}

func writeConcurrent(t *trial) {
	t.inModes(func(c *probe.Conn) {
		b := t.facts.block()
		var all []wire.Request
		for i := range smallExport / b {
			all = append(all, over(wire.CmdWrite, i*b, b))
		}
		t.done(c, over(wire.CmdWrite, 0, smallExport), t.pattern(smallExport, 6))
		t.wait(c, t.batch(c, all))
		if got := t.done(c, over(wire.CmdRead, 0, smallExport), nil).Data; !bytes.Equal(got, bytes.Repeat([]byte{0xa5}, smallExport)) {
			t.failf("other bytes are read afterwards")
		}
	})
}

func writeVanishing(t *trial) {
	for _, m := range t.modes() {
		c := t.open(m)
		r := over(wire.CmdWrite, 0, smallExport)
		t.check(c.Send(c.Frame(r, payload(r))[:smallExport/2]), "half a payload")
		c.Close()
	}
}

func writeNotZero(t *trial) {
	c := t.open(t.best(), wire.BaseAllocation)
	t.done(c, over(wire.CmdWrite, 0, smallExport), t.pattern(smallExport, 7))
	off := uint64(0)
	for _, e := range t.extents(c, 0, smallExport, 0) {
		if e.Flags&uint64(wire.StateZero) != 0 && off < smallExport {
			t.failf("the extent at %d has the flags %d", off, e.Flags)
		}
		off += e.Length
	}
}
