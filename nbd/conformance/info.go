package conformance

import (
	"slices"
	"strings"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

const (
	sectionSizes = "Size constraints"
	sectionFlags = "Transmission flags"
)

var infoChecks = []*Check{
	{"info/export", Must, sectionOptions, "INFO is answered with INFO_EXPORT and ACK, and negotiation goes on", needExport, infoExport},
	{"info/go", Must, sectionBaseline, "GO is answered with INFO_EXPORT and ACK, and transmission begins", needExport, infoGo},
	{"info/agrees", Must, sectionOptions, "GO straight after INFO with the same data tells the same", needExport, infoAgrees},
	{"info/once", Should, "Option reply types", "every kind of information comes once", needExport, infoOnce},
	{"info/no-padding", Must, sectionOptions, "no zeroes follow GO, whatever the client flags were", needExport, infoNoPadding},
	{"info/unknown-request", Must, sectionOptions, "requests for unknown information are ignored", needExport, infoUnknownRequest},
	{"info/unknown-export", Must, sectionOptions, "an export that there is not is ERR_UNKNOWN", needNames | needExport, infoUnknownExport},
	{"info/unknown-export-tells-nothing", Should, sectionOptions, "no INFO comes with ERR_UNKNOWN", needNames | needExport, infoUnknownQuiet},
	{"info/go-after-failure", Must, sectionOptions, "after a GO that failed, another one can succeed", needNames | needExport, goAfterFailure},
	{"info/go-twice", Quality, "Terminating the transmission phase", "the server hangs up on an option in transmission", needExport, goTwice},
	{"info/wrong-lengths", Should, "Option reply types", "lengths that do not fit the option are ERR_INVALID", 0, infoWrongLengths},
	{"info/name-too-long", Should, sectionStrings, "a name of more than 4096 bytes is refused", 0, infoNameTooLong},
	{"info/block-size-optional", Should, sectionSizes, "a client that does not ask for block sizes gets in", needExport, infoBlockSizeOptional},
	{"info/block-size-told", Quality, sectionSizes, "block sizes are told where they are asked for", needExport, infoBlockSizeTold},
	{"info/block-size-valid", Must, sectionSizes, "the block sizes keep the rules: powers of two, minimum to 65536, preferred from 512, maximum from preferred", needExport, infoBlockSizeValid},
	{"info/max-payload", Should, sectionSizes, "payloads may have 1 MiB where the export is that large", needExport, infoMaxPayload},
	{"info/size-multiple", Should, sectionSizes, "the export's size is a multiple of the minimum block size", needExport, infoSizeMultiple},
}

var flagChecks = []*Check{
	{"flags/has-flags", Must, sectionFlags, "HAS_FLAGS is set", needExport, func(t *trial) {
		t.flags(probe.Simple, func(f wire.TransmissionFlags) bool { return f&wire.HasFlags != 0 })
	}},
	{"flags/df-simple", Must, sectionFlags, "DF is not offered without structured replies", needExport, func(t *trial) {
		t.flags(probe.Simple, func(f wire.TransmissionFlags) bool { return f&wire.SendDF == 0 })
	}},
	{"flags/df-structured", Quality, sectionFlags, "DF is offered with structured replies", needExport | needStructured, func(t *trial) {
		t.flags(probe.Structured, func(f wire.TransmissionFlags) bool { return f&wire.SendDF != 0 })
	}},
	{"flags/fast-zero", Must, sectionFlags, "FAST_ZERO is not offered without WRITE_ZEROES", needExport, func(t *trial) {
		t.flags(probe.Simple, func(f wire.TransmissionFlags) bool { return f&wire.SendFastZero == 0 || f&wire.SendWriteZeroes != 0 })
	}},
	{"flags/status-payload", Must, sectionFlags, "BLOCK_STATUS_PAYLOAD is not offered without extended headers", needExport, func(t *trial) {
		t.flags(probe.Simple, func(f wire.TransmissionFlags) bool { return f&wire.BlockStatusPayload == 0 })
	}},
	{"flags/unknown", Must, sectionFlags, "no flag is set that has no meaning", needExport, func(t *trial) {
		t.flags(probe.Simple, func(f wire.TransmissionFlags) bool { return f&(1<<13|1<<14|1<<15) == 0 })
	}},
	{"flags/read-only", Quality, sectionFlags, "a read-only export offers no command that would change it", needReadOnly, func(t *trial) {
		t.flags(probe.Simple, func(f wire.TransmissionFlags) bool {
			return f&(wire.SendTrim|wire.SendWriteZeroes|wire.SendFastZero) == 0
		})
	}},
	{"flags/durable", Quality, "Maximum interoperability", "a writable export offers FLUSH and FUA", needExport, func(t *trial) {
		t.flags(probe.Simple, func(f wire.TransmissionFlags) bool {
			return f&wire.ReadOnly != 0 || f&(wire.SendFlush|wire.SendFUA) == wire.SendFlush|wire.SendFUA
		})
	}},
	{"flags/structured-agree", Should, sectionFlags, "but for DF and what needs extended headers, the flags do not depend on the form of replies", needExport | needStructured, flagsAgree},
}

func (t *trial) flags(m probe.Mode, good func(wire.TransmissionFlags) bool) {
	c := t.haggle()
	t.negotiate(c, m)
	if f := t.enter(c).flags; !good(f) {
		t.failf("the transmission flags are %#x", uint16(f))
	}
}

func flagsAgree(t *trial) {
	c := t.haggle()
	t.negotiate(c, probe.Structured)
	if f := t.enter(c).flags &^ wire.SendDF; f != t.facts.flags {
		t.failf("the transmission flags are %#x with structured replies, %#x without", uint16(f), uint16(t.facts.flags))
	}
}

func infoExport(t *trial) {
	c := t.haggle()
	if !parseInfo(t.accepted(c, wire.OptInfo, infoRequest(t.target.Export))).told {
		t.failf("INFO is acknowledged without INFO_EXPORT")
	}
	t.answering(c)
}

func infoGo(t *trial) { t.serving(t.open(probe.Simple)) }

func infoAgrees(t *trial) {
	c := t.haggle()
	request := infoRequest(t.target.Export, wire.InfoExport, wire.InfoName, wire.InfoDescription, wire.InfoBlockSize)
	told := func(o wire.Option) []string {
		var all []string
		for _, r := range t.accepted(c, o, request) {
			all = append(all, r.Type.String()+" "+string(r.Data))
		}
		slices.Sort(all)
		return all
	}
	if a, b := told(wire.OptInfo), told(wire.OptGo); !slices.Equal(a, b) {
		t.failf("INFO tells %q, GO %q", a, b)
	}
}

func infoOnce(t *trial) {
	seen := map[wire.Info]bool{}
	for _, r := range t.accepted(t.haggle(), wire.OptInfo, infoRequest(t.target.Export, wire.InfoName, wire.InfoDescription, wire.InfoBlockSize)) {
		if kind, _, ok := r.Info(); ok && seen[kind] {
			t.failf("information of type %d comes twice", kind)
		} else if ok {
			seen[kind] = true
		}
	}
}

func infoNoPadding(t *trial) {
	c, _ := t.greet()
	t.check(c.ClientFlags(wire.ClientFixedNewstyle), "client flags")
	if t.target.Upgrade != nil {
		t.startTLS(c)
	}
	t.enter(c)
	t.serving(c)
}

func infoUnknownRequest(t *trial) {
	c := t.haggle()
	t.accepted(c, wire.OptInfo, infoRequest(t.target.Export, 999, wire.InfoBlockSize, 0xffff))
	t.answering(c)
}

func infoUnknownExport(t *trial) {
	c := t.haggle()
	t.refused(c, wire.OptInfo, infoRequest(unknownExport), wire.RepErrUnknown)
	t.refused(c, wire.OptGo, infoRequest(unknownExport), wire.RepErrUnknown)
	t.answering(c)
}

func infoUnknownQuiet(t *trial) {
	if replies := t.ask(t.haggle(), wire.OptInfo, infoRequest(unknownExport, wire.InfoBlockSize)); len(replies) > 1 {
		t.failf("%s comes before %s", describe(replies[0]), describe(last(replies)))
	}
}

func goAfterFailure(t *trial) {
	c := t.haggle()
	t.refused(c, wire.OptGo, infoRequest(unknownExport), wire.RepErrUnknown, wire.RepErrInvalid, wire.RepErrPolicy, wire.RepErrPlatform)
	t.enter(c)
	t.serving(c)
}

func goTwice(t *trial) {
	c := t.open(probe.Simple)
	// As an option it is longer than any request, so that the server does not wait for the rest of one.
	t.check(c.Send(probe.OptionFrame(wire.OptGo, infoRequest(t.target.Export, 1, 2, 3, 4, 5, 6, 7, 8))), "GO")
	if _, err := c.Replies(wire.OptGo); !t.left(err, "GO in transmission") {
		t.failf("GO in transmission is answered as an option")
	}
}

func infoWrongLengths(t *trial) {
	name := appendString(nil, t.target.Export)
	for _, x := range []struct {
		what string
		data []byte
	}{
		{"no data", nil},
		{"3 bytes", []byte{0, 0, 0}},
		{"no number of requests", name},
		{"a name that is longer than the data", be.AppendUint32(nil, 1000)},
		{"a name of 4 GiB", append(be.AppendUint32(nil, 1<<32-1), 0, 0)},
		{"a request too few", be.AppendUint16(name[:len(name):len(name)], 1)},
		{"65535 requests and no room", be.AppendUint16(name[:len(name):len(name)], 0xffff)},
		{"half a request too many", append(infoRequest(t.target.Export, wire.InfoName), 0)},
		{"a request too many", append(infoRequest(t.target.Export, wire.InfoName), 0, 2)},
	} {
		for _, o := range []wire.Option{wire.OptInfo, wire.OptGo} {
			t.where = x.what
			c := t.haggle()
			t.refused(c, o, x.data, wire.RepErrInvalid)
			t.answering(c)
		}
	}
}

func infoNameTooLong(t *trial) {
	c := t.haggle()
	t.refused(c, wire.OptInfo, infoRequest(strings.Repeat("x", wire.MaxString+1)),
		wire.RepErrInvalid, wire.RepErrTooBig, wire.RepErrUnknown, wire.RepErrPolicy)
	t.answering(c)
}

func infoBlockSizeOptional(t *trial) {
	c := t.haggle()
	t.accepted(c, wire.OptGo, infoRequest(t.target.Export))
	t.serving(c)
}

func infoBlockSizeTold(t *trial) {
	if !t.facts.sizes {
		t.failf("INFO_BLOCK_SIZE does not come")
	}
}

func infoBlockSizeValid(t *trial) {
	f := t.facts
	if !f.sizes {
		t.skipf("the server does not tell block sizes")
	}
	power := func(n uint32) bool { return n > 0 && n&(n-1) == 0 }
	switch {
	case !power(f.minBlock) || f.minBlock > wire.MinBlockLimit:
		t.failf("the minimum block size is %d", f.minBlock)
	case !power(f.preferred) || f.preferred < max(f.minBlock, 512):
		t.failf("the preferred block size is %d where the minimum is %d", f.preferred, f.minBlock)
	case f.maxLength < f.preferred:
		t.failf("the maximum payload is %d where the preferred block size is %d", f.maxLength, f.preferred)
	}
}

func infoMaxPayload(t *trial) {
	if f := t.facts; f.sizes && f.size >= 1<<20 && f.maxLength < 1<<20 {
		t.failf("the maximum payload is %d bytes", f.maxLength)
	}
}

func infoSizeMultiple(t *trial) {
	if f := t.facts; f.minBlock > 1 && f.size%uint64(f.minBlock) != 0 {
		t.failf("the export has %d bytes, the minimum block %d", f.size, f.minBlock)
	}
}
