//go:build darwin || freebsd || openbsd

package file

import (
	"errors"
	"io/fs"
	"os"
)

// zeroWays returns none: zeros are written.
func zeroWays(fs.FileInfo, bool) ways { return ways{} }

func allocate(*os.File, int64, int64) error { return errors.ErrUnsupported }

// syncDir makes the names in a folder durable.
func syncDir(dir *os.File) error { return dir.Sync() }

// makeSparse prepares a new file for holes; here every file may have them.
func makeSparse(*os.File) error { return nil }
