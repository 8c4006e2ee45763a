package conformance

import (
	"bytes"
	"strings"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

var optionChecks = []*Check{
	{"option/unknown", Must, sectionBaseline, "an unknown option is answered with ERR_UNSUP, and the next one is understood", 0, unknownOption},
	{"option/unknown-data", Must, sectionBaseline, "the data of an unknown option is skipped, 70000 bytes of it too", 0, unknownOptionData},
	{"option/withdrawn", Must, sectionBaseline, "PEEK_EXPORT, which was withdrawn, is an unknown option", 0, withdrawnOption},
	{"option/error-text", Quality, "Option reply types", "refusals come with a message for people", 0, optionErrorText},
	{"option/flood", Quality, sectionEnd, "100 options in a row are answered", 0, optionFlood},
	{"option/abort", Must, sectionOptions, "ABORT is acknowledged", 0, abort},
	{"option/abort-closes", Quality, sectionEnd, "the server closes the connection after ABORT", 0, abortCloses},
	{"option/abort-data", Should, sectionOptions, "data of ABORT is ignored", 0, abortData},
	{"option/abort-unanswered", Should, sectionOptions, "a client that does not wait for the answer to ABORT does no harm", 0, abortUnanswered},
	{"option/list", Must, sectionBaseline, "LIST is answered with SERVER replies and ACK, or refused by policy", 0, list},
	{"option/list-twice", Should, sectionFixed, "LIST, which changes nothing, can be asked again", 0, listTwice},
	{"option/list-data", Should, sectionOptions, "LIST with data is ERR_INVALID", 0, listData},
	{"option/list-names", Should, "Option reply types", "INFO knows the exports that LIST tells of", 0, listNames},
	{"option/export-name", Must, sectionNewstyle, "EXPORT_NAME is answered with size, flags and, with NO_ZEROES agreed on, nothing more", needExport, exportName},
	{"option/export-name-zeroes", Must, sectionNewstyle, "without NO_ZEROES the answer to EXPORT_NAME ends with 124 zeroes", needExport, exportNameZeroes},
	{"option/export-name-unknown", Must, sectionOptions, "the server hangs up on EXPORT_NAME of an export that it has not", needNames, exportNameUnknown},
	{"option/export-name-too-long", Should, sectionStrings, "EXPORT_NAME of more than 4096 bytes does not get in", 0, exportNameTooLong},
	{"option/structured-reply", Quality, sectionOptions, "the server has structured replies", 0, offersStructured},
	{"option/structured-reply-data", Should, sectionOptions, "STRUCTURED_REPLY with data is ERR_INVALID", needStructured, structuredData},
	{"option/structured-reply-twice", Must, sectionFixed, "a second STRUCTURED_REPLY is answered with ACK or ERR_INVALID, and the first holds", needStructured | needExport, structuredTwice},
}

func unknownOption(t *trial) {
	c := t.haggle()
	for _, o := range []wire.Option{0, 99, 1<<31 + 5, 1<<32 - 1} {
		t.refused(c, o, nil, wire.RepErrUnsup)
	}
	t.answering(c)
}

func unknownOptionData(t *trial) {
	c := t.haggle()
	for _, n := range []int{1, 4097, 70000} {
		t.refused(c, 99, bytes.Repeat([]byte("IHAVEOPT"), n/8+1)[:n], wire.RepErrUnsup)
	}
	t.answering(c)
}

func withdrawnOption(t *trial) {
	c := t.haggle()
	t.refused(c, wire.OptPeekExport, []byte("export"), wire.RepErrUnsup)
	t.answering(c)
}

func optionErrorText(t *trial) {
	if r := t.refused(t.haggle(), 99, nil, wire.RepErrUnsup); len(r.Data) == 0 {
		t.failf("%s has no message", r.Type)
	}
}

func optionFlood(t *trial) {
	c := t.haggle()
	for i := range 100 {
		if _, err := c.Option(wire.OptInfo, infoRequest(t.target.Export)); t.left(err, "INFO") {
			t.failf("the server hangs up on option %d", i+1)
		}
	}
}

func abort(t *trial) { t.accepted(t.haggle(), wire.OptAbort, nil) }

func abortCloses(t *trial) {
	c := t.haggle()
	_, err := c.Option(wire.OptAbort, nil)
	if t.left(err, "ABORT") {
		return
	}
	if err := c.Ended(); err != nil {
		t.failf("%v", err)
	}
}

func abortData(t *trial) {
	t.refused(t.haggle(), wire.OptAbort, []byte("goodbye"), wire.RepAck)
}

func abortUnanswered(t *trial) {
	c := t.haggle()
	t.check(c.Send(probe.OptionFrame(wire.OptAbort, nil)), "ABORT")
	c.Close()
}

func list(t *trial) {
	c := t.haggle()
	if r := last(t.ask(c, wire.OptList, nil)); r.Type != wire.RepAck && r.Type != wire.RepErrPolicy && r.Type != wire.RepErrTLSReqd {
		t.failf("LIST is answered with %s", describe(r))
	}
	t.answering(c)
}

func listTwice(t *trial) {
	c := t.haggle()
	if r := last(t.ask(c, wire.OptList, nil)); r.Type != wire.RepAck {
		t.skipf("LIST is refused: %s", describe(r))
	}
	t.refused(c, wire.OptList, nil, wire.RepAck)
}

func listData(t *trial) {
	c := t.haggle()
	t.refused(c, wire.OptList, []byte("x"), wire.RepErrInvalid)
	t.answering(c)
}

func listNames(t *trial) {
	c := t.haggle()
	replies := t.ask(c, wire.OptList, nil)
	if last(replies).Type != wire.RepAck {
		t.skipf("LIST is refused: %s", describe(last(replies)))
	}
	const most = 16
	for _, r := range replies[:min(len(replies)-1, most)] {
		name, _, _ := r.Server()
		if r := last(t.ask(c, wire.OptInfo, infoRequest(name))); r.Type == wire.RepErrUnknown {
			t.failf("INFO of %q is answered with %s", name, describe(r))
		}
	}
}

// byName enters transmission by EXPORT_NAME, with other flags than plain takes.
func (t *trial) byName(f wire.ClientFlags) (*probe.Conn, uint64, wire.TransmissionFlags) {
	c, g := t.greet()
	if f&wire.ClientNoZeroes != 0 && g.Flags&wire.NoZeroes == 0 {
		t.skipf("the server does not offer NO_ZEROES")
	}
	t.check(c.ClientFlags(f), "client flags")
	if t.target.Upgrade != nil {
		t.startTLS(c)
	}
	size, flags, err := c.ExportName(t.target.Export, f&wire.ClientNoZeroes != 0)
	t.check(err, "EXPORT_NAME")
	return c, size, flags
}

func exportName(t *trial) {
	c, size, flags := t.byName(wire.ClientFixedNewstyle | wire.ClientNoZeroes)
	if size != t.facts.size || flags != t.facts.flags {
		t.failf("EXPORT_NAME tells of %d bytes and flags %#x, GO of %d and %#x", size, uint16(flags), t.facts.size, uint16(t.facts.flags))
	}
	t.serving(c)
}

func exportNameZeroes(t *trial) {
	c, _, _ := t.byName(wire.ClientFixedNewstyle)
	t.serving(c)
}

func exportNameUnknown(t *trial) {
	c := t.haggle()
	if _, _, err := c.ExportName(unknownExport, true); !t.left(err, "EXPORT_NAME") {
		t.failf("the server lets the client in")
	}
}

func exportNameTooLong(t *trial) {
	c := t.haggle()
	if _, _, err := c.ExportName(strings.Repeat("x", wire.MaxString+1), true); !t.left(err, "EXPORT_NAME") {
		t.failf("the server lets the client in")
	}
}

func offersStructured(t *trial) {
	if !t.facts.structured {
		t.failf("STRUCTURED_REPLY is refused")
	}
}

func structuredData(t *trial) {
	c := t.haggle()
	t.refused(c, wire.OptStructuredReply, []byte{0}, wire.RepErrInvalid)
	t.answering(c)
}

func structuredTwice(t *trial) {
	c := t.haggle()
	t.negotiate(c, probe.Structured)
	t.refused(c, wire.OptStructuredReply, nil, wire.RepAck, wire.RepErrInvalid)
	t.enter(c)
	t.serving(c)
}
