package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

// TestNBDConformance tries the program's own server, whole, and looks at what is printed.
func TestNBDConformance(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := writeSparse(disk, []byte(strings.Repeat("some data ", 10000))); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := imgtool(t, "--json", "nbd", "conformance", "--destructive", "[", "imgtool", "-q", "serve", disk, "]")
	var report struct {
		Counts map[string]int
		Checks []struct{ Check, Level, Outcome, Detail string }
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != exitDone {
		t.Fatalf("it ends with %d, %v:\n%s%s", code, err, stdout, stderr)
	}
	for _, c := range report.Checks {
		if c.Outcome == "fail" || c.Outcome == "warn" {
			t.Errorf("%s %s: %s", c.Outcome, c.Check, c.Detail)
		}
	}
	if report.Counts["pass"] < 150 {
		t.Errorf("few checks pass: %v", report.Counts)
	}
	if after, err := os.ReadFile(disk); err != nil || string(after) != string(before) {
		t.Errorf("the image is another one afterwards; %v", err)
	}
}

// TestNBDConformanceCodes has the exit codes, and what is printed for people.
func TestNBDConformanceCodes(t *testing.T) {
	expect(t, exitUsage, `no check fits "nothing"`, "nbd", "conformance", "--check", "nothing", "nbd://localhost")
	expect(t, exitUsage, `"perhaps" is not a level`, "nbd", "conformance", "--level", "perhaps", "nbd://localhost")
	expect(t, exitUsage, "takes 1 argument", "nbd", "conformance")
	expect(t, exitUsage, "takes 0 arguments", "nbd", "conformance", "--list", "nbd://localhost")
	expect(t, exitFailed, "the server takes no connection", "nbd", "conformance", "nbd+unix:///?socket=/nowhere")
	expect(t, exitFailed, "[ true ]: the server ", "nbd", "conformance", "[", "true", "]")

	code, stdout, _ := imgtool(t, "nbd", "conformance", "--list", "--level", "must", "--check", "meta/set*")
	if lines := strings.Split(strings.TrimSpace(stdout), "\n"); code != exitDone || len(lines) < 5 || !strings.Contains(lines[0], "meta/set ") {
		t.Errorf("--list prints\n%s", stdout)
	}
	code, stdout, _ = imgtool(t, "--json", "nbd", "conformance", "--list", "--check", "flush/flush")
	if want := `"needs": [`; code != exitDone || !strings.Contains(stdout, want) || !strings.Contains(stdout, `"check": "flush/flush"`) {
		t.Errorf("--list --json prints\n%s", stdout)
	}

	peers.Need(t, "nbdkit")
	server := []string{"[", "nbdkit", "memory", "1M", "]"}
	try := func(flags ...string) (int, string) {
		cmd := exec.Command("imgtool", append(append([]string{"nbd", "conformance"}, flags...), server...)...)
		out, _ := cmd.Output() // the code is looked at; nbdkit talks to standard error
		return cmd.ProcessState.ExitCode(), string(out)
	}
	if code, out := try("--check", "meta/set-duplicates"); code != exitDeviates || !strings.HasPrefix(out, "fail  meta/set-duplicates") || !strings.Contains(out, "\n0 pass, 1 fail") {
		t.Errorf("a server that deviates: %d\n%s", code, out)
	}
	if code, out := try("--check", "meta/set"); code != exitDone || !strings.HasPrefix(out, "1 pass, 0 fail") {
		t.Errorf("a server that does not: %d\n%s", code, out)
	}
	if code, out := try("--check", "meta/list-duplicates", "--level", "should"); code != exitDone || !strings.HasPrefix(out, "warn  meta/list-duplicates") {
		t.Errorf("a warning: %d\n%s", code, out)
	}
	if code, out := try("--all", "--check", "write/read-back"); code != exitDone || !strings.Contains(out, "skip  write/read-back") || !strings.Contains(out, "may not be changed") {
		t.Errorf("without --destructive: %d\n%s", code, out)
	}
}

// TestNBDSh has what the command adds to package nbd/shell.
func TestNBDSh(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := writeSparse(disk, []byte("the beginning")); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 1<<20); err != nil {
		t.Fatal(err)
	}
	server := "[ imgtool serve -r " + disk + " ]"
	expect(t, exitDone, `1048576 b"the" {"base:allocation":`, "nbd", "sh", "--base-allocation", "-u", server, "-c", "a = repr(h.pread(3, 0))", "-c", "print(h.get_size(), a, h.block_status(512, 0))")
	expect(t, exitDone, "True 1048576", "nbd", "sh", "--opt-mode", "-u", server, "-c", "h.opt_info(); print(h.aio_is_negotiating(), h.get_size())")
	expect(t, exitFailed, "imgtool: -c:1:9: WRITE: read-only", "nbd", "sh", "-u", server, "-c", "h.pwrite(b'x', 0)")
	expect(t, exitFailed, "no such file", "nbd", "sh", "-u", "nbd+unix:///?socket=/nowhere")
	expect(t, exitFailed, "undefined: h", "nbd", "sh", "-n", "-c", "h")
	expect(t, exitUsage, "-n makes no handle", "nbd", "sh", "-n", "--opt-mode")
	expect(t, exitUsage, "takes at most 1 argument", "nbd", "sh", "a", "b")

	script := filepath.Join(t.TempDir(), "script.star")
	if err := os.WriteFile(script, []byte("x = 1\nprint('x is', x)\nundefined\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	expect(t, exitFailed, script+":3:1: undefined: undefined", "nbd", "sh", script)
	for _, x := range []struct{ args, in, want string }{
		{"nbd sh", "1 + 1\nfor i in range(2):\n  print('line', i)\n\nnbd.CMD_WRITE", "2\nline 0\nline 1\n1\n"},
		{"nbd sh -c -", "print('from', 'there')", "from there\n"},
	} {
		cmd := exec.Command("imgtool", strings.Fields(x.args)...)
		cmd.Stdin = strings.NewReader(x.in)
		if code, stdout, stderr := runCommand(t, cmd); code != exitDone || stdout != x.want {
			t.Errorf("%s: %d\n%s%s", x.args, code, stdout, stderr)
		}
	}
}
