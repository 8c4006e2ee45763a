package gzipmod

import (
	"errors"
	"io"
)

// errTruncated is the cause where a file ends too early.
var errTruncated = io.ErrUnexpectedEOF

var (
	// ErrIncomplete: the index is only reserved, because the file was written to a pipe. Rebuild fills it in.
	ErrIncomplete = errors.New("the index is reserved but not filled in")
	// ErrDirty: a change was interrupted, so that the checksums may be wrong. Repair puts them right.
	ErrDirty = errors.New("a change was interrupted, the checksums may be wrong")
	// ErrCompressed: the range lies in a compressed part of the image and cannot be changed.
	ErrCompressed = errors.New("the range is compressed; only kept ranges can be changed")
)
