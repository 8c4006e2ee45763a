package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
)

// TestHexdump compares with a plain loop, however the bytes come.
func TestHexdump(t *testing.T) {
	plain := func(data []byte, off int64, whole bool) string {
		var b strings.Builder
		var last []byte
		folding := false
		for i := 0; i < len(data); i += 16 {
			line := data[i:min(i+16, len(data))]
			if bytes.Equal(line, last) && !(whole && i+16 >= len(data)) {
				if !folding {
					b.WriteString("*\n")
				}
				folding = true
				continue
			}
			last, folding = line, false
			hex := fmt.Sprintf("%-23s  %-23s", fmt.Sprintf("% x", line[:min(8, len(line))]), fmt.Sprintf("% x", line[min(8, len(line)):]))
			ascii := []byte(fmt.Sprintf("%-16s", line))
			for j, c := range ascii {
				if c < ' ' || c > '~' {
					ascii[j] = '.'
				}
			}
			fmt.Fprintf(&b, "%010x: %s |%s|\n", off+int64(i), hex, ascii)
		}
		return b.String()
	}
	r := rand.New(rand.NewPCG(3, 4))
	for n := range 2000 {
		data := make([]byte, r.IntN(200))
		if n%10 == 0 {
			data = make([]byte, r.IntN(20000))
		}
		for i := range data {
			if r.IntN(40) == 0 {
				data[i] = "aZ~ \x7f"[r.IntN(5)]
			}
		}
		off, whole := int64(r.IntN(1<<20))<<r.IntN(40), r.IntN(2) == 0
		var got strings.Builder
		h := newHexdump(&got, off, false)
		for p := data; len(p) > 0; {
			k := 1 + r.IntN(len(p))
			if block.IsZero(p[:k]) && r.IntN(2) == 0 {
				h.zeros(int64(k))
			} else {
				h.bytes(p[:k])
			}
			p = p[k:]
		}
		if err := h.end(whole); err != nil {
			t.Fatal(err)
		}
		if want := plain(data, off, whole); got.String() != want {
			t.Fatalf("%x, whole %v:\n%s\nwant\n%s", data, whole, got.String(), want)
		}
	}
}

// TestNBDDump compares dump with nbddump on the same bytes.
func TestNBDDump(t *testing.T) {
	peers.Need(t, "nbddump")
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(5, 6))
	for _, size := range []int{0, 1, 16, 17, 32, 48, 5000, 1 << 20} {
		data := make([]byte, size)
		for off := 0; off < size; off += 1 + r.IntN(300) {
			for i := off; i < min(size, off+64); i++ {
				data[i] = byte(r.Uint32()) & 0xff >> r.IntN(2)
			}
		}
		path := filepath.Join(dir, fmt.Sprint(size))
		if err := os.WriteFile(path, data, 0o666); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{nil, {"-n", "96"}} {
			theirs := peers.Run(t, "nbdkit", "-U", "-", "-r", "file", path, "--run", "nbddump "+strings.Join(args, " ")+` "$uri"`)
			if ours := output(t, append(append([]string{"dump", "-f", "raw"}, args...), path)...); !bytes.Equal(ours, theirs) {
				t.Errorf("%d bytes, %v:\n%s\nnbddump:\n%s", size, args, ours, theirs)
			}
		}
	}
}

// TestDumpBrokenPipe stops reading what is dumped.
func TestDumpBrokenPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("imgtool", "dump", "pattern:1T")
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := r.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	_ = cmd.Wait() // the code is looked at
	if code := cmd.ProcessState.ExitCode(); code != exitFailed || stderr.Len() > 0 {
		t.Errorf("code %d, %q", code, stderr.String())
	}
}
