package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/imgtool/imgtool/block"
)

const (
	maxRequest    = 1 << 20  // longest read or write that the kernel sends, in bytes; it has no longer ones
	maxInFlight   = 64 << 20 // bytes of requests that are worked on at a time
	maxBackground = 64       // requests of read-ahead, write-back and asynchronous I/O at a time
)

// Mount is a mounted device. Its methods may be called from any goroutine.
type Mount struct {
	at     string // absolute
	path   string
	tree   *tree
	server *fuse.Server
	done   chan struct{} // closed when nothing is mounted any more and the device is flushed
	err    error         // of the flush; read after done
	stop   func() bool   // ends watching the context

	mu   sync.Mutex
	gone bool // whether nothing is mounted at the mount point any more that is ours
}

// New mounts dev at a folder, in which one file appears, or over a regular file, which it hides. dev stays the caller's, and must stay open until
// Wait has returned. When ctx ends, the device is flushed and the mount detached; see Detach.
//
// Root mounts by itself, other users by the program fusermount3. It returns block.ErrBusy where something is mounted at the place already.
func New(ctx context.Context, dev block.Device, at string, o Options) (*Mount, error) {
	at, isDir, err := mountPoint(at)
	if err != nil {
		return nil, err
	}
	name := o.Name
	if name == "" {
		name = DefaultName
	}
	if isDir && (name != filepath.Base(name) || name == "." || name == ".." || len(name) > unix.NAME_MAX) {
		return nil, fmt.Errorf("%q cannot be the name of a file", name)
	}
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	m := &Mount{at: at, path: at, done: make(chan struct{})}
	m.tree = newTree(context.WithoutCancel(ctx), dev, o, log)
	if isDir {
		m.tree.name, m.path = name, filepath.Join(at, name)
	}
	if m.server, err = fuse.NewServer(m.tree, at, m.tree.options(o.AllowOther)); err != nil {
		return nil, mountError(at, err)
	}
	go m.serve()
	if err := m.touch(); err != nil {
		return nil, errors.Join(err, m.Detach(), m.Wait())
	}
	m.stop = context.AfterFunc(ctx, m.end)
	return m, nil
}

// mountPoint checks where to mount.
func mountPoint(at string) (path string, isDir bool, err error) {
	if path, err = filepath.Abs(at); err != nil {
		return "", false, err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		err = pathError(at, err)
		if errors.Is(err, unix.ENOTCONN) {
			err = block.WithHint(err, "a program that was killed has left this mount: imgtool unmount removes it")
		}
		return "", false, err
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_TYPE, &st); err != nil {
		return "", false, pathError(at, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		isDir = true
	case unix.S_IFREG:
	default:
		return "", false, fmt.Errorf("%s is neither a folder nor a regular file", at)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return "", false, block.WithHint(block.ErrorOf(block.ErrBusy, "%s: something is mounted here already", at), "imgtool unmount removes it")
	}
	return path, isDir, nil
}

// pathError says what is wrong with a path, as it was given.
func pathError(at string, err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return fmt.Errorf("%s: %w", at, err)
}

// mountError says what can be done about an error of mounting.
func mountError(at string, err error) error {
	if text := strings.TrimSpace(err.Error()); strings.HasPrefix(text, "fusermount exited") {
		return fmt.Errorf("%s: cannot be mounted: fusermount3 has failed", at) // and has said why
	}
	err = fmt.Errorf("%s: cannot be mounted: %w", at, err)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return block.WithHint(err, "users other than root need the program fusermount3, which the package fuse3 brings")
	case errors.Is(err, fs.ErrNotExist):
		return block.WithHint(err, "without /dev/fuse nothing can be mounted: modprobe fuse makes it")
	}
	return err
}

// options returns how the kernel is to mount.
func (t *tree) options(allowOther bool) *fuse.MountOptions {
	o := &fuse.MountOptions{
		Name: "imgtool", FsName: fsName(t.dev), AllowOther: allowOther, Logger: slog.NewLogLogger(t.log.Handler(), slog.LevelWarn),
		MaxWrite: maxRequest, MaxReadAhead: maxRequest, MaxBackground: maxBackground, MaxInflightRequestBytes: maxInFlight,
		DirectMount: os.Geteuid() == 0, DisableXAttrs: true, DisableReadDirPlus: true,
		DisableSplice: true, // answers are in memory, from which a pipe would be a detour
		// The content of the file changes through it alone, as far as can be told: a new time of change is no reason to read it again.
		ExplicitDataCacheControl: true,
		ExtraCapabilities:        fuse.CAP_ASYNC_DIO,
	}
	o.Options = []string{"default_permissions"}
	if !t.writable {
		o.Options = append(o.Options, "ro")
	}
	return o
}

// fsName returns what lists of mounts call the device. They have blanks between columns, and commas between options.
func fsName(dev block.Device) string {
	name := strings.Map(func(r rune) rune {
		if r <= ' ' || r == ',' || r == '\\' || r == 0x7f {
			return '_'
		}
		return r
	}, dev.Info().Name)
	const most = 255 // the kernel takes a page
	return strings.ToValidUTF8("imgtool:"+name[:min(len(name), most)], "")
}

// serve answers the kernel until nothing is mounted any more.
func (m *Mount) serve() {
	m.server.Serve()
	m.mu.Lock()
	m.gone = true
	m.mu.Unlock()
	m.err = m.tree.dev.Flush(m.tree.ctx)
	close(m.done)
}

// touch opens the file once, and sets what can be set only then.
func (m *Mount) touch() error {
	fd, err := unix.Open(m.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return pathError(m.path, err)
	}
	defer unix.Close(fd)
	// Polling is answered by ENOSYS, and then never asked for again. Go adds files that it opens to its poller, and a program that does so with
	// its own mounts would wait for itself.
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return pathError(m.path, err)
	}
	// The kernel reads 128 KiB ahead, unless root says more. Where nobody may, reading in sequence is slower and no less right.
	name := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	_ = os.WriteFile(name, fmt.Append(nil, maxRequest>>10), 0)
	return nil
}

// end is called when the context has ended.
func (m *Mount) end() {
	if err := m.tree.dev.Flush(m.tree.ctx); err != nil {
		m.tree.log.Error("flush", "path", m.path, "error", err)
	}
	if m.Unmount() == nil {
		return
	}
	m.tree.log.Warn("still in use: it is unmounted when the last program has closed it", "path", m.path)
	if err := m.Detach(); err != nil {
		m.tree.log.Error("unmount", "path", m.path, "error", err)
	}
}

// Path returns the path of the file.
func (m *Mount) Path() string { return m.path }

// Wait returns when nothing is mounted any more, after the device has been flushed; the error is that of the flush.
func (m *Mount) Wait() error {
	<-m.done
	if m.stop != nil {
		m.stop()
	}
	return m.err
}

// Unmount asks for the end, which Wait waits for. While files are open it fails with block.ErrBusy.
func (m *Mount) Unmount() error { return m.unmount(0) }

// Detach takes the file out of the tree of files at once. Programs that have it open keep it, and the mount ends when the last has closed it.
func (m *Mount) Detach() error { return m.unmount(unix.MNT_DETACH) }

func (m *Mount) unmount(flags int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gone {
		return nil
	}
	err := unmount(m.at, flags)
	if err == nil || err == unix.EINVAL { // or somebody else was faster
		m.gone = true
		return nil
	}
	return unmountError(m.at, err)
}

// Unmount unmounts what is mounted at a path, as Mount.Unmount and with detach as Mount.Detach.
func Unmount(at string, detach bool) error {
	flags := 0
	if detach {
		flags = unix.MNT_DETACH
	}
	path, err := filepath.Abs(at)
	if err != nil {
		return err
	}
	if to, err := filepath.EvalSymlinks(path); err == nil { // not so where nobody answers any more
		path = to
	}
	return unmountError(at, unmount(path, flags))
}

// unmount returns EBUSY while files are open, and EINVAL where nothing is mounted.
func unmount(at string, flags int) error {
	err := unix.Unmount(at, flags|unix.UMOUNT_NOFOLLOW)
	if err != unix.EPERM {
		return err
	}
	option := "-u" // users other than root
	if flags&unix.MNT_DETACH != 0 {
		option = "-uz"
	}
	out, err := exec.Command("fusermount3", option, "--", at).CombinedOutput()
	switch text := strings.TrimSpace(string(out)); {
	case err == nil, text == "":
		return err
	case strings.Contains(text, "busy"):
		return unix.EBUSY
	case strings.Contains(text, "not found in"), strings.Contains(text, "Invalid argument"):
		return unix.EINVAL
	default:
		return errors.New(text)
	}
}

// unmountError says in words what went wrong.
func unmountError(at string, err error) error {
	switch err {
	case nil:
		return nil
	case unix.EBUSY:
		return block.ErrorOf(block.ErrBusy, "%s: a program has files below it open", at)
	case unix.EINVAL:
		return fmt.Errorf("%s: nothing is mounted here", at)
	}
	return pathError(at, err)
}
