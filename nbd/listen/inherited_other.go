//go:build !unix

package listen

import "net"

// Inherited returns none: no system but Unix hands sockets over.
func Inherited() ([]net.Listener, error) { return nil, nil }
