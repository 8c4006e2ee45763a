package conformance

import (
	"bytes"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

const (
	sectionNewstyle = "Newstyle negotiation"
	sectionFixed    = "Fixed newstyle negotiation"
	sectionClient   = "Client flags"
	sectionOptions  = "Option types"
	sectionBaseline = "Baseline"
	sectionStrings  = "Conventions"
	sectionEnd      = "Termination of the session during option haggling"
)

var greetingChecks = []*Check{
	{"handshake/greeting", Must, "Handshake flags", "the greeting is NBDMAGIC, IHAVEOPT and flags of which only the two known ones are set", 0, greeting},
	{"handshake/fixed-newstyle", Must, sectionBaseline, "the server speaks fixed newstyle", 0, fixedNewstyle},
	{"handshake/no-zeroes", Quality, "Handshake flags", "the server offers to leave out the 124 zeroes", 0, offersNoZeroes},
	{"handshake/unknown-client-flag", Must, sectionClient, "the server hangs up on client flags that it does not know", 0, unknownClientFlag},
	{"handshake/unoffered-client-flag", Must, sectionClient, "the server hangs up on client flags that it did not offer", 0, unofferedClientFlag},
	{"handshake/without-fixed-newstyle", Should, sectionClient, "a client that does not set the fixed newstyle flag gets in by EXPORT_NAME", needExport, withoutFixed},
	{"handshake/wrong-option-magic", Quality, sectionEnd, "the server hangs up on an option that does not begin with IHAVEOPT", 0, wrongOptionMagic},
	{"handshake/vanishing-client", Quality, sectionEnd, "clients that vanish at any byte of the handshake do no harm", 0, vanishingClient},
	{"handshake/huge-option", Quality, sectionEnd, "an option that says it is 4 GiB long does no harm", 0, hugeOption},
}

func greeting(t *trial) {
	_, g := t.greet()
	if g.Flags&^(wire.FixedNewstyle|wire.NoZeroes) != 0 {
		t.failf("the handshake flags are %#x", uint16(g.Flags))
	}
}

func fixedNewstyle(t *trial) {
	g, err := t.dial().Greet()
	t.check(err, "greeting")
	if g.Oldstyle {
		t.failf("the server is an oldstyle one")
	}
	if g.Flags&wire.FixedNewstyle == 0 {
		t.failf("the handshake flags are %#x", uint16(g.Flags))
	}
}

func offersNoZeroes(t *trial) {
	if _, g := t.greet(); g.Flags&wire.NoZeroes == 0 {
		t.failf("the handshake flags are %#x", uint16(g.Flags))
	}
}

func unknownClientFlag(t *trial) {
	c, g := t.greet()
	t.check(c.ClientFlags(wire.ClientFlags(g.Flags)|1<<20), "client flags")
	t.hungUp(c, wire.OptList, "a client flag that nobody knows")
}

func unofferedClientFlag(t *trial) {
	c, g := t.greet()
	if g.Flags&wire.NoZeroes != 0 {
		t.skipf("the server offers all flags that there are")
	}
	t.check(c.ClientFlags(wire.ClientFlags(g.Flags)|wire.ClientNoZeroes), "client flags")
	t.hungUp(c, wire.OptList, "NO_ZEROES, which it did not offer")
}

// hungUp sends an option and expects no reply.
func (t *trial) hungUp(c *probe.Conn, o wire.Option, after string) {
	replies, err := c.Option(o, nil)
	if !t.left(err, o.String()) {
		t.failf("after %s, %s is answered with %s instead of hanging up", after, o, describe(last(replies)))
	}
}

func withoutFixed(t *trial) {
	if t.facts.requiresTLS {
		t.skipf("the server requires TLS, which needs fixed newstyle")
	}
	c, _ := t.greet()
	t.check(c.ClientFlags(0), "client flags")
	size, _, err := c.ExportName(t.target.Export, false)
	if t.left(err, "EXPORT_NAME") {
		t.failf("the server hangs up")
	}
	if size != t.facts.size {
		t.failf("the export has %d bytes, and %d by GO", size, t.facts.size)
	}
	t.serving(c)
}

func wrongOptionMagic(t *trial) {
	c := t.plain()
	b := probe.OptionFrame(wire.OptList, nil)
	b[3] ^= 0x80
	t.check(c.Send(b), "option")
	if _, err := c.Replies(wire.OptList); !t.left(err, "an option with a wrong magic number") {
		t.failf("the server answers it")
	}
}

func vanishingClient(t *trial) {
	flags := be.AppendUint32(nil, uint32(wire.ClientFixedNewstyle))
	whole := bytes.Join([][]byte{flags, probe.OptionFrame(wire.OptGo, infoRequest(t.target.Export, wire.InfoBlockSize))}, nil)
	for n := 0; n < len(whole); n += 5 {
		c, _ := t.greet()
		t.check(c.Send(whole[:n]), "part of a handshake")
		c.Close()
	}
	t.dial().Close()
}

func hugeOption(t *trial) {
	for _, o := range []wire.Option{wire.OptExportName, wire.OptGo, wire.OptSetMetaContext, 77} {
		c := t.plain()
		h := make([]byte, wire.OptionHeaderSize+100)
		wire.OptionHeader{Option: o, Length: 1<<32 - 1}.Put(h)
		if err := c.Send(h); err != nil {
			t.left(err, "a huge option")
		}
		c.Close()
	}
}
