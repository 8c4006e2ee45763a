package conformance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

// trial is one execution of a check. Like a test of package testing it ends where a method says that it has failed: that method does not return.
type trial struct {
	ctx    context.Context
	target *Target
	facts  *facts
	level  Level
	limit  time.Duration // that every connection has

	outcome Outcome
	detail  string
	where   string // a part of the check that is being tried
	lenient bool   // whatever goes wrong counts no more than the check's level says
	several bool   // connections stay open beside one another
	ends    []func()
}

// execute tries a function and returns what came of it.
func (t *trial) execute(f func(*trial)) (Outcome, string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer t.hangUp()
		f(t)
	}()
	<-done
	if err := t.ctx.Err(); err != nil {
		return Skip, err.Error()
	}
	return t.outcome, t.detail
}

func (t *trial) end(o Outcome, format string, args ...any) {
	t.outcome, t.detail = o, fmt.Sprintf(format, args...)
	if t.where != "" {
		t.detail = t.where + ": " + t.detail
	}
	runtime.Goexit()
}

// failf says that the rule is not kept.
func (t *trial) failf(format string, args ...any) {
	t.end([...]Outcome{Must: Fail, Should: Warn, Quality: Note}[t.level], format, args...)
}

// brokenf says that what no server may do has happened, whatever the rule is.
func (t *trial) brokenf(format string, args ...any) {
	if t.lenient {
		t.failf(format, args...)
	}
	t.end(Fail, format, args...)
}

// skipf says that the rule cannot be tried.
func (t *trial) skipf(format string, args ...any) { t.end(Skip, format, args...) }

// check ends the trial where the server broke the protocol, fell silent or left while it was asked for something proper.
func (t *trial) check(err error, doing string) {
	if err != nil {
		t.brokenf("%s: %v", doing, err)
	}
}

// left reports whether the server closed the connection, where it may. Silence and nonsense it may not.
func (t *trial) left(err error, doing string) bool {
	if errors.Is(err, probe.ErrDropped) {
		return true
	}
	t.check(err, doing)
	return false
}

// hangUp closes all connections.
func (t *trial) hangUp() {
	for _, end := range t.ends {
		end()
	}
	t.ends = nil
}

// dial connects to the server. Connections that were made before are closed, for servers that serve one client at a time.
func (t *trial) dial() *probe.Conn {
	if !t.several {
		t.hangUp()
	}
	ctx, cancel := context.WithTimeout(t.ctx, t.limit)
	defer cancel()
	conn, err := t.target.Dial(ctx)
	if err != nil {
		t.brokenf("the server takes no connection: %v", err)
	}
	conn.SetDeadline(time.Now().Add(t.limit))
	stop := context.AfterFunc(t.ctx, func() { conn.Close() })
	t.ends = append(t.ends, func() { stop(); conn.Close() })
	return probe.New(conn)
}

// greet connects and reads the greeting.
func (t *trial) greet() (*probe.Conn, probe.Greeting) {
	c := t.dial()
	g, err := c.Greet()
	t.check(err, "greeting")
	if g.Oldstyle {
		t.skipf("the server is an oldstyle one")
	}
	return c, g
}

// plain connects and answers the greeting as a good client does, without encryption.
func (t *trial) plain() *probe.Conn {
	c, g := t.greet()
	if g.Flags&wire.FixedNewstyle == 0 {
		t.skipf("the server does not speak fixed newstyle")
	}
	t.check(c.ClientFlags(wire.ClientFlags(g.Flags&(wire.FixedNewstyle|wire.NoZeroes))), "client flags")
	return c
}

// haggle is plain, and encrypted where there are credentials.
func (t *trial) haggle() *probe.Conn {
	c := t.plain()
	if t.target.Upgrade != nil {
		t.startTLS(c)
	}
	return c
}

func (t *trial) startTLS(c *probe.Conn) {
	t.accepted(c, wire.OptStartTLS, nil)
	t.check(t.upgrade(c), "TLS handshake")
}

func (t *trial) upgrade(c *probe.Conn) error {
	deadline := time.Now().Add(t.limit)
	ctx, cancel := context.WithDeadline(t.ctx, deadline)
	defer cancel()
	return c.Upgrade(func(conn net.Conn) (net.Conn, error) {
		secure, err := t.target.Upgrade(ctx, conn)
		if err != nil {
			return nil, err
		}
		return secure, secure.SetDeadline(deadline)
	})
}

// ask sends an option and returns the replies to it.
func (t *trial) ask(c *probe.Conn, o wire.Option, data []byte) []probe.Reply {
	replies, err := c.Option(o, data)
	t.check(err, o.String())
	return replies
}

// last returns the final reply.
func last(replies []probe.Reply) probe.Reply { return replies[len(replies)-1] }

// accepted is ask for options that are taken.
func (t *trial) accepted(c *probe.Conn, o wire.Option, data []byte) []probe.Reply {
	replies := t.ask(c, o, data)
	if r := last(replies); r.Type != wire.RepAck {
		t.failf("%s is answered with %s instead of ACK", o, describe(r))
	}
	return replies
}

// refused sends an option that the server has to refuse with one of some replies, and go on.
func (t *trial) refused(c *probe.Conn, o wire.Option, data []byte, want ...wire.Reply) probe.Reply {
	replies, err := c.Option(o, data)
	if t.left(err, o.String()) {
		t.failf("the server hangs up on %s instead of answering %s", o, oneOf(want))
	}
	r := last(replies)
	for _, w := range want {
		if r.Type == w {
			return r
		}
	}
	t.failf("%s is answered with %s instead of %s", o, describe(r), oneOf(want))
	return r
}

// answering makes sure that the next option is understood.
func (t *trial) answering(c *probe.Conn) {
	t.ask(c, wire.OptInfo, infoRequest(t.target.Export))
}

// open enters transmission in a mode, with meta contexts where some are named.
func (t *trial) open(m probe.Mode, contexts ...string) *probe.Conn {
	c := t.haggle()
	t.negotiate(c, m)
	if len(contexts) > 0 {
		t.setContexts(c, contexts...)
	}
	t.enter(c)
	return c
}

// negotiate agrees on the mode of transmission.
func (t *trial) negotiate(c *probe.Conn, m probe.Mode) {
	switch m {
	case probe.Structured:
		t.accepted(c, wire.OptStructuredReply, nil)
	case probe.Extended:
		t.accepted(c, wire.OptExtendedHeaders, nil)
	}
	c.Mode = m
}

// setContexts selects contexts and notes what was selected.
func (t *trial) setContexts(c *probe.Conn, contexts ...string) {
	c.Contexts = selected(t.accepted(c, wire.OptSetMetaContext, metaRequest(t.target.Export, contexts...)))
}

// selected returns the contexts that replies tell of.
func selected(replies []probe.Reply) []probe.Context {
	var all []probe.Context
	for _, r := range replies {
		if r.Type == wire.RepMetaContext {
			all = append(all, probe.Context{ID: be.Uint32(r.Data), Name: string(r.Data[4:])})
		}
	}
	return all
}

// enter sends GO, with the block sizes asked for.
func (t *trial) enter(c *probe.Conn) exportInfo {
	replies := t.accepted(c, wire.OptGo, infoRequest(t.target.Export, wire.InfoBlockSize))
	info := parseInfo(replies)
	if !info.told {
		t.brokenf("GO is acknowledged without INFO_EXPORT")
	}
	c.Size, c.MinBlock = info.size, uint64(info.minBlock)
	return info
}

// modes are those that the server speaks.
func (t *trial) modes() []probe.Mode {
	all := []probe.Mode{probe.Simple}
	if t.facts.structured {
		all = append(all, probe.Structured)
	}
	if t.facts.extended {
		all = append(all, probe.Extended)
	}
	return all
}

// inModes tries f in transmission in every mode that the server speaks.
func (t *trial) inModes(f func(*probe.Conn)) {
	for _, m := range t.modes() {
		t.where = m.String()
		f(t.open(m))
	}
	t.where = ""
}

// best is the mode with the most features.
func (t *trial) best() probe.Mode {
	all := t.modes()
	return all[len(all)-1]
}

// done sends a request that has to succeed.
func (t *trial) done(c *probe.Conn, r wire.Request, payload []byte) *probe.Answer {
	a, err := c.Do(r, payload)
	t.check(err, describeRequest(r))
	if a.Errno != wire.OK {
		t.brokenf("%s is answered with %s instead of success", describeRequest(r), a)
	}
	return a
}

// denied sends a request that the server has to refuse with one of some errors, and go on.
func (t *trial) denied(c *probe.Conn, r wire.Request, payload []byte, want ...wire.Errno) *probe.Answer {
	a, err := c.Do(r, payload)
	if t.left(err, describeRequest(r)) {
		t.failf("the server hangs up on %s instead of answering %s", describeRequest(r), oneOf(want))
	}
	for _, w := range want {
		if a.Errno == w {
			t.serving(c)
			return a
		}
	}
	t.failf("%s is answered with %s instead of %s", describeRequest(r), a, oneOf(want))
	return a
}

// endured sends a request of which the specification leaves the answer open, but not that there is one.
func (t *trial) endured(c *probe.Conn, r wire.Request, payload []byte) *probe.Answer {
	a, err := c.Do(r, payload)
	if t.left(err, describeRequest(r)) {
		t.failf("the server hangs up on %s", describeRequest(r))
	}
	t.serving(c)
	return a
}

// serving makes sure that the connection still serves.
func (t *trial) serving(c *probe.Conn) {
	n := min(t.facts.block(), t.facts.size)
	if n == 0 {
		return
	}
	_, err := c.Do(wire.Request{Type: wire.CmdRead, Length: n}, nil)
	t.check(err, "the READ that follows")
}
