package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgtool/imgtool/internal/peers"
)

// descriptors returns how many files a process has open.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	check(t, err)
	return len(names)
}

// TestServeDescriptors counts open files before and after clients, of which some vanish.
func TestServeDescriptors(t *testing.T) {
	dir := t.TempDir()
	check(t, writeSparse(filepath.Join(dir, "x"), make([]byte, 1<<20)))
	s := startServe(t, "--dir", dir, "--default-export", "x")
	first := dial(t, s.uri) // opens what is opened once
	check(t, first.Close())
	want := func() int {
		for n, last := 0, -1; ; n++ { // until the last client is gone
			if now := descriptors(t, s.Process.Pid); now == last && n > 5 {
				return now
			} else {
				last = now
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	before := want()
	for range 30 {
		cmd := exec.Command("imgtool", "nbd", "info", "--size", s.uri)
		check(t, cmd.Start())
		time.Sleep(time.Millisecond)
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	}
	if after := want(); after != before {
		t.Errorf("%d open files, %d before", after, before)
	}
	s.stop(syscall.SIGTERM, exitDone)
}

// TestServeRunKilled kills a server that has a command: the command ends too.
func TestServeRunKilled(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	cmd := exec.Command("imgtool", "serve", "null:1M", "--run", `echo $$ >"`+pidFile+`.new"; mv "`+pidFile+`.new" "`+pidFile+`"; exec sleep 1000`)
	check(t, cmd.Start())
	var pid int
	for pid == 0 {
		p, _ := os.ReadFile(pidFile)
		pid, _ = strconv.Atoi(strings.TrimSpace(string(p)))
		time.Sleep(time.Millisecond)
	}
	check(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// TestServeFullTemp writes more to a throw-away layer than its folder can hold: the client is told, and what was there before is still served.
func TestServeFullTemp(t *testing.T) {
	peers.Need(t, "qemu-io")
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small tmpfs")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("mount: %v", err)
	}
	defer func() { check(t, syscall.Unmount(dir, 0)) }()
	s := startServe(t, "--cow", "--cow-dir", dir, "pattern:16M")
	code, stdout, stderr := runCommand(t, peers.Command(t, "qemu-io", "-f", "raw", "-c", "write 0 8M", s.uri))
	if text := stdout + stderr; code == 0 || !strings.Contains(text, "No space left") {
		t.Errorf("%d: %s", code, text)
	}
	peers.Run(t, "qemu-io", "-f", "raw", "-c", "read 12M 1M", s.uri)
	s.stop(syscall.SIGTERM, exitDone)
}
