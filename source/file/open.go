package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/imgtool/imgtool/block"
)

// ErrNotSeekable: a FIFO, socket or character device was given, whose bytes go one way only. It can be read as a stream, but is
// not a device.
var ErrNotSeekable = errors.New("goes one way only and cannot be used as a disk image in place")

// Options say how to open a file. The zero value opens it for reading.
type Options struct {
	Write     bool // open for reading and writing
	NoLock    bool // neither take locks nor look at those of others
	AllowBusy bool // write even a mounted or held disk, or a file behind a loop device
}

// Open opens the regular file or the disk at path, which must exist. Symbolic links are followed.
//
// It returns ErrNotSeekable for what is a stream (without opening it: opening a FIFO waits for its other end), and
// block.ErrBusy where another program or the running system uses the file in a way that excludes this one. Errors do not name path.
func Open(ctx context.Context, path string, o Options) (*Device, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, bare(err)
	}
	if err := checkKind(info.Mode()); err != nil {
		return nil, err
	}
	flag := os.O_RDONLY
	claim := o.Write && !o.AllowBusy && isDisk(info.Mode())
	if o.Write {
		flag = os.O_RDWR
	}
	if claim {
		flag |= claimFlag
	}
	f, err := os.OpenFile(path, flag, 0)
	if errors.Is(err, syscall.EBUSY) {
		return nil, busyDisk(info)
	}
	if err != nil {
		return nil, bare(err)
	}
	d, err := newDevice(f, o)
	if err != nil {
		_ = f.Close() // nothing was written, and the reason why it cannot be used matters more
		return nil, err
	}
	return d, nil
}

// New makes a device of a file that is already open for reading, and for writing too where o.Write is set. It returns the
// errors of Open. On success the device owns f; on failure f is the caller's still, to be read as a stream for instance.
func New(f *os.File, o Options) (*Device, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, bare(err)
	}
	if err := checkKind(info.Mode()); err != nil {
		return nil, err
	}
	if !o.Write || o.AllowBusy || !isDisk(info.Mode()) {
		return newDevice(f, o)
	}
	claimed, err := reopenClaimed(f)
	if errors.Is(err, syscall.EBUSY) {
		return nil, busyDisk(info)
	}
	if err != nil {
		return nil, fmt.Errorf("open the disk exclusively: %w", bare(err))
	}
	d, err := newDevice(claimed, o)
	if claimed == f {
		return d, err
	}
	if err != nil {
		_ = claimed.Close() // nothing was written through it
		return nil, err
	}
	return d, bare(f.Close())
}

// newDevice takes the locks and learns the size. The kind of file has been checked, and a disk to be written has been claimed.
func newDevice(f *os.File, o Options) (*Device, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, bare(err)
	}
	if err := checkKind(info.Mode()); err != nil { // path may lead elsewhere since it was looked at
		return nil, err
	}
	d := &Device{f: f, name: f.Name(), write: o.Write, unit: 1}
	size := info.Size()
	if isDisk(info.Mode()) {
		d.disk = true
		size, d.unit, err = diskSize(f)
		if info.Mode()&fs.ModeCharDevice != 0 && isUnsupported(err) {
			return nil, fmt.Errorf("a character device %w", ErrNotSeekable)
		}
		if err != nil {
			return nil, fmt.Errorf("learn the size of the disk: %w", bare(err))
		}
	} else if o.Write && !o.AllowBusy {
		if err := checkLoop(info); err != nil {
			return nil, err
		}
	}
	if !o.NoLock {
		if err := lock(f, o.Write); err != nil {
			return nil, err
		}
	}
	if o.Write {
		d.ways = zeroWays(info, d.disk)
	}
	d.size.Store(size)
	d.oneRun.Store(d.disk)
	return d, nil
}

// checkKind returns an error for what is neither a regular file nor a disk.
func checkKind(m fs.FileMode) error {
	switch {
	case m.IsRegular() || isDisk(m):
		return nil
	case m.IsDir():
		return fmt.Errorf("%w, not a disk image", syscall.EISDIR)
	case m&fs.ModeNamedPipe != 0:
		return fmt.Errorf("a FIFO %w", ErrNotSeekable)
	case m&fs.ModeSocket != 0:
		return fmt.Errorf("a socket %w", ErrNotSeekable)
	case m&fs.ModeCharDevice != 0:
		return fmt.Errorf("a character device %w", ErrNotSeekable)
	}
	return block.ErrorOf(errors.ErrUnsupported, "neither a regular file nor a disk")
}

// Same reports whether a and b are the same file, however each was opened. It is false where one cannot be examined.
func Same(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// SamePath reports whether a and b lead to the same file, symbolic links followed. It is false where one does not exist.
func SamePath(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// bare returns what is wrong without the file's name, which the caller adds once for the whole chain of layers.
func bare(err error) error {
	var path *fs.PathError
	var link *os.LinkError
	var call *os.SyscallError
	switch {
	case errors.As(err, &path):
		return path.Err
	case errors.As(err, &link):
		return link.Err
	case errors.As(err, &call):
		return call.Err
	}
	return err
}

// busy returns an ErrBusy that says why, with what the user can do.
func busy(why, hint string) error {
	return block.WithHint(fmt.Errorf("%w: %s", block.ErrBusy, why), hint)
}
