//go:build unix

package wire

import "syscall"

// fullDisk lists what the system says where there is no room.
var fullDisk = []error{syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG}
