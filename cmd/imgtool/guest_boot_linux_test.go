package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

// TestBootServed boots virtual machines from disks that are served: one from a qcow2, one from a gzip file. What they write is thrown away, by the machine
// and by the server.
func TestBootServed(t *testing.T) {
	if os.Getenv("IMGTOOL_SOAK") != "1" {
		t.Skip("IMGTOOL_SOAK=1 boots virtual machines")
	}
	dir := peers.Images(t)
	program := buildProgram(t)
	for _, d := range realDisks {
		t.Run(d.name, func(t *testing.T) {
			x := newDiskTest(t, d, dir, program)
			x.imgtool(t, "convert", x.raw+"::raw::part=name=boot", x.boot)
			image := map[string]string{"small": "small.qcow2", "debian": "debian.raw.gz"}[d.name]
			socket := filepath.Join(t.TempDir(), "s")
			cmd := exec.Command(program, "serve", "--cow", "-U", socket, "--print-uri", filepath.Join(dir, image))
			out, err := cmd.StdoutPipe()
			check(t, err)
			cmd.Stderr = os.Stderr
			check(t, cmd.Start())
			defer func() {
				check(t, cmd.Process.Signal(syscall.SIGTERM))
				if err := cmd.Wait(); err != nil {
					t.Errorf("serve: %v", err)
				}
			}()
			uri := make([]byte, 256)
			n, err := out.Read(uri)
			check(t, err)
			marker, _ := x.bootDisk(t, strings.TrimSpace(string(uri[:n])))
			t.Log(marker)
			if !strings.Contains(marker, " bad=0 ") {
				t.Errorf("the machine found files to be others than they were: %s", marker)
			}
		})
	}
}
