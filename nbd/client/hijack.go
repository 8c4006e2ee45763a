package client

import (
	"errors"
	"net"
)

// Hijack ends the Conn and gives up what it stands on: a connection in transmission, on which no command has been sent, with simple replies and without
// TLS. It belongs to the caller. take makes whatever outlives the closing of the connection: a descriptor of its own.
func (c *Conn) Hijack(take func(net.Conn) error) error {
	c.mu.Lock()
	used := c.cookie > 0
	c.mu.Unlock()
	switch {
	case !c.is(transmission):
		return errPhase
	case c.secure, c.structured, c.extended, used:
		return errors.New("nbd: only a new connection with simple replies and without TLS can be given up")
	}
	return errors.Join(take(c.conn), c.Close())
}
