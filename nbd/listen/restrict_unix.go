//go:build unix

package listen

import (
	"io/fs"
	"syscall"
)

// restrict gives a socket that is not bound yet its permission bits, which on Linux its file gets; elsewhere nothing happens, and they are set
// right after.
func restrict(fd uintptr, mode fs.FileMode) { _ = syscall.Fchmod(int(fd), uint32(mode.Perm())) }
