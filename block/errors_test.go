package block_test

import (
	"errors"
	"io"
	"io/fs"
	"testing"

	"github.com/imgtool/imgtool/block"
)

func TestErrorOf(t *testing.T) {
	err := block.ErrorOf(fs.ErrNotExist, "there is no %s: %w", "cat", io.ErrUnexpectedEOF)
	if err.Error() != "there is no cat: unexpected EOF" || !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
}
