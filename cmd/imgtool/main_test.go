package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"imgtool": main})
}

// TestScript runs the scripts, which pin what the program prints and with which code it ends.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "sparse": sparse, "damage": damage, "poke": poke, "cut": cut, "tidy": tidy, "refused": refused,
		},
	})
}

// exits CODE PROGRAM ARG...: the program ends with this code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code program arg...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		code = strings.TrimPrefix(e.Error(), "exit status ")
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if code != args[0] {
		ts.Fatalf("%v ends with %s, want %s", args[1:], code, args[0])
	}
}

// sparse FILE: a file of 1 MiB of which 64 KiB from 128 KiB, and 4 KiB from 512 KiB, are data.
func sparse(ts *testscript.TestScript, neg bool, args []string) {
	data := make([]byte, 1<<20)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range data {
		if i>>16 == 2 || i>>12 == 128 {
			data[i] = byte(r.Uint32()) | 1
		}
	}
	ts.Check(writeSparse(ts.MkAbs(args[0]), data))
}

// writeSparse writes a file with holes for its zeros.
func writeSparse(path string, data []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for i := 0; i < len(data); i += 4096 {
		if p := data[i:min(i+4096, len(data))]; !block.IsZero(p) {
			if _, err := f.WriteAt(p, int64(i)); err != nil {
				return errors.Join(err, f.Close())
			}
		}
	}
	return errors.Join(f.Truncate(int64(len(data))), f.Close())
}

// damage FILE: inverts the byte in the middle.
func damage(ts *testscript.TestScript, neg bool, args []string) {
	path := ts.MkAbs(args[0])
	p, err := os.ReadFile(path)
	ts.Check(err)
	p[len(p)/2] ^= 0xff
	ts.Check(os.WriteFile(path, p, 0o666))
}

// TestInterrupt ends a conversion that waits for its source.
func TestInterrupt(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Log("Windows has no signals to send")
		return
	}
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		dir := t.TempDir()
		cmd := exec.Command("imgtool", "convert", "-f", "raw", "-", filepath.Join(dir, "out.raw"))
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
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
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the code is looked at
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || stderr.String() != "imgtool: interrupted\n" {
			t.Errorf("%v: code %d, %q", sig, code, stderr.String())
		}
		if names, _ := os.ReadDir(dir); len(names) > 0 {
			t.Errorf("%v: left behind: %v", sig, names)
		}
	}
}

// TestBrokenPipe stops reading what is printed: that is no reason to print anything else.
func TestBrokenPipe(t *testing.T) {
	for _, args := range [][]string{{"convert", "pattern:16M", "-"}, {"formats"}} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("imgtool", args...)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = w, &stderr
		r.Close()
		_ = cmd.Run() // the code is looked at
		w.Close()
		if code := cmd.ProcessState.ExitCode(); code != exitFailed || stderr.Len() > 0 {
			t.Errorf("%v: code %d, %q", args, code, stderr.String())
		}
	}
}

// output returns what imgtool prints.
func output(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("imgtool", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("imgtool %v: %v\n%s", args, err, &stderr)
	}
	return out
}

// decode reads JSON into a new T.
func decode[T any](t *testing.T, p []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(p, &v); err != nil {
		t.Fatalf("%v\n%s", err, p)
	}
	return v
}

// TestQemuImg compares info, map, compare and convert with those of qemu-img on the same files.
func TestQemuImg(t *testing.T) {
	peers.Need(t, "qemu-img")
	dir := t.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 3<<20+512)
	for off := 0; off < len(data); off += 4096 << r.IntN(8) {
		for i := off; i < min(off+8192, len(data)) && r.IntN(4) > 0; i++ {
			data[i] = byte(r.Uint32())
		}
	}
	a, b := filepath.Join(dir, "a.raw"), filepath.Join(dir, "b.raw")
	if err := writeSparse(a, data); err != nil {
		t.Fatal(err)
	}

	type facts struct {
		Filename string `json:"filename"`
		Format   string `json:"format"`
		Virtual  int64  `json:"virtual-size"`
		Actual   int64  `json:"actual-size"`
		Dirty    bool   `json:"dirty-flag"`
	}
	ours := decode[facts](t, output(t, "info", "--json", "-f", "raw", a))
	if theirs := decode[facts](t, peers.Run(t, "qemu-img", "info", "--output=json", "-f", "raw", a)); ours != theirs {
		t.Errorf("info: %+v, qemu-img %+v", ours, theirs)
	}

	type extent struct {
		Start, Length, Offset int64
		Depth                 int
		Present, Zero, Data   bool
	}
	if ours, theirs := decode[[]extent](t, output(t, "map", "--json", "-f", "raw", a)),
		decode[[]extent](t, peers.Run(t, "qemu-img", "map", "--output=json", "-f", "raw", a)); !slices.Equal(ours, theirs) {
		t.Errorf("map: %+v\nqemu-img: %+v", ours, theirs)
	}

	output(t, "convert", "-O", "raw", a, b)
	peers.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", a, b)
	for _, at := range []int64{-1, 0, 70000, int64(len(data)) - 1} {
		c := filepath.Join(dir, "c.raw")
		p := bytes.Clone(data)
		if at >= 0 {
			p[at]++
		}
		for _, more := range []int{0, 5000} {
			if err := writeSparse(c, append(p, make([]byte, more)...)); err != nil {
				t.Fatal(err)
			}
			for _, strict := range [][]string{nil, {"-s"}} {
				args := append(append([]string{"compare", "-f", "raw", "-F", "raw"}, strict...), a, c)
				theirs, ours := peers.Command(t, "qemu-img", args...), exec.Command("imgtool", args...)
				want, _ := theirs.Output() // the codes are looked at
				got, _ := ours.Output()
				if x, y := ours.ProcessState.ExitCode(), theirs.ProcessState.ExitCode(); x != y {
					t.Errorf("%v, byte %d, %d longer: code %d, %s qemu-img %d, %s", strict, at, more, x, got, y, want)
				}
			}
		}
	}
}

func TestExitCodes(t *testing.T) {
	for _, c := range []struct {
		want int
		err  error
	}{
		{exitDone, nil},
		{exitFailed, errors.New("x")},
		{exitUsage, usagef("x")},
		{exitCorrupt, &block.Hint{Err: block.Corrupt("gz", "header", 0, "x")}},
		{exitDenied, errors.Join(block.ErrDenied)},
		{exitKey, block.ErrKey},
		{exitInterrupted, &codeError{compareRead, context.Canceled}},
		{compareRead, &codeError{compareRead, block.Corrupt("gz", "header", 0, "x")}},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
}
