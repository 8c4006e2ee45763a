package server

import (
	"errors"
	"fmt"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/wire"
)

// refused is an error that the server finds before it asks the device.
type refused struct {
	errno wire.Errno
	why   string
}

func (e *refused) Error() string { return e.why }

// As gives the error number to errors.As.
func (e *refused) As(target any) bool {
	if n, ok := target.(*wire.Errno); ok {
		*n = e.errno
		return true
	}
	return false
}

func refuse(n wire.Errno, format string, args ...any) error {
	return &refused{n, fmt.Sprintf(format, args...)}
}

// allowed returns the flags that a command may have here.
func (c *conn) allowed(t wire.Command) wire.CommandFlags {
	f := wire.FlagFUA
	switch t {
	case wire.CmdRead:
		if c.structured {
			f |= wire.FlagDF
		}
	case wire.CmdWrite:
		if c.extended {
			f |= wire.FlagPayloadLen
		}
	case wire.CmdWriteZeroes:
		f |= wire.FlagNoHole
		if c.exp.info.Caps.FastZero {
			f |= wire.FlagFastZero
		}
	case wire.CmdBlockStatus:
		f |= wire.FlagReqOne
		if c.extended {
			f |= wire.FlagPayloadLen
		}
	}
	return f
}

// check returns why a request cannot be served, from its header alone.
func (c *conn) check(r *request) error {
	if c.draining.Load() {
		return refuse(wire.ESHUTDOWN, "the server is shutting down")
	}
	changes := false
	switch r.Type {
	case wire.CmdWrite, wire.CmdTrim, wire.CmdWriteZeroes:
		changes = true
	case wire.CmdRead, wire.CmdFlush, wire.CmdCache, wire.CmdBlockStatus:
	case wire.CmdDisc:
		return refuse(wire.EINVAL, "DISC has a payload")
	default:
		return refuse(wire.EINVAL, "%v is not known here", r.Type)
	}
	unknown := r.Flags &^ c.allowed(r.Type)
	switch {
	case unknown != 0:
		return refuse(wire.EINVAL, "%v does not take the flags %#x", r.Type, uint16(unknown))
	case changes && !c.exp.writable:
		return refuse(wire.EPERM, "the export is read-only")
	case r.Type == wire.CmdWrite && c.extended && !r.has(wire.FlagPayloadLen):
		return refuse(wire.EINVAL, "WRITE without PAYLOAD_LEN")
	case r.Type == wire.CmdFlush:
		if r.Offset != 0 || r.Length != 0 {
			return refuse(wire.EINVAL, "FLUSH with an offset or a length")
		}
		return nil
	case r.Type == wire.CmdBlockStatus:
		return c.checkStatus(r)
	}
	return c.checkRange(r, r.Offset, r.Length)
}

// checkStatus checks BLOCK_STATUS. With a payload the range is checked when that has come, because the length stands in it.
func (c *conn) checkStatus(r *request) error {
	switch {
	case len(c.contexts) == 0:
		return refuse(wire.EINVAL, "BLOCK_STATUS, but no meta context was set")
	case r.has(wire.FlagPayloadLen):
		if r.payload < 8 || r.payload%4 != 0 || r.payload > 8+4*uint64(len(c.contexts)) {
			return refuse(wire.EINVAL, "BLOCK_STATUS with a payload of %d bytes", r.payload)
		}
		return nil
	case r.Length == 0:
		return refuse(wire.EINVAL, "BLOCK_STATUS of nothing")
	}
	return c.checkRange(r, r.Offset, r.Length)
}

// checkRange checks what a request is about.
func (c *conn) checkRange(r *request, off, n uint64) error {
	size := uint64(c.exp.size)
	if off > size || n > size-off {
		errno := wire.EINVAL
		if r.Type == wire.CmdWrite || r.Type == wire.CmdWriteZeroes {
			errno = wire.ENOSPC
		}
		return refuse(errno, "%v of %d bytes at %d leaves the export of %d bytes", r.Type, n, off, size)
	}
	if least := uint64(c.exp.minBlock); c.exp.strict && (off%least != 0 || n%least != 0) {
		return refuse(wire.EINVAL, "%v of %d bytes at %d is not in blocks of %d bytes", r.Type, n, off, least)
	}
	switch tooLong := n > wire.DefaultMaxPayload; {
	case tooLong && r.Type == wire.CmdRead && c.structured:
		return refuse(wire.EOVERFLOW, "READ of %d bytes, more than %d", n, uint32(wire.DefaultMaxPayload))
	case tooLong && (r.Type == wire.CmdRead || r.Type == wire.CmdWrite):
		return refuse(wire.EINVAL, "%v of %d bytes, more than %d", r.Type, n, uint32(wire.DefaultMaxPayload))
	}
	return nil
}

// errnoOf returns the number for what the device says to a request.
func (c *conn) errnoOf(r *request, err error) wire.Errno {
	var outside *block.RangeError
	n := wire.ErrnoOf(err)
	switch {
	case errors.As(err, &outside) && (r.Type == wire.CmdWrite || r.Type == wire.CmdWriteZeroes):
		n = wire.ENOSPC // the export has become smaller
	case n == wire.ENOTSUP && !r.has(wire.FlagFastZero):
		n = wire.EIO // that number is the answer to FAST_ZERO alone
	case n == wire.ESHUTDOWN && !c.draining.Load() && c.ctx.Err() == nil:
		n = wire.EIO // the device has ended, not this server
	}
	return n
}
