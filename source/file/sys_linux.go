package file

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

const (
	disksAreCharDevices = false
	canPrefetch         = true
	claimFlag           = unix.O_EXCL // on a disk: nobody else in the kernel or outside claims it, and nobody will
)

// retry calls fn again for as long as a signal interrupts it.
func retry(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// datasync makes the content durable, and of the metadata what is needed to read it.
func datasync(f *os.File) error {
	return retry(func() error { return unix.Fdatasync(int(f.Fd())) })
}

// willNeed starts to read the range into the page cache.
func willNeed(f *os.File, off, n int64) {
	_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_WILLNEED) // a hint
}

// allocate reserves space for the range and lengthens the file to hold it. What was not written before reads as zero.
func allocate(f *os.File, off, n int64) error { return fallocate(f, 0, off, n) }

func fallocate(f *os.File, mode uint32, off, n int64) error {
	return retry(func() error { return unix.Fallocate(int(f.Fd()), mode, off, n) })
}

func punchHole(f *os.File, off, n int64) error {
	return fallocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func zeroRange(f *os.File, off, n int64) error {
	return fallocate(f, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// punchAndAllocate is for file systems without zeroRange, tmpfs among them.
func punchAndAllocate(f *os.File, off, n int64) error {
	if err := punchHole(f, off, n); err != nil {
		return err
	}
	return fallocate(f, unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// zeroWays returns how the kernel zeroes a file or disk. On a disk fallocate never writes zeros itself, and wants whole sectors.
func zeroWays(info fs.FileInfo, disk bool) ways {
	punch, zero := &way{do: punchHole}, &way{do: zeroRange}
	if !disk {
		return ways{holes: []*way{punch, zero}, keeps: []*way{zero, {do: punchAndAllocate}}, discard: punch}
	}
	var w ways
	if diskLimit(info, "write_zeroes_max_bytes") > 0 {
		w.holes, w.keeps = []*way{punch}, []*way{zero}
	}
	if diskLimit(info, "discard_max_bytes") > 0 {
		w.discard = &way{do: diskDiscard}
	}
	byKernel := &way{do: diskZeroOut, slow: true}
	w.holes, w.keeps = append(w.holes, byKernel), append(w.keeps, byKernel)
	return w
}

// diskSize returns the size of a disk and of its logical sector, in bytes.
func diskSize(f *os.File) (size, sector int64, err error) {
	size, err = f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, 0, err
	}
	s, err := unix.IoctlGetUint32(int(f.Fd()), unix.BLKSSZGET)
	return size, int64(s), err
}

// syncDir makes the names in a folder durable.
func syncDir(dir *os.File) error { return dir.Sync() }

// makeSparse prepares a new file for holes; here every file may have them.
func makeSparse(*os.File) error { return nil }
