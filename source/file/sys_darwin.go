package file

import (
	"os"

	"golang.org/x/sys/unix"
)

const disksAreCharDevices = false

// Requests of <sys/disk.h>.
const (
	dkiocGetBlockSize  = 0x40046418 // uint32, bytes
	dkiocGetBlockCount = 0x40086419 // uint64
)

// diskSize returns the size of a disk and of its logical block, in bytes.
func diskSize(f *os.File) (size, sector int64, err error) {
	unit, err := unix.IoctlGetInt(int(f.Fd()), dkiocGetBlockSize)
	if err != nil {
		return 0, 0, err
	}
	count, err := unix.IoctlGetInt(int(f.Fd()), dkiocGetBlockCount)
	return int64(unit) * int64(count), int64(unit), err
}
