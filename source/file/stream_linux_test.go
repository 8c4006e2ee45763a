package file

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOpenStream moves bytes through a FIFO.
func TestOpenStream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	ok(t, unix.Mkfifo(path, 0o600))
	written := make(chan error, 1)
	go func() {
		w, err := OpenStream(t.Context(), path, true)
		if err == nil {
			_, err = w.Write([]byte("hello"))
			err = errors.Join(err, w.Close())
		}
		written <- err
	}()
	r, err := OpenStream(t.Context(), path, false)
	ok(t, err)
	got, err := io.ReadAll(r)
	if err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	ok(t, r.Close())
	ok(t, <-written)
	_, err = OpenStream(t.Context(), path+"x", false)
	if err != fs.ErrNotExist && !errors.Is(err, unix.ENOENT) || errors.As(err, new(*fs.PathError)) {
		t.Errorf("of what does not exist: %v", err)
	}
}

// TestOpenStreamInterrupted ends the wait for the other end of a FIFO, and leaves nobody behind who waits.
func TestOpenStreamInterrupted(t *testing.T) {
	for _, write := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "fifo")
		ok(t, unix.Mkfifo(path, 0o600))
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancel)
		if s, err := OpenStream(ctx, path, write); err != context.Canceled {
			t.Fatalf("write %v: %v, %v", write, s, err)
		}
		if write {
			continue // nothing tells from outside whether a writer waits
		}
		for { // until no reader is there
			f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
			if errors.Is(err, unix.ENXIO) {
				break
			}
			ok(t, err)
			ok(t, f.Close())
			time.Sleep(time.Millisecond)
		}
	}
}

// TestStreamInterrupted ends a Read that waits for bytes, and a Write that waits for room.
func TestStreamInterrupted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	ok(t, unix.Mkfifo(path, 0o600))
	other, err := os.OpenFile(path, os.O_RDWR, 0) // both ends
	ok(t, err)
	defer other.Close()
	for _, write := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := OpenStream(ctx, path, write)
		ok(t, err)
		time.AfterFunc(20*time.Millisecond, cancel)
		if write {
			_, err = s.Write(make([]byte, 8<<20))
		} else {
			_, err = s.Read(make([]byte, 1))
		}
		if err != context.Canceled {
			t.Errorf("write %v: %v", write, err)
		}
		ok(t, s.Close())
	}
}
