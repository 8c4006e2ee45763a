package chain

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/source/file"
)

// indexFile is a formats.IndexFile. Its errors name it.
type indexFile struct{ path string }

func (x indexFile) Wrap(err error) error { return naming(x.path).wrap(err) }

// Open implements formats.IndexFile. Where there is no file yet it also finds out whether one can be made, before an image is read for it.
func (x indexFile) Open() (formats.Index, error) {
	st, err := os.Stat(x.path)
	if errors.Is(err, fs.ErrNotExist) {
		p, failed := x.create()
		if failed == nil {
			failed = p.Abort()
		}
		if failed != nil {
			return nil, x.Wrap(fmt.Errorf("it cannot be made: %v", failed)) // what does not exist may be its folder
		}
	}
	if err == nil && !st.Mode().IsRegular() { // opening a pipe would wait for ever
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, x.Wrap(bare(err))
	}
	f, err := os.Open(x.path)
	if err != nil {
		return nil, x.Wrap(bare(err))
	}
	if st, err = f.Stat(); err != nil {
		return nil, errors.Join(x.Wrap(bare(err)), f.Close())
	}
	return openIndex{f, st.Size()}, nil
}

// create begins the file.
func (x indexFile) create() (*file.Pending, error) {
	if _, err := os.Lstat(x.path); err == nil {
		return nil, fs.ErrExist
	}
	return file.Create(x.path, file.CreateOptions{})
}

type openIndex struct {
	*os.File
	size int64
}

func (i openIndex) Size() int64 { return i.size }

// Write implements formats.IndexFile.
func (x indexFile) Write(write func(io.Writer) error) error {
	p, err := x.create()
	if err != nil {
		return x.Wrap(err)
	}
	w := bufio.NewWriterSize(io.NewOffsetWriter(block.At(context.Background(), p.Device()), 0), 1<<20)
	err = write(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = p.Commit(false)
	}
	if err != nil {
		return x.Wrap(errors.Join(err, p.Abort()))
	}
	return nil
}
