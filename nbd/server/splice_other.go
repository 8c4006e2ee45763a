//go:build !linux

package server

import (
	"context"
	"net"
	"sync/atomic"
	"syscall"

	"github.com/imgtool/imgtool/block"
)

// pipe is for systems that move pages of a file to a socket without a copy; here none exists.
type pipe struct{ n int64 }

type pipes struct{}

func (*pipes) init()      {}
func (*pipes) get() *pipe { return nil }
func (*pipes) put(*pipe)  {}
func (*pipes) close()     {}

func (*pipe) fill(context.Context, block.Device, int64, int64) int64 { return 0 }
func (*pipe) drainTo(syscall.RawConn, []byte, *atomic.Int64) error   { return nil }

func rawConn(net.Conn) syscall.RawConn { return nil }
