package listen

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// answered reports whether a connection to l comes through.
func answered(t *testing.T, l net.Listener, network, address string) {
	t.Helper()
	go func() { // until the listener is closed; others may knock too
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			_, _ = io.WriteString(c, "hello")
			c.Close()
		}
	}()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if p, err := io.ReadAll(c); string(p) != "hello" || err != nil {
		t.Errorf("%s %s: %q, %v", network, address, p, err)
	}
}

func TestTCP(t *testing.T) {
	ctx := context.Background()
	for _, host := range []string{"", "localhost", "127.0.0.1"} {
		list, err := TCP(ctx, host, "0")
		if err != nil {
			t.Fatal(err)
		}
		port := list[0].Addr().(*net.TCPAddr).Port
		for _, l := range list {
			if got := l.Addr().(*net.TCPAddr).Port; got != port || got == 0 {
				t.Errorf("%q: port %d, want %d", host, got, port)
			}
			if host != "" {
				answered(t, l, "tcp", l.Addr().String())
			}
		}
		answered(t, list[0], "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if again, err := TCP(ctx, host, strconv.Itoa(port)); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%q: taken twice: %v", host, err)
			_ = CloseAll(again)
		}
		if err := CloseAll(list); err != nil {
			t.Error(err)
		}
	}
	for _, c := range [][2]string{{"127.0.0.1", "70000"}, {"127.0.0.1", "nonsense"}, {"no such host", "0"}, {"192.0.2.1", "0"}} {
		if list, err := TCP(ctx, c[0], c[1]); err == nil {
			t.Errorf("%q", c)
			_ = CloseAll(list)
		}
	}
}

// dieSocket makes a socket on which nobody listens.
func dieSocket(t *testing.T, path string) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

func TestUnix(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	dieSocket(t, path)
	l, err := Unix(path, 0o640)
	if err != nil {
		t.Fatalf("a dead socket is not replaced: %v", err)
	}
	if fi, err := os.Stat(path); runtime.GOOS == "linux" && (err != nil || fi.Mode().Perm() != 0o640) {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	answered(t, l, "unix", path)
	if _, err := Unix(path, 0); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a live socket is taken: %v", err)
	}
	answered(t, l, "unix", path) // still
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("not removed: %v", err)
	}
}

func TestUnixLeavesAlone(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	if err := os.WriteFile(path, []byte("text"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Unix(path, 0); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	if p, _ := os.ReadFile(path); string(p) != "text" {
		t.Errorf("the file: %q", p)
	}
	if _, err := Unix(filepath.Join(dir, strings.Repeat("x", maxPath)), 0); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("a long name: %v", err)
	}
	if _, err := Unix(filepath.Join(dir, "missing", "s"), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}

	path = filepath.Join(dir, "mine")
	l, err := Unix(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	dieSocket(t, path) // another server has taken the name
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket of another server: %v", err)
	}
}

func TestPrivate(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), strings.Repeat("x", maxPath))} {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		t.Setenv("TMPDIR", dir)
		l, err := Private()
		if err != nil {
			t.Fatal(err)
		}
		path := l.Addr().String()
		answered(t, l, "unix", path)
		if fi, err := os.Stat(filepath.Dir(path)); runtime.GOOS != "windows" && (err != nil || fi.Mode().Perm() != 0o700) {
			t.Errorf("%v, %v", fi, err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(filepath.Dir(path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", filepath.Dir(path), err)
		}
	}
}

// TestStdio reads and writes through two pipes, and ends a Read that waits.
func TestStdio(t *testing.T) {
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer inW.Close()
	defer outR.Close()
	c, err := Stdio(inR, outW)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(inW, "ping"); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4)
	if _, err := io.ReadFull(c, p); err != nil || string(p) != "ping" {
		t.Errorf("%q, %v", p, err)
	}
	if _, err := io.WriteString(c, "pong"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(outR, p); err != nil || string(p) != "pong" {
		t.Errorf("%q, %v", p, err)
	}
	if runtime.GOOS != "windows" {
		if err := c.SetReadDeadline(time.Now()); err != nil {
			t.Error(err)
		}
		if _, err := c.Read(p); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("past its deadline: %v", err)
		}
		if err := c.SetDeadline(time.Time{}); err != nil {
			t.Error(err)
		}
		ended := make(chan error)
		go func() { _, err := c.Read(p); ended <- err }()
		time.Sleep(10 * time.Millisecond) // whether it waits already or not, it ends
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil {
			t.Error("a Read goes on after Close")
		}
	}
}

func TestVsock(t *testing.T) {
	l, err := Vsock(AnyCID, 0xFFFFFFFF)
	if err != nil {
		t.Logf("no vsock here: %v", err)
		return
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
