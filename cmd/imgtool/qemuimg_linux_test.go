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
	"time"
)

// TestQemuImgLink runs the program by a link of that name, in 1 GiB of address space and 2 seconds of processor time: Incus lets qemu-img
// have that much for images that it does not trust.
func TestQemuImgLink(t *testing.T) {
	if os.Getenv("IMGTOOL_SOAK") != "1" {
		t.Skip("builds the program; IMGTOOL_SOAK=1 does it")
	}
	dir := t.TempDir()
	link := filepath.Join(dir, qemuImgName)
	if err := os.Symlink(buildProgram(t), link); err != nil {
		t.Fatal(err)
	}
	run := func(line string) string {
		cmd := exec.CommandContext(t.Context(), "sh", append([]string{"-c", `ulimit -v 1048576 && ulimit -t 2 && exec "$0" "$@"`, link}, fields(line)...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		return string(out)
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 32<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	run("convert -S 0 -O qcow2 a b")
	if out := run("info -f qcow2 b"); !strings.Contains(out, "virtual size: 32 MiB (33554432 bytes)") {
		t.Error(out)
	}
	run("convert -c -O qcow2 b c")
	run("compare a c")
}

// TestQemuImgSignal asks how far a conversion is that nobody wants to see the progress of.
func TestQemuImgSignal(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), bytes.Repeat([]byte{1}, 64<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "imgtool", qemuImgName, "convert", "-r", "1M", "a", "b")
	cmd.Dir = dir
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	for { // the temporary file is there, and the program listens
		names, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(names) > 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if text, err := bufio.NewReader(out).ReadString('\r'); err != nil || !strings.HasSuffix(text, "/100%)\r") {
		t.Errorf("%q, %v", text, err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the code is looked at
	if names, _ := os.ReadDir(dir); cmd.ProcessState.ExitCode() != exitInterrupted || len(names) != 1 {
		t.Errorf("ends with %d and leaves %v", cmd.ProcessState.ExitCode(), names)
	}
}
