package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/cmd/imgtool/qemuimg"
	"github.com/imgtool/imgtool/formats/all"
	"github.com/imgtool/imgtool/internal/peers"
)

// asPeer runs qemu-img, or imgtool under its name, and returns both outputs and the exit code.
func asPeer(t *testing.T, dir string, ours bool, line string) (stdout, stderr string, code int) {
	t.Helper()
	args := fields(line)
	cmd := peers.Command(t, "qemu-img", args...)
	if ours {
		env := cmd.Env
		cmd = exec.CommandContext(t.Context(), "imgtool", append([]string{qemuImgName}, args...)...)
		cmd.Env = env
	}
	var out, err bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &err
	if e := cmd.Run(); e != nil && cmd.ProcessState == nil {
		t.Fatal(e)
	}
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

// TestQemuImgLocks asks for images that another program has open: callers wait and try again by these texts.
func TestQemuImgLocks(t *testing.T) {
	dir := t.TempDir()
	for _, line := range []string{"create -q -f qcow2 held.qcow2 1M", "create -q -f qcow2 -b held.qcow2 -F qcow2 over.qcow2", "create -q -f raw free.img 1M"} {
		if _, stderr, code := asPeer(t, dir, false, line); code != 0 {
			t.Fatal(stderr)
		}
	}
	for _, held := range []struct{ how, flags, also string }{
		{"for writing", "", "rebase -u -b '' held.qcow2"},
		{"for reading", "-r", "commit over.qcow2"}, // with a writer it is the backing file that cannot be opened there
	} {
		release := hold(t, dir, held.flags)
		for _, line := range []string{
			"info held.qcow2", "info -U held.qcow2", "info --backing-chain over.qcow2", "check held.qcow2", "check -U held.qcow2", "check -r all held.qcow2", "map held.qcow2",
			"compare held.qcow2 free.img", "convert held.qcow2 out", "convert -U held.qcow2 out", "convert over.qcow2 out", "convert -n free.img -O qcow2 held.qcow2",
			"resize held.qcow2 2M", held.also, "snapshot -c x held.qcow2", "snapshot -l held.qcow2", "amend -o compat=1.1 held.qcow2",
			"measure held.qcow2", "dd if=held.qcow2 of=out", "create -f qcow2 -b held.qcow2 -F qcow2 new.qcow2", "create -f qcow2 -b over.qcow2 -F qcow2 new.qcow2 2M",
		} {
			_, want, wantCode := asPeer(t, dir, false, line)
			_, got, code := asPeer(t, dir, true, line)
			if code != wantCode || steady([]byte(got)) != steady([]byte(want)) {
				t.Errorf("held %s, %s: %d, %s\nqemu-img: %d, %s", held.how, line, code, got, wantCode, want)
			}
		}
		release()
	}
}

// hold opens an image with qemu-io until the function that it returns is called.
func hold(t *testing.T, dir, flags string) (release func()) {
	t.Helper()
	cmd := peers.Command(t, "qemu-io", append(strings.Fields(flags), "held.qcow2")...)
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "length\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAtLeast(out, make([]byte, 64), len("qemu-io> 1 MiB")); err != nil { // it has the image open
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	return func() {
		_ = in.Close()
		_ = cmd.Wait() // it has done what it was for
	}
}

// TestQemuImgSecret reads an image that is encrypted.
func TestQemuImgSecret(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	const object, source = "--object secret,id=s,file=key", "--image-opts driver=qcow2,file.filename=aes.qcow2,encrypt.key-secret=s"
	if _, stderr, code := asPeer(t, dir, false, "create -q -f qcow2 "+object+" -o encryption=on,encrypt.key-secret=s aes.qcow2 1M"); code != 0 {
		t.Fatal(stderr)
	}
	cmd := peers.Command(t, "qemu-io", append(fields(object+" -c 'write -P 5 64k 100k'"), fields(source)...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for i, ours := range []bool{false, true} {
		if _, stderr, code := asPeer(t, dir, ours, fmt.Sprintf("convert %s %s out%d", object, source, i)); code != 0 {
			t.Fatal(stderr)
		}
	}
	if stdout, stderr, code := asPeer(t, dir, false, "compare -f raw -F raw out0 out1"); code != 0 {
		t.Error(stdout, stderr)
	}
	for _, line := range []string{"convert aes.qcow2 out", "map aes.qcow2", "convert " + source + " out"} {
		_, want, wantCode := asPeer(t, dir, false, line)
		if _, got, code := asPeer(t, dir, true, line); code != wantCode || got != want {
			t.Errorf("%s: %d, %s\nqemu-img: %d, %s", line, code, got, wantCode, want)
		}
	}
}

// TestQemuImgDamage reads an image of which a compressed cluster is damaged: its place on the disk is told, wherever the request began.
func TestQemuImgDamage(t *testing.T) {
	dir := t.TempDir()
	damagedImage(t, filepath.Join(dir, "damaged.qcow2"))
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 1<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"convert damaged.qcow2 out", "compare damaged.qcow2 damaged.qcow2"} {
		_, want, wantCode := asPeer(t, dir, false, line)
		want = strings.TrimSuffix(want, "Input/output error\n")
		if _, got, code := asPeer(t, dir, true, line); code != wantCode || !strings.HasPrefix(got, want) || !strings.Contains(want, "327680") {
			t.Errorf("%s: %d, %s\nqemu-img: %d, %s", line, code, got, wantCode, want)
		}
	}
	cmd := exec.CommandContext(t.Context(), "imgtool", "convert", "damaged.qcow2", "out")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "byte 327680 of the disk") || !strings.Contains(string(out), "hint: --salvage") {
		t.Errorf("%v: %s", err, out)
	}
}

// damagedImage makes an image of compressed clusters of which the one at byte 327680 cannot be decoded.
func damagedImage(t *testing.T, path string) {
	t.Helper()
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = "abcdefgh"[i*i*2654435761>>13&7]
	}
	plain := path + ".raw"
	if err := os.WriteFile(plain, data, 0o666); err != nil {
		t.Fatal(err)
	}
	if out, err := peers.Command(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", plain, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := func(off int64) int64 {
		var p [8]byte
		if _, err := f.ReadAt(p[:], off); err != nil {
			t.Fatal(err)
		}
		return int64(binary.BigEndian.Uint64(p[:]))
	}
	const l1TableOffset, offsetBits, compressedBits = 40, 1<<56 - 1, 1<<54 - 1
	entry := at(at(at(l1TableOffset))&offsetBits + 5*8)
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 1024), entry&compressedBits); err != nil {
		t.Fatal(err)
	}
}

// TestQemuImgProgress looks at progress with the expression of KubeVirt CDI.
func TestQemuImgProgress(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 64<<20)
	for i := range data {
		data[i] = byte(i>>12) | 1
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), data, 0o666); err != nil {
		t.Fatal(err)
	}
	whole := regexp.MustCompile(`^(    \(\d+\.\d\d/100%\)\r)+\n`)
	number := regexp.MustCompile(`\((\d?\d\.\d\d)/100%\)`)
	for _, line := range []string{"convert -p -O raw a b", "convert -p -O qcow2 a c", "convert -p -O qcow2 -c a d", "compare -p a b"} {
		stdout, stderr, code := asPeer(t, dir, true, line)
		if code != 0 || !whole.MatchString(stdout) || !strings.Contains(stdout, "(100.00/100%)") || len(number.FindAllString(stdout, -1)) < 3 {
			t.Errorf("%s: %d, %q, %s", line, code, stdout, stderr)
		}
	}
	if stdout, _, _ := asPeer(t, dir, true, "convert -p -q -O raw a b"); stdout != "" {
		t.Errorf("-q prints %q", stdout)
	}
}

// TestQemuImgVersion reads the version as callers do.
func TestQemuImgVersion(t *testing.T) {
	stdout, _, code := asPeer(t, t.TempDir(), true, "--version")
	var major, minor, micro int
	if n, err := fmt.Sscanf(stdout, "qemu-img version %d.%d.%d", &major, &minor, &micro); n != 3 || code != 0 {
		t.Errorf("%q: %v", stdout, err)
	}
}

// TestQemuImgWrappers: what is compressed whole is a raw image to qemu-img, and stays one.
func TestQemuImgWrappers(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 1<<20), 0o666); err != nil {
		t.Fatal(err)
	}
	cmd := peers.Command(t, "gzip", "a")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, line := range []string{"info a.gz", "info --output=json a.gz", "info -f gz a.gz", "convert a.gz b", "convert -O gz a.gz b", "compare a.gz b"} {
		wantOut, wantErr, want := asPeer(t, dir, false, line)
		stdout, stderr, code := asPeer(t, dir, true, line)
		if code != want || stderr != wantErr || !strings.Contains(line, "json") && steady([]byte(stdout)) != steady([]byte(wantOut)) {
			t.Errorf("%s: %d, %s%s\nqemu-img: %d, %s%s", line, code, stdout, stderr, want, wantOut, wantErr)
		}
	}
}

// TestQemuImgPage compares docs/qemu-img.md with the help: every option of every command is named there.
func TestQemuImgPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/qemu-img.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(line, "|"); len(cells) > 3 {
			rows[strings.Trim(cells[1], " `")] = line
		}
	}
	syntax, _, _ := strings.Cut(strings.SplitN(qemuimg.HelpText("", all.Drivers()), "Command syntax:\n", 2)[1], "\n\n")
	for line := range strings.Lines(syntax) {
		name := fields(line)[0]
		for _, option := range regexp.MustCompile(`\[(--?[A-Za-z-]+)`).FindAllStringSubmatch(line, -1) {
			if !strings.Contains(rows[name], "`"+option[1]+"`") && !strings.Contains(rows["all"], "`"+option[1]+"`") {
				t.Errorf("%s: %s is not in docs/qemu-img.md", name, option[1])
			}
		}
	}
}
