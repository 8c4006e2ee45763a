//go:build unix

package client

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// rawConn returns the descriptor of a plain connection; of an encrypted one, or one of another kind, nil.
func rawConn(conn net.Conn) syscall.RawConn {
	var raw syscall.RawConn
	switch plain := conn.(type) {
	case *net.TCPConn:
		raw, _ = plain.SyscallConn()
	case *net.UnixConn:
		raw, _ = plain.SyscallConn()
	}
	return raw
}

// writeNow writes what a socket takes without waiting. The socket does not block, as all of package net.
func writeNow(fd int, vecs [][]byte) (n int, err error) {
	if len(vecs) == 1 {
		n, err = unix.Write(fd, vecs[0])
	} else {
		n, err = unix.SendmsgBuffers(fd, vecs, nil, nil, 0)
	}
	return max(n, 0), err
}
