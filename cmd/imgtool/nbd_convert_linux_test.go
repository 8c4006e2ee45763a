package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/imgtool/imgtool/internal/peers"
)

// processes returns how many processes have a word in their command lines.
func processes(t *testing.T, word string) (n int) {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range list {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(word)) { // others may end meanwhile
			n++
		}
	}
	return n
}

// TestProgramsEnd: however imgtool ends, the servers that it has started do.
func TestProgramsEnd(t *testing.T) {
	peers.Need(t, "nbdkit")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		mark := filepath.Join(t.TempDir(), "mark")
		if err := os.WriteFile(mark, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		server := "[ nbdkit --filter=delay --filter=noextents file " + mark + " rdelay=30 ]"
		cmd := exec.Command("imgtool", "convert", "-f", "raw", server, mark+".copy")
		temp := t.TempDir()
		cmd.Env = append(os.Environ(), "TMPDIR="+temp)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for range 500 {
			if names := fileNames(t, filepath.Dir(mark)); len(names) > 1 { // it has opened the source, and begun the target
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if processes(t, mark) < 2 {
			t.Error("the server does not run")
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // by a signal
		if code := cmd.ProcessState.ExitCode(); sig != syscall.SIGKILL && code != exitInterrupted {
			t.Errorf("%v: code %d", sig, code)
		}
		if names := fileNames(t, temp); sig != syscall.SIGKILL && len(names) > 0 {
			t.Errorf("%v leaves %v behind", sig, names)
		}
		n := processes(t, mark)
		for range 500 {
			if n == 0 {
				break
			}
			time.Sleep(10 * time.Millisecond)
			n = processes(t, mark)
		}
		if n > 0 {
			t.Errorf("%v: %d processes are left", sig, n)
		}
	}
}

// cutter is a proxy that cuts its connections each time that so many bytes have come from the server, as often as it is told to.
type cutter struct {
	listener net.Listener
	cuts     atomic.Int64 // still to come
	every    int64        // bytes
}

func newCutter(t *testing.T, socket, server string, cuts, every int64) *cutter {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{listener: l, every: every}
	c.cuts.Store(cuts)
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go c.serve(client, server)
		}
	}()
	t.Cleanup(func() { l.Close() })
	return c
}

func (c *cutter) serve(client net.Conn, path string) {
	defer client.Close()
	server, err := net.Dial("unix", path)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client) // until it is cut
		server.Close()
	}()
	for {
		if _, err := io.CopyN(client, server, c.every); err != nil || c.cuts.Add(-1) >= 0 {
			return
		}
	}
}

// TestNBDCut cuts connections in the middle of copies: they are made again as often as the user allows, and what comes out is right; else the copy fails.
func TestNBDCut(t *testing.T) {
	peers.Need(t, "nbdkit")
	dir := t.TempDir()
	data := scattered(t, filepath.Join(dir, "disk"), 24<<20, 1)
	start := func(name string, args ...string) string { // with one thread for a connection: nbdkit 1.32 aborts where one that others write to is cut
		socket := filepath.Join(dir, name+".socket")
		cmd := peers.Command(t, "nbdkit", append([]string{"-f", "-t", "1", "-U", socket}, args...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // by a signal
		})
		waitFor(t, socket)
		return socket
	}
	source := start("source", "-r", "file", filepath.Join(dir, "disk"))
	if err := os.WriteFile(filepath.Join(dir, "target"), bytes.Repeat([]byte("old data"), len(data)/8), 0o600); err != nil {
		t.Fatal(err)
	}
	target := start("target", "file", filepath.Join(dir, "target"))
	proxy := func(name, server string, cuts, every int64) string {
		socket := filepath.Join(dir, name)
		newCutter(t, socket, server, cuts, every)
		return "nbd+unix:///?socket=" + socket
	}

	cut := proxy("1", source, 3, 3<<20)
	out := filepath.Join(dir, "out")
	output(t, "convert", cut, out)
	sameContent(t, "a source that is cut", out, data)
	output(t, "convert", filepath.Join(dir, "disk"), proxy("2", target, 3, 1000))
	sameContent(t, "a target that is cut", filepath.Join(dir, "target"), data)
	if err := os.Remove(out); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"convert", "--retries=0", proxy("3", source, 1<<40, 3<<20), out},
		{"convert", "--retries=0", filepath.Join(dir, "disk"), "--connections=1", proxy("4", target, 1<<40, 1000)},
	} {
		cmd := exec.Command("imgtool", args...)
		text, _ := cmd.CombinedOutput() // the code is looked at
		if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(string(text), "\nimgtool: nbd+unix://") {
			t.Errorf("%q: code %d, %s", args, code, text)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a copy that has failed is there")
	}
}
