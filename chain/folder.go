package chain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/imgtool/imgtool/source/file"
)

// OpenIn opens the file of this name in a folder, as Open opens a chain of nothing but a source. The name may have folders before it. It has to be a regular
// file; symbolic links that lead out of the folder are not followed.
func OpenIn(ctx context.Context, folder *os.Root, name string, o Options) (*Image, error) {
	path := filepath.Join(folder.Name(), name)
	in := func(_ context.Context, path string, o Options) (input, error) {
		d, err := openInFolder(folder, name, o)
		if err != nil {
			return input{}, err
		}
		return fileInput(d, path)
	}
	return open(ctx, Spec{Source: path}, source{open: in}, path, o, nil)
}

// openInFolder opens a regular file. What is none may be opened for a moment, which never waits.
func openInFolder(folder *os.Root, name string, o Options) (*file.Device, error) {
	flag := os.O_RDONLY
	if o.Write {
		flag = os.O_RDWR
	}
	f, err := folder.OpenFile(name, flag|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, bare(err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = errNotRegular
	}
	if err != nil {
		return nil, errors.Join(bare(err), f.Close())
	}
	d, err := file.New(f, o.file())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return d, nil
}

var errNotRegular = fmt.Errorf("%w: not a regular file", os.ErrInvalid)
