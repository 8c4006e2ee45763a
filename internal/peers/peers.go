// Package peers finds the outside programs that tests compare imgtool with: qemu-img, nbdkit, gzip and their like.
//
// A test that needs one begins with [Need], and is skipped where it is missing, with the name of the Debian package
// that brings it. With IMGTOOL_PEERS=require in the environment the test fails instead, so that a run in which nothing
// was compared cannot look like a good one.
//
// [Run] runs a peer and returns what it prints. [OpenCorpus] and [Images] name the folders of images that come from elsewhere.
//
// The table of programs in table.go is the only one: `make peers` installs what it lists.
package peers

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// Need returns the path of a program that the table knows. Where the program is not installed it skips the test,
// or fails it under IMGTOOL_PEERS=require. A program that is missing from the table fails the test always.
func Need(t testing.TB, program string) string {
	t.Helper()
	pkg, known := packages[program]
	if !known {
		t.Fatalf("peers: %s is not in the table of internal/peers/table.go", program)
	}
	path, ok := find(program)
	if ok {
		return path
	}
	missing := fmt.Sprintf("peers: %s is not installed: `apt-get install %s` brings it, and so does `make peers`", program, pkg)
	if os.Getenv("IMGTOOL_PEERS") == "require" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// Command returns a command that runs a program found by [Need], for tests that set its input or look at its exit
// code. Its messages are in English, and it is killed when the test ends.
func Command(t testing.TB, program string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), Need(t, program), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	return cmd
}

// Run runs a program found by [Need] and returns its standard output. It fails the test, showing standard error,
// where the program does not exit with 0.
func Run(t testing.TB, program string, args ...string) []byte {
	t.Helper()
	cmd := Command(t, program, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out
}

// Images returns the folder of whole disk images that IMGTOOL_IMAGES names, and skips the test where that is not set.
func Images(t testing.TB) string {
	t.Helper()
	return folder(t, "IMGTOOL_IMAGES")
}

// folder returns the folder that a variable of the environment names, as an absolute path.
func folder(t testing.TB, variable string) string {
	t.Helper()
	dir := os.Getenv(variable)
	if dir == "" {
		t.Skipf("peers: %s is not set", variable)
	}
	// A name that leads nowhere is a mistake, not an absence: it fails.
	if info, err := os.Stat(dir); err != nil {
		t.Fatalf("peers: %s: %v", variable, err)
	} else if !info.IsDir() {
		t.Fatalf("peers: %s: %s is not a folder", variable, dir)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		t.Fatalf("peers: %s: %v", variable, err)
	}
	return abs
}

// Packages returns the Debian packages, sorted, that bring the programs of the table for which keep holds.
func Packages(keep func(program string) bool) []string {
	var names []string
	for program, pkg := range packages {
		if keep(program) && !slices.Contains(names, pkg) {
			names = append(names, pkg)
		}
	}
	slices.Sort(names)
	return names
}

// Missing reports whether a program is not installed.
func Missing(program string) bool {
	_, ok := find(program)
	return !ok
}

// find looks for a program in PATH, and then where Unix systems keep the administrator's programs: an ordinary user's PATH
// leaves those folders out, although everybody may run what is in them.
func find(program string) (string, bool) {
	if path, err := exec.LookPath(program); err == nil {
		return path, true
	}
	if runtime.GOOS == "windows" {
		return "", false
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, true
		}
	}
	return "", false
}
