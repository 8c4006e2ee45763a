//go:build unix

package listen

import (
	"errors"
	"os"
	"syscall"
)

// pollable returns f such that deadlines and Close end a Read or a Write that waits. A file that is no pipe stays as it is.
func pollable(f *os.File) (*os.File, error) {
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	syscall.CloseOnExec(fd)
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, syscall.Close(fd))
	}
	return os.NewFile(uintptr(fd), f.Name()), f.Close()
}
