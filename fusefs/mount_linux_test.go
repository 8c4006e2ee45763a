package fusefs

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imgtool/imgtool/block"
)

// needFUSE skips a test where nothing can be mounted.
func needFUSE(t *testing.T) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil || os.Geteuid() != 0 {
		t.Skip("mounting needs root and /dev/fuse")
	}
	unix.Close(fd)
}

// mounted mounts a device until the test ends.
func mounted(t *testing.T, dev block.Device, at string, o Options) *Mount {
	t.Helper()
	needFUSE(t)
	m, err := New(t.Context(), dev, at, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.Detach(), m.Wait()); err != nil {
			t.Error(err)
		}
	})
	return m
}

// pattern returns n bytes that tell where they are.
func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7+i>>8) ^ seed
	}
	return p
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open opens the file of a mount until the test ends.
func open(t *testing.T, m *Mount, flag int) *os.File {
	t.Helper()
	f, err := os.OpenFile(m.Path(), flag, 0)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// TestFolder mounts at a folder: there is one file in it, whose bytes are those of the device.
func TestFolder(t *testing.T) {
	dev, at := block.NewMemory(3<<20+517), t.TempDir()
	check(t, os.WriteFile(filepath.Join(at, "hidden"), nil, 0o666))
	m := mounted(t, dev, at, Options{Name: "a disk"})
	if want := filepath.Join(at, "a disk"); m.Path() != want {
		t.Errorf("the file is %s, want %s", m.Path(), want)
	}
	list, err := os.ReadDir(at)
	check(t, err)
	if len(list) != 1 || list[0].Name() != "a disk" || !list[0].Type().IsRegular() {
		t.Errorf("the folder lists %v", list)
	}
	if _, err := os.Stat(filepath.Join(at, "hidden")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a name that is not there: %v", err)
	}
	st, err := os.Stat(m.Path())
	check(t, err)
	if st.Size() != dev.Size() || st.Mode() != 0o600 {
		t.Errorf("size %d and mode %v, want %d and -rw-------", st.Size(), st.Mode(), dev.Size())
	}
	want := pattern(2<<20, 1)
	f := open(t, m, os.O_RDWR)
	_, err = f.WriteAt(want, 517)
	check(t, err)
	got := make([]byte, len(want))
	check(t, dev.Read(t.Context(), got, 517))
	if !bytes.Equal(got, want) {
		t.Error("the device does not hold what was written when the write returned")
	}
	clear(got)
	_, err = f.ReadAt(got, 517)
	check(t, err)
	if !bytes.Equal(got, want) {
		t.Error("the file does not hold what was written")
	}
	var sfs unix.Statfs_t
	check(t, unix.Statfs(at, &sfs))
	if sfs.Blocks*uint64(sfs.Bsize) < uint64(dev.Size()) || sfs.Bavail != 0 {
		t.Errorf("the file system has %d blocks of %d, %d of them free", sfs.Blocks, sfs.Bsize, sfs.Bavail)
	}
}

// TestOverFile mounts over a file, which is back afterwards.
func TestOverFile(t *testing.T) {
	needFUSE(t)
	at := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(at, []byte("below"), 0o666))
	dev := block.NewMemory(1 << 20)
	check(t, dev.Write(t.Context(), []byte("above"), 0, 0))
	m, err := New(t.Context(), dev, at, Options{})
	check(t, err)
	p, err := os.ReadFile(at)
	if err != nil || int64(len(p)) != dev.Size() || !bytes.HasPrefix(p, []byte("above")) {
		t.Errorf("the file holds %d bytes beginning with %.5q: %v", len(p), p, err)
	}
	if _, err := New(t.Context(), dev, at, Options{}); !errors.Is(err, block.ErrBusy) {
		t.Errorf("mounted twice: %v", err)
	}
	check(t, m.Unmount())
	check(t, m.Wait())
	if p, err := os.ReadFile(at); err != nil || string(p) != "below" {
		t.Errorf("afterwards the file holds %q: %v", p, err)
	}
	check(t, m.Unmount()) // of what is not mounted any more
}

// TestReadOnly mounts so that nobody can write, by an option and because the device cannot be written.
func TestReadOnly(t *testing.T) {
	for name, dev := range map[string]block.Device{"option": block.NewMemory(1 << 20), "device": block.Protect(block.NewMemory(1 << 20))} {
		t.Run(name, func(t *testing.T) {
			m := mounted(t, dev, t.TempDir(), Options{ReadOnly: name == "option"})
			if _, err := os.OpenFile(m.Path(), os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
				t.Errorf("opened for writing: %v", err)
			}
			if p, err := os.ReadFile(m.Path()); err != nil || len(p) != 1<<20 {
				t.Errorf("%d bytes read: %v", len(p), err)
			}
			if st, err := os.Stat(m.Path()); err != nil || st.Mode() != 0o400 {
				t.Errorf("mode %v: %v", st.Mode(), err)
			}
		})
	}
}

// TestWrongPlaces are those where nothing can be mounted.
func TestWrongPlaces(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	socket := filepath.Join(dir, "fifo")
	check(t, unix.Mkfifo(socket, 0o600))
	for _, c := range []struct{ at, name, want string }{
		{filepath.Join(dir, "absent"), "", "no such file"},
		{socket, "", "neither a folder nor a regular file"},
		{dir, "a/b", "cannot be the name of a file"},
		{dir, "..", "cannot be the name of a file"},
		{dir, strings.Repeat("n", 256), "cannot be the name of a file"},
	} {
		if m, err := New(t.Context(), block.NewMemory(1), c.at, Options{Name: c.name}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: %v, want %q", c.at, c.name, err, c.want)
			if err == nil {
				check(t, errors.Join(m.Unmount(), m.Wait()))
			}
		}
	}
	if err := Unmount(dir, false); err == nil || !strings.Contains(err.Error(), "nothing is mounted") {
		t.Errorf("unmounted what is not mounted: %v", err)
	}
}

// TestBusy asks for the end while a program has the file open: Unmount refuses, the end of the context waits for the program.
func TestBusy(t *testing.T) {
	needFUSE(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	dev := &flushes{Filter: block.Filter{Device: block.NewMemory(1 << 20)}}
	at := t.TempDir()
	m, err := New(ctx, dev, at, Options{})
	check(t, err)
	f, err := os.OpenFile(m.Path(), os.O_RDWR, 0)
	check(t, err)
	if err := m.Unmount(); !errors.Is(err, block.ErrBusy) {
		t.Errorf("unmounted while in use: %v", err)
	}
	cancel()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if list, err := os.ReadDir(at); err == nil && len(list) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is still mounted")
		}
	}
	if dev.n.Load() == 0 {
		t.Error("not flushed at the end of the context")
	}
	select {
	case <-m.done:
		t.Fatal("the mount has ended under an open file")
	default:
	}
	_, err = f.WriteAt([]byte("late"), 100)
	check(t, err)
	before := dev.n.Load()
	check(t, f.Close())
	check(t, m.Wait())
	if dev.n.Load() == before {
		t.Error("not flushed after the last write")
	}
	got := make([]byte, 4)
	if check(t, dev.Read(t.Context(), got, 100)); string(got) != "late" {
		t.Errorf("%q was written late", got)
	}
}

// TestNothingLeft mounts and unmounts many times: no goroutine and no descriptor stays.
func TestNothingLeft(t *testing.T) {
	needFUSE(t)
	at := t.TempDir()
	once := func() {
		m, err := New(t.Context(), block.NewMemory(1<<20), at, Options{})
		check(t, err)
		f, err := os.OpenFile(m.Path(), os.O_RDWR, 0)
		check(t, err)
		_, err = f.WriteAt(pattern(1<<20, 3), 0)
		check(t, errors.Join(err, f.Sync(), f.Close(), m.Unmount(), m.Wait()))
	}
	count := func() (goroutines, files int) {
		list, err := os.ReadDir("/proc/self/fd")
		check(t, err)
		return runtime.NumGoroutine(), len(list)
	}
	once()
	g, files := count()
	for range 20 {
		once()
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		g2, files2 := count()
		if g2 <= g && files2 <= files {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines and %d descriptors, %d and %d before", g2, files2, g, files)
		}
	}
}
