package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

func list(names ...string) func(context.Context, server.Client) ([]server.Listing, error) {
	return func(context.Context, server.Client) (l []server.Listing, err error) {
		for _, n := range names {
			l = append(l, server.Listing{Name: n, Description: "about " + n})
		}
		return l, nil
	}
}

// TestOptions sends one option after others, and expects one error, or ACK.
func TestOptions(t *testing.T) {
	structured := wire.OptStructuredReply
	long := strings.Repeat("x", wire.MaxString+1)
	for _, tt := range []struct {
		name   string
		before []wire.Option
		option wire.Option
		data   []byte
		want   wire.Reply
	}{
		{"unknown", nil, 77, nil, wire.RepErrUnsup},
		{"unknown with much data", nil, 0x7fffffff, make([]byte, 3<<20), wire.RepErrUnsup},
		{"option 0", nil, 0, nil, wire.RepErrUnsup},
		{"PEEK_EXPORT", nil, wire.OptPeekExport, []byte("x"), wire.RepErrUnsup},
		{"LIST with data", nil, wire.OptList, []byte("x"), wire.RepErrInvalid},
		{"STARTTLS without TLS", nil, wire.OptStartTLS, nil, wire.RepErrPolicy},
		{"STARTTLS with data", nil, wire.OptStartTLS, []byte("x"), wire.RepErrInvalid},
		{"STRUCTURED_REPLY", nil, structured, nil, wire.RepAck},
		{"STRUCTURED_REPLY with data", nil, structured, []byte("x"), wire.RepErrInvalid},
		{"STRUCTURED_REPLY twice", []wire.Option{structured}, structured, nil, wire.RepAck},
		{"STRUCTURED_REPLY after EXTENDED_HEADERS", []wire.Option{wire.OptExtendedHeaders}, structured, nil, wire.RepErrExtHeaderReqd},
		{"EXTENDED_HEADERS", nil, wire.OptExtendedHeaders, nil, wire.RepAck},
		{"EXTENDED_HEADERS after STRUCTURED_REPLY", []wire.Option{structured}, wire.OptExtendedHeaders, nil, wire.RepAck},
		{"EXTENDED_HEADERS with data", nil, wire.OptExtendedHeaders, []byte("x"), wire.RepErrInvalid},
		{"EXTENDED_HEADERS twice", []wire.Option{wire.OptExtendedHeaders}, wire.OptExtendedHeaders, nil, wire.RepErrInvalid},
		{"INFO of nothing", nil, wire.OptInfo, nil, wire.RepErrInvalid},
		{"INFO with a name that is cut", nil, wire.OptInfo, []byte("\x00\x00\x00\x05abc"), wire.RepErrInvalid},
		{"INFO with a length near 2^32", nil, wire.OptInfo, []byte("\xff\xff\xff\xff\x00\x00"), wire.RepErrInvalid},
		{"INFO without the count", nil, wire.OptInfo, str("x"), wire.RepErrInvalid},
		{"INFO with fewer requests than it says", nil, wire.OptInfo, append(str("x"), 0, 2, 0, 0), wire.RepErrInvalid},
		{"INFO with more", nil, wire.OptInfo, append(str("x"), 0, 0, 0), wire.RepErrInvalid},
		{"INFO with a long name", nil, wire.OptInfo, infoData(long), wire.RepErrInvalid},
		{"INFO with NUL in the name", nil, wire.OptInfo, infoData("a\x00b"), wire.RepErrInvalid},
		{"INFO with a name that is not UTF-8", nil, wire.OptInfo, infoData("\xff"), wire.RepErrInvalid},
		{"INFO of an export that is not there", nil, wire.OptInfo, infoData("missing"), wire.RepErrUnknown},
		{"GO of an export that is not there", nil, wire.OptGo, infoData("missing"), wire.RepErrUnknown},
		{"GO of an export that is refused", nil, wire.OptGo, infoData("private"), wire.RepErrPolicy},
		{"GO of an export that does not open", nil, wire.OptGo, infoData("broken"), wire.RepErrPlatform},
		{"GO with too much data", nil, wire.OptGo, make([]byte, wire.MaxOptionData+1), wire.RepErrTooBig},
		{"SET_META_CONTEXT too early", nil, wire.OptSetMetaContext, metaData("", wire.BaseAllocation), wire.RepErrInvalid},
		{"LIST_META_CONTEXT too early", nil, wire.OptListMetaContext, metaData(""), wire.RepErrInvalid},
		{"SET_META_CONTEXT of nothing", []wire.Option{structured}, wire.OptSetMetaContext, nil, wire.RepErrInvalid},
		{"SET_META_CONTEXT without the count", []wire.Option{structured}, wire.OptSetMetaContext, str(""), wire.RepErrInvalid},
		{"SET_META_CONTEXT with a cut query", []wire.Option{structured}, wire.OptSetMetaContext, append(metaData(""), 0), wire.RepErrInvalid},
		{"SET_META_CONTEXT with too long a query", []wire.Option{structured}, wire.OptSetMetaContext, metaData("", "base:"+long), wire.RepErrInvalid},
		{"SET_META_CONTEXT with a count near 2^32", []wire.Option{structured}, wire.OptSetMetaContext, append(str(""), 255, 255, 255, 255),
			wire.RepErrInvalid},
		{"SET_META_CONTEXT of an export that is not there", []wire.Option{structured}, wire.OptSetMetaContext, metaData("missing", wire.BaseAllocation),
			wire.RepErrUnknown},
		{"LIST_META_CONTEXT of an export that is refused", []wire.Option{structured}, wire.OptListMetaContext, metaData("private"), wire.RepErrPolicy},
		{"SET_META_CONTEXT with many queries", []wire.Option{structured}, wire.OptSetMetaContext,
			metaData("", slices.Repeat([]string{wire.BaseAllocation}, 2000)...), wire.RepErrTooBig},
		{"SET_META_CONTEXT of unknown names", []wire.Option{structured}, wire.OptSetMetaContext,
			metaData("", "base:", "base:other", "x-y:z", "nothing", ""), wire.RepAck},
		{"SET_META_CONTEXT without queries", []wire.Option{structured}, wire.OptSetMetaContext, metaData(""), wire.RepAck},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(1 << 20)), List: list("")})
			p := dial().greet(bothFlags)
			for _, o := range tt.before {
				p.must(o, nil, wire.RepAck)
			}
			why := p.must(tt.option, tt.data, tt.want)
			if (len(why) > 0) != (tt.want != wire.RepAck) {
				t.Errorf("text %q", why)
			}
			p.must(wire.OptAbort, []byte("bye"), wire.RepAck) // it goes on
			p.gone()
		})
	}
}

// TestOpenErrors: the caller's words reach the client only where they are meant to.
func TestOpenErrors(t *testing.T) {
	_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(0))})
	p := dial().greet(bothFlags)
	if why := p.must(wire.OptGo, infoData("broken"), wire.RepErrPlatform); string(why) != "the disk is in the other room" {
		t.Errorf("ERR_PLATFORM says %q", why)
	}
}

func TestList(t *testing.T) {
	var names []string
	for i := range 3000 { // more than fits into one batch of replies
		names = append(names, fmt.Sprint("export-", i))
	}
	_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(0)), List: list(names...)})
	p := dial().greet(bothFlags)
	r := p.option(wire.OptList, nil)
	if len(r) != len(names)+1 || r[len(names)].kind != wire.RepAck {
		t.Fatalf("%d replies", len(r))
	}
	for i, n := range names {
		if r[i].kind != wire.RepServer || string(r[i].data) != string(str(n))+"about "+n {
			t.Fatalf("reply %d is %v", i, r[i])
		}
	}
	_, dial = serve(t, server.Config{Open: fixed(block.NewMemory(0))})
	dial().greet(bothFlags).must(wire.OptList, nil, wire.RepErrPolicy)
}

// infos returns what INFO or GO has told, by kind.
func infos(t testing.TB, r []optReply) map[wire.Info][]byte {
	t.Helper()
	m := map[wire.Info][]byte{}
	for _, x := range r[:len(r)-1] {
		if x.kind != wire.RepInfo || m[wire.Info(be.Uint16(x.data))] != nil {
			t.Fatalf("replies %v", r)
		}
		m[wire.Info(be.Uint16(x.data))] = x.data[2:]
	}
	if r[len(r)-1].kind != wire.RepAck {
		t.Fatalf("replies %v", r)
	}
	return m
}

// constant is a device whose Info a test sets.
type constant struct {
	block.Device
	info block.Info
}

func (c constant) Info() block.Info { return c.info }

func TestInfo(t *testing.T) {
	caps := block.Caps{Write: true, Discard: true, FastZero: true, Prefetch: true}
	base := wire.HasFlags | wire.SendFlush | wire.SendFUA
	for _, tt := range []struct {
		name              string
		export            server.Export
		info              block.Info
		size              int64
		flags             wire.TransmissionFlags
		least, best       uint32
		canonical, detail string
	}{
		{"read-only device", server.Export{}, block.Info{MinBlock: 1, PreferredBlock: 1}, 1 << 20,
			base | wire.ReadOnly | wire.CanMultiConn, 1, 512, "asked", ""},
		{"everything", server.Export{Name: "true", Description: "a disk", MultiConn: true}, block.Info{MinBlock: 512, PreferredBlock: 65536, Caps: caps}, 1 << 20,
			base | wire.SendTrim | wire.SendWriteZeroes | wire.SendFastZero | wire.SendCache | wire.CanMultiConn, 512, 65536, "true", "a disk"},
		{"one connection", server.Export{}, block.Info{MinBlock: 4096, PreferredBlock: 4096, Caps: block.Caps{Write: true}}, 1 << 20,
			base | wire.SendWriteZeroes, 4096, 4096, "asked", ""},
		{"read-only export", server.Export{ReadOnly: true}, block.Info{MinBlock: 1, PreferredBlock: 4096, Caps: caps}, 1 << 20,
			base | wire.ReadOnly | wire.CanMultiConn | wire.SendCache, 1, 4096, "asked", ""},
		{"large blocks", server.Export{}, block.Info{MinBlock: 1 << 20, PreferredBlock: 1 << 30}, 1 << 20,
			base | wire.ReadOnly | wire.CanMultiConn, 64 << 10, 32 << 20, "asked", ""},
		{"size between blocks", server.Export{}, block.Info{MinBlock: 4096, PreferredBlock: 4096}, 1<<20 + 1536,
			base | wire.ReadOnly | wire.CanMultiConn, 512, 4096, "asked", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := tt.export
			e.Device = constant{block.NewMemory(tt.size), tt.info}
			var opened, closed atomic.Int32
			_, dial := serve(t, server.Config{Open: func(context.Context, server.Client) (*server.Export, error) {
				opened.Add(1)
				e := e
				e.Close = func() error { closed.Add(1); return nil }
				return &e, nil
			}})
			p := dial().greet(bothFlags)
			var got [2]map[wire.Info][]byte
			for i, o := range []wire.Option{wire.OptInfo, wire.OptGo} {
				got[i] = infos(t, p.option(o, infoData("asked", wire.InfoName, 0x7777, wire.InfoDescription, wire.InfoBlockSize)))
			}
			g := got[1]
			if be.Uint64(g[wire.InfoExport]) != uint64(tt.size) || wire.TransmissionFlags(be.Uint16(g[wire.InfoExport][8:])) != tt.flags {
				t.Errorf("EXPORT %x, want %d and %#x", g[wire.InfoExport], tt.size, uint16(tt.flags))
			}
			sizes := be.AppendUint32(be.AppendUint32(be.AppendUint32(nil, tt.least), tt.best), wire.DefaultMaxPayload)
			if !bytes.Equal(g[wire.InfoBlockSize], sizes) {
				t.Errorf("BLOCK_SIZE %x, want %x", g[wire.InfoBlockSize], sizes)
			}
			if string(g[wire.InfoName]) != tt.canonical || string(g[wire.InfoDescription]) != tt.detail {
				t.Errorf("NAME %q, DESCRIPTION %q", g[wire.InfoName], g[wire.InfoDescription])
			}
			if fmt.Sprint(got[0]) != fmt.Sprint(got[1]) {
				t.Errorf("INFO says %v, GO %v", got[0], got[1])
			}
			p.req(wire.Request{Type: wire.CmdDisc})
			p.gone()
			if opened.Load() != closed.Load() || opened.Load() != 1 {
				t.Errorf("opened %d times, closed %d times", opened.Load(), closed.Load())
			}
		})
	}
}

// TestStructuredFlags: what needs structured replies or extended headers is not offered without.
func TestStructuredFlags(t *testing.T) {
	_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(1 << 20))})
	flags := func(p *peer, name string) wire.TransmissionFlags {
		return wire.TransmissionFlags(be.Uint16(infos(t, p.option(wire.OptInfo, infoData(name)))[wire.InfoExport][8:]))
	}
	p := dial().greet(bothFlags)
	if f := flags(p, ""); f&(wire.SendDF|wire.BlockStatusPayload) != 0 {
		t.Errorf("simple: flags %#x", uint16(f))
	}
	p.must(wire.OptStructuredReply, nil, wire.RepAck)
	p.option(wire.OptSetMetaContext, metaData("", wire.BaseAllocation))
	if f := flags(p, ""); f&wire.SendDF == 0 || f&wire.BlockStatusPayload != 0 {
		t.Errorf("structured: flags %#x", uint16(f))
	}
	p.must(wire.OptExtendedHeaders, nil, wire.RepAck)
	if f := flags(p, ""); f&wire.SendDF == 0 || f&wire.BlockStatusPayload == 0 {
		t.Errorf("extended: flags %#x", uint16(f))
	}
	if f := flags(p, "other"); f&wire.BlockStatusPayload != 0 {
		t.Errorf("extended, no context set for this export: flags %#x", uint16(f))
	}
}

func TestExportName(t *testing.T) {
	d := block.NewMemory(12345)
	c := server.Config{Open: fixed(d)}
	for _, flags := range []wire.ClientFlags{0, wire.ClientFixedNewstyle, bothFlags} {
		_, dial := serve(t, c)
		p := dial().greet(flags)
		p.send(optionBytes(wire.OptExportName, []byte("any")))
		r := p.recv(10)
		if flags&wire.ClientNoZeroes == 0 {
			if zeroes := p.recv(124); !block.IsZero(zeroes) {
				t.Errorf("padding %x", zeroes)
			}
		}
		if be.Uint64(r) != 12345 || be.Uint16(r[8:])&uint16(wire.HasFlags) == 0 {
			t.Errorf("reply %x", r)
		}
		p.alive()
	}
}

// TestDropped lists what ends the connection, because there is no reply for it.
func TestDropped(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags wire.ClientFlags
		send  []byte
	}{
		{"unknown client flag", 1 << 5, nil},
		{"wrong magic of an option", bothFlags, make([]byte, 16)},
		{"option of a client without fixed newstyle", 0, optionBytes(wire.OptList, nil)},
		{"EXPORT_NAME of an export that is not there", bothFlags, optionBytes(wire.OptExportName, []byte("missing"))},
		{"EXPORT_NAME with a long name", bothFlags, optionBytes(wire.OptExportName, bytes.Repeat([]byte("x"), 4097))},
		{"EXPORT_NAME of 4 GiB", bothFlags, []byte("IHAVEOPT\x00\x00\x00\x01\xff\xff\xff\xff")},
		{"EXPORT_NAME with NUL", bothFlags, optionBytes(wire.OptExportName, []byte("a\x00"))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(0))})
			p := dial().greet(tt.flags)
			if tt.send != nil {
				p.send(tt.send)
			}
			p.gone()
		})
	}
	_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(0))})
	p := dial().greet(bothFlags)
	p.must(wire.OptExtendedHeaders, nil, wire.RepAck)
	p.send(optionBytes(wire.OptExportName, nil))
	p.gone()
}

func TestMetaContexts(t *testing.T) {
	d := block.NewMemory(1 << 20)
	_, dial := serve(t, server.Config{Open: func(_ context.Context, c server.Client) (*server.Export, error) {
		e := &server.Export{Device: d}
		if c.Export == "rich" {
			e.Depth, e.Bitmaps = true, []string{"one", "two", "bad\x00name"}
		}
		return e, nil
	}})
	const depth, one, two = wire.AllocationDepth, wire.DirtyBitmap + "one", wire.DirtyBitmap + "two"
	for _, tt := range []struct {
		list    bool
		export  string
		queries []string
		want    []string
	}{
		{true, "", nil, []string{wire.BaseAllocation}},
		{true, "rich", nil, []string{wire.BaseAllocation, depth, one, two}},
		{true, "rich", []string{"base:"}, []string{wire.BaseAllocation}},
		{true, "rich", []string{"qemu:"}, []string{depth, one, two}},
		{true, "rich", []string{wire.DirtyBitmap}, []string{one, two}},
		{true, "rich", []string{"x:", "qemu"}, nil},
		{false, "rich", nil, nil},
		{false, "rich", []string{"base:", "qemu:", wire.DirtyBitmap}, nil},
		{false, "rich", []string{two, wire.BaseAllocation, two, "other:thing"}, []string{wire.BaseAllocation, two}},
		{false, "", []string{two, depth}, nil},
	} {
		p := dial().greet(bothFlags)
		p.must(wire.OptStructuredReply, nil, wire.RepAck)
		o := wire.OptSetMetaContext
		if tt.list {
			o = wire.OptListMetaContext
		}
		var got []string
		ids := map[uint32]bool{}
		for _, r := range p.option(o, metaData(tt.export, tt.queries...)) {
			if r.kind != wire.RepMetaContext {
				continue
			}
			got = append(got, string(r.data[4:]))
			id := be.Uint32(r.data)
			if tt.list && id != 0 || !tt.list && ids[id] {
				t.Errorf("%+v: id %d", tt, id)
			}
			ids[id] = true
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%+v: got %q", tt, got)
		}
	}
}

// TestContextsLost: contexts are gone after a SET that fails, and for another export.
func TestContextsLost(t *testing.T) {
	_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(1 << 20))})
	for name, spoil := range map[string]func(*peer) string{
		"failed SET": func(p *peer) string { p.must(wire.OptSetMetaContext, []byte{1}, wire.RepErrInvalid); return "" },
		"long SET": func(p *peer) string {
			p.must(wire.OptSetMetaContext, make([]byte, wire.MaxOptionData+1), wire.RepErrTooBig)
			return ""
		},
		"empty SET":      func(p *peer) string { p.must(wire.OptSetMetaContext, metaData(""), wire.RepAck); return "" },
		"another export": func(*peer) string { return "other" },
	} {
		p := dial().greet(bothFlags)
		p.structured = true
		p.must(wire.OptStructuredReply, nil, wire.RepAck)
		p.option(wire.OptSetMetaContext, metaData("", wire.BaseAllocation))
		infos(t, p.option(wire.OptGo, infoData(spoil(p))))
		if a := p.do(wire.Request{Type: wire.CmdBlockStatus, Length: 512}); a.errno != wire.EINVAL {
			t.Errorf("%s: BLOCK_STATUS: %+v", name, a)
		}
		p.alive()
	}
}

// TestOpenedWhenAsked: a client that has not asked for an export, or may not, costs no opening (CVE-2019-14850).
func TestOpenedWhenAsked(t *testing.T) {
	var opened atomic.Int32
	c := server.Config{TLSRequired: true, Open: func(context.Context, server.Client) (*server.Export, error) {
		opened.Add(1)
		return nil, errors.New("opened")
	}, List: func(context.Context, server.Client) ([]server.Listing, error) {
		opened.Add(1)
		return nil, nil
	}}
	_, dial := serve(t, c)
	p := dial().greet(bothFlags)
	for o := wire.OptList; o <= wire.OptExtendedHeaders; o++ {
		if o == wire.OptPeekExport || o == wire.OptStartTLS {
			continue
		}
		p.must(o, infoData("x"), wire.RepErrTLSReqd)
	}
	p.send(optionBytes(wire.OptExportName, []byte("x")))
	p.gone()
	p = dial() // that connects and leaves
	p.Close()
	if n := opened.Load(); n != 0 {
		t.Errorf("opened %d times", n)
	}
}

func TestOptionFlood(t *testing.T) {
	_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(0))})
	p := dial().greet(bothFlags)
	flood := bytes.Repeat(optionBytes(99, nil), 5000)
	go p.Write(flood) //nolint // the server hangs up in the middle
	n := 0
	for {
		b := make([]byte, 4096)
		k, err := p.Read(b)
		if n += k; err != nil {
			break
		}
	}
	if n == 0 || n > 100*5000 {
		t.Errorf("%d bytes of replies", n)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	before := time.Now()
	s, dial := serve(t, server.Config{Open: fixed(block.NewMemory(1)), HandshakeTimeout: 50 * time.Millisecond})
	dial().greet(bothFlags).gone()
	p := dial()
	p.recv(18)
	p.gone()
	if time.Since(before) < 100*time.Millisecond {
		t.Error("it was cut too early")
	}
	p = dial().enter("simple", "")
	time.Sleep(100 * time.Millisecond) // transmission has begun: the timeout is over
	p.alive()
	if st := s.Stats(); st.Refused != 2 {
		t.Errorf("%d connections never reached transmission, want 2", st.Refused)
	}
}

func TestSwitchedOff(t *testing.T) {
	_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(0)), NoStructuredReplies: true, NoExtendedHeaders: true})
	p := dial().greet(bothFlags)
	p.must(wire.OptStructuredReply, nil, wire.RepErrUnsup)
	p.must(wire.OptExtendedHeaders, nil, wire.RepErrUnsup)
}
