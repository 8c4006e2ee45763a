package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestFullDisk converts to a file system that is too small, and to a device that is always full.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "small")
	if err := os.Mkdir(disk, 0o777); err != nil {
		t.Fatal(err)
	}
	targets := []string{"/dev/full"}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=1m"); err != nil {
		t.Logf("no file system of 1 MiB: %v", err)
	} else {
		defer syscall.Unmount(disk, 0)
		for _, name := range []string{"x.raw", "x.gz", "x.qcow2"} {
			targets = append(targets, filepath.Join(disk, name))
		}
		old := filepath.Join(disk, "old.raw")
		if err := os.WriteFile(old, []byte("old"), 0o666); err != nil {
			t.Fatal(err)
		}
		targets = append(targets, old)
		fullImage(t, filepath.Join(disk, "old.qcow2"))
	}
	for _, target := range targets {
		cmd := exec.Command("imgtool", "convert", "pattern:16M", target)
		if strings.HasSuffix(target, ".gz") {
			cmd = exec.Command("imgtool", "convert", "-o", "level=0", "pattern:16M", target)
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		_ = cmd.Run() // the code is looked at
		if code := cmd.ProcessState.ExitCode(); code != exitFailed || !strings.Contains(stderr.String(), "no space left on device") {
			t.Errorf("%s: code %d, %s", target, code, &stderr)
		}
	}
	names, err := os.ReadDir(disk)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		if p, err := os.ReadFile(filepath.Join(disk, n.Name())); err != nil || n.Name() != "old.raw" || string(p) != "old" {
			t.Errorf("left behind: %s, %d bytes, %v", n.Name(), len(p), err)
		}
	}
}

// fullImage writes more into an image than the file system of 1 MiB holds. The image is still one afterwards.
func fullImage(t *testing.T, path string) {
	t.Helper()
	output(t, "create", "-q", path, "16M")
	cmd := exec.Command("imgtool", "convert", "-n", "pattern:16M", path)
	out, _ := cmd.CombinedOutput() // the code is looked at
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || !bytes.Contains(out, []byte("no space left on device")) {
		t.Errorf("%s: code %d, %s", path, code, out)
	}
	output(t, "check", "-q", "-r", "leaks", path)
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
}

// TestStatusSignal asks a conversion that waits for its source how far it is.
func TestStatusSignal(t *testing.T) {
	target := filepath.Join(t.TempDir(), "out.raw")
	cmd := exec.Command("imgtool", "convert", "-q", "-f", "raw", "-", target)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte{1}, 4<<20)
	if _, err := in.Write(data); err != nil { // more than a pipe holds: it is being read
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(errs).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "convert: ") {
		t.Errorf("%q, %v", line, err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(target); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
