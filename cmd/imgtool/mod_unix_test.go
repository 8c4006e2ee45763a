//go:build unix

package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgtool/imgtool/gzipmod/mark"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/source/file"
)

// TestModMakeInterrupted ends mod make in the middle: nothing is left of it, and the file that it would have replaced is as it was.
func TestModMakeInterrupted(t *testing.T) {
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		dir := t.TempDir()
		target := filepath.Join(dir, "out.gz")
		writeFile(t, target, []byte("old"))
		cmd := exec.Command("imgtool", "mod", "make", "-k", "range=1M+1M", "pattern:3G", target)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for { // the temporary file has bytes
			left, err := leftovers(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(left) == 1 {
				if fi, err := os.Stat(left[0]); err == nil && fi.Size() > 1<<20 {
					break
				}
			}
			time.Sleep(time.Millisecond)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the code is looked at
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || stderr.String() != "imgtool: interrupted\n" {
			t.Errorf("%v: code %d, %q", sig, code, stderr.String())
		}
		if left, _ := leftovers(dir); len(left) > 0 || string(readFile(t, target)) != "old" {
			t.Errorf("%v: left behind: %v", sig, left)
		}
	}
}

// TestModPatchInterrupted ends mod patch while it waits for its bytes: nothing has changed, and the image is free again.
func TestModPatchInterrupted(t *testing.T) {
	path := newImage(t)
	before := readFile(t, path)
	cmd := exec.Command("imgtool", "mod", "patch", path, "--offset", "1M")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The pipe takes 64 KiB without a reader: when more has gone the program is reading.
	if _, err := in.Write(make([]byte, 300<<10)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the code is looked at
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || stderr.String() != "imgtool: interrupted\n" {
		t.Errorf("code %d, %q", code, stderr.String())
	}
	left, err := leftovers(filepath.Dir(path))
	if err != nil || len(left) > 0 || !bytes.Equal(readFile(t, path), before) {
		t.Errorf("left behind: %v, %v, or the image has changed", left, err)
	}
	output(t, "mod", "verify", path)
}

// TestModBrokenPipe makes an image for a reader who goes away.
func TestModBrokenPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("imgtool", "mod", "make", "pattern:64M", "-")
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	_ = cmd.Wait() // the code is looked at
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || stderr.Len() > 0 {
		t.Errorf("code %d, %q", code, stderr.String())
	}
}

// TestModLocks uses an image that another program is writing.
func TestModLocks(t *testing.T) {
	path := newImage(t)
	raw, other := strings.TrimSuffix(path, ".gz"), filepath.Join(t.TempDir(), "other.gz")
	busy := func(t *testing.T) {
		t.Helper()
		for _, args := range [][]string{
			{"patch", path, "--offset", "1M", "--from", raw}, {"verify", path}, {"info", path}, {"repair", path}, {"index", path}, {"clone", path, other},
			{"make", raw, path},
		} {
			expect(t, exitFailed, "imgtool: "+path+": in use: another program ", append([]string{"mod"}, args...)...)
			expect(t, exitFailed, "\nhint: ", append([]string{"mod"}, args...)...)
		}
		if left, _ := leftovers(filepath.Dir(path)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	before := readFile(t, path)
	d, err := file.Open(context.Background(), path, file.Options{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	busy(t)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	output(t, "mod", "verify", path)

	// A reader keeps writers out, and lets readers in.
	if d, err = file.Open(context.Background(), path, file.Options{}); err != nil {
		t.Fatal(err)
	}
	output(t, "mod", "verify", path)
	expect(t, exitFailed, "imgtool: "+path+": in use: another program ", "mod", "patch", path, "--offset", "1M", "--from", raw)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readFile(t, path), before) {
		t.Error("the image has changed")
	}

	t.Run("qemu", func(t *testing.T) {
		cmd := peers.Command(t, "qemu-io", "-f", "raw", path)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("qemu-io> "))); err != nil { // it has opened the file
			t.Fatal(err)
		}
		busy(t)
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
		output(t, "mod", "verify", path)
	})
}

// asNobody makes a command run without the rights of the administrator, where the test has them.
func asNobody(t *testing.T, dir string, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if os.Geteuid() != 0 {
		return cmd
	}
	const nobody = 65534
	program, err := filepath.EvalSymlinks(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Dir(dir), filepath.Dir(program), filepath.Dir(filepath.Dir(program))} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(names, dir) {
		if err := os.Chown(path, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

// TestModPermissions uses files and folders that may not be written, without being allowed to do all.
func TestModPermissions(t *testing.T) {
	path := newImage(t)
	dir, journal := filepath.Dir(path), path+mark.Suffix
	patch := []string{"mod", "patch", path, "--offset", "1M", "--from", path + ".patch"}
	writeFile(t, path+".patch", []byte("text"))
	before := readFile(t, path)
	try := func(code int, want string, args ...string) {
		t.Helper()
		got, stdout, stderr := runCommand(t, asNobody(t, dir, exec.Command("imgtool", args...)))
		if text := stdout + stderr; got != code || !strings.Contains(text, want) {
			t.Errorf("imgtool %q ends with %d and prints %q; want %d and %q", args, got, text, code, want)
		}
		if _, err := os.Stat(journal); err == nil && !bytes.Equal(readFile(t, path), before) {
			t.Errorf("imgtool %q changed the image", args)
		}
	}
	chmod := func(path string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	// The file is read-only.
	chmod(path, 0o444)
	try(exitFailed, "imgtool: "+path+": permission denied\n", patch...)
	try(exitFailed, "imgtool: "+path+": permission denied\n", "mod", "repair", path)
	try(exitFailed, "imgtool: "+path+": permission denied\n", "mod", "index", path)
	try(exitFailed, "imgtool: "+path+": replace the file: permission denied\n", "mod", "make", "pattern:1M", path)
	try(exitDone, "good\n", "mod", "verify", path)
	chmod(path, 0o644)
	chmod(path+".patch", 0)
	try(exitFailed, "imgtool: "+path+".patch: permission denied\n", patch...)
	chmod(path+".patch", 0o644)
	// The folder is read-only, so that a change cannot be announced.
	chmod(dir, 0o555)
	try(exitFailed, "imgtool: "+path+": the change cannot be announced: open "+journal+": permission denied\nhint: while an image is changed a small file lies beside it", patch...)
	try(exitFailed, ": create a temporary file in the same folder: permission denied\n", "mod", "make", "pattern:1M", filepath.Join(dir, "new.gz"))
	try(exitFailed, ": create a temporary file in the same folder: permission denied\n", "mod", "clone", path, filepath.Join(dir, "new.gz"))
	try(exitDone, "good\n", "mod", "verify", path)
	try(exitDone, "nothing to repair\n", "mod", "repair", path)
	chmod(dir, 0o755)
	if !bytes.Equal(readFile(t, path), before) {
		t.Error("the image has changed")
	}
	// A mark of somebody else, who alone may read it, is a mark all the same.
	writeFile(t, journal, []byte("x"))
	chmod(journal, 0o000)
	try(exitDone, "a change was interrupted", "mod", "info", path)
	try(exitCorrupt, "a change was interrupted", "mod", "verify", path)
	try(exitFailed, "a change was interrupted", patch...)
	try(exitFailed, "imgtool: "+path+": reading the mark: open "+journal+": permission denied\n", "mod", "repair", path)
	if err := os.Remove(journal); err != nil {
		t.Fatal(err)
	}
	try(exitDone, "4 of 4 bytes at byte 1048576 changed", patch...)
}
