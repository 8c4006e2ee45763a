package conformance

import (
	"bytes"
	"crypto/rand"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

const (
	sectionNoTLS     = "NOTLS mode"
	sectionForcedTLS = "FORCEDTLS mode"
)

var tlsChecks = []*Check{
	{"tls/refused", Must, sectionNoTLS, "a server without TLS refuses STARTTLS, but not with ERR_TLS_REQD, and negotiation goes on", needPlain, tlsRefused},
	{"tls/not-required", Must, sectionNoTLS, "a server without TLS never answers ERR_TLS_REQD", needPlain, tlsNotRequired},
	{"tls/starttls", Must, sectionForcedTLS, "after the ACK of STARTTLS the connection is encrypted, and negotiation goes on", needSecure | needExport, tlsUpgrade},
	{"tls/starttls-data", Should, sectionOptions, "STARTTLS with data is ERR_INVALID", needSecure, tlsData},
	{"tls/starttls-twice", Must, sectionForcedTLS, "STARTTLS on an encrypted connection is ERR_INVALID", needSecure, tlsTwice},
	{"tls/forgets-structured", Must, sectionOptions, "structured replies that were agreed on before STARTTLS do not hold after it", needSecure | needStructured | needExport | needSize, tlsForgetsStructured},
	{"tls/forgets-contexts", Must, sectionOptions, "contexts that were selected before STARTTLS do not hold after it", needSecure | needContext, tlsForgetsContexts},
	{"tls/injection", Must, sectionForcedTLS, "an option that follows STARTTLS unencrypted is not carried out", needSecure, tlsInjection},
	{"tls/failed-handshake", Must, sectionForcedTLS, "the server hangs up where the TLS handshake fails", needSecure, tlsFailedHandshake},
	{"tls/required-options", Must, sectionForcedTLS, "before STARTTLS every other option is ERR_TLS_REQD", needTLSRequired, tlsRequired},
	{"tls/required-abort", Must, sectionForcedTLS, "before STARTTLS, ABORT is acknowledged", needTLSRequired, tlsRequiredAbort},
	{"tls/required-export-name", Must, sectionForcedTLS, "before STARTTLS, the server hangs up on EXPORT_NAME", needTLSRequired, tlsRequiredExportName},
}

func tlsRefused(t *trial) {
	c := t.plain()
	r := last(t.ask(c, wire.OptStartTLS, nil))
	if r.Type&wire.RepError == 0 || r.Type == wire.RepErrTLSReqd {
		t.failf("STARTTLS is answered with %s", describe(r))
	}
	t.answering(c)
}

// anyOption are options that a server refuses before STARTTLS where it requires that, with data that fits them.
func (t *trial) anyOption(each func(o wire.Option, data []byte)) {
	info := infoRequest(t.target.Export)
	each(wire.OptInfo, info)
	each(wire.OptList, nil)
	each(wire.OptStructuredReply, nil)
	each(wire.OptExtendedHeaders, nil)
	each(wire.OptListMetaContext, metaRequest(t.target.Export))
	each(wire.OptSetMetaContext, metaRequest(t.target.Export, wire.BaseAllocation))
	each(99, nil)
	each(wire.OptGo, info)
}

func tlsNotRequired(t *trial) {
	c := t.plain()
	t.anyOption(func(o wire.Option, data []byte) {
		if r := last(t.ask(c, o, data)); r.Type == wire.RepErrTLSReqd {
			t.failf("%s is answered with %s", o, describe(r))
		}
	})
}

func tlsUpgrade(t *trial) {
	c := t.plain()
	t.startTLS(c)
	t.answering(c)
	t.enter(c)
	t.serving(c)
}

func tlsData(t *trial) {
	t.refused(t.plain(), wire.OptStartTLS, []byte{1}, wire.RepErrInvalid)
}

func tlsTwice(t *trial) {
	c := t.plain()
	t.startTLS(c)
	t.refused(c, wire.OptStartTLS, nil, wire.RepErrInvalid)
	t.answering(c)
}

// beforeTLS agrees on structured replies on a plain connection, where the server lets it.
func (t *trial) beforeTLS() *probe.Conn {
	c := t.plain()
	if r := last(t.ask(c, wire.OptStructuredReply, nil)); r.Type != wire.RepAck {
		t.skipf("nothing can be agreed on before STARTTLS: %s", describe(r))
	}
	return c
}

func tlsForgetsStructured(t *trial) {
	c := t.beforeTLS()
	t.startTLS(c)
	t.enter(c)
	t.serving(c)
}

func tlsForgetsContexts(t *trial) {
	c := t.beforeTLS()
	if r := last(t.ask(c, wire.OptSetMetaContext, metaRequest(t.target.Export, wire.BaseAllocation))); r.Type != wire.RepAck {
		t.skipf("no context can be selected before STARTTLS: %s", describe(r))
	}
	t.startTLS(c)
	t.negotiate(c, probe.Structured)
	t.noStatus(c)
}

func tlsInjection(t *trial) {
	c := t.plain()
	t.check(c.Send(bytes.Join([][]byte{probe.OptionFrame(wire.OptStartTLS, nil), probe.OptionFrame(wire.OptStructuredReply, nil)}, nil)), "STARTTLS")
	replies, err := c.Replies(wire.OptStartTLS)
	if t.left(err, "STARTTLS") {
		return
	}
	if r := last(replies); r.Type != wire.RepAck {
		return
	}
	if err := t.upgrade(c); err != nil {
		return // the server took the option for a part of the TLS handshake
	}
	t.enter(c) // which does not find the reply to the injected option in its way
	t.serving(c)
}

func tlsFailedHandshake(t *trial) {
	c := t.plain()
	t.accepted(c, wire.OptStartTLS, nil)
	junk := make([]byte, 512)
	rand.Read(junk)
	junk[0] = 0x80 // no type of a TLS record
	t.check(c.Send(junk), "junk for a TLS handshake")
	err := c.Ended()
	for range 8 { // alerts may come first
		if _, ok := err.(*probe.Violation); !ok {
			break
		}
		c.Discard()
		err = c.Ended()
	}
	if err != nil {
		t.failf("%v", err)
	}
}

func tlsRequired(t *trial) {
	c := t.plain()
	t.anyOption(func(o wire.Option, data []byte) { t.refused(c, o, data, wire.RepErrTLSReqd) })
}

func tlsRequiredAbort(t *trial) { t.accepted(t.plain(), wire.OptAbort, nil) }

func tlsRequiredExportName(t *trial) {
	c := t.plain()
	if _, _, err := c.ExportName(t.target.Export, true); !t.left(err, "EXPORT_NAME") {
		t.failf("the server lets the client in")
	}
}
