//go:build linux || darwin || freebsd

package file

import (
	"errors"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// seekData returns where the first data at or after off begins, or math.MaxInt64 where there is none.
func seekData(f *os.File, off int64) (int64, error) { return seek(f, off, unix.SEEK_DATA) }

// seekHole returns where the first hole at or after off begins, or math.MaxInt64 past the end of the file.
func seekHole(f *os.File, off int64) (int64, error) { return seek(f, off, unix.SEEK_HOLE) }

func seek(f *os.File, off int64, whence int) (int64, error) {
	at, err := unix.Seek(int(f.Fd()), off, whence)
	if errors.Is(err, unix.ENXIO) {
		return math.MaxInt64, nil
	}
	return at, err
}
