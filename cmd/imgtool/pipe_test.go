package main

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/formats/all"
)

// TestPipe asks for images in every format that come through a pipe: what can be read in order is described, and nothing else is.
func TestPipe(t *testing.T) {
	image := append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 1<<20)...)
	for _, name := range append(all.Drivers().Names(), "") {
		for _, args := range [][]string{{"info"}, {"info", "--json"}, {"check"}, {"check", "--json"}} {
			args = append(args, "-")
			if name != "" {
				args = append(args, "-f", name)
			}
			cmd := exec.Command("imgtool", args...)
			cmd.Stdin = bytes.NewReader(image)
			out, _ := cmd.CombinedOutput() // the code is looked at
			want := exitFailed
			if (name == "raw" || name == "gz") && args[0] == "info" { // of which nothing is read for that
				want = exitDone
			}
			code := cmd.ProcessState.ExitCode()
			if code != want || code != exitDone && !strings.Contains(string(out), "standard input: ") {
				t.Errorf("%v: code %d, want %d: %s", args, code, want, out)
			}
		}
	}
}
