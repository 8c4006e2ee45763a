//go:build !unix

package nbd

import (
	"errors"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
)

// server is a child process that serves a Unix socket: here there is none.
type server struct {
	socket  string
	greeted atomic.Bool
	ended   chan struct{}
}

func startServer([]string) (*server, error) {
	return nil, block.ErrorOf(errors.ErrUnsupported, "nbd: programs that serve an export can be started on Unix systems only")
}

func (s *server) status() string { return "" }
func (s *server) stop() error    { return nil }
