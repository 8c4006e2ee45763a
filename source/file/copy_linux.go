package file

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxCopy bounds one call to the kernel, in bytes; it is below the limit of the kernel itself.
const maxCopy = 1 << 30

// CopyRange copies n bytes from src to dst inside the kernel (copy_file_range), which file systems that share blocks do without
// reading them. It returns how many bytes were copied, and errors.ErrUnsupported where it cannot be done between these two
// files; the caller copies the rest itself then. It is io.ErrUnexpectedEOF that src ends early.
//
// Both file offsets stay where they are. Holes of the source may become zeros that take up space. A Device that dst belongs to does
// not learn that it has grown: copy inside its size.
func CopyRange(dst *os.File, dstOff int64, src *os.File, srcOff, n int64) (int64, error) {
	var done int64
	for done < n {
		from, to := srcOff+done, dstOff+done
		k, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(min(n-done, maxCopy)), 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case isUncopyable(err):
			return done, fmt.Errorf("copy in the kernel: %w (%v)", errors.ErrUnsupported, err)
		case err != nil:
			return done, fmt.Errorf("copy in the kernel from byte %d to byte %d: %w", from, to, err)
		case k == 0 && done == 0:
			// Some file systems, among them /proc, copy nothing and report success.
			return 0, fmt.Errorf("copy in the kernel: %w (nothing was copied)", errors.ErrUnsupported)
		case k == 0:
			return done, fmt.Errorf("copy in the kernel from byte %d: %w", from, io.ErrUnexpectedEOF)
		}
		done += int64(k)
	}
	return done, nil
}

// Reflink makes dst a copy of src that shares all its blocks, whatever dst held (FICLONE). It returns errors.ErrUnsupported where the file
// system cannot share blocks, or the two are not on the same one. A Device that dst belongs to does not learn of the new size.
func Reflink(dst, src *os.File) error {
	err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	if isUncopyable(err) {
		return fmt.Errorf("share blocks: %w (%v)", errors.ErrUnsupported, err)
	}
	if err != nil {
		return fmt.Errorf("share blocks: %w", err)
	}
	return nil
}

// isUncopyable reports whether the kernel says that it cannot copy between these two files.
func isUncopyable(err error) bool {
	return err != nil && (isUnsupported(err) || errors.Is(err, unix.EXDEV))
}
