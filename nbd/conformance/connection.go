package conformance

import (
	"bytes"
	"time"

	"github.com/imgtool/imgtool/nbd/conformance/probe"
	"github.com/imgtool/imgtool/nbd/wire"
)

var connectionChecks = []*Check{
	{"connection/several", Quality, sectionFlags, "several clients are served at a time", needExport, connectionSeveral},
	{"connection/same-export", Should, sectionFlags, "where several connections are allowed, the export is the same on each", needMultiConn, connectionSame},
	{"connection/written-elsewhere", Must, sectionFlags, "where several connections are allowed, what is written and flushed on one is read on the other", needMultiConn | needWrite | needFlush | needSize, connectionWritten},
	{"connection/flushed-elsewhere", Must, sectionFlags, "where several connections are allowed, a flush on one covers what was written on the other", needMultiConn | needWrite | needFlush | needSize, connectionFlushed},
}

// shutdownChecks come last: the server ends.
var shutdownChecks = []*Check{
	{"connection/shutdown", Should, sectionDisconnect, "a server that is asked to end carries out what comes, or answers ESHUTDOWN, until it hangs up", needStop | needExport, connectionShutdown},
}

func connectionSeveral(t *trial) {
	t.lenient, t.several = true, true
	var all []*probe.Conn
	for range 4 {
		all = append(all, t.open(probe.Simple))
	}
	for _, c := range all {
		t.serving(c)
	}
}

func connectionSame(t *trial) {
	t.several = true
	a, b := t.haggle(), t.haggle()
	if x, y := t.enter(a), t.enter(b); x != y {
		t.failf("one connection is told %+v, the other %+v", x, y)
	}
}

func connectionWritten(t *trial) {
	t.several = true
	a, b := t.open(t.best()), t.open(t.best())
	data := t.pattern(smallExport, 1)
	t.done(b, over(wire.CmdRead, 0, smallExport), nil) // so that a cache of the connection has it
	t.done(a, over(wire.CmdWrite, 0, smallExport), data)
	t.done(a, over(wire.CmdFlush, 0, 0), nil)
	if !bytes.Equal(data, t.done(b, over(wire.CmdRead, 0, smallExport), nil).Data) {
		t.failf("the other connection reads other bytes")
	}
}

func connectionFlushed(t *trial) {
	t.several = true
	a, b := t.open(t.best()), t.open(t.best())
	data := t.pattern(smallExport, 2)
	t.done(a, over(wire.CmdWrite, 0, smallExport), data)
	t.done(b, over(wire.CmdFlush, 0, 0), nil)
	if !bytes.Equal(data, t.done(t.open(probe.Simple), over(wire.CmdRead, 0, smallExport), nil).Data) {
		t.failf("a third connection reads other bytes")
	}
}

func connectionShutdown(t *trial) {
	const pause, most = 5 * time.Millisecond, 1000
	c := t.open(t.best())
	stopped := make(chan error, 1)
	go func() { stopped <- t.target.Stop() }()
	t.ends = append(t.ends, func() { <-stopped })
	for range most {
		a, err := c.Do(over(wire.CmdRead, 0, min(t.facts.block(), t.facts.size)), nil)
		if t.left(err, "READ") || a.Errno == wire.ESHUTDOWN {
			return
		}
		if a.Errno != wire.OK {
			t.failf("READ is answered with %s", a)
		}
		time.Sleep(pause)
	}
	t.failf("the server goes on")
}
