// Package kernel hands connections to NBD servers to the kernel, which makes them a disk /dev/nbdN (Linux).
//
// What is handed over has ended negotiation: see client.Conn.Hijack. The kernel knows simple replies alone, no structured ones, no extended headers and
// no TLS. It keeps the connections when the process ends, until [Disconnect]. Only root may do any of this.
package kernel

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/imgtool/imgtool/nbd/wire"
)

// Any is the index for whichever device is free.
const Any = -1

// The block sizes that the kernel takes, in bytes; every power of two between them.
const (
	MinBlock = 512
	MaxBlock = 4096
)

// Config says what disk to make.
type Config struct {
	// Index is the N of /dev/nbdN, or Any.
	Index int
	// Size is that of the export in bytes. What is left beside whole blocks cannot be reached.
	Size int64
	// Block is the logical block size in bytes, from MinBlock to MaxBlock.
	Block int64
	// Flags are those of the export. With ReadOnly the disk cannot be written; without CanMultiConn there can be one connection only.
	Flags wire.TransmissionFlags
	// Timeout is how long a request may take before its connection is given up; 0 is for ever. The kernel counts in seconds.
	Timeout time.Duration
	// DeadConnTimeout is how long requests wait for another connection when the last is lost, before they fail; 0 is not at all.
	DeadConnTimeout time.Duration
	// Connections are sockets in transmission. They stay the caller's, to be closed whether or not there is an error: the kernel has its own.
	Connections []*os.File
}

// check refuses what the kernel would.
func (c Config) check() error {
	switch {
	case c.Index < Any:
		return fmt.Errorf("there is no device %d", c.Index)
	case c.Block < MinBlock || c.Block > MaxBlock || c.Block&(c.Block-1) != 0:
		return fmt.Errorf("blocks of %d bytes: the kernel takes powers of two from %d to %d", c.Block, MinBlock, MaxBlock)
	case c.Size < c.Block:
		return fmt.Errorf("%d bytes are less than one block of %d", c.Size, c.Block)
	case c.Timeout < 0 || c.DeadConnTimeout < 0:
		return fmt.Errorf("a time cannot be negative")
	case len(c.Connections) == 0:
		return fmt.Errorf("there is no connection")
	case len(c.Connections) > 1 && c.Flags&wire.CanMultiConn == 0:
		return fmt.Errorf("%d connections to a server that allows one", len(c.Connections))
	}
	return nil
}

// Path returns the path of a device.
func Path(index int) string { return "/dev/nbd" + strconv.Itoa(index) }

// ParsePath returns the index of the device at a path, which may be a symbolic link.
func ParsePath(path string) (int, error) {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		path = to
	}
	digits, ok := strings.CutPrefix(path, Path(0)[:len("/dev/nbd")])
	n, err := strconv.ParseUint(digits, 10, 20) // as the minor numbers of Linux
	if !ok || err != nil || strconv.FormatUint(n, 10) != digits {
		return 0, fmt.Errorf("%s is no NBD device: they are /dev/nbd0, /dev/nbd1 and so on", path)
	}
	return int(n), nil
}
