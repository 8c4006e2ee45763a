//go:build !unix

package server

import "net"

// ready is for systems on which reading can be tried; here it cannot.
type ready struct{}

func (*ready) init(net.Conn, func() []byte, func()) {}
func (*ready) usable() bool                         { return false }
func (*ready) read() (int, error)                   { return 0, nil }
