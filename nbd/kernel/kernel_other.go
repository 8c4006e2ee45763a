//go:build !linux

package kernel

import (
	"errors"
	"net"
	"os"

	"github.com/imgtool/imgtool/block"
)

var errNotHere = block.ErrorOf(errors.ErrUnsupported, "this system has no NBD devices: only Linux has")

// Connect returns an error that is errors.ErrUnsupported.
func Connect(Config) (int, error) { return 0, errNotHere }

// Disconnect returns an error that is errors.ErrUnsupported.
func Disconnect(int) error { return errNotHere }

// Connected returns an error that is errors.ErrUnsupported.
func Connected(int) (bool, error) { return false, errNotHere }

// Take returns an error that is errors.ErrUnsupported.
func Take(net.Conn) (*os.File, error) { return nil, errNotHere }

// Pair returns an error that is errors.ErrUnsupported.
func Pair() (server, client net.Conn, err error) { return nil, nil, errNotHere }
