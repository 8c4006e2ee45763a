package conformance

import (
	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

const (
	sectionExtended = "Experimental extensions: EXTENDED_HEADERS"
)

var extendedChecks = []*Check{
	{"extended/offered", Quality, sectionExtended, "the server has extended headers", 0, offersExtended},
	{"extended/data", Should, sectionExtended, "EXTENDED_HEADERS with data is ERR_INVALID", needExtended, extendedData},
	{"extended/without-structured", Should, sectionExtended, "extended headers need no structured replies before", needExtended | needExport, func(t *trial) { t.serving(t.open(probe.Extended)) }},
	{"extended/after-structured", Must, sectionExtended, "extended headers take the place of structured replies", needExtended | needExport, extendedAfterStructured},
	{"extended/then-structured", Should, sectionExtended, "STRUCTURED_REPLY after EXTENDED_HEADERS is ERR_EXT_HEADER_REQD", needExtended | needExport, extendedThenStructured},
	{"extended/export-name", Quality, sectionExtended, "the server hangs up on EXPORT_NAME after EXTENDED_HEADERS", needExtended, extendedExportName},
	{"extended/no-simple-replies", Must, sectionExtended, "every answer is an extended reply, and repeats the offset of the request", needExtended | needExport | needSize, extendedReplies},
	{"extended/compact-request", Quality, sectionExtended, "the server hangs up on a compact request", needExtended | needExport, extendedCompact},
	{"extended/64-bit-length", Should, sectionExtended, "lengths of more than 4 GiB are understood: past the end they are EINVAL", needExtended | needExport | needSize, extendedLength},
	{"extended/status", Must, sectionExtended, "block status comes as BLOCK_STATUS_EXT, and of base:allocation the upper 32 bits are zero", needExtended | needContext | needSize, extendedStatus},
	{"extended/read-payload", Should, sectionExtended, "the payload of a READ is read over, and the READ is EINVAL", needExtended | needExport | needSize, extendedReadPayload},
	{"extended/write-without-payload", Should, sectionExtended, "WRITE without PAYLOAD_LEN is EINVAL", needExtended | needWrite | needSize, extendedBareWrite},
	{"extended/oversize-payload", Should, sectionExtended, "the server hangs up on a payload over the maximum", needExtended | needWrite, extendedOversize},
	{"status-payload/offered", Quality, sectionExtended, "the server lets clients choose among their contexts", needExtended | needContext, offersStatusPayload},
	{"status-payload/unoffered", Must, sectionExtended, "a payload of BLOCK_STATUS that is not offered is read over, and EINVAL", needExtended | needContext | needSize, statusPayloadUnoffered},
	{"status-payload/all", Must, sectionExtended, "every context can be chosen alone, and all together", needStatus | needSize, statusPayloadAll},
	{"status-payload/unknown", Must, sectionExtended, "an id that was not selected is EINVAL", needStatus | needSize, statusPayloadUnknown},
	{"status-payload/duplicate", Must, sectionExtended, "the same id twice is EINVAL", needStatus | needSize, statusPayloadDuplicate},
	{"status-payload/wrong-length", Must, sectionExtended, "a payload that is no length and ids is read over, and EINVAL", needStatus | needSize, statusPayloadLength},
	{"status-payload/past-end", Should, sectionExtended, "past the end is EINVAL", needStatus | needSize, statusPayloadPastEnd},
}

func offersExtended(t *trial) {
	if !t.facts.extended {
		t.failf("EXTENDED_HEADERS is refused")
	}
}

func offersStatusPayload(t *trial) {
	if !t.facts.status {
		t.failf("BLOCK_STATUS_PAYLOAD is not set")
	}
}

func extendedData(t *trial) {
	c := t.haggle()
	t.refused(c, wire.OptExtendedHeaders, []byte{0}, wire.RepErrInvalid)
	t.answering(c)
}

func extendedAfterStructured(t *trial) {
	c := t.structured()
	t.negotiate(c, probe.Extended)
	t.enter(c)
	t.serving(c)
}

func extendedThenStructured(t *trial) {
	c := t.haggle()
	t.negotiate(c, probe.Extended)
	t.refused(c, wire.OptStructuredReply, nil, wire.RepErrExtHeaderReqd)
	t.enter(c)
	t.serving(c)
}

func extendedExportName(t *trial) {
	c := t.haggle()
	t.negotiate(c, probe.Extended)
	if _, _, err := c.ExportName(t.target.Export, true); !t.left(err, "EXPORT_NAME") {
		t.failf("the server lets the client in")
	}
}

func extendedReplies(t *trial) {
	c := t.open(probe.Extended)
	b := t.facts.block()
	t.done(c, over(wire.CmdRead, b, b), nil)
	t.endured(c, over(wire.CmdFlush, 0, 0), nil)
	t.endured(c, over(99, 7, 0), nil)
	t.endured(c, over(wire.CmdRead, c.Size+512, b), nil)
	t.endured(c, over(wire.CmdTrim, 1<<62, b), nil)
}

func extendedCompact(t *trial) {
	c := t.open(probe.Extended)
	c.Mode = probe.Simple
	b := c.Frame(over(wire.CmdRead, 0, t.facts.block()), nil)
	c.Mode = probe.Extended
	t.check(c.Send(b, make([]byte, 4)), "a compact request")
	if err := c.Ended(); err != nil {
		t.failf("%v", err)
	}
}

func extendedLength(t *trial) {
	c := t.open(probe.Extended)
	for _, n := range []uint64{1<<32 + 512, 1 << 62, 1 << 63, -512 & (1<<64 - 1)} {
		if n <= c.Size {
			continue
		}
		t.denied(c, over(wire.CmdRead, 0, n), nil, wire.EINVAL, wire.EOVERFLOW)
		t.denied(c, over(wire.CmdTrim, 512, n), nil, wire.EINVAL, wire.EPERM)
	}
}

func extendedStatus(t *trial) {
	c := t.open(probe.Extended, wire.BaseAllocation)
	t.walk(c, func(off uint64, e probe.Extent, _ bool) bool {
		if e.Flags>>32 != 0 {
			t.failf("the extent at %d has the flags %#x", off, e.Flags)
		}
		return true
	})
}

func extendedReadPayload(t *trial) {
	c := t.open(probe.Extended)
	for _, n := range []int{1, 4096, 1 << 20} {
		r := over(wire.CmdRead, 0, uint64(n))
		r.Flags = wire.FlagPayloadLen
		t.denied(c, r, make([]byte, n), wire.EINVAL)
	}
}

func extendedBareWrite(t *trial) {
	c := t.open(probe.Extended)
	t.denied(c, over(wire.CmdWrite, 0, t.facts.block()), nil, wire.EINVAL)
}

func extendedOversize(t *trial) {
	c := t.open(probe.Extended)
	r := over(wire.CmdWrite, 0, 1<<40)
	r.Flags = wire.FlagPayloadLen
	if a, err := c.Do(r, nil); !t.left(err, describeRequest(r)) {
		t.failf("%s is answered with %s", describeRequest(r), a)
	}
}

// chosen asks for the block status of some contexts.
func (t *trial) chosen(c *probe.Conn, off, n uint64, ids ...uint32) (wire.Request, []byte) {
	data := be.AppendUint64(nil, n)
	for _, id := range ids {
		data = be.AppendUint32(data, id)
	}
	r := over(wire.CmdBlockStatus, off, uint64(len(data)))
	r.Flags, r.Cookie = wire.FlagPayloadLen, c.Cookie()
	return r, data
}

func statusPayloadUnoffered(t *trial) {
	if t.facts.status {
		t.skipf("it is offered")
	}
	c := t.open(probe.Extended, wire.BaseAllocation)
	r, data := t.chosen(c, 0, smallExport, c.Contexts[0].ID)
	t.denied(c, r, data, wire.EINVAL)
}

// choosing enters transmission with all contexts there are.
func (t *trial) choosing() *probe.Conn { return t.open(probe.Extended, t.facts.contexts...) }

func statusPayloadAll(t *trial) {
	c := t.choosing()
	sets := make([][]uint32, 1, len(c.Contexts)+1)
	for _, x := range c.Contexts {
		sets[0] = append(sets[0], x.ID)
		sets = append(sets, []uint32{x.ID})
	}
	for _, ids := range sets {
		r, data := t.chosen(c, 0, smallExport, ids...)
		a := c.Expect(r, ids...)
		t.check(c.Send(c.Frame(r, data)), "BLOCK_STATUS")
		t.check(c.Wait(a), "BLOCK_STATUS with a payload")
		if a.Errno != wire.OK {
			t.failf("BLOCK_STATUS of the contexts %d is answered with %s", ids, a)
		}
	}
}

func statusPayloadUnknown(t *trial) {
	c := t.choosing()
	r, data := t.chosen(c, 0, smallExport, c.Contexts[0].ID, 0xfffffff0)
	t.denied(c, r, data, wire.EINVAL)
}

func statusPayloadDuplicate(t *trial) {
	c := t.choosing()
	r, data := t.chosen(c, 0, smallExport, c.Contexts[0].ID, c.Contexts[0].ID)
	t.denied(c, r, data, wire.EINVAL)
}

func statusPayloadLength(t *trial) {
	c := t.choosing()
	_, data := t.chosen(c, 0, smallExport, c.Contexts[0].ID)
	for _, n := range []int{1, 7, 9, 11} {
		r := over(wire.CmdBlockStatus, 0, uint64(n))
		r.Flags = wire.FlagPayloadLen
		t.denied(c, r, data[:n], wire.EINVAL)
	}
}

func statusPayloadPastEnd(t *trial) {
	c := t.choosing()
	for _, x := range [][2]uint64{{c.Size / 512 * 512, 1 << 20}, {0, 1 << 63}, {1 << 63, 1 << 63}} {
		r, data := t.chosen(c, x[0], x[1], c.Contexts[0].ID)
		t.denied(c, r, data, wire.EINVAL)
	}
}
