// Package fusefs shows a block device as a regular file, by FUSE (Linux).
package fusefs

import (
	"context"
	"log/slog"

	"github.com/imgtool/imgtool/block"
)

// Options say how to mount. The zero value is a writable file of the name DefaultName.
type Options struct {
	Name       string // of the file; "" is DefaultName. Not used where the mount point is a file
	ReadOnly   bool
	AllowOther bool // other users may use the file
	Log        *slog.Logger
}

// DefaultName is the name of the file below the mount point.
const DefaultName = "disk"

// Mount is a mounted device.
type Mount struct{}

// New mounts dev at a folder, in which one file appears, or over a regular file, which it hides. dev stays the caller's, and must stay open until
// Wait has returned.
func New(ctx context.Context, dev block.Device, at string, o Options) (*Mount, error) {
	panic("fusefs: not built")
}

// Path returns the path of the file.
func (m *Mount) Path() string { panic("fusefs: not built") }

// Wait returns when nothing is mounted any more, after the device has been flushed; the error is that of the flush.
func (m *Mount) Wait() error { panic("fusefs: not built") }

// Unmount asks for the end. It fails while files are open.
func (m *Mount) Unmount() error { panic("fusefs: not built") }
