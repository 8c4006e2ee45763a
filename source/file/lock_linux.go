package file

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// QEMU's image locks. A permission that the holder of an image uses is a read lock on the byte usesBase + permission, one that it does not
// grant to others a read lock on the byte deniesBase + permission. Read locks never exclude each other: whoever opens an image sets
// its own locks first, and then looks whether somebody denies what it uses, or uses what it denies.
const (
	usesBase   = 100
	deniesBase = 200

	permRead   = 0 // read consistent data
	permWrite  = 1
	permResize = 3
	permEnd    = 64 // bytes from either base that a permission may have
)

// lock takes QEMU's locks for a reader or a writer, which both deny writing and resizing to others. They last as long as the open
// file description.
func lock(f *os.File, write bool) error {
	uses := []int64{permRead}
	if write {
		uses = []int64{permRead, permWrite, permResize}
	}
	denies := []int64{permWrite, permResize}
	err := lockAndCheck(f, uses, denies)
	if err == nil {
		return nil
	}
	// On failure the file stays open, so that the locks would stay too.
	_ = byteLock(f, unix.F_UNLCK, usesBase, deniesBase+permEnd-usesBase)
	switch {
	case errors.Is(err, unix.ENOLCK), errors.Is(err, errors.ErrUnsupported), errors.Is(err, unix.EINVAL):
		return nil // a file system or kernel without locks: nobody else has them either
	}
	return err
}

func lockAndCheck(f *os.File, uses, denies []int64) error {
	for _, p := range uses {
		if err := setLock(f, usesBase+p); err != nil {
			return err
		}
	}
	for _, p := range denies {
		if err := setLock(f, deniesBase+p); err != nil {
			return err
		}
	}
	for _, p := range denies {
		if held, err := isLocked(f, usesBase+p); err != nil || held {
			return orBusy(err, "another program has it open for writing", "close it there first, for instance by shutting down the virtual machine")
		}
	}
	for _, p := range uses {
		if held, err := isLocked(f, deniesBase+p); err != nil || held {
			return orBusy(err, "another program is using it and does not let others write it", "wait for it to end, or close it there")
		}
	}
	return nil
}

func orBusy(err error, why, hint string) error {
	if err != nil {
		return err
	}
	return busy(why, hint)
}

// setLock sets a read lock on one byte.
func setLock(f *os.File, at int64) error {
	err := byteLock(f, unix.F_RDLCK, at, 1)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return busy("another program has locked it whole", "close it there first")
	}
	return err
}

func byteLock(f *os.File, kind int16, at, n int64) error {
	l := unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: at, Len: n}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l); err != nil {
		return fmt.Errorf("lock the image: %w", err)
	}
	return nil
}

// isLocked reports whether anybody else has a lock on the byte: whether a write lock, which is not taken, would be refused.
func isLocked(f *os.File, at int64) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: at, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return false, fmt.Errorf("look at the locks of the image: %w", err)
	}
	return l.Type != unix.F_UNLCK, nil
}
