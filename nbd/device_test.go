package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/server"
)

// spawn starts a peer that serves socket, waits until it does, and returns its URI.
func spawn(t testing.TB, socket, program string, args ...string) string {
	t.Helper()
	cmd := peers.Command(t, program, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
	})
	for range 1000 {
		if listens(socket) {
			return unixURI(socket)
		}
		select {
		case <-ended:
			t.Fatalf("%s: %s", program, cmd.ProcessState)
		case <-time.After(5 * time.Millisecond):
		}
	}
	t.Fatalf("%s does not listen", program)
	return ""
}

// listens reports whether a socket is listened at, without connecting to it: there are servers that serve one client and no more.
func listens(socket string) bool {
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	for line := range strings.Lines(string(table)) {
		const accepts = "00010000" // the flag of a socket on which listen was called
		if f := strings.Fields(line); len(f) == 8 && f[7] == socket && f[3] == accepts {
			return true
		}
	}
	return false
}

// nbdkit starts nbdkit and returns the URI of its default export.
func nbdkit(t testing.TB, args ...string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	return spawn(t, socket, "nbdkit", append([]string{"-f", "-U", socket}, args...)...)
}

// serve starts our own server of d in this process and returns the path of its socket.
func serve(t testing.TB, c server.Config, d block.Device) string {
	t.Helper()
	c.Open = func(context.Context, server.Client) (*server.Export, error) {
		return &server.Export{Device: d, MultiConn: true}, nil
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		ended, stop := context.WithTimeout(context.Background(), time.Second)
		defer stop()
		s.Shutdown(ended)
	})
	return socket
}

func unixURI(socket string) string { return nbd.URI{Network: "unix", Address: socket}.String() }

func dial(t testing.TB, uri string, o nbd.Options) *nbd.Device {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d, err := nbd.Dial(ctx, uri, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// leaks fails the test where goroutines or descriptors are left behind when it ends.
func leaks(t testing.TB) {
	t.Helper()
	if l, err := net.Listen("unix", filepath.Join(t.TempDir(), "first")); err == nil {
		l.Close() // the runtime has its own descriptors, and opens them late
	}
	goroutines, files := runtime.NumGoroutine(), openFiles()
	t.Cleanup(func() {
		for range 300 {
			if runtime.NumGoroutine() <= goroutines && openFiles() <= files {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		all, _ := os.ReadDir("/proc/self/fd")
		for _, f := range all {
			link, _ := os.Readlink("/proc/self/fd/" + f.Name())
			t.Logf("file %s is %s", f.Name(), link)
		}
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines, %d before; %d files, %d before\n%s", runtime.NumGoroutine(), goroutines, openFiles(), files, buf[:runtime.Stack(buf, true)])
	})
}

// openFiles counts descriptors, where the system tells.
func openFiles() int {
	files, _ := os.ReadDir("/proc/self/fd")
	return len(files)
}

// TestOverNbdkit runs the suite of every device on what nbdkit serves, in the dialects that it can be made to speak.
func TestOverNbdkit(t *testing.T) {
	leaks(t)
	const size = 1<<20 + 512
	for name, args := range map[string][]string{
		"plain":              {},
		"simple replies":     {"--no-sr"},
		"newstyle":           {"--mask-handshake=0"},
		"without zeroes":     {"--filter=nozero"},
		"without extents":    {"--filter=noextents"},
		"without multi-conn": {"--filter=multi-conn", "multi-conn-mode=disable"},
		"fua by flush":       {"--filter=fua", "fuamode=emulate"},
		"blocks of 512":      {"--filter=blocksize-policy", "blocksize-minimum=512", "blocksize-preferred=4096", "blocksize-maximum=64k", "blocksize-error-policy=error"},
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.Run(t, blocktest.Config{Size: size, Ops: 60, New: func(t *testing.T) block.Device {
				all := append([]string{"memory", "allocator=malloc", "size=1049088"}, args...)
				if name == "newstyle" || name == "simple replies" {
					all = append(args[:1:1], all[:3]...)
				}
				return dial(t, nbdkit(t, all...), nbd.Options{})
			}})
		})
	}
}

// TestOverServer runs the suite on what our own server serves.
func TestOverServer(t *testing.T) {
	leaks(t)
	for name, c := range map[string]server.Config{
		"extended":   {},
		"structured": {NoExtendedHeaders: true},
		"simple":     {NoExtendedHeaders: true, NoStructuredReplies: true},
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.Run(t, blocktest.Config{Size: 1<<20 + 77, Ops: 100, New: func(t *testing.T) block.Device {
				return dial(t, unixURI(serve(t, c, block.NewMemory(1<<20+77))), nbd.Options{})
			}})
		})
	}
	t.Run("read-only", func(t *testing.T) {
		blocktest.Run(t, blocktest.Config{Size: 1 << 16, Ops: 50, ReadOnly: true, New: func(t *testing.T) block.Device {
			return dial(t, unixURI(serve(t, server.Config{}, block.NewMemory(1<<16))), nbd.Options{ReadOnly: true})
		}})
	})
}

// TestTCP goes over TCP, and to a vsock address where nobody is.
func TestTCP(t *testing.T) {
	leaks(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	target := serve(t, server.Config{}, block.NewMemory(1<<20))
	c := &cutter{Listener: l, target: target}
	c.wait.Go(c.accept)
	d := dial(t, nbd.URI{Network: "tcp", Address: l.Addr().String()}.String(), nbd.Options{})
	p, q := bytes.Repeat([]byte{3}, 1<<20), make([]byte, 1<<20)
	if err := errors.Join(d.Write(t.Context(), p, 0, 0), d.Read(t.Context(), q, 0), d.Flush(t.Context())); err != nil || !bytes.Equal(p, q) {
		t.Errorf("%v, or other bytes", err)
	}
	d.Close()
	l.Close()
	c.cut()
	c.wait.Wait()
	if _, err := nbd.Dial(t.Context(), "nbd+vsock://4294967294:1/", nbd.Options{}); err == nil {
		t.Error("there is somebody at the other end of a vsock address that cannot be")
	}
}
