//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgtool/imgtool/nbd"
)

// serveTest is a server of a test.
type serveTest struct {
	*exec.Cmd
	t      *testing.T
	uri    string // of the first listener and the first export
	temp   string // its folder for temporary files
	errors string // path of what it prints to standard error
}

// startServe starts a server, on a private socket unless args say where, and returns when it is ready.
func startServe(t *testing.T, args ...string) *serveTest {
	t.Helper()
	temp, err := os.MkdirTemp("", "serve") // shorter than the test's own
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(temp) })
	args = append([]string{"serve", "--print-uri"}, args...)
	if line := " " + strings.Join(args, " "); !strings.Contains(line, " -U ") && !strings.Contains(line, " -p ") {
		args = append(args, "-U", "-")
	}
	s := &serveTest{Cmd: exec.Command("imgtool", args...), t: t, temp: temp, errors: filepath.Join(t.TempDir(), "stderr")}
	s.Env = append(os.Environ(), "TMPDIR="+temp)
	stderr, err := os.Create(s.errors)
	check(t, err)
	defer stderr.Close()
	s.Stderr = stderr
	out, err := s.StdoutPipe()
	check(t, err)
	check(t, s.Start())
	t.Cleanup(func() { _ = s.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if s.uri = strings.TrimSpace(line); err != nil {
		_ = s.Wait()
		t.Fatalf("imgtool %q: %v: %s", args, err, readFile(t, s.errors))
	}
	return s
}

// socket returns the path of the server's Unix socket.
func (s *serveTest) socket() string {
	u, err := nbd.ParseURI(s.uri)
	check(s.t, err)
	return u.Address
}

// stop sends a signal and demands the exit code, and that nothing is left behind.
func (s *serveTest) stop(sig os.Signal, want int) {
	s.t.Helper()
	check(s.t, s.Process.Signal(sig))
	s.ended(want)
}

// ended waits for the end.
func (s *serveTest) ended(want int) {
	s.t.Helper()
	late := time.AfterFunc(time.Minute, func() { _ = s.Process.Signal(syscall.SIGQUIT) })
	defer late.Stop()
	_ = s.Wait() // the code is looked at
	if code := s.ProcessState.ExitCode(); code != want {
		s.t.Errorf("%q ends with %d, want %d: %s", s.Args, code, want, readFile(s.t, s.errors))
	}
	if names, err := os.ReadDir(s.temp); err != nil || len(names) > 0 {
		s.t.Errorf("left behind: %v, %v", names, err)
	}
}

// dial opens the export of a URI.
func dial(t *testing.T, uri string) *nbd.Device {
	t.Helper()
	d, err := nbd.Dial(t.Context(), uri, nbd.Options{AllowLocalFiles: true, Connections: 1, Retries: -1})
	check(t, err)
	return d
}

// TestServeDrain ends a server that has written data, with a client that stays and does nothing, and with one that goes on and on.
func TestServeDrain(t *testing.T) {
	for _, busy := range []bool{false, true} {
		for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
			path := filepath.Join(t.TempDir(), "disk.raw")
			check(t, writeSparse(path, make([]byte, 1<<20)))
			s := startServe(t, path)
			d := dial(t, s.uri)
			p := bytes.Repeat([]byte{7}, 4096)
			check(t, d.Write(t.Context(), p, 8192, 0))
			done := make(chan error, 1)
			if busy {
				go func() {
					for {
						if err := d.Write(context.Background(), p, 4096, 0); err != nil {
							done <- err
							return
						}
					}
				}()
			}
			s.stop(sig, exitDone)
			if busy {
				if err := <-done; err == nil {
					t.Error("writing goes on")
				}
			}
			_ = d.Close()
			if got := readFile(t, path); !bytes.Equal(got[8192:12288], p) {
				t.Error("what was written is not there")
			}
		}
	}
}

// TestServeSecondSignal cuts off a client at once that has a long time to leave.
func TestServeSecondSignal(t *testing.T) {
	s := startServe(t, "--drain-timeout", "10m", "null:1M")
	c, err := net.Dial("unix", s.socket())
	check(t, err)
	defer c.Close()
	check(t, s.Process.Signal(syscall.SIGTERM))
	s.stop(syscall.SIGTERM, exitDone)
}

// TestServeSocket replaces the socket of a server that was killed, and leaves that of one alone that lives.
func TestServeSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "serve")
	check(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "sock")
	dead := startServe(t, "-U", path, "null:1M")
	check(t, dead.Process.Kill())
	_ = dead.Wait() // killed
	s := startServe(t, "-U", path, "--socket-mode", "0600", "null:2M")
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
	expect(t, exitFailed, "address already in use", "serve", "-U", path, "null:3M")
	if d := dial(t, s.uri); d.Size() != 2<<20 {
		t.Errorf("size %d", d.Size())
	} else {
		check(t, d.Close())
	}
	s.stop(syscall.SIGTERM, exitDone)
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}

	tcp := startServe(t, "-p", "0", "-i", "127.0.0.1", "null:1M")
	u, err := nbd.ParseURI(tcp.uri)
	check(t, err)
	_, port, err := net.SplitHostPort(u.Address)
	check(t, err)
	expect(t, exitFailed, "address already in use", "serve", "-i", "127.0.0.1", "-p", port, "null:3M")
	tcp.stop(syscall.SIGTERM, exitDone)
}

// TestServeFork starts servers that go to the background: one that can, and one that cannot.
func TestServeFork(t *testing.T) {
	dir, err := os.MkdirTemp("", "serve")
	check(t, err)
	defer os.RemoveAll(dir)
	pidFile, sock, log := filepath.Join(dir, "pid"), filepath.Join(dir, "sock"), filepath.Join(dir, "log")
	text := output(t, "serve", "--fork", "--print-uri", "--pid-file", pidFile, "-U", sock, "-v", "--log-file", log, "null:1M")
	if want := "nbd+unix:///?socket=" + sock + "\n"; string(text) != want { // and its end is seen, because the server lets go of it
		t.Errorf("%q, want %q", text, want)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(readFile(t, pidFile))))
	check(t, err)
	d := dial(t, "nbd+unix:///?socket="+sock)
	check(t, d.Close())
	if sid, err := syscall.Getpgid(pid); err != nil || sid != pid {
		t.Errorf("process group %d of %d, %v", sid, pid, err)
	}
	check(t, syscall.Kill(pid, syscall.SIGTERM))
	for names := 3; names > 1; time.Sleep(time.Millisecond) { // all but the log
		list, err := os.ReadDir(dir)
		check(t, err)
		names = len(list)
	}
	if text := string(readFile(t, log)); !strings.Contains(text, "client=1") {
		t.Errorf("log: %s", text)
	}

	expect(t, exitFailed, "imgtool: missing.raw: no such file or directory\n", "serve", "--fork", "-U", sock, "missing.raw")
	expect(t, exitFailed, "missing/sock", "serve", "--fork", "-U", "missing/sock", "null:1M")
	expect(t, exitUsage, "unknown format", "serve", "--fork", "-f", "nonsense", "-U", sock, "null:1M")
}

// TestServeParent starts a server from a shell that ends.
func TestServeParent(t *testing.T) {
	dir := t.TempDir()
	pidFile := filepath.Join(dir, "pid")
	cmd := exec.Command("sh", "-c", `imgtool serve --exit-with-parent --pid-file "$0" -U - null:1M & while ! test -s "$0"; do sleep 0.01; done; cat "$0"`, pidFile)
	out, err := cmd.Output() // the server holds none of its ends open longer than it lives
	check(t, err)
	if _, err := strconv.Atoi(strings.TrimSpace(string(out))); err != nil {
		t.Errorf("%q", out)
	}
	for { // it is removed at the end
		if _, err := os.Stat(pidFile); errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestServeExitLast ends with the last of two clients, and not with one that only looks around.
func TestServeExitLast(t *testing.T) {
	dir := t.TempDir()
	check(t, writeSparse(filepath.Join(dir, "x"), make([]byte, 1<<20)))
	s := startServe(t, "--exit-last", "--dir", dir, "--default-export", "x")
	output(t, "nbd", "list", s.uri) // opens every export on the way
	first, second := dial(t, s.uri), dial(t, s.uri)
	check(t, first.Close())
	check(t, second.Write(t.Context(), []byte{1}, 0, 0))
	check(t, second.Close())
	s.ended(exitDone)
	if got := readFile(t, filepath.Join(dir, "x")); got[0] != 1 {
		t.Error("what was written is not there")
	}
}

// TestServeRunSignals ends a server that has a command: the command is told first, and has the last word.
func TestServeRunSignals(t *testing.T) {
	for _, c := range []struct {
		command string
		signals int
		want    int
	}{
		{"trap 'exit 5' TERM; touch ready; while :; do sleep 0.01; done", 1, 5},
		{"trap 'exit 0' TERM; touch ready; while :; do sleep 0.01; done", 1, exitDone},
		{"touch ready; while :; do sleep 0.01; done", 1, 128 + int(syscall.SIGTERM)},
		{"trap '' TERM; touch ready; while :; do sleep 0.01; done", 2, 128 + int(syscall.SIGKILL)},
	} {
		dir := t.TempDir()
		cmd := exec.Command("imgtool", "serve", "null:1M", "--run", c.command)
		cmd.Dir = dir
		check(t, cmd.Start())
		for {
			if _, err := os.Stat(filepath.Join(dir, "ready")); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		for range c.signals {
			check(t, cmd.Process.Signal(syscall.SIGTERM))
			time.Sleep(20 * time.Millisecond) // signals of one kind that come at once are one
		}
		_ = cmd.Wait() // the code is looked at
		if code := cmd.ProcessState.ExitCode(); code != c.want {
			t.Errorf("%s: %d, want %d", c.command, code, c.want)
		}
	}
}

// TestServeNotify listens as a service manager does.
func TestServeNotify(t *testing.T) {
	dir, err := os.MkdirTemp("", "serve")
	check(t, err)
	defer os.RemoveAll(dir)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	check(t, err)
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	s := startServe(t, "null:1M")
	hear := func() string {
		check(t, l.SetReadDeadline(time.Now().Add(time.Minute)))
		p := make([]byte, 1000)
		n, err := l.Read(p)
		check(t, err)
		return string(p[:n])
	}
	if got, want := hear(), fmt.Sprintf("READY=1\nMAINPID=%d", s.Process.Pid); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	check(t, s.Process.Signal(syscall.SIGTERM))
	if got := hear(); got != "STOPPING=1" {
		t.Errorf("%q", got)
	}
	s.ended(exitDone)
}

// TestServeStats asks a server what it has done, in every way.
func TestServeStats(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // for a port that is free a moment later
	check(t, err)
	addr := l.Addr().String()
	check(t, l.Close())
	s := startServe(t, "--metrics", addr, "-e", "mem", "memory:1M")
	d := dial(t, s.uri)
	check(t, d.Write(t.Context(), make([]byte, 4096), 0, 0))
	get := func(path string) string {
		r, err := http.Get("http://" + addr + path)
		check(t, err)
		defer r.Body.Close()
		p, err := io.ReadAll(r.Body)
		check(t, err)
		return string(p)
	}
	if text := get("/metrics"); !strings.Contains(text, "\nnbd_written_bytes_total 4096\n") || !strings.Contains(text, `nbd_requests_total{command="WRITE"} 1`) {
		t.Errorf("metrics:\n%s", text)
	}
	stats := decode[statsJSON](t, []byte(get("/stats")))
	if stats.Active != 1 || stats.Requests["WRITE"].Bytes != 4096 || len(stats.Clients) != 1 || stats.Clients[0].Export != "mem" {
		t.Errorf("stats: %+v", stats)
	}
	check(t, s.Process.Signal(syscall.SIGUSR1))
	for text := ""; !strings.Contains(text, "WRITE") || !strings.Contains(text, `"mem"`); time.Sleep(time.Millisecond) {
		text = string(readFile(t, s.errors))
	}
	check(t, d.Close())
	s.stop(syscall.SIGTERM, exitDone)
}

// TestServeFolderClosed opens and closes the files of a folder with their clients, whatever the order.
func TestServeFolderClosed(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"x", "y"} {
		check(t, writeSparse(filepath.Join(dir, name), make([]byte, 1<<20)))
	}
	s := startServe(t, "--dir", dir, "--default-export", "x")
	other := strings.Replace(s.uri, "///x?", "///y?", 1)
	inUse := func(name string, want bool) {
		t.Helper()
		for n := 0; ; n++ { // a server closes a moment after its client has left
			code, _, _ := imgtool(t, "resize", filepath.Join(dir, name), "1M")
			if used := code != exitDone; used == want {
				return
			} else if n > 1000 {
				t.Fatalf("%s is in use: %v", name, used)
			}
		}
	}
	inUse("x", false)
	a, b, c := dial(t, s.uri), dial(t, other), dial(t, s.uri)
	inUse("x", true)
	inUse("y", true)
	check(t, a.Close())
	inUse("x", true)
	check(t, b.Close())
	inUse("y", false)
	check(t, c.Write(t.Context(), []byte{9}, 5, 0))
	check(t, c.Close())
	inUse("x", false)
	if got := readFile(t, filepath.Join(dir, "x")); got[5] != 9 {
		t.Error("what was written is not there")
	}
	check(t, os.Remove(filepath.Join(dir, "y")))
	if d, err := nbd.Dial(t.Context(), other, nbd.Options{}); err == nil {
		t.Error("a file that is gone is served")
		_ = d.Close()
	}
	s.stop(syscall.SIGTERM, exitDone)
}

// TestServeLimits makes clients wait, and sends those away that take too long or do nothing.
func TestServeLimits(t *testing.T) {
	s := startServe(t, "--max-clients", "1", "--idle-timeout", "200ms", "--handshake-timeout", "100ms", "null:1M")
	first := dial(t, s.uri) // is sent away after a while, and only then the next one comes in
	second := dial(t, s.uri)
	check(t, second.Close())
	_ = first.Close() // it is gone
	c, err := net.Dial("unix", s.socket())
	check(t, err)
	defer c.Close()
	if _, err := io.ReadAll(c); err != nil { // says nothing after the greeting
		t.Error(err)
	}
	s.stop(syscall.SIGTERM, exitDone)
}

// TestServeHandedOver refuses to listen elsewhere than on the sockets that are handed over.
func TestServeHandedOver(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	f, err := l.(*net.TCPListener).File()
	check(t, err)
	defer f.Close()
	for _, flags := range []string{"-p 0", "-U -", "--fork", "--run true", "--vsock 1"} {
		cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec imgtool serve null:1M "+flags)
		cmd.ExtraFiles = []*os.File{f}
		if code, _, stderr := runCommand(t, cmd); code != exitUsage || !strings.Contains(stderr, "LISTEN_FDS") {
			t.Errorf("%s: %d %s", flags, code, stderr)
		}
	}
}

// TestServeShared serves an image that another program is writing, where that is asked for.
func TestServeShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	check(t, writeSparse(path, make([]byte, 1<<20)))
	writer := startServe(t, path)
	expect(t, exitFailed, "in use", "serve", "-U", "-", path)
	expect(t, exitFailed, "in use", "serve", "-r", "-U", "-", path)
	reader := startServe(t, "-r", "--force-share", path)
	cow := startServe(t, "--cow", "--force-share", path)
	for _, s := range []*serveTest{reader, cow, writer} {
		s.stop(syscall.SIGTERM, exitDone)
	}
	one, two := startServe(t, "-r", path), startServe(t, "-r", path)
	one.stop(syscall.SIGTERM, exitDone)
	two.stop(syscall.SIGTERM, exitDone)
}
