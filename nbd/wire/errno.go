package wire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/imgtool/imgtool/block"
)

// Errno is an error number of the protocol. The numbers are fixed, whatever the operating system's are.
type Errno uint32

// The error numbers.
const (
	OK        Errno = 0
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// Known returns e, or EINVAL for a number that the protocol does not have.
func (e Errno) Known() Errno {
	switch e {
	case OK, EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN:
		return e
	}
	return EINVAL
}

func (e Errno) String() string {
	switch e {
	case OK:
		return "OK"
	case EPERM:
		return "EPERM"
	case EIO:
		return "EIO"
	case ENOMEM:
		return "ENOMEM"
	case EINVAL:
		return "EINVAL"
	case ENOSPC:
		return "ENOSPC"
	case EOVERFLOW:
		return "EOVERFLOW"
	case ENOTSUP:
		return "ENOTSUP"
	case ESHUTDOWN:
		return "ESHUTDOWN"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// Error returns what the number means. It implements error, so that errors.Is finds it.
func (e Errno) Error() string {
	switch e {
	case EPERM:
		return "operation not permitted"
	case EIO:
		return "input/output error"
	case ENOMEM:
		return "cannot allocate memory"
	case EINVAL:
		return "invalid argument"
	case ENOSPC:
		return "no space left on device"
	case EOVERFLOW:
		return "value too large"
	case ENOTSUP:
		return "operation not supported"
	case ESHUTDOWN:
		return "server is shutting down"
	}
	return e.String()
}

// Is reports whether e is what the errors of package block, of the standard library and of the system call so.
func (e Errno) Is(target error) bool {
	switch e {
	case EPERM:
		return target == block.ErrReadOnly || target == fs.ErrPermission
	case ENOSPC:
		return target == syscall.ENOSPC
	case ENOTSUP:
		return target == errors.ErrUnsupported
	case EINVAL:
		return target == fs.ErrInvalid
	}
	return false
}

// ErrnoOf returns the number that tells a client of err: OK for nil. A *block.RangeError is EINVAL; a server that says ENOSPC for writes looks
// before it calls.
func ErrnoOf(err error) Errno {
	var own Errno
	var outside *block.RangeError
	switch {
	case err == nil:
		return OK
	case errors.As(err, &own):
		return own.Known()
	case errors.Is(err, block.ErrReadOnly), errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return EPERM
	case errors.As(err, &outside):
		return EINVAL
	case errors.Is(err, errors.ErrUnsupported):
		return ENOTSUP
	case errors.Is(err, context.Canceled), errors.Is(err, os.ErrClosed):
		return ESHUTDOWN
	case errors.Is(err, syscall.ENOMEM):
		return ENOMEM
	}
	for _, full := range fullDisk {
		if errors.Is(err, full) {
			return ENOSPC
		}
	}
	return EIO
}
