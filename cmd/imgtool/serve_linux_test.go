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
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir()) // where it leaves its socket behind
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

// TestServeFUSE has other programs make a file system in a served qcow2 by way of a file that nbdfuse shows, and look at it afterwards.
func TestServeFUSE(t *testing.T) {
	needFUSE(t)
	for _, program := range []string{"nbdfuse", "mke2fs", "e2fsck", "fusermount3"} {
		peers.Need(t, program)
	}
	dir := t.TempDir()
	path, at, tree := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "at"), filepath.Join(dir, "tree")
	check(t, os.MkdirAll(tree, 0o755))
	check(t, os.Mkdir(at, 0o755))
	writeFile(t, filepath.Join(tree, "file"), make([]byte, 100_000))
	output(t, "create", "-q", "-f", "qcow2", path, "32M")
	s := startServe(t, path)
	fuse := peers.Command(t, "nbdfuse", at, s.uri)
	check(t, fuse.Start())
	file := filepath.Join(at, "nbd")
	for {
		if _, err := os.Stat(file); err == nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	peers.Run(t, "mke2fs", "-q", "-t", "ext4", "-F", "-d", tree, file)
	peers.Run(t, "fusermount3", "-u", at)
	check(t, fuse.Wait())
	s.stop(syscall.SIGTERM, exitDone)
	output(t, "check", path)
	raw := filepath.Join(dir, "disk.raw")
	output(t, "convert", "-q", path, raw)
	peers.Run(t, "e2fsck", "-fn", raw)
}

// TestServeDrainCopy ends a server in the middle of a copy onto it: the copier fails, the server does not, and the image is whole.
func TestServeDrainCopy(t *testing.T) {
	peers.Need(t, "nbdcopy")
	dir := t.TempDir()
	from, path := filepath.Join(dir, "from.raw"), filepath.Join(dir, "disk.qcow2")
	output(t, "convert", "-q", "pattern:96M", from)
	output(t, "create", "-q", "-f", "qcow2", path, "96M")
	s := startServe(t, path)
	copier := peers.Command(t, "nbdcopy", from, s.uri)
	check(t, copier.Start())
	for { // some of it is there
		fi, err := os.Stat(path)
		check(t, err)
		if fi.Size() > 16<<20 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	s.stop(syscall.SIGTERM, exitDone)
	_ = copier.Wait() // it may just have ended
	output(t, "check", path)
}

// TestEndFails: what cannot be made durable at the end is told, though it was a signal that asked for the end.
func TestEndFails(t *testing.T) {
	broken := "[ " + peers.Need(t, "nbdkit") + " eval get_size='echo 1048576' 'pread=head -c $3 /dev/zero' pwrite='cat >/dev/null' 'can_write=exit 0' 'can_flush=exit 0' 'flush=echo ENOSPC the disk is full >&2; exit 1' ]"
	s := startServe(t, "-f", "raw", broken)
	d := dial(t, s.uri)
	check(t, d.Write(t.Context(), []byte("data"), 0, 0))
	s.stop(syscall.SIGTERM, exitFailed)
	d.Close() // the server has gone
	if text := string(readFile(t, s.errors)); !strings.Contains(text, "no space left on device") && !strings.Contains(text, "disk is full") {
		t.Errorf("the reason is not told: %s", text)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no FUSE")
	}
	dir := t.TempDir()
	cmd := exec.Command("imgtool", "mount", "-f", "raw", broken, dir, "--run", `trap '' TERM; dd if=/dev/zero of="$file" bs=4k count=1 conv=notrunc; kill $PPID; exit 0`)
	if out, _ := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != exitFailed || !strings.Contains(string(out), "space left") {
		t.Errorf("mount ends with %d: %s", cmd.ProcessState.ExitCode(), out)
	}
}
