package conformance

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

// Target is the server that is tried.
type Target struct {
	// Dial makes a connection; it is called for every check.
	Dial func(ctx context.Context) (net.Conn, error)
	// Upgrade makes the client's side of the TLS handshake. Where it is set, everything is encrypted that can be; nil means that there are no
	// credentials.
	Upgrade func(ctx context.Context, conn net.Conn) (net.Conn, error)
	// Export is the name of the export.
	Export string
	// Destructive allows the checks that change the export. The first [Scratch] bytes of it are read before, and written again after.
	Destructive bool
	// Stop asks the server to end, and waits until it has; nil where it must go on. It is called at most once, after everything else.
	Stop func() error
	// Timeout bounds each connection of a check; 0 is DefaultTimeout.
	Timeout time.Duration
}

// DefaultTimeout is how long one connection of a check may take. Saving and restoring, and looking whether the server still serves, may always take
// as long.
const DefaultTimeout = 15 * time.Second

// Scratch is how many bytes of an export the destructive checks change at most, from its beginning.
const Scratch = largeExport

func (t *Target) timeout() time.Duration {
	if t.Timeout > 0 {
		return t.Timeout
	}
	return DefaultTimeout
}

// ErrStopped means that the server was not there any more after a check, so that those that follow were not tried.
var ErrStopped = errors.New("the server does not serve any more")

// facts are what the server says of itself, as far as checks depend on it.
type facts struct {
	exportInfo
	opened               bool
	structured, extended bool
	everyName            bool // unknown export names are taken
	secure               bool // STARTTLS works
	refusesTLS           bool
	requiresTLS          bool
	contexts             []string
	status               bool // BLOCK_STATUS_PAYLOAD
	writable             bool // and may be written
}

// block is the length of the smallest request that every server takes, in bytes.
func (f *facts) block() uint64 { return max(512, uint64(f.minBlock)) }

// small is the length of a request that lies in every export of some size.
func (f *facts) small() uint64 { return min(f.size, max(4096, f.block())) }

// Run tries checks of a server one after another and calls each with every result. An error says that not all could be tried: the server stopped
// serving, its content could not be saved or restored, or ctx ended.
func Run(ctx context.Context, target Target, checks []*Check, each func(Result)) error {
	r := &run{ctx: ctx, target: &target}
	if err := r.survey(); err != nil {
		return err
	}
	if err := r.save(checks); err != nil {
		return err
	}
	err := r.tryAll(checks, false, each)
	if err := errors.Join(err, r.restore()); err != nil {
		return err
	}
	return r.tryAll(checks, true, each)
}

// tryAll executes the checks that end the server, or those that do not.
func (r *run) tryAll(checks []*Check, ending bool, each func(Result)) error {
	for _, c := range checks {
		if c.ends() != ending {
			continue
		}
		if err := r.try(c, each); err != nil {
			return err
		}
	}
	return nil
}

// run is one call of Run.
type run struct {
	ctx    context.Context
	target *Target
	facts  facts
	broken string // why the export cannot be opened
	saved  []byte // the export's first bytes
}

// attempt executes a function outside of any check.
func (r *run) attempt(f func(*trial)) (string, bool) { return r.within(r.target.timeout(), f) }

// patiently is attempt for what must not fail because a server is busy.
func (r *run) patiently(f func(*trial)) (string, bool) {
	return r.within(max(r.target.timeout(), DefaultTimeout), f)
}

func (r *run) within(limit time.Duration, f func(*trial)) (string, bool) {
	t := &trial{ctx: r.ctx, target: r.target, facts: &r.facts, level: Must, limit: limit}
	outcome, detail := t.execute(f)
	return detail, outcome == Pass
}

// survey finds out what the server offers.
func (r *run) survey() error {
	detail, ok := r.attempt(func(t *trial) {
		if _, err := t.dial().Greet(); errors.Is(err, probe.ErrDropped) || errors.Is(err, probe.ErrSilent) {
			t.failf("%v, without a greeting", err)
		}
	})
	if !ok {
		return errors.New(detail)
	}
	f := &r.facts
	r.attempt(func(t *trial) {
		c := t.plain()
		f.requiresTLS = last(t.ask(c, wire.OptInfo, infoRequest(r.target.Export))).Type == wire.RepErrTLSReqd
		c = t.plain()
		f.refusesTLS = last(t.ask(c, wire.OptStartTLS, nil)).Type != wire.RepAck
	})
	if r.target.Upgrade != nil {
		detail, ok := r.attempt(func(t *trial) { t.startTLS(t.plain()) })
		if !ok {
			return fmt.Errorf("TLS does not come about: %s", detail)
		}
		f.secure = true
	}
	for _, x := range []struct {
		o   wire.Option
		yes *bool
	}{{wire.OptStructuredReply, &f.structured}, {wire.OptExtendedHeaders, &f.extended}} {
		r.attempt(func(t *trial) {
			*x.yes = last(t.ask(t.haggle(), x.o, nil)).Type == wire.RepAck
		})
	}
	r.broken, f.opened = r.attempt(func(t *trial) { f.exportInfo = t.enter(t.haggle()) })
	if !f.opened {
		return nil
	}
	r.attempt(func(t *trial) {
		f.everyName = last(t.ask(t.haggle(), wire.OptInfo, infoRequest(unknownExport))).Type == wire.RepAck
	})
	r.attempt(func(t *trial) {
		c := t.haggle()
		t.negotiate(c, t.best())
		for _, x := range selected(t.accepted(c, wire.OptListMetaContext, metaRequest(r.target.Export))) {
			f.contexts = append(f.contexts, x.Name)
		}
		t.setContexts(c, wire.BaseAllocation)
		f.status = t.enter(c).flags&wire.BlockStatusPayload != 0
	})
	return nil
}

// unknownExport is a name that no server should know.
const unknownExport = "imgtool-conformance-no-such-export"

// try executes one check, and looks whether the server is still there.
func (r *run) try(c *Check, each func(Result)) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	result := Result{ID: c.ID, Level: c.Level, Section: c.Section, Rule: c.Rule, Outcome: Skip}
	if result.Detail = r.lacks(c); result.Detail != "" {
		each(result)
		return nil
	}
	t := &trial{ctx: r.ctx, target: r.target, facts: &r.facts, level: c.Level, limit: r.target.timeout()}
	result.Outcome, result.Detail = t.execute(c.try)
	if err := r.ctx.Err(); err != nil {
		return err
	}
	detail, ok := "", c.ends()
	if !ok {
		detail, ok = r.patiently(alive)
	}
	if !ok {
		result.Outcome = Fail
		result.Detail = fmt.Sprintf("after it the server does not serve any more: %s; the check: %s", detail, cmp.Or(result.Detail, "passed"))
	}
	each(result)
	if !ok {
		return fmt.Errorf("%s: %w", c.ID, ErrStopped)
	}
	return nil
}

// alive opens the export as any client does, or where it never could be opened makes a connection.
func alive(t *trial) {
	if !t.facts.opened {
		t.dial()
		return
	}
	c := t.open(probe.Simple)
	t.serving(c)
	t.check(c.Send(c.Frame(wire.Request{Type: wire.CmdDisc}, nil)), "DISC")
}

// lacks says why a check cannot be tried, or "".
func (r *run) lacks(c *Check) string {
	f, offers := &r.facts, func(flag wire.TransmissionFlags) bool { return r.facts.flags&flag != 0 }
	base := false
	for _, name := range f.contexts {
		base = base || name == wire.BaseAllocation
	}
	met := map[need]bool{
		needExport: f.opened, needSize: f.size >= smallExport, needLarge: f.size >= largeExport,
		needBytes: f.minBlock <= 1, needBlocks: f.minBlock > 1,
		needStructured: f.structured, needExtended: f.extended, needContext: base, needContexts: len(f.contexts) > 1,
		needWrite: f.writable, needReadOnly: offers(wire.ReadOnly),
		needFlush: offers(wire.SendFlush), needFUA: offers(wire.SendFUA), needTrim: offers(wire.SendTrim), needZeroes: offers(wire.SendWriteZeroes),
		needFastZero: offers(wire.SendFastZero), needCache: offers(wire.SendCache), needMultiConn: offers(wire.CanMultiConn), needStatus: f.status,
		needNames: !f.everyName, needSecure: f.secure, needPlain: f.refusesTLS, needTLSRequired: f.requiresTLS,
		needStop: r.target.Stop != nil,
	}
	for _, n := range needs {
		if c.needs&n.bit == 0 || met[n.bit] {
			continue
		}
		if n.bit == needExport {
			return n.lacked + ": " + r.broken
		}
		return n.lacked
	}
	return ""
}

// save reads what destructive checks will change.
func (r *run) save(checks []*Check) error {
	f := &r.facts
	if !r.target.Destructive || !f.opened || f.flags&wire.ReadOnly != 0 {
		return nil
	}
	scratch := uint64(smallExport)
	if slices.ContainsFunc(checks, func(c *Check) bool { return c.needs&(needLarge|needWrite) == needLarge|needWrite }) {
		scratch = Scratch
	}
	saved := make([]byte, min(f.size, scratch))
	detail, ok := r.patiently(func(t *trial) { t.load(saved) })
	if !ok {
		return fmt.Errorf("the export's content cannot be saved before it is changed: %s", detail)
	}
	r.saved, f.writable = saved, true
	return nil
}

// pieces calls f for pieces of a range from 0 to n that fit a request.
func pieces(n int, f func(from, to int)) {
	const most = 1 << 20
	for from := 0; from < n; from += most {
		f(from, min(from+most, n))
	}
}

// load fills b from the beginning of the export.
func (t *trial) load(b []byte) {
	c := t.open(probe.Simple)
	pieces(len(b), func(from, to int) {
		copy(b[from:to], t.done(c, wire.Request{Type: wire.CmdRead, Offset: uint64(from), Length: uint64(to - from)}, nil).Data)
	})
}

// restore writes back what is not as it was.
func (r *run) restore() error {
	if r.saved == nil {
		return nil
	}
	outer := r.ctx
	r.ctx = context.WithoutCancel(outer) // who interrupts wants the content back all the same
	defer func() { r.ctx = outer }()
	detail, ok := r.patiently(func(t *trial) {
		now := make([]byte, len(r.saved))
		t.load(now)
		c := t.open(probe.Simple)
		const cell = 64 << 10 // what is the same stays untouched, so that holes stay holes
		for from := 0; from < len(now); from += cell {
			to := min(from+cell, len(now))
			if bytes.Equal(now[from:to], r.saved[from:to]) {
				continue
			}
			q := wire.Request{Type: wire.CmdWrite, Offset: uint64(from), Length: uint64(to - from)}
			if probe.IsZero(r.saved[from:to]) && r.facts.flags&wire.SendWriteZeroes != 0 {
				q.Type = wire.CmdWriteZeroes
				t.done(c, q, nil)
				continue
			}
			t.done(c, q, r.saved[from:to])
		}
		if r.facts.flags&wire.SendFlush != 0 {
			t.done(c, wire.Request{Type: wire.CmdFlush}, nil)
		}
	})
	if !ok {
		return fmt.Errorf("the export's content cannot be restored: %s", detail)
	}
	return nil
}
