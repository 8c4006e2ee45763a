package file

import (
	"io"
	"os"
)

const disksAreCharDevices = false

// diskSize returns the size of a disk, and the smallest sector that there is, in bytes.
func diskSize(f *os.File) (size, sector int64, err error) {
	const smallestSector = 512
	size, err = f.Seek(0, io.SeekEnd)
	return size, smallestSector, err
}
