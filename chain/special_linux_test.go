package chain

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestCreateTerminal refuses to write an image to a terminal, by name and as standard output. /dev/ptmx is a terminal that nobody sees.
func TestCreateTerminal(t *testing.T) {
	const terminal = "/dev/ptmx"
	f, err := os.OpenFile(terminal, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, text := range []string{"-", terminal} {
		_, err := Create(context.Background(), text, CreateOptions{Stdout: f})
		var u *UsageError
		if !errors.As(err, &u) {
			t.Errorf("%s: %v; want a usage error", text, err)
		}
	}
}

// TestFIFO reads from and writes to a FIFO by its name.
func TestFIFO(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		tg, err := Create(ctx, path, CreateOptions{})
		if err != nil {
			written <- err
			return
		}
		_, err = tg.Writer.Write([]byte("WRAPhello"))
		written <- errors.Join(err, tg.Commit(ctx))
	}()
	img, err := Open(ctx, path, Options{Registry: registry()})
	if err != nil {
		t.Fatal(err)
	}
	if img.Stream == nil || img.Path != "" || how(img) != "(wrap) (raw)" || !SameFile(img, path) {
		t.Errorf("layers %s, path %q", how(img), img.Path)
	}
	if got := content(t, img); got != "hello" {
		t.Errorf("content %q", got)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
}

// TestOpenInFIFO refuses a FIFO in a folder without waiting for its other end.
func TestOpenInFIFO(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o666); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if img, err := OpenIn(t.Context(), root, "fifo", Options{Registry: registry()}); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("%v, %v", img, err)
	}
}
