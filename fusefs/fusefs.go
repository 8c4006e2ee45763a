// Package fusefs shows a block device as a regular file, by FUSE (Linux).
//
// [New] mounts it, [Mount.Wait] returns when it is gone. What programs do with the file becomes calls of the device:
//
//   - A write is in the device when it returns, and a change through mmap when the kernel writes it out or at msync; fsync is Flush. Nothing is
//     written later behind the back of a program, so that the error of a device is the error of the call that met it.
//   - The file is as long as the device was when it was mounted. A write that reaches past the end stores what fits, as on a disk, and the next one
//     fails with ENOSPC. The file can be truncated to the length that it has, and to no other (EPERM).
//   - Holes can be punched and ranges zeroed by fallocate: Zero, with NoHole for FALLOC_FL_ZERO_RANGE. What cannot be promised, space that is allocated
//     for later, is EOPNOTSUPP.
//   - SEEK_DATA and SEEK_HOLE, and the space that stat tells, come from Extents: whatever is known to read as zero is a hole.
//
// The kernel caches what is read, across opening and closing. O_DIRECT reads from the device.
package fusefs

import "log/slog"

// Options say how to mount. The zero value is a writable file of the name DefaultName.
type Options struct {
	Name       string // of the file; "" is DefaultName. Not used where the mount point is a file
	ReadOnly   bool   // nobody may write. Devices that cannot be written are mounted so in any case
	AllowOther bool   // other users may use the file
	Log        *slog.Logger
}

// DefaultName is the name of the file below the mount point.
const DefaultName = "disk"
