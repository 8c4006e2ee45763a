package main

import (
	"bufio"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

// TestHeldImage leaves alone what qemu-io has open for writing, and with -U looks at it all the same.
func TestHeldImage(t *testing.T) {
	peers.Need(t, "qemu-img")
	dir := t.TempDir()
	base, path := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "held.qcow2")
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", base, "1M")
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", path)
	holder := peers.Command(t, "qemu-io", "-f", "qcow2", path)
	in, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		if err := holder.Wait(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := io.WriteString(in, "length\n"); err != nil {
		t.Fatal(err)
	}
	for r := bufio.NewReader(out); ; {
		if line, err := r.ReadString('\n'); err != nil {
			t.Fatal(err)
		} else if strings.Contains(line, "1 MiB") {
			break // it has opened the image
		}
	}
	for _, line := range []string{
		"info IMAGE", "map IMAGE", "check IMAGE", "check -r all IMAGE", "resize IMAGE 2M", "rebase -u -b x -F raw IMAGE", "rebase -b '' IMAGE", "commit IMAGE", "commit -d IMAGE",
		"snapshot -c x IMAGE", "snapshot -l IMAGE", "bitmap --add IMAGE b", "amend -o compat=0.10 IMAGE", "create -f qcow2 IMAGE 1M", "dd if=IMAGE of=" + dir + "/out",
		"measure -O raw IMAGE",
	} {
		p, err := exec.CommandContext(t.Context(), "imgtool", fields("--allow-references "+strings.ReplaceAll(line, "IMAGE", path))...).CombinedOutput()
		if err == nil || !strings.Contains(string(p), "in use: another program") {
			t.Errorf("%s: %v, %s", line, err, p)
		}
	}
	for _, line := range []string{"info -U IMAGE", "map -U IMAGE", "check -U IMAGE", "snapshot -lU IMAGE", "compare -U IMAGE null:1M"} {
		p, err := exec.CommandContext(t.Context(), "imgtool", fields("--allow-references "+strings.ReplaceAll(line, "IMAGE", path))...).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v, %s", line, err, p)
		}
	}
}
