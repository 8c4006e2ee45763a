package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/internal/within"
	"github.com/imgtool/imgtool/nbd/wire"
)

// phase is how far a connection has come.
type phase int

const (
	negotiation phase = iota
	transmission
	ended
)

// Conn is one connection. In negotiation its methods are called by one goroutine at a time; in transmission, commands by any number.
type Conn struct {
	config Config
	conn   net.Conn
	in     reader

	// Set in negotiation, constant in transmission.
	protocol    string
	fixed       bool // the server speaks fixed newstyle, and so do we
	noZeroes    bool // EXPORT_NAME is answered without the 124 zeroes
	secure      bool
	structured  bool
	extended    bool
	contexts    []MetaContext
	contextsFor string // the export that the contexts were selected for
	export      ExportInfo
	maxPayload  int64

	receiver sync.WaitGroup // the goroutines of transmission
	out      sender

	mu      sync.Mutex
	phase   phase
	cause   error            // why the connection has ended
	calls   map[uint64]*call // that wait for their reply, by cookie
	cookie  uint64           // the last one given
	current *call            // of whose reply the receiver reads a part just now; it alone writes this
	filling *call            // into whose buffer it does
	left    int              // calls that were given up before their reply came
	leaving bool             // Disconnect waits for the calls
	idle    chan struct{}    // closed when leaving and no calls are left
}

// New reads the greeting of the server at the other end of conn, which it owns from now on: on an error it is closed. An oldstyle
// server is in transmission at once.
func New(ctx context.Context, conn net.Conn, c Config) (*Conn, error) {
	if c.MaxPayload <= 0 {
		c.MaxPayload = wire.DefaultMaxPayload
	}
	n := &Conn{config: c, conn: conn, calls: map[uint64]*call{}, maxPayload: c.MaxPayload}
	n.in.conn = conn
	if err := n.within(ctx, "greeting", n.greet); err != nil {
		return nil, err
	}
	return n, nil
}

// within runs one step of negotiation. Where it fails halfway, be it because ctx ends, the connection is of no more use and closed.
func (c *Conn) within(ctx context.Context, during string, step func() error) error {
	err := within.Do(ctx, c.conn, step)
	var refused *OptionError
	var protocol *ProtocolError
	switch {
	case err == nil, errors.As(err, &refused):
		return err
	case errors.As(err, &protocol):
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("nbd: %s: the server hung up: %w", during, io.ErrUnexpectedEOF)
	default:
		err = fmt.Errorf("nbd: %s: %w", during, err)
	}
	c.end(err)
	return err
}

// end closes the connection in negotiation.
func (c *Conn) end(cause error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != ended {
		c.phase, c.cause = ended, cause
		c.conn.Close()
	}
}

// greet reads what the server says first, and answers.
func (c *Conn) greet() error {
	magic, err := c.in.next(16)
	if err != nil {
		return err
	}
	if got := be.Uint64(magic); got != wire.InitMagic {
		return broken("greeting", "the magic number is %#x: this is no NBD server", got)
	}
	switch style := be.Uint64(magic[8:]); style {
	case wire.OldstyleMagic:
		return c.greetOldstyle()
	case wire.OptionMagic:
		return c.greetNewstyle()
	default:
		return broken("greeting", "the second magic number is %#x: neither oldstyle nor newstyle", style)
	}
}

func (c *Conn) greetOldstyle() error {
	c.protocol = "oldstyle"
	b, err := c.in.next(8 + 4 + wire.OldstyleZeroes)
	if err != nil {
		return err
	}
	// The upper half of the flags is the handshake's, of which oldstyle has none.
	export := ExportInfo{}
	if err := c.setExport(&export, "greeting", be.Uint64(b), wire.TransmissionFlags(be.Uint32(b[8:]))); err != nil {
		return err
	}
	c.transmit(export)
	return nil
}

func (c *Conn) greetNewstyle() error {
	c.protocol = "newstyle"
	b, err := c.in.next(2)
	if err != nil {
		return err
	}
	offered := wire.HandshakeFlags(be.Uint16(b))
	var answer wire.ClientFlags
	if offered&wire.FixedNewstyle != 0 {
		c.protocol = "newstyle-fixed"
		if !c.config.NoFixedNewstyle {
			c.fixed = true
			answer |= wire.ClientFixedNewstyle
		}
	}
	if offered&wire.NoZeroes != 0 && !c.config.NoZeroes {
		c.noZeroes = true
		answer |= wire.ClientNoZeroes
	}
	_, err = c.conn.Write(be.AppendUint32(nil, uint32(answer)))
	return err
}

// setExport puts the size and the flags that a server tells into e. Flags that contradict what was agreed on, or each other, are left out.
func (c *Conn) setExport(e *ExportInfo, during string, size uint64, flags wire.TransmissionFlags) error {
	if size > wire.MaxExportSize {
		return broken(during, "the export has %d bytes, more than 2^63-1", size)
	}
	e.Size, e.Flags = int64(size), flags
	if c.config.Unchecked {
		return nil
	}
	if flags&wire.HasFlags == 0 {
		e.Flags = 0
	}
	if !c.structured {
		e.Flags &^= wire.SendDF
	}
	if flags&wire.SendWriteZeroes == 0 {
		e.Flags &^= wire.SendFastZero
	}
	if !c.extended {
		e.Flags &^= wire.BlockStatusPayload
	}
	return nil
}

// transmit begins transmission with an export.
func (c *Conn) transmit(e ExportInfo) {
	if !e.BlockSizes {
		e.MinBlock, e.PreferredBlock, e.MaxPayload = 1, 4096, wire.DefaultMaxPayload
	}
	c.export = e
	c.maxPayload = min(c.config.MaxPayload, e.MaxPayload)
	if rounded := block.RoundDown(c.maxPayload, max(e.MinBlock, 1)); rounded > 0 {
		c.maxPayload = rounded
	}
	if c.contextsFor != e.asked {
		c.contexts = nil
	}
	c.out.start(c.conn)
	c.mu.Lock()
	c.phase = transmission
	c.mu.Unlock()
	c.receiver.Go(c.receive)
}

// Negotiating reports whether options can be sent.
func (c *Conn) Negotiating() bool { return c.is(negotiation) }

func (c *Conn) is(p phase) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.phase == p
}

// Err returns nil while the connection lives, and then why it has ended: an error that is ErrDisconnected.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead()
}

// dead is Err for a caller that holds mu.
func (c *Conn) dead() error {
	switch {
	case c.phase != ended:
		return nil
	case c.cause == nil || c.cause == ErrDisconnected:
		return ErrDisconnected
	}
	return fmt.Errorf("%w: %w", ErrDisconnected, c.cause)
}

// Protocol says how the server speaks: oldstyle, newstyle or newstyle-fixed.
func (c *Conn) Protocol() string { return c.protocol }

// Secure reports whether the connection is encrypted.
func (c *Conn) Secure() bool { return c.secure }

// Structured reports whether structured replies have been agreed on, or extended headers, which include them.
func (c *Conn) Structured() bool { return c.structured }

// Extended reports whether extended headers have been agreed on.
func (c *Conn) Extended() bool { return c.extended }

// Contexts returns what SetMetaContexts has selected. Do not change it.
func (c *Conn) Contexts() []MetaContext { return c.contexts }

// Export returns what Go has told of the export in transmission.
func (c *Conn) Export() ExportInfo { return c.export }

// MaxPayload returns the longest payload of a READ or a WRITE in bytes: what the server takes, within Config.MaxPayload.
func (c *Conn) MaxPayload() int64 { return c.maxPayload }

// Disconnect tells the server, lets what is in flight end, and closes the connection. Commands that begin meanwhile get ErrDisconnected.
func (c *Conn) Disconnect(ctx context.Context) error {
	c.mu.Lock()
	if c.phase != transmission || c.leaving {
		c.mu.Unlock()
		return c.Close()
	}
	c.leaving, c.idle = true, make(chan struct{})
	if len(c.calls) == 0 {
		close(c.idle)
	}
	c.mu.Unlock()
	defer c.Close()
	select {
	case <-c.idle:
	case <-ctx.Done():
		return ctx.Err()
	}
	return c.sendDisc(ctx, wire.Request{Type: wire.CmdDisc})
}

// Close closes the connection at once. Commands in flight get ErrDisconnected. When it returns, no goroutine of the connection is left.
func (c *Conn) Close() error {
	c.fail(ErrDisconnected)
	c.receiver.Wait()
	c.out.background.Wait()
	return nil
}

// broken returns a ProtocolError.
func broken(during, format string, args ...any) error {
	return &ProtocolError{During: during, Err: fmt.Errorf(format, args...)}
}
