// Package mark keeps a small journal beside an image while the image is changed in place.
//
// A change is announced before it begins: the [Journal] says how the file was and which blocks may differ. It lies outside the image
// because not every container has room for it inside. A [Store] keeps it: [File] beside a file, [None] nowhere.
package mark

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/imgtool/imgtool/block"
)

// Store keeps the journal of one image. What Save and Append were given is durable when they return. Methods are called by one goroutine at a time.
type Store interface {
	// Load returns the journal, or nil where there is none.
	Load(ctx context.Context) ([]byte, error)
	// Save starts a new journal.
	Save(ctx context.Context, p []byte) error
	// Append adds to the journal that Save started.
	Append(ctx context.Context, p []byte) error
	// Clear removes the journal. It need not be durable: a journal that comes back is still true.
	Clear(ctx context.Context) error
}

// Suffix is what File appends to an image's name.
const Suffix = ".imgtool-mark"

// File returns the Store of the image at path: a file beside it, which exists only while a change is under way. Where path is a symbolic
// link it lies beside the image itself, so that it is found under every name of the image.
func File(path string) Store {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return &fileStore{path: path + Suffix}
}

type fileStore struct {
	path string
	mu   sync.Mutex
	f    *os.File
}

const saveHint = "while an image is changed a small file lies beside it: its folder must be writable, and have room for it"

// maxMark bounds what is read of a mark: the blocks of 3 TiB of kept ranges.
const maxMark = 1 << 30

func (s *fileStore) Load(context.Context) ([]byte, error) {
	if there, err := s.stat(); err != nil || !there {
		return nil, err
	}
	p, err := os.ReadFile(s.path)
	if len(p) == 0 && err == nil {
		p = []byte{} // it exists
	}
	return p, err
}

// stat reports whether there is a file that may be a mark. It can be asked by those who may not read the mark.
func (s *fileStore) stat() (bool, error) {
	st, err := os.Lstat(s.path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENAMETOOLONG) { // the image's name may leave no room for the suffix
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxMark {
		return false, block.WithHint(fmt.Errorf("%s is not a mark of an unfinished change: %d bytes, %v", s.path, st.Size(), st.Mode()),
			"something else has this name: move it away")
	}
	return true, nil
}

func (s *fileStore) Save(_ context.Context, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	// There is none, since an image with a mark is not opened for writing.
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return block.WithHint(err, saveHint)
	}
	_, err = f.Write(p)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = syncDir(filepath.Dir(s.path))
	}
	if err != nil {
		return block.WithHint(errors.Join(err, f.Close(), os.Remove(s.path)), saveHint)
	}
	s.f = f
	return nil
}

func (s *fileStore) Append(_ context.Context, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f == nil {
		return fs.ErrClosed
	}
	if _, err := s.f.Write(p); err != nil {
		return err
	}
	return s.f.Sync()
}

func (s *fileStore) Clear(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f != nil {
		_ = s.f.Close() // what it held does not matter any more; open files cannot be removed everywhere
		s.f = nil
	}
	if err := os.Remove(s.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncDir makes the names in a directory durable, where the system can.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return nil // a directory that can be written but not read
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, fs.ErrInvalid) {
		return err
	}
	return nil
}

// Exists reports whether there is a journal: whether a change was interrupted, or is under way. s may be nil; then it is not known to be.
func Exists(ctx context.Context, s Store) (bool, error) {
	switch s := s.(type) {
	case nil:
		return false, nil
	case *fileStore:
		return s.stat()
	}
	p, err := s.Load(ctx)
	return p != nil, err
}

// None is the Store of a file that is thrown away if its change is interrupted, such as a copy that has no name yet.
type None struct{}

// Load returns nil.
func (None) Load(context.Context) ([]byte, error) { return nil, nil }

// Save does nothing.
func (None) Save(context.Context, []byte) error { return nil }

// Append does nothing.
func (None) Append(context.Context, []byte) error { return nil }

// Clear does nothing.
func (None) Clear(context.Context) error { return nil }
