package psk

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hmac"
	"errors"
	"fmt"
	"io"
	"slices"
)

// handshake runs one side's part, and tells the peer of its failure.
func (c *Conn) handshake(run func() error) error {
	if err := run(); err != nil {
		if alert, tell := toTell(err); tell {
			c.end(alert, err)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("the peer hung up: %w", err)
		}
		return err
	}
	c.in.done, c.idle = true, 0
	return nil
}

// readMessage receives the next handshake message, which must be of a type.
func (c *Conn) readMessage(typ byte) ([]byte, error) {
	for {
		message, err := c.takeMessage()
		switch {
		case err != nil:
			return nil, err
		case message == nil:
			if err := c.readHandshake(); err != nil {
				return nil, err
			}
		case message[0] != typ:
			return nil, wrong(UnexpectedMessage, "a handshake message of type %d comes in place of type %d", message[0], typ)
		default:
			return message, nil
		}
	}
}

// readLast is readMessage for a message after which the keys change: nothing may follow it in its record.
func (c *Conn) readLast(typ byte) ([]byte, error) {
	message, err := c.readMessage(typ)
	if err == nil && len(c.message) > 0 {
		err = wrong(UnexpectedMessage, "a message follows that of type %d under the old keys", typ)
	}
	return message, err
}

// readHandshake receives a record of the handshake.
func (c *Conn) readHandshake() error {
	typ, data, err := c.in.record(nil)
	if err != nil {
		return err
	}
	if len(data) == 0 {
		return wrong(UnexpectedMessage, "a record of type %d is empty", typ)
	}
	if typ == recordHandshake {
		c.message = append(c.message, data...)
		return nil
	}
	if len(c.message) > 0 {
		return wrong(UnexpectedMessage, "a handshake message is cut short by a record of type %d", typ)
	}
	if c.idle++; c.idle > maxIdle {
		return wrong(UnexpectedMessage, "more than %d records of the handshake mean nothing", maxIdle)
	}
	switch typ {
	case recordAlert:
		err := parseAlert(data)
		if err == io.EOF { // it is too early for a good end
			err = &AlertError{Alert: CloseNotify}
		}
		return err
	case recordChangeCipherSpec:
		if c.compatible && bytes.Equal(data, []byte{1}) {
			return nil
		}
	}
	return wrong(UnexpectedMessage, "a record of type %d is not expected here", typ)
}

// queue puts data in records behind those that flush sends.
func (c *Conn) queue(typ byte, data ...byte) (err error) {
	for piece := range slices.Chunk(data, maxPlaintext) {
		if c.sent, err = c.out.seal(c.sent, typ, piece...); err != nil {
			return err
		}
	}
	return nil
}

// verifyFinished compares the peer's Finished with what its traffic secret demands at this point of the transcript.
func verifyFinished(s *schedule, secret, message []byte) error {
	if !hmac.Equal(message[4:], finishedMAC(s.hash, secret, s.sum())) {
		return wrong(DecryptError, "the peer's Finished does not fit: the handshake was changed on the way, or the keys differ")
	}
	return nil
}

// finished returns the Finished of this side.
func finished(s *schedule, secret []byte) []byte {
	mac := finishedMAC(s.hash, secret, s.sum())
	return append([]byte{typeFinished, 0, 0, byte(len(mac))}, mac...)
}

// exchange returns the secret that two sides share.
func exchange(private *ecdh.PrivateKey, share []byte) ([]byte, error) {
	public, err := private.Curve().NewPublicKey(share)
	if err == nil {
		var shared []byte
		if shared, err = private.ECDH(public); err == nil {
			return shared, nil
		}
	}
	return nil, wrong(IllegalParameter, "the peer's key share is no point of the group: %w", err)
}

// suite returns the suite with a number, nil for one that is not on.
func (c *config) suite(id uint16) *suite {
	i := slices.IndexFunc(c.suites, func(s *suite) bool { return s.id == id })
	if i < 0 {
		return nil
	}
	return c.suites[i]
}

// group returns the group with a number.
func (c *config) group(id groupID) (group, bool) {
	i := slices.IndexFunc(c.groups, func(g group) bool { return g.id == id })
	if i < 0 {
		return group{}, false
	}
	return c.groups[i], true
}
