package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/wire"
)

var be = binary.BigEndian

// Bounds of what is read in answer to one option.
const (
	maxReplies    = 1 << 16
	maxReplyData  = 64 << 10 // bytes of one reply
	maxReplyTotal = 16 << 20 // bytes of all
)

var errPhase = errors.New("nbd: options are sent in negotiation only")

// Option sends an option and returns all replies to it, the last one included, whatever it is. EXPORT_NAME, GO and STARTTLS change what follows and are
// for Config.Unchecked alone; what the server does then is the caller's to find out.
func (c *Conn) Option(ctx context.Context, o wire.Option, data []byte) ([]OptionReply, error) {
	var all []OptionReply
	err := c.step(ctx, o, data, func(r OptionReply) error {
		all = append(all, r)
		return nil
	})
	var refused *OptionError
	if errors.As(err, &refused) {
		err = nil
	}
	return all, err
}

// step sends an option and gives each reply to it, the last one included. An error reply comes back as an *OptionError.
func (c *Conn) step(ctx context.Context, o wire.Option, data []byte, each func(OptionReply) error) error {
	if err := c.Err(); err != nil {
		return err
	}
	if !c.is(negotiation) {
		return errPhase
	}
	if !c.fixed && !c.config.Unchecked {
		return block.ErrorOf(errors.ErrUnsupported, "nbd: the server does not know %s: it speaks %s", o, c.protocol)
	}
	return c.within(ctx, o.String(), func() error {
		if err := c.sendOption(o, data); err != nil {
			return err
		}
		return c.replies(o, each)
	})
}

// sendOption writes an option.
func (c *Conn) sendOption(o wire.Option, data []byte) error {
	frame := make([]byte, wire.OptionHeaderSize, wire.OptionHeaderSize+len(data))
	wire.OptionHeader{Option: o, Length: uint32(len(data))}.Put(frame)
	_, err := c.conn.Write(append(frame, data...))
	return err
}

// replies reads the replies to an option up to the last one.
func (c *Conn) replies(o wire.Option, each func(OptionReply) error) error {
	total := 0
	for range maxReplies {
		b, err := c.in.next(wire.ReplyHeaderSize)
		if err != nil {
			return err
		}
		h, ok := wire.ParseReplyHeader(b)
		switch {
		case !ok:
			return broken(o.String(), "a reply has a wrong magic number")
		case h.Option != o:
			return broken(o.String(), "the reply is to %s", h.Option)
		case h.Length > maxReplyData || total+int(h.Length) > maxReplyTotal:
			return broken(o.String(), "a reply of %d bytes is too long", h.Length)
		}
		total += int(h.Length)
		r := OptionReply{Type: h.Type, Data: make([]byte, h.Length)}
		if err := c.in.full(r.Data); err != nil {
			return err
		}
		if err := each(r); err != nil {
			return err
		}
		if r.Type&wire.RepError != 0 {
			return &OptionError{Option: o, Reply: r.Type, Text: clean(r.Data)}
		}
		if r.Type == wire.RepAck {
			if len(r.Data) != 0 {
				return broken(o.String(), "%s carries %d bytes", r.Type, len(r.Data))
			}
			return nil
		}
	}
	return broken(o.String(), "more than %d replies", maxReplies)
}

// clean makes a server's text fit for people: one line without characters that control a terminal, or change the direction of what follows, of bounded length.
func clean(text []byte) string {
	if len(text) > wire.MaxString {
		text = text[:wire.MaxString]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(text), "?")))
}

// simple sends an option without data that is answered by ACK.
func (c *Conn) simple(ctx context.Context, o wire.Option) error {
	return c.step(ctx, o, nil, func(r OptionReply) error { return only(o, r, wire.RepAck) })
}

// only refuses replies that are neither errors nor of the types that fit.
func only(o wire.Option, r OptionReply, fit ...wire.Reply) error {
	for _, t := range append(fit, wire.RepAck) {
		if r.Type == t || r.Type&wire.RepError != 0 {
			return nil
		}
	}
	return broken(o.String(), "%s does not fit", r.Type)
}

// RequestStructuredReplies asks for them. Refusal is an *OptionError.
func (c *Conn) RequestStructuredReplies(ctx context.Context) error {
	err := c.simple(ctx, wire.OptStructuredReply)
	c.structured = c.structured || err == nil
	return err
}

// RequestExtendedHeaders asks for them. Refusal is an *OptionError.
func (c *Conn) RequestExtendedHeaders(ctx context.Context) error {
	err := c.simple(ctx, wire.OptExtendedHeaders)
	if err == nil {
		c.structured, c.extended = true, true
	}
	return err
}

// StartTLS encrypts the connection. host is passed on to Upgrade. All that was agreed on before is forgotten. Refusal is an *OptionError: who wants
// encryption closes the connection then.
func (c *Conn) StartTLS(ctx context.Context, t *secure.Client, host string) error {
	if c.secure && !c.config.Unchecked {
		return errors.New("nbd: the connection is encrypted already")
	}
	if err := c.simple(ctx, wire.OptStartTLS); err != nil {
		return err
	}
	// What came in plain text behind the acknowledgement may be anybody's.
	if n := c.in.w - c.in.r; n > 0 {
		err := broken(wire.OptStartTLS.String(), "%d bytes in plain text follow the acknowledgement", n)
		c.end(err)
		return err
	}
	conn, _, err := t.Upgrade(ctx, c.conn, host)
	if err != nil {
		c.end(err)
		return fmt.Errorf("nbd: %s: %w", wire.OptStartTLS, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn, c.in.conn = conn, conn
	c.secure, c.structured, c.extended = true, false, false
	c.contexts, c.contextsFor = nil, ""
	return nil
}

// List returns the exports that the server tells of.
func (c *Conn) List(ctx context.Context) ([]Listed, error) {
	const o = wire.OptList
	var all []Listed
	err := c.step(ctx, o, nil, func(r OptionReply) error {
		if r.Type != wire.RepServer {
			return only(o, r)
		}
		name, rest, ok := cutString(r.Data)
		if !ok || len(name) > wire.MaxString || len(rest) > wire.MaxString {
			return broken(o.String(), "the lengths in a reply of %d bytes do not fit", len(r.Data))
		}
		all = append(all, Listed{Name: string(name), Description: string(rest)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// cutString takes a string with its length before it off b.
func cutString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := be.Uint32(b)
	if b = b[4:]; uint64(n) > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

// appendString appends a string with its length before it.
func appendString(b []byte, s string) []byte {
	return append(be.AppendUint32(b, uint32(len(s))), s...)
}

// checkString refuses names that the protocol cannot carry.
func (c *Conn) checkString(what, s string) error {
	switch {
	case c.config.Unchecked:
		return nil
	case len(s) > wire.MaxString:
		return fmt.Errorf("nbd: the %s has %d bytes; %d is the most", what, len(s), wire.MaxString)
	case strings.Contains(s, "\x00"):
		return fmt.Errorf("nbd: the %s %q contains NUL", what, s)
	}
	return nil
}

// ListMetaContexts returns the contexts of an export that fit the queries; of none, all.
func (c *Conn) ListMetaContexts(ctx context.Context, export string, queries ...string) ([]MetaContext, error) {
	return c.metaContexts(ctx, wire.OptListMetaContext, export, queries)
}

// SetMetaContexts selects contexts for BlockStatus, in place of those selected before. They hold for a Go with the same export name. A query that ends
// with a colon selects what begins so, of servers that allow it.
func (c *Conn) SetMetaContexts(ctx context.Context, export string, queries ...string) ([]MetaContext, error) {
	c.contexts = nil
	all, err := c.metaContexts(ctx, wire.OptSetMetaContext, export, queries)
	if err != nil {
		return nil, err
	}
	if err := c.checkSelected(all, queries); err != nil {
		c.end(err)
		return nil, err
	}
	c.contexts, c.contextsFor = all, export
	return all, nil
}

// checkSelected checks that each context has a number of its own and was asked for: every one of them costs memory in the replies to BLOCK_STATUS.
func (c *Conn) checkSelected(all []MetaContext, queries []string) error {
	const o = wire.OptSetMetaContext
	for i, m := range all {
		for _, earlier := range all[:i] {
			switch {
			case earlier.ID == m.ID:
				return broken(o.String(), "%q and %q have the same number %d", earlier.Name, m.Name, m.ID)
			case earlier.Name == m.Name && !c.config.Unchecked:
				return broken(o.String(), "%q is selected twice", m.Name)
			}
		}
		asked := func(q string) bool { return m.Name == q || strings.HasSuffix(q, ":") && strings.HasPrefix(m.Name, q) }
		if !c.config.Unchecked && !slices.ContainsFunc(queries, asked) {
			return broken(o.String(), "%q was not asked for", m.Name)
		}
	}
	return nil
}

// maxContexts is how many contexts are taken of a server.
const maxContexts = 1024

func (c *Conn) metaContexts(ctx context.Context, o wire.Option, export string, queries []string) ([]MetaContext, error) {
	if !c.structured && !c.config.Unchecked {
		return nil, block.ErrorOf(errors.ErrUnsupported, "nbd: %s needs structured replies", o)
	}
	if err := c.checkString("export name", export); err != nil {
		return nil, err
	}
	data := be.AppendUint32(appendString(nil, export), uint32(len(queries)))
	for _, q := range queries {
		if err := c.checkString("query", q); err != nil {
			return nil, err
		}
		data = appendString(data, q)
	}
	var all []MetaContext
	err := c.step(ctx, o, data, func(r OptionReply) error {
		if r.Type != wire.RepMetaContext {
			return only(o, r)
		}
		if len(r.Data) < 5 || len(r.Data) > 4+wire.MaxString {
			return broken(o.String(), "a context of %d bytes", len(r.Data))
		}
		if len(all) == maxContexts {
			return broken(o.String(), "more than %d contexts", maxContexts)
		}
		all = append(all, MetaContext{ID: be.Uint32(r.Data), Name: string(r.Data[4:])})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// Abort ends negotiation and closes the connection. It does not wait for an answer, which a server need not give.
func (c *Conn) Abort(ctx context.Context) error {
	if !c.is(negotiation) {
		return c.Close()
	}
	defer c.Close()
	if !c.fixed {
		return nil
	}
	return c.within(ctx, wire.OptAbort.String(), func() error { return c.sendOption(wire.OptAbort, nil) })
}
