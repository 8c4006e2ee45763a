//go:build unix

package main

import (
	"context"
	"os"
	"syscall"
	"time"
)

// interruptible returns standard input such that, where it is a pipe, a Read that waits for bytes ends with ctx, and a function to call at
// the end. Go can interrupt a Read only where the file does not block.
func interruptible(ctx context.Context, stdin *os.File) (*os.File, func()) {
	fi, err := stdin.Stat()
	if err != nil || fi.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return stdin, func() {}
	}
	fd := int(stdin.Fd())
	if syscall.SetNonblock(fd, true) != nil {
		return stdin, func() {}
	}
	f := os.NewFile(uintptr(fd), stdin.Name())
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Now()) })
	return f, func() {
		stop()
		_ = syscall.SetNonblock(fd, false) // others may read from the same pipe
	}
}
