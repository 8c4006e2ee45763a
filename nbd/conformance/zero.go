package conformance

import (
	"bytes"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

var zeroChecks = []*Check{
	{"zero/read-only", Should, sectionRequests, "a read-only export answers WRITE_ZEROES with EPERM, or with EINVAL where that is not offered", needReadOnly | needSize, func(t *trial) { t.readOnly(wire.CmdWriteZeroes) }},
	{"zero/read-back", Must, sectionRequests, "after WRITE_ZEROES the range reads as zero, and what is beside it stays as it was", needWrite | needSize | needZeroes, zeroReadBack},
	{"zero/fua", Must, sectionCommand, "WRITE_ZEROES with FUA succeeds", needWrite | needSize | needZeroes | needFUA, func(t *trial) { t.zeroed(wire.FlagFUA) }},
	{"zero/fua-unoffered", Should, sectionErrors, "FUA that is not offered is EINVAL", needWrite | needSize | needZeroes, func(t *trial) { t.fuaUnoffered(wire.CmdWriteZeroes) }},
	{"zero/no-hole", Must, sectionCommand, "WRITE_ZEROES with NO_HOLE succeeds", needWrite | needSize | needZeroes, func(t *trial) { t.zeroed(wire.FlagNoHole) }},
	{"zero/no-hole-status", Quality, sectionRequests, "after WRITE_ZEROES with NO_HOLE block status tells of no hole", needWrite | needSize | needZeroes | needContext, zeroNoHoleStatus},
	{"zero/fast", Must, sectionRequests, "WRITE_ZEROES with FAST_ZERO succeeds or is ENOTSUP", needWrite | needSize | needFastZero, zeroFast},
	{"zero/fast-unchanged", Should, sectionRequests, "ENOTSUP of FAST_ZERO leaves the export as it was", needWrite | needSize | needFastZero, zeroFastUnchanged},
	{"zero/fast-unoffered", Should, sectionRequests, "FAST_ZERO that is not offered is EINVAL", needWrite | needSize | needZeroes, zeroFastUnoffered},
	{"zero/unoffered", Should, sectionErrors, "WRITE_ZEROES that is not offered is EINVAL", needWrite | needSize, func(t *trial) { t.unoffered(wire.CmdWriteZeroes, wire.SendWriteZeroes) }},
	{"zero/large", Should, sectionSizes, "more than the maximum payload can be made zero, or is EINVAL or EOVERFLOW", needWrite | needLarge | needZeroes, func(t *trial) { t.large(wire.CmdWriteZeroes) }},
	{"zero/bytes", Should, sectionSizes, "with a minimum block size of 1, any bytes can be made zero, and no others become so", needWrite | needSize | needZeroes | needBytes, zeroBytes},
	{"zero/unaligned", Should, sectionSizes, "what is not aligned to the minimum block size is EINVAL", needWrite | needSize | needZeroes | needBlocks, func(t *trial) { t.unaligned(wire.CmdWriteZeroes) }},
	{"zero/zero-length", Should, sectionRequests, "a length of 0 is answered", needWrite | needSize | needZeroes, func(t *trial) { t.zeroLength(wire.CmdWriteZeroes) }},
	{"zero/past-end", Should, sectionRequests, "past the end is ENOSPC", needWrite | needSize | needZeroes, func(t *trial) { t.pastEnd(wire.CmdWriteZeroes, wire.ENOSPC) }},
	{"zero/overflow", Should, sectionRequests, "an offset whose sum with the length is over 2^64 is ENOSPC or EINVAL", needWrite | needSize | needZeroes, func(t *trial) {
		t.overflow(wire.CmdWriteZeroes, wire.ENOSPC, wire.EINVAL)
	}},
	{"zero/unknown-flag", Should, sectionErrors, "unknown flags and flags of other commands are EINVAL", needWrite | needSize | needZeroes, func(t *trial) {
		t.flagged(wire.CmdWriteZeroes, 1<<15, wire.FlagDF, wire.FlagReqOne)
	}},
}

var trimChecks = []*Check{
	{"trim/read-only", Should, sectionErrors, "a read-only export answers TRIM with EPERM, or with EINVAL where that is not offered", needReadOnly | needSize, func(t *trial) { t.readOnly(wire.CmdTrim) }},
	{"trim/in-range", Must, sectionRequests, "TRIM succeeds, and what is beside its range stays as it was", needWrite | needSize | needTrim, trimInRange},
	{"trim/fua", Must, sectionCommand, "TRIM with FUA succeeds", needWrite | needSize | needTrim | needFUA, trimFUA},
	{"trim/fua-unoffered", Should, sectionErrors, "FUA that is not offered is EINVAL", needWrite | needSize | needTrim, func(t *trial) { t.fuaUnoffered(wire.CmdTrim) }},
	{"trim/large", Should, sectionSizes, "more than the maximum payload can be trimmed, or is EINVAL or EOVERFLOW", needWrite | needLarge | needTrim, func(t *trial) { t.large(wire.CmdTrim) }},
	{"trim/bytes", Must, sectionRequests, "with a minimum block size of 1, TRIM of any bytes changes no others", needWrite | needSize | needTrim | needBytes, trimBytes},
	{"trim/unaligned", Should, sectionSizes, "what is not aligned to the minimum block size is EINVAL", needWrite | needSize | needTrim | needBlocks, func(t *trial) { t.unaligned(wire.CmdTrim) }},
	{"trim/zero-length", Should, sectionRequests, "a length of 0 is answered", needWrite | needSize | needTrim, func(t *trial) { t.zeroLength(wire.CmdTrim) }},
	{"trim/past-end", Should, sectionErrors, "past the end is EINVAL", needWrite | needSize | needTrim, func(t *trial) { t.pastEnd(wire.CmdTrim, wire.EINVAL) }},
	{"trim/overflow", Should, sectionErrors, "an offset whose sum with the length is over 2^64 is EINVAL", needWrite | needSize | needTrim, func(t *trial) { t.overflow(wire.CmdTrim, wire.EINVAL) }},
	{"trim/unknown-flag", Should, sectionErrors, "unknown flags and flags of other commands are EINVAL", needWrite | needSize | needTrim, func(t *trial) {
		t.flagged(wire.CmdTrim, 1<<15, wire.FlagDF, wire.FlagNoHole)
	}},
	{"trim/unoffered", Should, sectionErrors, "TRIM that is not offered is EINVAL", needWrite | needSize, func(t *trial) { t.unoffered(wire.CmdTrim, wire.SendTrim) }},
}

// readOnly tries a command that would change a read-only export. Where the server has it and may be wrong about it, the range is nothing but zeroes.
func (t *trial) readOnly(cmd wire.Command) {
	t.inModes(func(c *probe.Conn) {
		b := t.facts.block()
		for off := uint64(0); off+b <= min(c.Size, 64*b); off += b {
			if probe.IsZero(t.done(c, over(wire.CmdRead, off, b), nil).Data) {
				t.denied(c, over(cmd, off, b), nil, wire.EPERM, wire.EINVAL)
				return
			}
		}
		t.skipf("the export has no block of zeroes that could be tried without harm")
	})
}

// zeroed makes blocks zero with flags.
func (t *trial) zeroed(f wire.CommandFlags) {
	b := t.facts.block()
	t.inModes(func(c *probe.Conn) {
		for _, off := range []uint64{0, b} {
			r := over(wire.CmdWriteZeroes, off, smallExport/2/b*b)
			r.Flags = f
			t.changed(c, r, nil, make([]byte, r.Length))
		}
	})
}

func zeroReadBack(t *trial) { t.zeroed(0) }

func zeroNoHoleStatus(t *trial) {
	c := t.open(t.best(), wire.BaseAllocation)
	r := over(wire.CmdWriteZeroes, 0, smallExport)
	r.Flags = wire.FlagNoHole
	t.done(c, r, nil)
	off := uint64(0)
	for _, e := range t.extents(c, 0, smallExport, 0) {
		if e.Flags&uint64(wire.StateHole) != 0 && off < smallExport {
			t.failf("the extent at %d has the flags %d", off, e.Flags)
		}
		off += e.Length
	}
}

// fast tries FAST_ZERO over a background and returns the answer, and what the range holds then.
func (t *trial) fast(c *probe.Conn) (a *probe.Answer, back, now []byte) {
	back = t.pattern(smallExport, 8)
	t.done(c, over(wire.CmdWrite, 0, smallExport), back)
	r := over(wire.CmdWriteZeroes, 0, smallExport)
	r.Flags = wire.FlagFastZero
	a = t.denied(c, r, nil, wire.OK, wire.ENOTSUP)
	return a, back, t.done(c, over(wire.CmdRead, 0, smallExport), nil).Data
}

func zeroFast(t *trial) {
	t.inModes(func(c *probe.Conn) {
		if a, _, now := t.fast(c); a.Errno == wire.OK && !probe.IsZero(now) {
			t.failf("it succeeds, and other bytes than zeroes are read")
		}
	})
}

func zeroFastUnchanged(t *trial) {
	c := t.open(t.best())
	a, back, now := t.fast(c)
	if a.Errno == wire.OK {
		t.skipf("FAST_ZERO succeeds")
	}
	if !bytes.Equal(back, now) {
		t.failf("other bytes are read after ENOTSUP")
	}
}

func zeroFastUnoffered(t *trial) {
	if t.facts.flags&wire.SendFastZero != 0 {
		t.skipf("the export offers FAST_ZERO")
	}
	t.flagged(wire.CmdWriteZeroes, wire.FlagFastZero)
}

// unoffered tries a command that the export does not offer.
func (t *trial) unoffered(cmd wire.Command, flag wire.TransmissionFlags) {
	if t.facts.flags&flag != 0 {
		t.skipf("the export offers %s", cmd)
	}
	t.inModes(func(c *probe.Conn) { t.denied(c, over(cmd, 0, t.facts.block()), nil, wire.EINVAL) })
}

// large tries a command without payload on more bytes than a payload may have.
func (t *trial) large(cmd wire.Command) {
	n := t.facts.longest() + t.facts.block()
	if n > Scratch {
		t.skipf("the maximum payload is more than may be changed")
	}
	t.inModes(func(c *probe.Conn) { t.denied(c, over(cmd, 0, n), nil, wire.OK, wire.EINVAL, wire.EOVERFLOW) })
}

func zeroBytes(t *trial) {
	t.inModes(func(c *probe.Conn) {
		for _, x := range [][2]uint64{{1, 1}, {511, 2}, {4097, 8190}, {100, 60000}} {
			t.changed(c, over(wire.CmdWriteZeroes, x[0], x[1]), nil, make([]byte, x[1]))
		}
	})
}

func trimInRange(t *trial) {
	b := t.facts.block()
	t.inModes(func(c *probe.Conn) {
		for _, off := range []uint64{0, b} {
			t.changed(c, over(wire.CmdTrim, off, smallExport/2/b*b), nil, nil)
		}
	})
}

func trimFUA(t *trial) {
	t.inModes(func(c *probe.Conn) {
		r := over(wire.CmdTrim, 0, t.facts.block())
		r.Flags = wire.FlagFUA
		t.changed(c, r, nil, nil)
	})
}

func trimBytes(t *trial) {
	t.inModes(func(c *probe.Conn) {
		for _, x := range [][2]uint64{{1, 1}, {511, 2}, {4097, 8190}, {100, 60000}} {
			t.changed(c, over(wire.CmdTrim, x[0], x[1]), nil, nil)
		}
	})
}
