// Package client is one connection to an NBD server, with the protocol's options and commands one by one.
//
// Who wants a device takes nbd.Dial, which stands on this package: it negotiates all that is good, keeps several connections and reconnects. Here
// every step is the caller's: [New] reads the server's greeting, methods send options, [Conn.Go] begins transmission, methods send commands.
// A server is never trusted: whatever it sends that the protocol does not allow ends the connection with a [*ProtocolError].
package client

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/wire"
)

// ProtocolError says what the server did that the protocol does not allow. The connection is dead after it.
type ProtocolError struct {
	During string // the option or the command, as wire names it; greeting
	Err    error
}

func (e *ProtocolError) Error() string {
	return fmt.Sprintf("nbd: %s: server breaks the protocol: %v", e.During, e.Err)
}
func (e *ProtocolError) Unwrap() error { return e.Err }

// OptionError is the server's refusal of an option.
type OptionError struct {
	Option wire.Option
	Reply  wire.Reply
	Text   string // the server's, for people; "" where it gave none
}

func (e *OptionError) Error() string {
	if e.Text != "" {
		return fmt.Sprintf("nbd: %s refused: %s (%s)", e.Option, e.Text, e.Reply)
	}
	return fmt.Sprintf("nbd: %s refused: %s", e.Option, e.Reply)
}

// CommandError is the server's error for a command.
type CommandError struct {
	Command wire.Command
	Errno   wire.Errno // as sent; see Errno.Known
	Offset  int64      // of the error in the export where the server told it; else -1
	Text    string     // the server's, for people; "" where it gave none
}

func (e *CommandError) Error() string {
	if e.Text != "" {
		return fmt.Sprintf("nbd: %s: server says: %s (%s)", e.Command, e.Text, e.Errno)
	}
	return fmt.Sprintf("nbd: %s: server says: %s", e.Command, e.Errno.Known().Error())
}
func (e *CommandError) Unwrap() error { return e.Errno.Known() }

// ErrDisconnected: the connection is lost, or Disconnect or Close was called. Commands that return it may or may not have been carried out.
var ErrDisconnected = errors.New("nbd: not connected")

// Config limits what a connection offers. The zero value is right for everybody but tests.
type Config struct {
	NoFixedNewstyle bool  // do not answer the flag
	NoZeroes        bool  // true means: do NOT ask to leave the 124 zeroes out
	MaxPayload      int64 // the longest payload of a command that is sent and taken; 0 is 32 MiB
	// Unchecked sends commands that the export does not offer, ranges outside it, and whatever flags the caller gives: to try servers.
	Unchecked bool
}

// ExportInfo is what a server tells of an export.
type ExportInfo struct {
	Name        string // canonical, where the server told one
	Description string
	Size        int64
	Flags       wire.TransmissionFlags
	// Block sizes in bytes; BlockSizes says whether the server told them. Else they are 1, 4096 and 32 MiB.
	BlockSizes                           bool
	MinBlock, PreferredBlock, MaxPayload int64
}

// Listed is one export of a server's list.
type Listed struct{ Name, Description string }

// MetaContext is a context that a server offers or has selected.
type MetaContext struct {
	ID   uint32 // 0 in a list
	Name string
}

// OptionReply is one reply to an option, as it came.
type OptionReply struct {
	Type wire.Reply
	Data []byte
}

// Extent is a piece of a block status: so many bytes, with these flags of the context.
type Extent struct {
	Length int64
	Flags  uint64
}

// Piece is a chunk of the answer to a read.
type Piece struct {
	Offset int64
	Length int64
	Hole   bool
	Err    *CommandError // an error chunk; then Length is 0
}

// Conn is one connection. In negotiation its methods are called by one goroutine at a time; in transmission, commands by any number.
type Conn struct{}

// New reads the greeting of the server at the other end of conn, which it owns from now on: on an error it is closed. An oldstyle
// server is in transmission at once.
func New(ctx context.Context, conn net.Conn, c Config) (*Conn, error) { panic("client: not built") }

// Negotiating reports whether options can be sent.
func (c *Conn) Negotiating() bool { panic("client: not built") }

// Protocol says how the server speaks: oldstyle, newstyle or newstyle-fixed.
func (c *Conn) Protocol() string { panic("client: not built") }

// Secure, Structured, Extended report what has been agreed on so far.
func (c *Conn) Secure() bool     { panic("client: not built") }
func (c *Conn) Structured() bool { panic("client: not built") }
func (c *Conn) Extended() bool   { panic("client: not built") }

// Contexts returns what SetMetaContexts has selected.
func (c *Conn) Contexts() []MetaContext { panic("client: not built") }

// Export returns what Go has told of the export in transmission.
func (c *Conn) Export() ExportInfo { panic("client: not built") }

// Option sends an option and returns all replies to it, the last one included, whatever it is.
func (c *Conn) Option(ctx context.Context, o wire.Option, data []byte) ([]OptionReply, error) {
	panic("client: not built")
}

// StartTLS encrypts the connection. host is passed on to Upgrade. All that was agreed on before is forgotten.
func (c *Conn) StartTLS(ctx context.Context, t *secure.Client, host string) error {
	panic("client: not built")
}

// RequestStructuredReplies asks for them. Refusal is an *OptionError.
func (c *Conn) RequestStructuredReplies(ctx context.Context) error { panic("client: not built") }

// RequestExtendedHeaders asks for them. Refusal is an *OptionError.
func (c *Conn) RequestExtendedHeaders(ctx context.Context) error { panic("client: not built") }

// List returns the exports that the server tells of.
func (c *Conn) List(ctx context.Context) ([]Listed, error) { panic("client: not built") }

// ListMetaContexts returns the contexts of an export that fit the queries; of none, all.
func (c *Conn) ListMetaContexts(ctx context.Context, export string, queries ...string) ([]MetaContext, error) {
	panic("client: not built")
}

// SetMetaContexts selects contexts for BlockStatus, in place of those selected before.
func (c *Conn) SetMetaContexts(ctx context.Context, export string, queries ...string) ([]MetaContext, error) {
	panic("client: not built")
}

// Info asks about an export.
func (c *Conn) Info(ctx context.Context, export string) (ExportInfo, error) {
	panic("client: not built")
}

// Go begins transmission. Of a server that does not know the option it is ExportName.
func (c *Conn) Go(ctx context.Context, export string) (ExportInfo, error) { panic("client: not built") }

// ExportName begins transmission by the old option, which a server can refuse only by hanging up.
func (c *Conn) ExportName(ctx context.Context, export string) (ExportInfo, error) {
	panic("client: not built")
}

// Abort ends negotiation and closes the connection.
func (c *Conn) Abort(ctx context.Context) error { panic("client: not built") }

// Read fills p from off. Flags may hold FlagDF.
func (c *Conn) Read(ctx context.Context, p []byte, off int64, f wire.CommandFlags) error {
	panic("client: not built")
}

// ReadPieces is Read, and calls each for every chunk as it arrived, one at a time; errors that the server tells of pieces go there too.
func (c *Conn) ReadPieces(ctx context.Context, p []byte, off int64, f wire.CommandFlags, each func(Piece)) error {
	panic("client: not built")
}

// Write stores p at off. Flags may hold FlagFUA. p must not change before it returns.
func (c *Conn) Write(ctx context.Context, p []byte, off int64, f wire.CommandFlags) error {
	panic("client: not built")
}

// WriteZeroes makes a range zero. Flags may hold FlagFUA, FlagNoHole and FlagFastZero.
func (c *Conn) WriteZeroes(ctx context.Context, off, n int64, f wire.CommandFlags) error {
	panic("client: not built")
}

// Trim says that a range is not needed. Flags may hold FlagFUA.
func (c *Conn) Trim(ctx context.Context, off, n int64, f wire.CommandFlags) error {
	panic("client: not built")
}

// Cache says that a range will be read soon.
func (c *Conn) Cache(ctx context.Context, off, n int64, f wire.CommandFlags) error {
	panic("client: not built")
}

// Flush makes durable what commands have changed that were answered before.
func (c *Conn) Flush(ctx context.Context, f wire.CommandFlags) error { panic("client: not built") }

// BlockStatus calls each with what the server tells for every selected context, the extents of one context in order from off, which may reach less far than
// asked and, without FlagReqOne, the last farther. With ids, which need extended headers, only those contexts are asked for.
func (c *Conn) BlockStatus(ctx context.Context, off, n int64, f wire.CommandFlags, ids []uint32, each func(context MetaContext, extents []Extent)) error {
	panic("client: not built")
}

// Command sends any request as it is, with a payload where one is given, and returns the chunks of the reply in order; a simple reply is one chunk of
// type NONE or ERROR. To try servers.
func (c *Conn) Command(ctx context.Context, r wire.Request, payload []byte) ([]RawChunk, error) {
	panic("client: not built")
}

// RawChunk is a chunk as it came.
type RawChunk struct {
	Header  wire.Chunk
	Payload []byte
}

// Disconnect tells the server, lets what is in flight end, and closes the connection.
func (c *Conn) Disconnect(ctx context.Context) error { panic("client: not built") }

// Close closes the connection at once.
func (c *Conn) Close() error { panic("client: not built") }
