//go:build darwin || freebsd || openbsd

package file

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// lock takes a flock, shared for a reader and exclusive for a writer. It lasts as long as the open file description.
func lock(f *os.File, write bool) error {
	how, why := syscall.LOCK_SH, "another program has it open for writing"
	if write {
		how, why = syscall.LOCK_EX, "another program has it open"
	}
	err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB)
	switch {
	case err == nil, errors.Is(err, errors.ErrUnsupported), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOLCK):
		return nil // the last three: a file system without locks
	case errors.Is(err, syscall.EWOULDBLOCK):
		return busy(why, "close it there first")
	}
	return fmt.Errorf("lock the image: %w", err)
}
