package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestInterruptFIFO ends programs that wait for the other end of a FIFO, or for what comes through it: the first signal does.
func TestInterruptFIFO(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		other bool // the other end is there, and silent
		args  []string
	}{
		{"read", false, []string{"info", fifo}},
		{"write", false, []string{"convert", "null:1M", fifo}},
		{"silence", true, []string{"info", fifo}},
		{"full", true, []string{"convert", "pattern:16M", fifo}},
	} {
		if c.other {
			f, err := os.OpenFile(fifo, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
		}
		code, stderr := -1, ""
		for delay := 50 * time.Millisecond; code < 0; delay *= 2 { // until it has come far enough to catch the signal
			code, stderr = terminated(t, delay, c.args...)
		}
		if code != exitInterrupted || stderr != "imgtool: interrupted\n" {
			t.Errorf("%s: code %d, %q", c.name, code, stderr)
		}
	}
}

// terminated runs the program, sends it a signal after a while, and returns its exit code, -1 where it was killed, and what it has said.
func terminated(t *testing.T, delay time.Duration, args ...string) (int, string) {
	cmd := exec.Command("imgtool", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(delay)
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the code is looked at
	return cmd.ProcessState.ExitCode(), stderr.String()
}

// TestHangup ends a conversion by the signal of a terminal that goes away, unless that is ignored, as nohup has it.
func TestHangup(t *testing.T) {
	for _, ignored := range []bool{false, true} {
		dir := t.TempDir()
		out := filepath.Join(dir, "out.raw")
		cmd := exec.Command("imgtool", "convert", "-f", "raw", "-", out)
		if ignored {
			cmd = exec.Command("sh", "-c", `trap "" HUP; exec imgtool convert -f raw - "$0"`, out)
		}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := in.Write(bytes.Repeat([]byte{1}, 1<<20)); err != nil {
			t.Fatal(err)
		}
		for { // the temporary file is there
			names, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(names) > 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if ignored {
			if err := in.Close(); err != nil {
				t.Fatal(err)
			}
		}
		_ = cmd.Wait() // the code is looked at
		want, files := exitInterrupted, 0
		if ignored {
			want, files = exitDone, 1
		}
		names, _ := os.ReadDir(dir)
		if code := cmd.ProcessState.ExitCode(); code != want || len(names) != files {
			t.Errorf("ignored %v: code %d, files %v", ignored, code, names)
		}
	}
}
