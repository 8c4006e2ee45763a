package gzipmod

import (
	"errors"
	"fmt"
	"io"

	"github.com/imgtool/imgtool/block"
)

// errTruncated is the cause where a file ends too early. It is io.ErrUnexpectedEOF.
var errTruncated error = truncated{}

type truncated struct{}

func (truncated) Error() string { return "the file is truncated" }
func (truncated) Unwrap() error { return io.ErrUnexpectedEOF }

var (
	// ErrIncomplete: the index is only reserved, because the file was written to a pipe. Rebuild fills it in.
	ErrIncomplete = errors.New("the index is reserved but not filled in")
	// ErrDirty: a change was interrupted, so that the checksums may be wrong. Repair puts them right.
	ErrDirty = errors.New("a change was interrupted, the checksums may be wrong")
	// ErrCompressed: the range lies in a compressed part of the image and cannot be changed.
	ErrCompressed = errors.New("the range is compressed; only kept ranges can be changed")
	// errNoMark: a file that cannot be changed safely.
	errNoMark = block.WithHint(block.ErrorOf(errors.ErrUnsupported,
		"it cannot be changed in place, since there is no place beside it for the mark of an unfinished change"), "only images in regular files can be changed: copy it to one")
)

// compressedError refuses a write. It is ErrCompressed and block.ErrReadOnly.
type compressedError struct{ off, n, at int64 }

func (e *compressedError) Error() string {
	where := "all of that"
	if e.at > e.off {
		where = fmt.Sprintf("from byte %d on it", e.at)
	}
	return fmt.Sprintf("%d bytes at byte %d cannot be written: %s is compressed, and only kept ranges can be changed", e.n, e.off, where)
}

func (e *compressedError) Is(target error) bool {
	return target == ErrCompressed || target == block.ErrReadOnly
}
