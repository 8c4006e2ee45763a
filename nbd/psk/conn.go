package psk

import (
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxMessage bounds a handshake message, in bytes with its header.
	maxMessage = 1 << 16
	// maxIdle bounds the records in a row that bring no data: empty ones, tickets, updates of keys, alerts that mean nothing.
	maxIdle = 16
	// goodbye bounds how long the sending of a last alert may take.
	goodbye = time.Second

	overhead = headerLen + 1 + tagLen // of a record
)

// Conn is an encrypted connection. It is a net.Conn: any number of goroutines may call its methods. One Read and one Write at a time make progress.
//
// A Read that runs into its deadline can be repeated. A Write that does has sent a part, so that all further ones fail. A connection that ends without the
// peer's close_notify has been cut, perhaps by somebody else: Read returns io.ErrUnexpectedEOF then, and io.EOF after the peer's close_notify.
type Conn struct {
	conn  net.Conn
	suite *suite

	reading sync.Mutex
	in      input
	data    []byte // decrypted and not yet read; lies in in.buf
	message []byte // a handshake message of which a part has come
	idle    int    // records in a row without data
	readErr error  // what every further Read returns

	client     bool // of the handshake, as are:
	compatible bool // change_cipher_spec may come
	disguised  bool // change_cipher_spec has been sent

	writing  sync.Mutex
	out      protection
	sent     []byte // what is sent together; of a Write its buffer is borrowed
	writeErr error  // what every further Write returns

	answer atomic.Bool // the peer waits for new keys of this side
	closed atomic.Bool
}

func newConn(conn net.Conn) *Conn {
	return &Conn{conn: conn, in: input{conn: conn}}
}

// CipherSuite returns the name of the cipher suite, as RFC 8446 has it.
func (c *Conn) CipherSuite() string { return c.suite.name }

func (c *Conn) LocalAddr() net.Addr                { return c.conn.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr               { return c.conn.RemoteAddr() }
func (c *Conn) SetDeadline(t time.Time) error      { return c.conn.SetDeadline(t) }
func (c *Conn) SetReadDeadline(t time.Time) error  { return c.conn.SetReadDeadline(t) }
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.conn.SetWriteDeadline(t) }

// Read fills p with what there is, several records where they have come.
func (c *Conn) Read(p []byte) (int, error) {
	c.reading.Lock()
	defer c.reading.Unlock()
	if len(p) == 0 {
		return 0, nil
	}
	n := copy(p, c.data)
	c.data = c.data[n:]
	for n < len(p) && c.readErr == nil && (n == 0 || c.in.buffered() > 0) {
		data, err := c.readData(p[n:])
		if err != nil {
			c.failRead(err)
			if n == 0 && c.readErr == nil {
				return 0, err // it can be repeated
			}
			break
		}
		got := copy(p[n:], data) // onto itself where it was decrypted there
		n, c.data = n+got, data[got:]
	}
	if n > 0 {
		return n, nil
	}
	return 0, c.readErr
}

// failRead ends reading, but for an error that passes, and tells the peer what was wrong with what it sent.
func (c *Conn) failRead(err error) {
	var passing net.Error
	if errors.As(err, &passing) && passing.Timeout() {
		return
	}
	c.readErr = err
	if alert, tell := toTell(err); tell {
		c.end(alert, err)
	} else if errors.Is(err, errSequence) {
		c.end(InternalError, err)
	}
}

// readData reads one record, and returns the data in it, in dst where that has room.
func (c *Conn) readData(dst []byte) ([]byte, error) {
	typ, data, err := c.in.record(dst)
	if err != nil {
		return nil, err
	}
	if len(data) == 0 && typ != recordApplicationData {
		return nil, wrong(UnexpectedMessage, "a record of type %d is empty", typ)
	}
	if len(c.message) > 0 && typ != recordHandshake {
		return nil, wrong(UnexpectedMessage, "a handshake message is cut short by a record of type %d", typ)
	}
	if typ == recordApplicationData && len(data) > 0 {
		c.idle = 0
		return data, nil
	}
	if c.idle++; c.idle > maxIdle {
		return nil, wrong(UnexpectedMessage, "more than %d records in a row bring no data", maxIdle)
	}
	switch typ {
	case recordApplicationData:
		return nil, nil
	case recordAlert:
		return nil, parseAlert(data)
	case recordHandshake:
		c.message = append(c.message, data...)
		return nil, c.afterHandshake()
	}
	return nil, wrong(UnexpectedMessage, "a record of type %d comes after the handshake", typ)
}

// parseAlert returns the error that an alert means; nil for one that means nothing.
func parseAlert(data []byte) error {
	if len(data) != 2 {
		return wrong(DecodeError, "an alert of %d bytes", len(data))
	}
	switch alert := Alert(data[1]); alert {
	case CloseNotify:
		return io.EOF
	case UserCanceled:
		return nil
	default:
		return &AlertError{Alert: alert} // of whatever level: all are fatal
	}
}

// afterHandshake deals with the handshake messages that have come as a whole.
func (c *Conn) afterHandshake() error {
	for {
		message, err := c.takeMessage()
		if message == nil || err != nil {
			return err
		}
		switch {
		case message[0] == typeNewSessionTicket && c.client:
			if c.idle++; c.idle > maxIdle {
				return wrong(UnexpectedMessage, "more than %d messages in a row bring no data", maxIdle)
			}
		case message[0] == typeKeyUpdate:
			if len(message) != 5 {
				return garbled("KeyUpdate")
			}
			if message[4] > 1 {
				return wrong(IllegalParameter, "KeyUpdate asks for %d", message[4])
			}
			if len(c.message) > 0 {
				return wrong(UnexpectedMessage, "a message follows KeyUpdate under the old keys")
			}
			c.in.update()
			if message[4] == 1 {
				c.answer.Store(true) // the next Write sends it: many requests get one answer
			}
		default:
			return wrong(UnexpectedMessage, "a handshake message of type %d comes after the handshake", message[0])
		}
	}
}

// takeMessage returns the handshake message that has come, nil where it has not as a whole. It is valid until the next record of the handshake.
func (c *Conn) takeMessage() ([]byte, error) {
	if len(c.message) < 4 {
		return nil, nil
	}
	n := 4 + (int(c.message[1])<<16 | int(c.message[2])<<8 | int(c.message[3]))
	if n > maxMessage {
		return nil, wrong(IllegalParameter, "a handshake message of %d bytes is longer than %d", n, maxMessage)
	}
	if len(c.message) < n {
		return nil, nil
	}
	message := c.message[:n:n]
	if c.message = c.message[n:]; len(c.message) == 0 {
		c.message = nil
	}
	return message, nil
}

// outputs are the buffers of Writes: a connection that waits keeps none.
var outputs = sync.Pool{New: func() any { return new([]byte) }}

// Write sends p in records of 16 KiB, several by one system call.
func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	buffer := outputs.Get().(*[]byte)
	c.sent = slices.Grow((*buffer)[:0], min(len(p)+2*overhead, maxOutput))
	defer func() {
		*buffer, c.sent = c.sent, nil
		outputs.Put(buffer)
	}()
	total := 0
	for {
		switch {
		case c.writeErr != nil:
			return total, c.writeErr
		case c.closed.Load():
			return total, net.ErrClosed
		case total == len(p):
			return total, nil
		}
		n, err := c.gather(p[total:])
		if err == nil {
			err = c.flush()
		}
		if err != nil {
			c.writeErr = err
			return total, err
		}
		total += n
	}
}

// gather puts records together that flush sends, as many as the buffer holds, and returns how much of p is in them.
func (c *Conn) gather(p []byte) (n int, err error) {
	for n < len(p) && len(c.sent)+maxPlaintext+overhead <= maxOutput {
		if err := c.renew(); err != nil {
			return n, err
		}
		piece := p[n:min(n+maxPlaintext, len(p))]
		if c.sent, err = c.out.seal(c.sent, recordApplicationData, piece...); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

// renew replaces the keys of this side where the peer has asked for it, or where they have encrypted as much as they may.
func (c *Conn) renew() error {
	if !c.answer.Swap(false) && c.out.seq < c.suite.limit {
		return nil
	}
	var err error
	c.sent, err = c.out.seal(c.sent, recordHandshake, typeKeyUpdate, 0, 0, 1, 0) // and does not ask for the peer's
	c.out.update()
	return err
}

// flush sends what has been put together.
func (c *Conn) flush() error {
	_, err := c.conn.Write(c.sent)
	c.sent = c.sent[:0]
	return err
}

// end sends a last alert, and makes every further Write return err. While a Write waits, no alert can be sent.
func (c *Conn) end(alert Alert, err error) {
	if !c.writing.TryLock() {
		return
	}
	defer c.writing.Unlock()
	if c.writeErr != nil {
		return
	}
	c.writeErr = err
	level := byte(2) // fatal
	if alert == CloseNotify {
		level = 1
	}
	c.conn.SetWriteDeadline(time.Now().Add(goodbye))
	if c.sent, err = c.out.seal(c.sent[:0], recordAlert, level, byte(alert)); err == nil {
		c.flush() // whether it comes through or not: this is the end
	}
}

// Close tells the peer, for which it waits a second at most, and closes the connection below. Calls in progress end with an error.
func (c *Conn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	c.end(CloseNotify, net.ErrClosed)
	return c.conn.Close()
}
