package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// maxPath is the length that a socket's path may have on every system, in bytes.
const maxPath = 103

// socketFile is a listener together with what its Close removes.
type socketFile struct {
	*net.UnixListener
	remove func() error
	once   sync.Once
	err    error
}

// Close removes the socket and closes the listener. Connections go on.
func (l *socketFile) Close() error {
	l.once.Do(func() { l.err = errors.Join(l.remove(), l.UnixListener.Close()) }) // in this order nobody finds a socket on which nobody listens
	return l.err
}

// Unix listens on a socket at path, which Close removes. The socket of a server that has died is replaced; anything else at path is left alone, and
// an error. Its permission bits are those of mode, from the beginning on; 0 are those that the process gives to new files.
func Unix(path string, mode fs.FileMode) (net.Listener, error) {
	if len(path) > maxPath {
		return nil, failed(path, fmt.Errorf("%w: the path has %d bytes, and a socket's may have %d", syscall.ENAMETOOLONG, len(path), maxPath))
	}
	l, err := bind(path, mode)
	if errors.Is(err, syscall.EADDRINUSE) {
		var stale bool
		if stale, err = bury(path, err); stale {
			l, err = bind(path, mode)
		}
	}
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	own, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socketFile{UnixListener: l, remove: func() error { return removeSame(path, own) }}, nil
}

// bind makes the socket.
func bind(path string, mode fs.FileMode) (*net.UnixListener, error) {
	c := net.ListenConfig{}
	if mode != 0 {
		c.Control = func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) { restrict(fd, mode) })
		}
	}
	l, err := c.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	if mode != 0 {
		if err := os.Chmod(path, mode); err != nil {
			return nil, errors.Join(err, u.Close())
		}
	}
	return u, nil
}

// bury removes the socket at path if nobody listens on it, and returns whether it has. It is moved aside before it is removed, and looked at again, because
// another server may have replaced it in between. busy is what bind has said.
func bury(path string, busy error) (bool, error) {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil || fi.Mode()&fs.ModeSocket == 0 {
		return false, failed(path, fmt.Errorf("%w: there is something that is not a socket", fs.ErrExist))
	}
	if !dead(path) {
		return false, busy
	}
	aside := path + "." + strconv.Itoa(os.Getpid())
	if len(aside) > maxPath {
		return true, os.Remove(path)
	}
	if err := os.Rename(path, aside); err != nil {
		return false, err
	}
	if !dead(aside) {
		return false, errors.Join(busy, os.Rename(aside, path))
	}
	return true, os.Remove(aside)
}

// dead reports whether nobody listens on a socket.
func dead(path string) bool {
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close() // somebody does; nothing was sent
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// removeSame removes the file at path if it is the one that own describes.
func removeSame(path string, own fs.FileInfo) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(fi, own) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// Private listens on a Unix socket in a new folder for temporary files that only this user can enter; Close removes both.
func Private() (net.Listener, error) {
	const name, random = "socket", len("/nbd-4294967295/")
	dir := os.TempDir()
	if len(dir)+random+len(name) > maxPath {
		dir = "/tmp"
	}
	dir, err := os.MkdirTemp(dir, "nbd-")
	if err != nil {
		return nil, err
	}
	l, err := Unix(filepath.Join(dir, name), 0o600)
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	s := l.(*socketFile)
	socket := s.remove
	s.remove = func() error { return errors.Join(socket(), os.Remove(dir)) }
	return s, nil
}
