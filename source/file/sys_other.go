//go:build !linux

package file

import (
	"io/fs"
	"os"
)

const (
	canPrefetch = false
	claimFlag   = 0 // a disk that is mounted refuses to be opened for writing
)

func datasync(f *os.File) error { return f.Sync() }

func willNeed(*os.File, int64, int64) {}

// reopenClaimed returns f: a disk that is mounted refused to be opened for writing.
func reopenClaimed(f *os.File) (*os.File, error) { return f, nil }

// busyDisk returns why a disk cannot be claimed for writing.
func busyDisk(fs.FileInfo) error {
	return busy("the disk is mounted, or another program holds it", "unmount it first")
}

func checkLoop(fs.FileInfo) error { return nil }
