package file

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/imgtool/imgtool/block"
)

// CreateOptions say how to create a file. The zero value is good.
type CreateOptions struct {
	Size   int64 // bytes; the file starts as one hole of this size
	NoLock bool  // take no locks, and replace even an image that another program is writing
}

// Pending is a new file that does not have its name yet. Its methods may be called from many goroutines.
type Pending struct {
	dev    *Device
	temp   string
	target string
	mode   fs.FileMode // permission bits of the file that is replaced, where keep is set
	keep   bool

	mu   sync.Mutex
	done bool
}

const (
	// tempMark stands in the names of temporary files, for whoever finds one left behind by a crash: ".NAME.imgtool-XXXXXX".
	tempMark = ".imgtool-"
	// maxTempBase bounds the part of the target's name in it, in bytes, so that the whole stays below the 255 of most file systems.
	maxTempBase = 200
)

// Create begins a new file that will have the name path: a temporary file in the same folder, which Commit renames. Where path is a
// symbolic link, what it points to is replaced, or made. It returns an error if there is something at path that is not a regular file or may
// not be written, and block.ErrBusy where another program is writing it. Errors do not name path.
func Create(path string, o CreateOptions) (*Pending, error) {
	if o.Size < 0 {
		return nil, &block.RangeError{Off: o.Size}
	}
	p := &Pending{target: path}
	if err := p.examine(o); err != nil {
		return nil, err
	}
	f, err := p.create()
	if err != nil {
		return nil, fmt.Errorf("create a temporary file in the same folder: %w", bare(err))
	}
	if p.dev, err = begin(f, o); err != nil {
		_ = f.Close() // it is removed
		_ = os.Remove(p.temp)
		return nil, err
	}
	return p, nil
}

// begin makes a device of a new file.
func begin(f *os.File, o CreateOptions) (*Device, error) {
	if err := makeSparse(f); err != nil {
		return nil, bare(err)
	}
	d, err := New(f, Options{Write: true, NoLock: o.NoLock})
	if err != nil || o.Size == 0 {
		return d, err
	}
	return d, d.Resize(context.Background(), o.Size)
}

// examine looks at what Commit would replace.
func (p *Pending) examine(o CreateOptions) error {
	info, err := os.Lstat(p.target)
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		if p.target, err = followLink(p.target); err != nil {
			return fmt.Errorf("follow the symbolic link: %w", bare(err))
		}
		info, err = os.Lstat(p.target)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return bare(err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%w: it exists and is not a regular file, so that a new file cannot take its name", fs.ErrExist)
	}
	p.mode, p.keep = info.Mode().Perm(), true
	old, err := os.OpenFile(p.target, os.O_RDWR, 0) // also asks whether it may be written
	if err != nil {
		return fmt.Errorf("replace the file: %w", bare(err))
	}
	defer old.Close()
	if o.NoLock {
		return nil
	}
	if err := checkLoop(info); err != nil {
		return err
	}
	return lock(old, false) // as a reader: readers keep the old file, a writer would lose what it writes
}

// followLink returns what a symbolic link leads to. The file need not exist, its folder has to.
func followLink(path string) (string, error) {
	const most = 40
	for range most {
		to, err := os.Readlink(path)
		if err != nil { // not a link, or nothing
			return path, nil
		}
		dir, _ := filepath.Split(path) // and not Dir: .. behind a link is not what it looks like
		if !filepath.IsAbs(to) {
			to = dir + to
		}
		dir, base := filepath.Split(to)
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			return "", err
		}
		path = filepath.Join(dir, base)
	}
	return "", fmt.Errorf("%w: there are more than %d of them", fs.ErrInvalid, most)
}

// create makes the temporary file. It is nobody else's to read before it has the mode of the file that it replaces.
func (p *Pending) create() (*os.File, error) {
	const attempts, random = 100, 6
	mode := fs.FileMode(0o666)
	if p.keep {
		mode = 0o600
	}
	dir, base := filepath.Split(p.target)
	if base == "" {
		return nil, fmt.Errorf("%w: the name of a file is needed", fs.ErrInvalid)
	}
	if len(base) > maxTempBase {
		base = strings.ToValidUTF8(base[:maxTempBase], "")
	}
	for i := 0; ; i++ {
		p.temp = dir + "." + base + tempMark + rand.Text()[:random]
		f, err := os.OpenFile(p.temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode)
		if err == nil || !errors.Is(err, fs.ErrExist) || i == attempts {
			return f, err
		}
	}
}

// Device returns the file to write. Closing it ends writing; Commit and Abort close it if that has not been done.
func (p *Pending) Device() *Device { return p.dev }

// Commit closes the device and gives the file its name, in place of the file that had it, whose permission bits it keeps. With
// sync the content and the name are durable when it returns. If it fails the old file is untouched, and Abort removes the new one.
// After a Commit that succeeded, or an Abort, it returns os.ErrClosed.
func (p *Pending) Commit(sync bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return os.ErrClosed
	}
	// Closed first, because Windows does not rename open files.
	if err := p.dev.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	if err := p.dev.failure(); err != nil {
		return err // another descriptor would not learn of it
	}
	if err := p.finish(sync); err != nil {
		return fmt.Errorf("finish the temporary file: %w", bare(err))
	}
	if err := os.Rename(p.temp, p.target); err != nil {
		return fmt.Errorf("rename the temporary file: %w", bare(err))
	}
	p.done = true
	if !sync {
		return nil
	}
	dir, err := os.Open(filepath.Dir(p.target))
	if err != nil {
		return fmt.Errorf("sync the folder: %w", bare(err))
	}
	defer dir.Close()
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("sync the folder: %w", bare(err))
	}
	return nil
}

// finish gives the closed temporary file its mode and makes it durable. Another descriptor syncs what was written through the first.
func (p *Pending) finish(sync bool) error {
	if !p.keep && !sync {
		return nil
	}
	f, err := os.OpenFile(p.temp, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if p.keep {
		err = f.Chmod(p.mode)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Abort closes the device and removes the temporary file. After a Commit that succeeded, or an Abort, it does nothing, so that it
// can be deferred.
func (p *Pending) Abort() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done {
		return nil
	}
	p.done = true
	_ = p.dev.Close() // what was not written does not matter any more
	if err := os.Remove(p.temp); err != nil {
		return fmt.Errorf("remove the temporary file: %w", bare(err))
	}
	return nil
}
