package conformance

import (
	"bytes"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

const sectionDisconnect = "Terminating the transmission phase"

var commandChecks = []*Check{
	{"command/unknown", Should, sectionErrors, "an unknown command is EINVAL", needExport, commandUnknown},
	{"command/cookie", Must, "Transmission", "the answer has the request's cookie, whatever that is", needExport | needSize, commandCookie},
	{"command/fua-anywhere", Must, sectionCommand, "where FUA is offered, every command takes it", needExport | needSize | needFUA, commandFUA},
	{"command/wrong-magic", Quality, sectionDisconnect, "the server hangs up on a request that does not begin with its magic number", needExport, commandWrongMagic},
	{"command/vanishing-client", Quality, sectionDisconnect, "clients that vanish within a request do no harm", needExport, commandVanishing},
	{"command/disc", Must, sectionRequests, "the server closes the connection after DISC, without an answer", needExport, commandDisc},
	{"command/disc-in-flight", Must, sectionRequests, "requests that were sent before DISC are answered before the connection ends", needExport | needSize, commandDiscInFlight},
	{"command/concurrent", Must, "Transmission", "64 requests in flight are all answered, each with its own data", needExport | needSize, commandConcurrent},
	{"command/many", Quality, "Transmission", "1000 requests in flight are all answered", needExport | needSize, commandMany},
	{"flush/flush", Must, sectionRequests, "FLUSH succeeds", needFlush, flush},
	{"flush/fields", Quality, sectionRequests, "FLUSH with an offset and a length is answered", needFlush | needSize, flushFields},
	{"flush/unknown-flag", Should, sectionErrors, "unknown flags and flags of other commands are EINVAL", needFlush, func(t *trial) { t.flagged(wire.CmdFlush, 1<<15, wire.FlagNoHole) }},
	{"cache/in-range", Must, sectionRequests, "CACHE is answered, and changes nothing", needCache | needSize, cacheInRange},
	{"cache/past-end", Should, sectionSizes, "past the end is EINVAL", needCache | needSize, func(t *trial) { t.pastEnd(wire.CmdCache, wire.EINVAL) }},
	{"cache/zero-length", Should, sectionRequests, "a length of 0 is answered", needCache | needSize, func(t *trial) { t.zeroLength(wire.CmdCache) }},
	{"cache/unaligned", Should, sectionSizes, "what is not aligned to the minimum block size is EINVAL", needCache | needSize | needBlocks, func(t *trial) { t.unaligned(wire.CmdCache) }},
	{"cache/unknown-flag", Must, sectionRequests, "unknown flags and flags of other commands are refused", needCache | needSize, func(t *trial) { t.flagged(wire.CmdCache, 1<<15, wire.FlagDF) }},
}

func commandUnknown(t *trial) {
	t.inModes(func(c *probe.Conn) {
		for _, cmd := range []wire.Command{99, 0xffff, wire.CmdResize} {
			t.denied(c, over(cmd, 0, 0), nil, wire.EINVAL)
		}
	})
}

func commandCookie(t *trial) {
	t.inModes(func(c *probe.Conn) {
		for _, cookie := range []uint64{0, 1, 1 << 63, 1<<64 - 1} {
			r := over(wire.CmdRead, 0, t.facts.block())
			r.Cookie = cookie
			a := c.Expect(r)
			t.check(c.Send(c.Frame(r, nil)), "READ")
			t.check(c.Wait(a), "READ")
		}
	})
}

func commandFUA(t *trial) {
	t.inModes(func(c *probe.Conn) {
		r := over(wire.CmdRead, 0, t.facts.block())
		r.Flags = wire.FlagFUA
		t.done(c, r, nil)
		if t.facts.flags&wire.SendFlush != 0 {
			t.done(c, wire.Request{Type: wire.CmdFlush, Flags: wire.FlagFUA}, nil)
		}
		if t.facts.flags&wire.SendCache != 0 {
			r.Type = wire.CmdCache
			if a := t.endured(c, r, nil); a.Errno != wire.OK && t.endured(c, over(wire.CmdCache, 0, t.facts.block()), nil).Errno == wire.OK {
				t.failf("%s is answered with %s", describeRequest(r), a)
			}
		}
	})
	if len(t.facts.contexts) == 0 {
		return
	}
	t.inStatusModes(func(c *probe.Conn) {
		r := over(wire.CmdBlockStatus, 0, t.facts.block())
		r.Flags = wire.FlagFUA
		t.done(c, r, nil)
	})
}

func commandWrongMagic(t *trial) {
	t.inModes(func(c *probe.Conn) {
		b := c.Frame(over(wire.CmdRead, 0, t.facts.block()), nil)
		b[0] ^= 0x80
		t.check(c.Send(b), "request")
		for {
			err := c.Ended()
			if err == nil {
				return
			}
			if _, ok := err.(*probe.Violation); !ok {
				t.failf("%v", err)
			}
			c.Discard() // an error may be told before
		}
	})
}

func commandVanishing(t *trial) {
	b := t.facts.block()
	for _, m := range t.modes() {
		for _, n := range []int{1, wire.RequestSize - 1, wire.RequestSize} {
			c := t.open(m)
			t.check(c.Send(c.Frame(over(wire.CmdRead, 0, b), nil)[:n]), "part of a request")
			c.Close()
		}
	}
}

func commandDisc(t *trial) {
	t.inModes(func(c *probe.Conn) {
		t.check(c.Send(c.Frame(wire.Request{Type: wire.CmdDisc}, nil)), "DISC")
		if err := c.Ended(); err != nil {
			t.failf("%v", err)
		}
	})
}

// batch sends requests in one piece, and returns where their answers will be.
func (t *trial) batch(c *probe.Conn, requests []wire.Request, end ...wire.Request) []*probe.Answer {
	var all []*probe.Answer
	var frames bytes.Buffer
	for _, r := range requests {
		r.Cookie = c.Cookie()
		all = append(all, c.Expect(r))
		frames.Write(c.Frame(r, payload(r)))
	}
	for _, r := range end {
		frames.Write(c.Frame(r, nil))
	}
	t.check(c.Send(frames.Bytes()), "requests")
	return all
}

func (t *trial) wait(c *probe.Conn, all []*probe.Answer) {
	for _, a := range all {
		t.check(c.Wait(a), describeRequest(a.Request))
		if a.Errno != wire.OK {
			t.failf("%s is answered with %s", describeRequest(a.Request), a)
		}
	}
}

// reads returns n requests for blocks of the beginning of the export.
func (t *trial) reads(n int) []wire.Request {
	var all []wire.Request
	b := t.facts.block()
	for i := range n {
		all = append(all, over(wire.CmdRead, uint64(i)*b%(smallExport-b+1)/b*b, b))
	}
	return all
}

func commandDiscInFlight(t *trial) {
	t.inModes(func(c *probe.Conn) {
		for _, a := range t.batch(c, t.reads(32), wire.Request{Type: wire.CmdDisc}) {
			t.check(c.Wait(a), describeRequest(a.Request))
		}
		if err := c.Ended(); err != nil {
			t.failf("%v", err)
		}
	})
}

func commandConcurrent(t *trial) { t.inFlight(64) }
func commandMany(t *trial)       { t.inFlight(1000) }

func (t *trial) inFlight(n int) {
	t.inModes(func(c *probe.Conn) {
		whole := t.done(c, over(wire.CmdRead, 0, smallExport), nil).Data
		all := t.batch(c, t.reads(n))
		t.wait(c, all)
		for _, a := range all {
			if !bytes.Equal(a.Data, whole[a.Request.Offset:a.Request.Offset+a.Request.Length]) {
				t.failf("%s is answered with the bytes of another place", describeRequest(a.Request))
			}
		}
	})
}

func flush(t *trial) {
	t.inModes(func(c *probe.Conn) { t.done(c, wire.Request{Type: wire.CmdFlush}, nil) })
}

func flushFields(t *trial) {
	t.inModes(func(c *probe.Conn) { t.endured(c, over(wire.CmdFlush, 512, 512), nil) })
}

func cacheInRange(t *trial) {
	t.inModes(func(c *probe.Conn) {
		before := t.done(c, over(wire.CmdRead, 0, smallExport), nil).Data
		t.endured(c, over(wire.CmdCache, 0, smallExport), nil)
		if !bytes.Equal(before, t.done(c, over(wire.CmdRead, 0, smallExport), nil).Data) {
			t.failf("the bytes are others after it")
		}
	})
}
