package server

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/imgtool/imgtool/nbd/wire"
)

var be = binary.BigEndian

const (
	// maxOptions is how many options one connection may send.
	maxOptions = 1024
	// replyBatch is how many bytes of replies are gathered before they are sent.
	replyBatch = 32 << 10
)

// negotiation is the handshake of one connection.
type negotiation struct {
	*conn
	fixed, noZeroes bool
	contextsFor     string  // the export for which contexts were set
	held            *export // the one that was asked about last, so that INFO and GO agree
	replies         []byte
}

// handshake greets the client and answers options, until it is time for transmission. It returns errLeft where the client leaves before.
func (c *conn) handshake() error {
	n := &negotiation{conn: c}
	if t := c.server.config.HandshakeTimeout; t > 0 {
		timer := time.AfterFunc(t, func() { c.cancel(errSlow) })
		defer timer.Stop()
	}
	err := n.run()
	if n.held != nil {
		err = errors.Join(err, n.held.close())
	}
	switch {
	case errors.Is(err, io.EOF), c.drained(err):
		return errLeft
	}
	return err
}

// errSlow ends a connection whose client does not come to an end with the handshake.
var errSlow = errors.New("the handshake took too long")

// run greets, and answers options until one of them ends the handshake.
func (n *negotiation) run() error {
	greeting := be.AppendUint64(nil, wire.InitMagic)
	greeting = be.AppendUint64(greeting, wire.OptionMagic)
	greeting = be.AppendUint16(greeting, uint16(wire.FixedNewstyle|wire.NoZeroes))
	if err := n.out.writeAll(greeting); err != nil {
		return err
	}
	p, err := n.in.next(4)
	if err != nil {
		return err
	}
	flags := wire.ClientFlags(be.Uint32(p))
	if unknown := flags &^ (wire.ClientFixedNewstyle | wire.ClientNoZeroes); unknown != 0 {
		return fmt.Errorf("handshake: client set the unknown flags %#x", uint32(unknown))
	}
	n.fixed, n.noZeroes = flags&wire.ClientFixedNewstyle != 0, flags&wire.ClientNoZeroes != 0
	for range maxOptions {
		done, err := n.option()
		if err == nil {
			err = n.flush()
		}
		if done || err != nil {
			return err
		}
	}
	return fmt.Errorf("handshake: more than %d options", maxOptions)
}

// option reads one option and answers it. It reports true when transmission begins.
func (n *negotiation) option() (done bool, err error) {
	p, err := n.in.next(wire.OptionHeaderSize)
	if err != nil {
		return false, err
	}
	h, ok := wire.ParseOptionHeader(p)
	if !ok {
		return false, fmt.Errorf("handshake: option has the magic number %#x", be.Uint64(p))
	}
	if !n.fixed && h.Option != wire.OptExportName {
		return false, fmt.Errorf("handshake: client sent %v, but did not say that it speaks fixed newstyle", h.Option)
	}
	if h.Option == wire.OptSetMetaContext {
		n.contexts, n.contextsFor = nil, "" // even if it fails
	}
	if reply, why := n.gate(h); reply != 0 {
		if err := n.in.skip(uint64(h.Length)); err != nil {
			return false, err
		}
		n.refuse(h.Option, reply, why)
		if n.draining.Load() {
			return false, errors.Join(n.flush(), errLeft)
		}
		return false, nil
	}
	switch {
	case h.Option == wire.OptAbort: // its data is ignored
		if err := n.in.skip(uint64(h.Length)); err != nil {
			return false, err
		}
		h.Length = 0
	case h.Option == wire.OptExportName && h.Length > wire.MaxString:
		return false, fmt.Errorf("handshake: EXPORT_NAME with a name of %d bytes", h.Length)
	}
	// The length is at most wire.MaxOptionData, gate has seen to it; but of that, too, there may be much from many clients that nobody knows yet.
	length := int64(h.Length)
	held := n.memory.take(length)
	defer func() { n.memory.give(held) }()
	if held < length {
		n.refuse(h.Option, wire.RepErrTooBig, fmt.Sprintf("%v has %d bytes of data, for which there is no memory just now", h.Option, length))
		return false, n.in.skip(uint64(length))
	}
	data := make([]byte, length)
	if err := n.in.full(data); err != nil {
		return false, err
	}
	return n.answer(h.Option, data)
}

// gate returns the reply that refuses an option before its data is looked at, 0 where there is none. ABORT is always
// welcome, and EXPORT_NAME has no reply for errors.
func (n *negotiation) gate(h wire.OptionHeader) (wire.Reply, string) {
	o, data := h.Option, h.Length > 0
	needsTLS := n.server.config.TLSRequired && !n.client.Secure
	switch {
	case o == wire.OptAbort, o == wire.OptExportName:
		return 0, ""
	case n.draining.Load():
		return wire.RepErrShutdown, "the server is shutting down"
	case needsTLS && o != wire.OptStartTLS:
		return wire.RepErrTLSReqd, "STARTTLS must come first"
	case o < wire.OptExportName || o > wire.OptExtendedHeaders || o == wire.OptPeekExport:
		return wire.RepErrUnsup, fmt.Sprintf("%v is not known here", o)
	case o == wire.OptStructuredReply && n.server.config.NoStructuredReplies, o == wire.OptExtendedHeaders && n.server.config.NoExtendedHeaders:
		return wire.RepErrUnsup, fmt.Sprintf("%v is switched off", o)
	case data && (o == wire.OptList || o == wire.OptStartTLS || o == wire.OptStructuredReply || o == wire.OptExtendedHeaders):
		return wire.RepErrInvalid, fmt.Sprintf("%v takes no data", o)
	case h.Length > wire.MaxOptionData:
		return wire.RepErrTooBig, fmt.Sprintf("%v has %d bytes of data, more than %d", o, h.Length, wire.MaxOptionData)
	}
	return 0, ""
}

// answer answers an option that has passed the gate.
func (n *negotiation) answer(o wire.Option, data []byte) (done bool, err error) {
	switch o {
	case wire.OptExportName:
		return true, n.exportName(data)
	case wire.OptAbort:
		n.reply(o, wire.RepAck, nil)
		_ = n.flush() // the client need not wait for it
		return false, errLeft
	case wire.OptList:
		return false, n.list()
	case wire.OptStartTLS:
		return false, n.startTLS()
	case wire.OptInfo, wire.OptGo:
		return n.info(o, data)
	case wire.OptStructuredReply:
		if n.extended {
			n.refuse(o, wire.RepErrExtHeaderReqd, "extended headers are negotiated already")
			return false, nil
		}
		n.structured = true
	case wire.OptExtendedHeaders:
		if n.extended {
			n.refuse(o, wire.RepErrInvalid, "extended headers are negotiated already")
			return false, nil
		}
		n.structured, n.extended = true, true
	case wire.OptListMetaContext, wire.OptSetMetaContext:
		return false, n.metaContext(o, data)
	}
	n.reply(o, wire.RepAck, nil)
	return false, nil
}

// reply gathers a reply.
func (n *negotiation) reply(o wire.Option, t wire.Reply, data []byte) {
	var h [wire.ReplyHeaderSize]byte
	wire.ReplyHeader{Option: o, Type: t, Length: uint32(len(data))}.Put(h[:])
	n.replies = append(append(n.replies, h[:]...), data...)
}

// refuse gathers an error with its text.
func (n *negotiation) refuse(o wire.Option, t wire.Reply, why string) {
	n.server.config.Log.Debug("option refused", "client", n.id, "option", o, "reply", t, "error", why)
	n.reply(o, t, []byte(why))
}

// flush sends what was gathered.
func (n *negotiation) flush() error {
	err := n.out.writeAll(n.replies)
	n.replies = n.replies[:0]
	return err
}

// list answers LIST.
func (n *negotiation) list() error {
	if n.server.config.List == nil {
		n.refuse(wire.OptList, wire.RepErrPolicy, "exports are not listed here")
		return nil
	}
	list, err := n.server.config.List(n.ctx, n.client)
	if err != nil {
		t, why := refusal(err)
		n.refuse(wire.OptList, t, why)
		return nil
	}
	for _, l := range list {
		if !validString([]byte(l.Name)) {
			continue
		}
		data := append(be.AppendUint32(nil, uint32(len(l.Name))), l.Name...)
		n.reply(wire.OptList, wire.RepServer, append(data, clean(l.Description)...))
		if len(n.replies) >= replyBatch {
			if err := n.flush(); err != nil {
				return err
			}
		}
	}
	n.reply(wire.OptList, wire.RepAck, nil)
	return nil
}

// startTLS upgrades the connection. Nothing that was negotiated or read before survives it.
func (n *negotiation) startTLS() error {
	const o = wire.OptStartTLS
	switch {
	case n.client.Secure:
		n.refuse(o, wire.RepErrInvalid, "TLS is in use already")
		return nil
	case n.server.config.TLS == nil:
		n.refuse(o, wire.RepErrPolicy, "this server has no TLS")
		return nil
	case n.in.buffered() > 0:
		return fmt.Errorf("handshake: %d bytes follow STARTTLS in plain text", n.in.buffered())
	}
	if err := n.release(); err != nil {
		return err
	}
	n.structured, n.extended, n.contexts, n.contextsFor = false, false, nil, ""
	n.reply(o, wire.RepAck, nil)
	if err := n.flush(); err != nil {
		return err
	}
	nc, peer, err := n.server.config.TLS.Upgrade(n.ctx, n.plain)
	if err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	n.attach(nc)
	if n.draining.Load() {
		n.drain() // the upgrade has taken the deadline away
	}
	n.update(func(c *Client) { c.Secure, c.Identity, c.TLS = true, peer.Identity, peer.TLS })
	return nil
}

// release closes the export that was asked about last.
func (n *negotiation) release() error {
	e := n.held
	n.held = nil
	if e == nil {
		return nil
	}
	return e.close()
}

// export returns the export of that name, opened.
func (n *negotiation) export(name string) (*export, error) {
	if n.held != nil && n.held.asked == name {
		return n.held, nil
	}
	if err := n.release(); err != nil {
		n.server.config.Log.Warn("closing an export", "client", n.id, "error", err)
	}
	e, err := n.open(n.ctx, name)
	if err != nil {
		return nil, err
	}
	n.held = e
	return e, nil
}

// isUnknown reports whether err of Config.Open says that there is no such export.
func isUnknown(err error) bool {
	return errors.Is(err, ErrUnknownExport) || errors.Is(err, fs.ErrNotExist)
}

// exportName answers EXPORT_NAME, which has no reply for errors.
func (n *negotiation) exportName(name []byte) error {
	switch {
	case n.server.config.TLSRequired && !n.client.Secure:
		return errors.New("handshake: EXPORT_NAME before TLS, which is required")
	case n.draining.Load():
		return errLeft
	case n.extended:
		return errors.New("handshake: EXPORT_NAME after EXTENDED_HEADERS")
	case !validString(name):
		return errors.New("handshake: EXPORT_NAME with a name that is too long or not text")
	}
	e, err := n.export(string(name))
	if err != nil {
		return fmt.Errorf("handshake: EXPORT_NAME %q: %w", name, err)
	}
	n.enter(e)
	n.replies = be.AppendUint64(n.replies, uint64(e.size))
	n.replies = be.AppendUint16(n.replies, uint16(e.flags(n.conn)))
	if !n.noZeroes {
		n.replies = append(n.replies, make([]byte, wire.ExportNameZeroes)...)
	}
	return nil
}

// enter chooses the export for transmission.
func (n *negotiation) enter(e *export) {
	n.held, n.exp = nil, e
	if n.contextsFor != e.asked {
		n.contexts = nil
	}
	n.update(func(c *Client) { c.Export = e.asked })
}

// info answers INFO and GO. It reports true when transmission begins.
func (n *negotiation) info(o wire.Option, data []byte) (done bool, err error) {
	name, rest, ok := cutString(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(be.Uint16(rest)) {
		n.refuse(o, wire.RepErrInvalid, "the lengths inside the data do not add up")
		return false, nil
	}
	if !validString(name) {
		n.refuse(o, wire.RepErrInvalid, "the name is too long or not text")
		return false, nil
	}
	asked := map[wire.Info]bool{}
	for rest = rest[2:]; len(rest) > 0; rest = rest[2:] {
		asked[wire.Info(be.Uint16(rest))] = true
	}
	e, err := n.export(string(name))
	if err != nil {
		t, why := refusal(err)
		n.refuse(o, t, why)
		return false, nil
	}
	contexts := n.contexts
	if n.contextsFor != e.asked {
		n.contexts = nil // so that the flags say what GO would say
	}
	body := be.AppendUint16(nil, uint16(wire.InfoExport))
	body = be.AppendUint64(body, uint64(e.size))
	n.reply(o, wire.RepInfo, be.AppendUint16(body, uint16(e.flags(n.conn))))
	n.contexts = contexts
	body = be.AppendUint16(nil, uint16(wire.InfoBlockSize))
	body = be.AppendUint32(body, e.minBlock)
	body = be.AppendUint32(body, e.preferred)
	n.reply(o, wire.RepInfo, be.AppendUint32(body, wire.DefaultMaxPayload))
	if canonical := e.canonical(); asked[wire.InfoName] || canonical != e.asked {
		n.reply(o, wire.RepInfo, append(be.AppendUint16(nil, uint16(wire.InfoName)), canonical...))
	}
	if description := clean(e.Description); asked[wire.InfoDescription] || description != "" {
		n.reply(o, wire.RepInfo, append(be.AppendUint16(nil, uint16(wire.InfoDescription)), description...))
	}
	n.reply(o, wire.RepAck, nil)
	if o == wire.OptGo {
		e.strict = asked[wire.InfoBlockSize]
		n.enter(e)
	}
	return o == wire.OptGo, nil
}

// cutString reads a string that its 32-bit length precedes.
func cutString(p []byte) (s, rest []byte, ok bool) {
	if len(p) < 4 || uint64(be.Uint32(p)) > uint64(len(p)-4) {
		return nil, p, false
	}
	n := be.Uint32(p)
	return p[4 : 4+n], p[4+n:], true
}
