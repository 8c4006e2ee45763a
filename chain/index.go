package chain

import (
	"bufio"
	"context"
	"errors"
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

func (x indexFile) Open() (formats.Index, error) {
	f, err := os.Open(x.path)
	if err != nil {
		return nil, x.Wrap(bare(err))
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		return nil, errors.Join(x.Wrap(bare(err)), f.Close())
	}
	return openIndex{f, st.Size()}, nil
}

type openIndex struct {
	*os.File
	size int64
}

func (i openIndex) Size() int64 { return i.size }

// Write implements formats.IndexFile.
func (x indexFile) Write(write func(io.Writer) error) error {
	if _, err := os.Lstat(x.path); !errors.Is(err, fs.ErrNotExist) {
		return x.Wrap(fs.ErrExist)
	}
	p, err := file.Create(x.path, file.CreateOptions{})
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
