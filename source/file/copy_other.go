//go:build !linux

package file

import (
	"errors"
	"os"
)

// CopyRange copies n bytes from src to dst inside the kernel and returns how many it has copied. On this operating system it
// returns errors.ErrUnsupported: the caller copies itself.
func CopyRange(dst *os.File, dstOff int64, src *os.File, srcOff, n int64) (int64, error) {
	return 0, errors.ErrUnsupported
}

// Reflink makes dst a copy of src that shares all its blocks. On this operating system it returns errors.ErrUnsupported.
func Reflink(dst, src *os.File) error { return errors.ErrUnsupported }
