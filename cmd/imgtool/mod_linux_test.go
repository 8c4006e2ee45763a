package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal returns the two ends of a new terminal.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// TestModTerminal neither writes an image to a terminal nor reads a patch from one.
func TestModTerminal(t *testing.T) {
	path := newImage(t)
	_, slave := terminal(t)
	var stderr strings.Builder
	cmd := exec.Command("imgtool", "mod", "make", path, "-")
	cmd.Stdout, cmd.Stderr = slave, &stderr
	_ = cmd.Run() // the code is looked at
	if code := cmd.ProcessState.ExitCode(); code != exitUsage || stderr.String() != "imgtool: an image is not written to a terminal: redirect the output, or give a file name\n" {
		t.Errorf("code %d, %q", code, &stderr)
	}
	cmd = exec.Command("imgtool", "mod", "patch", path, "--offset", "1M")
	cmd.Stdin = slave
	if code, _, text := runCommand(t, cmd); code != exitUsage || text != "imgtool: standard input is a terminal: redirect it, or give a file with --from\n" {
		t.Errorf("code %d, %q", code, text)
	}
	if left, err := leftovers(filepath.Dir(path)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestModDiskFull changes an image on a file system that fills up meanwhile: its kept range is a hole of the file, which takes room when it is written.
func TestModDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Logf("only the administrator can make a small file system: %v", err)
		return
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path, patch := filepath.Join(dir, "disk.gz"), filepath.Join(t.TempDir(), "patch")
	output(t, "mod", "make", "-k", "range=0+8M", "null:8M", path)
	output(t, "convert", "-O", "raw", "pattern:2M", patch)
	expect(t, exitFailed, "imgtool: "+path+": after ", "mod", "patch", path, "--offset", "4k", "--from", patch)
	output(t, "mod", "verify", path)
	expect(t, exitFailed, "no space left on device\nhint: a part of the patch may have been written; the image is sound: patch it again\n",
		"mod", "patch", path, "--offset", "4k", "--from", patch)
	output(t, "mod", "verify", path)
	before := readFile(t, path)
	expect(t, exitFailed, "no space left on device\n", "mod", "make", "pattern:8M", path)
	expect(t, exitFailed, "no space left on device\n", "mod", "clone", path, filepath.Join(dir, "other.gz"))
	if after := readFile(t, path); string(after) != string(before) {
		t.Error("an image that could not be replaced has changed")
	}
	if left, err := leftovers(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
