//go:build !linux && !darwin && !freebsd

package file

import (
	"errors"
	"os"
)

// The operating system has no call, or none that Go reaches, which tells data from holes.

func seekData(*os.File, int64) (int64, error) { return 0, errors.ErrUnsupported }
func seekHole(*os.File, int64) (int64, error) { return 0, errors.ErrUnsupported }
