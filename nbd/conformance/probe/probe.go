// Package probe is a client for trying NBD servers: it sends any frame, right or wrong, and judges every frame that comes back.
//
// What the protocol never allows in an answer (a wrong magic number, a cookie that nobody sent, chunks that overlap) is a [*Violation], whatever
// was asked. Whether an answer fits the question is the caller's to judge. A [Conn] is used by one goroutine at a time; the deadline of the
// net.Conn under it bounds all waiting.
package probe

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/imgtool/imgtool/nbd/wire"
)

var be = binary.BigEndian

// Violation says what the server sent that the protocol does not allow.
type Violation struct{ Text string }

func (v *Violation) Error() string { return v.Text }

func violated(format string, args ...any) error { return &Violation{fmt.Sprintf(format, args...)} }

// ErrDropped means that the server closed the connection, ErrSilent that nothing came before the deadline.
var (
	ErrDropped = errors.New("the server closes the connection")
	ErrSilent  = errors.New("the server does not answer")
)

// Bounds of the replies to one option.
const (
	maxReply   = 1 << 20  // bytes of one
	maxReplies = 16 << 20 // bytes of all, their headers included
)

// Mode is the form of requests and replies.
type Mode int

// The modes.
const (
	Simple Mode = iota
	Structured
	Extended
)

func (m Mode) String() string { return [...]string{"simple", "structured", "extended"}[m] }

// Greeting is what a server says first.
type Greeting struct {
	Oldstyle bool
	Flags    wire.HandshakeFlags
}

// Reply is one reply to an option.
type Reply struct {
	Type wire.Reply
	Data []byte
}

// Context is a meta context that the server has selected.
type Context struct {
	ID   uint32
	Name string
}

// Conn is one connection to the server that is tried.
type Conn struct {
	Mode     Mode      // of transmission
	Contexts []Context // that BLOCK_STATUS answers for
	Size     uint64    // of the export in bytes, that no extent may go beyond
	MinBlock uint64    // in bytes

	conn    net.Conn
	in      *bufio.Reader
	cookie  uint64
	pending map[uint64]*Answer
}

// New returns a Conn over conn, which it owns.
func New(conn net.Conn) *Conn {
	return &Conn{conn: conn, in: bufio.NewReaderSize(conn, 64<<10), pending: map[uint64]*Answer{}, cookie: 0x1234567800000000, MinBlock: 1}
}

// Close closes the connection at once.
func (c *Conn) Close() error { return c.conn.Close() }

// Send writes bytes as they are.
func (c *Conn) Send(b ...[]byte) error {
	buffers := net.Buffers(b)
	_, err := buffers.WriteTo(c.conn)
	return told(err)
}

// receive fills b.
func (c *Conn) receive(b []byte) error {
	_, err := io.ReadFull(c.in, b)
	return told(err)
}

// told names the two things that go wrong with a connection.
func told(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ErrSilent
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrClosedPipe):
		return ErrDropped
	}
	return fmt.Errorf("%w: %w", ErrDropped, err)
}

// Greet reads the greeting. It sends nothing.
func (c *Conn) Greet() (Greeting, error) {
	var b [16]byte
	if err := c.receive(b[:]); err != nil {
		return Greeting{}, err
	}
	if magic := be.Uint64(b[:]); magic != wire.InitMagic {
		return Greeting{}, violated("the greeting begins with %#x instead of NBDMAGIC", magic)
	}
	switch magic := be.Uint64(b[8:]); magic {
	case wire.OldstyleMagic:
		return Greeting{Oldstyle: true}, nil
	case wire.OptionMagic:
	default:
		return Greeting{}, violated("NBDMAGIC is followed by %#x instead of IHAVEOPT", magic)
	}
	if err := c.receive(b[:2]); err != nil {
		return Greeting{}, err
	}
	return Greeting{Flags: wire.HandshakeFlags(be.Uint16(b[:]))}, nil
}

// ClientFlags answers the greeting.
func (c *Conn) ClientFlags(f wire.ClientFlags) error {
	return c.Send(be.AppendUint32(nil, uint32(f)))
}

// OptionFrame returns an option with its data.
func OptionFrame(o wire.Option, data []byte) []byte {
	b := make([]byte, wire.OptionHeaderSize, wire.OptionHeaderSize+len(data))
	wire.OptionHeader{Option: o, Length: uint32(len(data))}.Put(b)
	return append(b, data...)
}

// Option sends an option and returns the replies to it, the last one included, whatever it is.
func (c *Conn) Option(o wire.Option, data []byte) ([]Reply, error) {
	if err := c.Send(OptionFrame(o, data)); err != nil {
		return nil, err
	}
	return c.Replies(o)
}

// Replies reads the replies to an option that has been sent, up to the last.
func (c *Conn) Replies(o wire.Option) ([]Reply, error) {
	var all []Reply
	for size := 0; size <= maxReplies; {
		var b [wire.ReplyHeaderSize]byte
		if err := c.receive(b[:]); err != nil {
			return all, err
		}
		h, ok := wire.ParseReplyHeader(b[:])
		switch {
		case !ok:
			return all, violated("a reply to %s begins with %#x instead of its magic number", o, be.Uint64(b[:]))
		case h.Option != o:
			return all, violated("the reply to %s says that it answers %s", o, h.Option)
		case h.Length > maxReply:
			return all, violated("a reply to %s is %d bytes long", o, h.Length)
		}
		r := Reply{h.Type, make([]byte, h.Length)}
		if err := c.receive(r.Data); err != nil {
			return all, err
		}
		if err := r.check(o); err != nil {
			return all, err
		}
		all = append(all, r)
		size += len(b) + len(r.Data)
		if h.Type == wire.RepAck || h.Type&wire.RepError != 0 {
			return all, nil
		}
	}
	return all, violated("%s is answered with more than %d bytes", o, maxReplies)
}

// check judges one reply by itself.
func (r Reply) check(o wire.Option) error {
	switch {
	case r.Type&wire.RepError != 0:
		return text(string(r.Data), "the message of %s to %s", r.Type, o)
	case r.Type == wire.RepAck:
		if len(r.Data) > 0 {
			return violated("the ACK of %s carries %d bytes of data", o, len(r.Data))
		}
		return nil
	case r.Type == wire.RepServer && o == wire.OptList:
		name, rest, err := r.Server()
		if err != nil {
			return err
		}
		if err := text(name, "an export's name in the reply to LIST"); err != nil {
			return err
		}
		return text(rest, "an export's description in the reply to LIST")
	case r.Type == wire.RepInfo && (o == wire.OptInfo || o == wire.OptGo):
		return r.checkInfo()
	case r.Type == wire.RepMetaContext && (o == wire.OptListMetaContext || o == wire.OptSetMetaContext):
		if len(r.Data) < 4 {
			return violated("a META_CONTEXT is %d bytes long", len(r.Data))
		}
		name := string(r.Data[4:])
		if space, _, ok := strings.Cut(name, ":"); !ok || space == "" {
			return violated("a meta context is named %q, without a namespace", name)
		}
		return text(name, "a meta context's name")
	}
	return violated("%s is answered with %s", o, r.Type)
}

func (r Reply) checkInfo() error {
	if len(r.Data) < 2 {
		return violated("an INFO is %d bytes long", len(r.Data))
	}
	length := len(r.Data)
	switch wire.Info(be.Uint16(r.Data)) {
	case wire.InfoExport:
		if length != 12 {
			return violated("INFO_EXPORT is %d bytes long instead of 12", length)
		}
	case wire.InfoBlockSize:
		if length != 14 {
			return violated("INFO_BLOCK_SIZE is %d bytes long instead of 14", length)
		}
	case wire.InfoName:
		return text(string(r.Data[2:]), "INFO_NAME")
	case wire.InfoDescription:
		return text(string(r.Data[2:]), "INFO_DESCRIPTION")
	}
	return nil
}

// Server returns the name and the description in a SERVER reply.
func (r Reply) Server() (name, description string, err error) {
	if len(r.Data) < 4 || uint64(be.Uint32(r.Data)) > uint64(len(r.Data)-4) {
		return "", "", violated("a SERVER reply of %d bytes holds a name that is longer", len(r.Data))
	}
	n := be.Uint32(r.Data)
	return string(r.Data[4 : 4+n]), string(r.Data[4+n:]), nil
}

// Info returns the type of an INFO reply and what follows it; ok is false for other replies.
func (r Reply) Info() (kind wire.Info, data []byte, ok bool) {
	if r.Type != wire.RepInfo {
		return 0, nil, false
	}
	return wire.Info(be.Uint16(r.Data)), r.Data[2:], true
}

// text checks the rules that hold for every string.
func text(s, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	switch {
	case len(s) > wire.MaxString:
		return violated("%s is %d bytes long; a string may have %d", what, len(s), wire.MaxString)
	case !utf8.ValidString(s):
		return violated("%s is not UTF-8: %q", what, s)
	case strings.ContainsRune(s, 0):
		return violated("%s holds a NUL: %q", what, s)
	}
	return nil
}

// ExportName sends EXPORT_NAME and reads the answer. Without noZeroes the zeroes after it are read as well.
func (c *Conn) ExportName(name string, noZeroes bool) (size uint64, flags wire.TransmissionFlags, err error) {
	if err := c.Send(OptionFrame(wire.OptExportName, []byte(name))); err != nil {
		return 0, 0, err
	}
	b := make([]byte, 10+wire.ExportNameZeroes)
	if noZeroes {
		b = b[:10]
	}
	if err := c.receive(b); err != nil {
		return 0, 0, err
	}
	for _, x := range b[10:] {
		if x != 0 {
			return 0, 0, violated("the 124 bytes after the answer to EXPORT_NAME are not all zero")
		}
	}
	return be.Uint64(b), wire.TransmissionFlags(be.Uint16(b[8:])), nil
}

// Upgrade encrypts the connection by f, which makes the client's side of the handshake.
func (c *Conn) Upgrade(f func(net.Conn) (net.Conn, error)) error {
	secure, err := f(&early{c.conn, c.in})
	if err != nil {
		return err
	}
	c.conn, c.in = secure, bufio.NewReaderSize(secure, 64<<10)
	return nil
}

// early is a connection of which some bytes have been read ahead.
type early struct {
	net.Conn
	in *bufio.Reader
}

func (e *early) Read(b []byte) (int, error) { return e.in.Read(b) }

// Ended returns nil where the server closes the connection without another byte.
func (c *Conn) Ended() error {
	b, err := c.in.Peek(1)
	switch err = told(err); {
	case err == nil:
		more, _ := c.in.Peek(c.in.Buffered())
		return violated("the server goes on talking: % x", append(b[:0:0], more[:min(len(more), 24)]...))
	case errors.Is(err, ErrDropped):
		return nil
	}
	return err
}

// Discard forgets what has arrived.
func (c *Conn) Discard() { c.in.Discard(c.in.Buffered()) }
