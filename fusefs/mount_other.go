//go:build !linux

package fusefs

import (
	"context"
	"errors"

	"github.com/imgtool/imgtool/block"
)

// Mount is a mounted device. There are none on this system.
type Mount struct{}

// New returns an error that is errors.ErrUnsupported: only Linux mounts.
func New(context.Context, block.Device, string, Options) (*Mount, error) {
	return nil, errNotHere()
}

func errNotHere() error {
	return block.ErrorOf(errors.ErrUnsupported, "this system cannot mount images: only Linux can")
}

// Path returns "".
func (m *Mount) Path() string { return "" }

// Wait returns nil.
func (m *Mount) Wait() error { return nil }

// Unmount returns nil.
func (m *Mount) Unmount() error { return nil }

// Detach returns nil.
func (m *Mount) Detach() error { return nil }

// Unmount returns an error that is errors.ErrUnsupported.
func Unmount(string, bool) error {
	return errNotHere()
}
