package file

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

const disksAreCharDevices = false

// zeroWays returns FSCTL_SET_ZERO_DATA, which makes holes in a sparse file. In any other it writes zeros.
func zeroWays(info fs.FileInfo, disk bool) ways {
	attr, ok := info.Sys().(*syscall.Win32FileAttributeData)
	if disk || !ok || attr.FileAttributes&windows.FILE_ATTRIBUTE_SPARSE_FILE == 0 {
		return ways{}
	}
	w := &way{do: setZeroData}
	return ways{holes: []*way{w}, discard: w}
}

// setZeroData hands over FILE_ZERO_DATA_INFORMATION: the first byte, and the first one after the range.
func setZeroData(f *os.File, off, n int64) error {
	return control(f, windows.FSCTL_SET_ZERO_DATA, &[2]int64{off, off + n})
}

// makeSparse lets a new file have holes.
func makeSparse(f *os.File) error {
	err := control(f, windows.FSCTL_SET_SPARSE, nil)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil // a file system without holes
	}
	return err
}

func control(f *os.File, code uint32, in *[2]int64) error {
	var size, returned uint32
	if in != nil {
		size = uint32(unsafe.Sizeof(*in))
	}
	err := windows.DeviceIoControl(windows.Handle(f.Fd()), code, (*byte)(unsafe.Pointer(in)), size, nil, 0, &returned, nil)
	if errors.Is(err, windows.ERROR_INVALID_FUNCTION) {
		return errors.ErrUnsupported
	}
	return err
}

func allocate(*os.File, int64, int64) error { return errors.ErrUnsupported }

// diskSize returns an error: Windows shows no disk as a file of a size.
func diskSize(*os.File) (size, sector int64, err error) { return 0, 0, errors.ErrUnsupported }

// syncDir does nothing: folders cannot be synced, and the file system logs the change of a name.
func syncDir(*os.File) error { return nil }
