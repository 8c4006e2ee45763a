//go:build !unix

package client

import (
	"errors"
	"net"
	"syscall"
)

// rawConn returns nil: without writes that do not wait, all is sent by a goroutine.
func rawConn(net.Conn) syscall.RawConn { return nil }

func writeNow(int, [][]byte) (int, error) { return 0, errors.ErrUnsupported }
