package file

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// diskRange is the argument of the ioctls that zero and discard: first byte and number of bytes.
type diskRange [2]uint64

func diskIoctl(f *os.File, request uintptr, off, n int64) error {
	r := diskRange{uint64(off), uint64(n)}
	return retry(func() error {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&r)))
		if errno != 0 {
			return errno
		}
		return nil
	})
}

func diskDiscard(f *os.File, off, n int64) error { return diskIoctl(f, unix.BLKDISCARD, off, n) }
func diskZeroOut(f *os.File, off, n int64) error { return diskIoctl(f, unix.BLKZEROOUT, off, n) }

// reopenClaimed opens the disk that f is again, exclusively.
func reopenClaimed(f *os.File) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDWR|unix.O_CLOEXEC|claimFlag, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// sysDisk returns the folder in which the kernel describes a disk or partition.
func sysDisk(info fs.FileInfo) string {
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(s.Rdev), unix.Minor(s.Rdev))
}

// diskLimit returns a number that the kernel gives for the queue of a disk, or 0. A partition has the queue of its disk.
func diskLimit(info fs.FileInfo, name string) int64 {
	dir := sysDisk(info)
	text, err := os.ReadFile(filepath.Join(dir, "queue", name))
	if err != nil {
		// Not cleaned by Join, for dir is a symbolic link.
		if text, err = os.ReadFile(dir + "/../queue/" + name); err != nil {
			return 0
		}
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// busyDisk returns why a disk cannot be claimed for writing: a file system of it or of one of its partitions that is mounted, or
// what is stacked on it, as far as the kernel shows them.
func busyDisk(info fs.FileInfo) error {
	const hint = "stop using it first; to write below what uses it destroys data"
	dir := sysDisk(info)
	parts, _ := filepath.Glob(dir + "/*/dev") // the pattern is well-formed
	for _, name := range append([]string{dir + "/dev"}, parts...) {
		number, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		part := ""
		if name != dir+"/dev" {
			part = "its partition " + filepath.Base(filepath.Dir(name)) + " is "
		}
		if at := mountPoint(strings.TrimSpace(string(number))); at != "" {
			return busy(part+"mounted at "+at, "unmount it first")
		}
		holders, err := os.ReadDir(filepath.Join(filepath.Dir(name), "holders"))
		if err == nil && len(holders) > 0 {
			return busy(part+"held by "+holders[0].Name(), hint)
		}
	}
	return busy("the disk is mounted, or another program or the kernel holds it", hint)
}

// mountPoint returns where a file system of the disk with this number (MAJOR:MINOR) is mounted, or "".
// See proc_pid_mountinfo(5): the third field is the number, the fifth the mount point.
func mountPoint(number string) string {
	const numberField, pointField = 2, 4
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > pointField && fields[numberField] == number {
			return unescapeMount.Replace(fields[pointField])
		}
	}
	return ""
}

// unescapeMount undoes what mountinfo does to the characters that would break its lines.
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// checkLoop refuses a regular file that a loop device makes a disk of.
func checkLoop(info fs.FileInfo) error {
	disks, err := os.ReadDir("/sys/block")
	if err != nil {
		return nil // a system without it has no way to tell
	}
	for _, d := range disks {
		device := d.Name()
		if !strings.HasPrefix(device, "loop") {
			continue
		}
		text, err := os.ReadFile("/sys/block/" + device + "/loop/backing_file")
		if err != nil {
			continue // not in use
		}
		if behind, err := os.Stat(strings.TrimSuffix(string(text), "\n")); err == nil && os.SameFile(info, behind) {
			return busy("the loop device "+device+" stands on it", "unmount it, then run: losetup -d /dev/"+device)
		}
	}
	return nil
}
