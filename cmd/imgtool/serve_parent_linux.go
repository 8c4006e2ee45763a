package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// awaitParent returns a function that waits for the end of the process that is the parent, and one that ends the waiting.
func awaitParent(parent int) (ended func() bool, stop func() error) {
	fd, err := unix.PidfdOpen(parent, 0)
	if err != nil || unix.SetNonblock(fd, true) != nil {
		return pollParent(parent) // an old kernel
	}
	f := os.NewFile(uintptr(fd), "parent")
	ended = func() bool {
		if os.Getppid() != parent { // it had ended before the descriptor was there
			return true
		}
		raw, err := f.SyscallConn()
		return err == nil && raw.Read(func(fd uintptr) bool {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0 || err != nil
		}) == nil
	}
	return ended, f.Close
}
