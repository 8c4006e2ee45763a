package main

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imgtool/imgtool/internal/peers"
)

const (
	hostileMemory   = 256 << 20   // bytes that a command may need for an image of any content
	hostilePatience = time.Minute // after which a command is taken to hang; each should answer within two seconds
)

// TestHostileImages lets commands loose on images that were made to break them: whatever they say, they say it soon, in bounded memory, and
// without a panic. On the images that are wrong in themselves, reading everything must fail.
func TestHostileImages(t *testing.T) {
	var rows []struct{ File, Format, Expect string }
	corpus := peers.OpenCorpus(t, &rows)
	seen := 0
	for _, r := range rows {
		if !strings.HasPrefix(r.Format, "qcow") || !strings.HasPrefix(r.File, "hostile/") && !strings.Contains(r.File, "invalid") {
			continue
		}
		seen++
		t.Run(r.File, func(t *testing.T) {
			t.Parallel()
			path := corpus.Unwrap(t, r.File)
			for _, args := range [][]string{{"info"}, {"info", "--json", "--backing-chain"}, {"map", "--json"}, {"check"}, {"snapshot", "-l"}, {"convert", "-O", "raw"}} {
				if args = append(args, path); args[0] == "convert" {
					args = append(args, path+".raw")
				}
				code := runHostile(t, args)
				if args[0] == "convert" && (r.Expect == "error" && code == exitDone || r.Expect == "policy-error" && code != exitDenied && !strings.Contains(r.File, "loop")) {
					t.Errorf("%v ends with %d, and the image is expected to be a %s", args, code, r.Expect)
				}
			}
			if left, _ := leftovers(filepath.Dir(path)); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if seen < 30 {
		t.Errorf("the corpus has %d hostile images", seen)
	}
}

// runHostile runs a command and returns its exit code.
func runHostile(t *testing.T, args []string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hostilePatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "imgtool", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%v does not end", args)
	}
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	if s := stderr.String(); strings.Contains(s, "panic") || strings.Contains(s, "goroutine") || len(s) > 4<<10 {
		t.Errorf("%v says %.2000s", args, s)
	}
	if used := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10; used > hostileMemory {
		t.Errorf("%v needs %d bytes of memory", args, used)
	}
	return cmd.ProcessState.ExitCode()
}
