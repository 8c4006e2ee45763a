package file

import (
	"os"

	"golang.org/x/sys/unix"
)

const disksAreCharDevices = true

// diskSize returns the size of a disk and of its sector, in bytes. Other character devices fail it.
func diskSize(f *os.File) (size, sector int64, err error) {
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.DIOCGMEDIASIZE)
	if err != nil {
		return 0, 0, err
	}
	unit, err := unix.IoctlGetInt(int(f.Fd()), unix.DIOCGSECTORSIZE)
	return int64(n), int64(unit), err
}
