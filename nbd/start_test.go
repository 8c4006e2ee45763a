//go:build unix

package nbd_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/nbd"
)

// private gives the test a folder for temporary files, and fails it where something is left there.
func private(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Cleanup(func() {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func startServer(t testing.TB, argv []string, export string) *nbd.Device {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	d, err := nbd.Start(ctx, argv, export, nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestStart(t *testing.T) {
	leaks(t)
	private(t)
	kit := peers.Need(t, "nbdkit")
	blocktest.Run(t, blocktest.Config{Size: 1 << 16, Ops: 30, New: func(t *testing.T) block.Device {
		return startServer(t, []string{kit, "memory", "65536", "allocator=malloc"}, "")
	}})

	d := startServer(t, []string{kit, "memory", "1M", "--filter=delay", "rdelay=5ms"}, "")
	done := make(chan error)
	for range 100 {
		go func() {
			var err error
			for range 10 {
				err = errors.Join(err, d.Read(t.Context(), make([]byte, 512), 0))
			}
			done <- err
		}()
	}
	for range 100 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if got := d.Connections(); got != nbd.DefaultConnections {
		t.Errorf("%d connections to a server that allows several", got)
	}
	if name := d.Info().Name; name != "[ "+kit+" memory 1M --filter=delay rdelay=5ms ]" {
		t.Errorf("the device is called %s", name)
	}
}

// TestStartWords: what a program is given are words, whatever is in them.
func TestStartWords(t *testing.T) {
	private(t)
	kit := peers.Need(t, "nbdkit")
	word := `a b'c"d$(touch x)\e` + "`f`\n"
	d := startServer(t, []string{kit, "info", "mode=exportname"}, word)
	p := make([]byte, d.Size())
	if err := d.Read(t.Context(), p, 0); err != nil || string(p) != word {
		t.Errorf("the export is called %q, %v", p, err)
	}
	path := filepath.Join(t.TempDir(), "a 'b\" $(c)")
	if err := os.WriteFile(path, []byte(strings.Repeat(".", 512)), 0o600); err != nil {
		t.Fatal(err)
	}
	if d := startServer(t, []string{kit, "file", path}, ""); d.Size() != 512 {
		t.Errorf("a file of %d bytes", d.Size())
	}
}

// TestStartFails says why.
func TestStartFails(t *testing.T) {
	leaks(t)
	private(t)
	for name, c := range map[string]struct {
		argv []string
		want string
	}{
		"nothing":            {nil, "no program"},
		"no such program":    {[]string{"/nowhere/nbdkit"}, "no such file"},
		"it ends":            {[]string{"sh", "-c", "exit 3"}, "exit status 3"},
		"it ends in a while": {[]string{"sh", "-c", "sleep 0.05"}, "the server has ended: exit status 0"},
		"it is killed":       {[]string{"sh", "-c", "kill -9 $$"}, "killed"},
		"it says nonsense":   {[]string{peers.Need(t, "nbdkit"), "--exit-with-parent", "no-such-plugin"}, "exit status 1"},
	} {
		if d, err := nbd.Start(t.Context(), c.argv, "", nbd.Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", name, d, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := nbd.Start(ctx, []string{"sleep", "100"}, "", nbd.Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a program that serves nothing: %v", err)
	}
}

// TestStartLongTemp: where paths in the folder for temporary files are too long for a socket, it is made elsewhere.
func TestStartLongTemp(t *testing.T) {
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 100))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", long)
	d := startServer(t, []string{peers.Need(t, "nbdkit"), "memory", "1M"}, "")
	if d.Size() != 1<<20 {
		t.Errorf("%d bytes", d.Size())
	}
}

// TestStartedDies: calls fail when the server has died, and say so.
func TestStartedDies(t *testing.T) {
	leaks(t)
	private(t)
	d := startServer(t, []string{peers.Need(t, "nbdkit"), "eval", "get_size=echo 1048576", "pread=kill -9 $PPID; sleep 1"}, "")
	d.SetPause(time.Millisecond)
	if err := d.Read(t.Context(), make([]byte, 512), 0); err == nil || !strings.Contains(err.Error(), "the server has ended") {
		t.Errorf("the error is %v", err)
	} else if hint := new(block.Hint); errors.As(err, &hint) {
		t.Errorf("a server that did serve gets the advice %q", hint.Text)
	}
}

// TestStartedDiesWithUs kills a process that has started a server.
func TestStartedDiesWithUs(t *testing.T) {
	kit := peers.Need(t, "nbdkit")
	if pids := os.Getenv("TEST_STARTER"); pids != "" {
		startServer(t, []string{kit, "-P", pids, "memory", "1M"}, "")
		os.Stdout.WriteString("started\n")
		time.Sleep(time.Minute)
		return
	}
	if _, err := os.Stat("/proc/self/status"); err != nil {
		t.Skip("only Linux ends children with their parent")
	}
	dir := t.TempDir()
	pids := filepath.Join(dir, "pid")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestStartedDiesWithUs$")
	cmd.Env = append(os.Environ(), "TEST_STARTER="+pids, "TMPDIR="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "started\n" {
		t.Fatal(line, err)
	}
	pid, err := os.ReadFile(pids)
	if err != nil {
		t.Fatal(err)
	}
	proc := "/proc/" + string(bytes.TrimSpace(pid)) + "/comm"
	if _, err := os.Stat(proc); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Signal(syscall.SIGKILL)
	cmd.Wait()
	for range 500 {
		if comm, err := os.ReadFile(proc); err != nil || !bytes.HasPrefix(comm, []byte("nbdkit")) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the server lives on")
}
