// Package client is one connection to an NBD server, with the protocol's options and commands one by one.
//
// Who wants a device takes nbd.Dial, which stands on this package: it negotiates all that is good, keeps several connections and reconnects. Here
// every step is the caller's: [New] reads the server's greeting, methods send options, [Conn.Go] begins transmission, methods send commands.
// A server is never trusted: whatever it sends that the protocol does not allow ends the connection with a [*ProtocolError].
package client

import (
	"errors"
	"fmt"
	"strings"

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
	known := e.Errno.Known().Error()
	switch {
	case e.Text == "":
		return fmt.Sprintf("nbd: %s: server says: %s", e.Command, known)
	case strings.Contains(strings.ToLower(e.Text), strings.ToLower(known)):
		return fmt.Sprintf("nbd: %s: server says: %s", e.Command, e.Text)
	}
	return fmt.Sprintf("nbd: %s: server says: %s (%s)", e.Command, e.Text, e.Errno)
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

	asked string // the name that was asked for
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

// RawChunk is a chunk as it came.
type RawChunk struct {
	Header  wire.Chunk
	Payload []byte
}
