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
	"time"

	"github.com/imgtool/imgtool/internal/peers"
)

// ended is how a script ended that ran beside a server.
type ended struct {
	code           int
	stdout, stderr string
}

// beside runs a script in a folder beside nbdkit, which has the words of server as its arguments. $uri is the export.
func beside(t *testing.T, dir, server, script string) ended {
	t.Helper()
	args := append([]string{"-f", "-U", "-"}, strings.Fields(server)...)
	said := filepath.Join(t.TempDir(), "stderr")
	cmd := peers.Command(t, "nbdkit", append(args, "--run", "exec 2>"+said+"\n"+script)...)
	var stdout, complaints bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &complaints
	_ = cmd.Run() // the code is looked at
	stderr, err := os.ReadFile(said)
	if err != nil {
		t.Fatalf("nbdkit %q: %v\n%s", args, err, &complaints)
	}
	return ended{cmd.ProcessState.ExitCode(), stdout.String(), string(stderr)}
}

// scattered makes a file of data and holes of many lengths.
func scattered(t *testing.T, path string, size int, seed uint64) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	data := make([]byte, size)
	for off := 0; off < size; {
		n := min(512<<r.IntN(11), size-off)
		switch r.IntN(3) {
		case 0: // a hole
		case 1:
			for i := off; i < off+n; i++ {
				data[i] = byte(r.Uint32())
			}
		default: // a page of data in zeros
			copy(data[off:off+n], fmt.Sprintf("page at %d", off))
		}
		off += n
	}
	if err := writeSparse(path, data); err != nil {
		t.Fatal(err)
	}
	return data
}

// waitFor waits until there is a file.
func waitFor(t *testing.T, path string) {
	t.Helper()
	for range 1000 {
		if _, err := os.Stat(path); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not come", path)
}

func sameContent(t *testing.T, what, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Errorf("%s: %d bytes, want %d; they differ from byte %d on", what, len(got), len(want), i)
	}
}

// TestNBDSources copies what servers of many kinds export, and compares it with what nbdcopy makes of it.
func TestNBDSources(t *testing.T) {
	if testing.Short() {
		t.Skip("so many starts of a program take long under the race detector")
	}
	peers.Need(t, "nbdkit")
	peers.Need(t, "nbdcopy")
	dir := t.TempDir()
	scattered(t, filepath.Join(dir, "disk"), 5<<20+512, 1)
	for _, server := range []string{
		"-r file disk",
		"-r --no-sr file disk",
		"-r --mask-handshake=0 file disk",
		"-r --filter=noextents file disk",
		"-r --filter=limit file disk limit=1",
		"-r --filter=multi-conn file disk multi-conn-mode=disable",
		"-r --filter=delay file disk delay-read=5ms delay-extents=1ms",
		"-r --filter=blocksize-policy file disk blocksize-minimum=512 blocksize-maximum=64k blocksize-error-policy=error blocksize-preferred=4096",
		"-r --filter=noparallel file disk serialize=requests",
		"-r --filter=nocache --filter=fua file disk cachemode=none fuamode=discard",
		"memory 3M",
		"null 5M",
		"pattern 7M",
		"random 7M seed=3",
		"sparse-random 32M seed=5 runlength=65536 percent=30",
		"sparse-random 8M seed=5 runlength=4096 percent=50 random-content=true",
	} {
		want := `nbdcopy "$uri" want`
		if strings.Contains(server, " disk") { // which nbdcopy does not read in blocks that the server takes
			want = "cp disk want"
		}
		script, compared := want+` && imgtool convert "$uri" got && cmp want got`, 0
		if !strings.Contains(server, "limit=1") { // which lets in the next client only some time after it has lost one
			script, compared = script+` && imgtool compare "$uri" got &&
				imgtool convert "$uri" - | cmp - want && imgtool convert -O qcow2 "$uri" got.qcow2 && imgtool compare got.qcow2 want`, 2
		}
		s := beside(t, dir, server, script)
		if s.code != 0 || strings.Count(s.stdout, "Images are identical") != compared {
			t.Errorf("%s: code %d\n%s%s", server, s.code, s.stdout, s.stderr)
		}
	}
}

// TestNBDTargets overwrites exports of many kinds, which hold other data: all of it is the source's afterwards, and the file has no more space than
// it needs where zeros can be zeroed.
func TestNBDTargets(t *testing.T) {
	if testing.Short() {
		t.Skip("so many starts of a program take long under the race detector")
	}
	peers.Need(t, "nbdkit")
	dir := t.TempDir()
	data := scattered(t, filepath.Join(dir, "disk"), 5<<20+512, 1)
	for _, server := range []string{
		"file target",
		"--no-sr file target",
		"--mask-handshake=0 file target",
		"--filter=noextents file target",
		"--filter=nozero file target",
		"--filter=nozero file target zeromode=emulate",
		"--filter=nozero file target zeromode=notrim",
		"--filter=fua file target fuamode=force",
		"--filter=fua file target fuamode=emulate",
		"--filter=limit file target limit=1",
		"--filter=delay file target wdelay=2ms",
		"--filter=blocksize-policy file target blocksize-minimum=512 blocksize-maximum=64k blocksize-error-policy=error blocksize-preferred=4096",
		"--filter=multi-conn file target multi-conn-mode=disable",
	} {
		old := bytes.Repeat([]byte("old data"), len(data)/8)
		if err := os.WriteFile(filepath.Join(dir, "target"), old, 0o600); err != nil {
			t.Fatal(err)
		}
		s := beside(t, dir, server, `imgtool convert --verify disk "$uri"`)
		if s.code != 0 || s.stderr != "" {
			t.Errorf("%s: code %d\n%s%s", server, s.code, s.stdout, s.stderr)
		}
		sameContent(t, server, filepath.Join(dir, "target"), data)

		if err := os.WriteFile(filepath.Join(dir, "target"), old, 0o600); err != nil {
			t.Fatal(err)
		}
		s = beside(t, dir, server, `cat disk | imgtool convert -f raw - "$uri"`)
		if s.code != 0 || s.stderr != "" {
			t.Errorf("%s from a pipe: code %d\n%s%s", server, s.code, s.stdout, s.stderr)
		}
		sameContent(t, server+" from a pipe", filepath.Join(dir, "target"), data)
	}
}

// TestNBDOntoItself copies exports onto themselves. The servers compare what is written with what is there.
func TestNBDOntoItself(t *testing.T) {
	peers.Need(t, "nbdkit")
	for _, server := range []string{
		"sparse-random 1G seed=1",
		"sparse-random 64M seed=2 runlength=8192 percent=40",
		"sparse-random 16M seed=3 runlength=4096 percent=50 random-content=true",
		"--filter=noextents sparse-random 32M seed=3",
		"--filter=checkwrite pattern 16M",
		"--filter=checkwrite random 16M",
	} {
		for _, flags := range []string{"", "--request-size=64k --connections=2 --verify"} {
			s := beside(t, t.TempDir(), server, `imgtool convert `+flags+` "$uri" "$uri"`)
			if s.code != 0 {
				t.Errorf("%s %s: code %d\n%s", server, flags, s.code, s.stderr)
			}
		}
	}
}

// TestNBDFaults copies from and to servers that fail now and then: what comes out is right, or the copy says that it has failed.
func TestNBDFaults(t *testing.T) {
	peers.Need(t, "nbdkit")
	dir := t.TempDir()
	data := scattered(t, filepath.Join(dir, "disk"), 5<<20+512, 1)
	old := bytes.Repeat([]byte("old data"), len(data)/8)
	for _, c := range []struct {
		faults string
		fails  bool // always
	}{
		{"error=EIO error-pread-rate=100%", true},
		{"error=EIO error-pread-rate=2%", false},
		{"error=EIO error-extents-rate=100%", true},
		{"error=ENOSPC error-pwrite-rate=100%", true},
		{"error=ENOSPC error-pwrite-rate=2%", false},
		{"error=EPERM error-zero-rate=100%", true},
		{"error=ENOMEM error-rate=5%", false},
	} {
		reads := strings.Contains(c.faults, "pread") || strings.Contains(c.faults, "extents")
		for range 3 {
			if err := os.WriteFile(filepath.Join(dir, "target"), old, 0o600); err != nil {
				t.Fatal(err)
			}
			server, script := "--filter=error file target ", `imgtool convert disk "$uri"`
			if reads {
				server, script = "--filter=error -r file disk ", `rm -f target; imgtool convert "$uri" target`
			}
			s := beside(t, dir, server+c.faults, script)
			switch {
			case s.code == 0 && c.fails:
				t.Errorf("%s: nothing failed", c.faults)
			case s.code == 0:
				sameContent(t, c.faults, filepath.Join(dir, "target"), data)
			case s.code != exitFailed || !strings.HasPrefix(s.stderr, "imgtool: nbd+unix://"):
				t.Errorf("%s: code %d, %s", c.faults, s.code, s.stderr)
			case reads && len(fileNames(t, dir)) != 1:
				t.Errorf("%s: %v are left", c.faults, fileNames(t, dir))
			}
		}
	}
}

// TestNBDTargetChecks: what does not fit is refused before anything is written, and what a server loses or has no room for is told.
func TestNBDTargetChecks(t *testing.T) {
	peers.Need(t, "nbdkit")
	dir := t.TempDir()
	scattered(t, filepath.Join(dir, "disk"), 2<<20, 1)
	old := bytes.Repeat([]byte("old data"), 1<<17)
	for _, c := range []struct {
		server, script string
		code           int
		want           string // in what it says
	}{
		{"file target", `imgtool convert disk "$uri"`, exitFailed, "the target has 1048576 bytes, the image 2097152"},
		{"file target", `imgtool convert -n disk "$uri"`, exitFailed, "too small"},
		{"file target", `imgtool convert -O qcow2 disk "$uri"`, exitFailed, ""},
		{"-r file target", `imgtool convert disk::window,size=1k "$uri"`, exitFailed, "read-only"},
		{"full 4M", `imgtool convert disk "$uri"`, exitFailed, "no space left on device"},
		{"null 4M", `imgtool convert --verify disk "$uri"`, exitFailed, "the copy differs from the source at byte "},
		{"null 4M", `imgtool convert disk "$uri"::raw`, exitUsage, "a target has no layers"},
	} {
		if err := os.WriteFile(filepath.Join(dir, "target"), old, 0o600); err != nil {
			t.Fatal(err)
		}
		s := beside(t, dir, c.server, c.script)
		if s.code != c.code || !strings.Contains(s.stderr, c.want) {
			t.Errorf("%s, %s: code %d, %s", c.server, c.script, s.code, s.stderr)
		}
		if !strings.Contains(c.script, "qcow2") {
			sameContent(t, c.script, filepath.Join(dir, "target"), old)
		}
	}
}

// TestNBDFormats: an export that holds an image is one, unless it is said to be raw, and it is written as one with -n.
func TestNBDFormats(t *testing.T) {
	peers.Need(t, "nbdkit")
	peers.Need(t, "qemu-img")
	dir := t.TempDir()
	data := scattered(t, filepath.Join(dir, "disk"), 3<<20, 1)
	peers.Run(t, "qemu-img", "convert", "-O", "qcow2", filepath.Join(dir, "disk"), filepath.Join(dir, "disk.qcow2"))
	target := filepath.Join(dir, "target.qcow2")
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", target, "8M")
	if err := os.Truncate(target, 16<<20); err != nil { // room for what is written to it
		t.Fatal(err)
	}
	run := func(server, script string) {
		t.Helper()
		if s := beside(t, dir, server, "set -e\n"+script); s.code != 0 {
			t.Errorf("%s: %s: code %d\n%s%s", server, script, s.code, s.stdout, s.stderr)
		}
	}
	run("-r file disk.qcow2", `imgtool convert "$uri" got; imgtool convert -O raw "$uri::raw" got.qcow2; cmp disk.qcow2 got.qcow2
		imgtool check "$uri"; imgtool info --json "$uri" | grep -q '"format": "qcow2"'; imgtool map "$uri" >/dev/null`)
	sameContent(t, "qcow2 in an export", filepath.Join(dir, "got"), data)
	run("file target.qcow2", `imgtool convert -n disk "$uri"`)
	peers.Run(t, "qemu-img", "compare", filepath.Join(dir, "disk"), filepath.Join(dir, "target.qcow2"))
	run("memory 16M", `imgtool convert -O qcow2 disk "$uri"; qemu-img check -f qcow2 "$uri"; qemu-img compare disk -F qcow2 "$uri"
		imgtool convert disk.qcow2 "$uri"; imgtool compare disk "$uri::window,size=3M"
		imgtool create -q -f qcow2 -b "$uri" -F raw over.qcow2
		imgtool info over.qcow2 2>/dev/null | grep -q refused
		if imgtool convert over.qcow2 out; then exit 1; fi
		imgtool --allow-references convert over.qcow2 out; imgtool compare disk "$uri::window,size=3M"`)

	// qemu-nbd serves the disk in the image.
	socket := filepath.Join(dir, "socket")
	qemu := peers.Command(t, "qemu-nbd", "-f", "qcow2", "-k", socket, "-t", "-e", "8", target)
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, socket)
	uri := "nbd+unix:///?socket=" + socket
	output(t, "convert", "--verify", filepath.Join(dir, "disk"), uri)
	output(t, "convert", uri, uri)
	output(t, "convert", uri, filepath.Join(dir, "again"))
	if err := qemu.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	_ = qemu.Wait() // by a signal
	peers.Run(t, "qemu-img", "check", target)
	peers.Run(t, "qemu-img", "compare", filepath.Join(dir, "disk"), target)
	peers.Run(t, "qemu-img", "compare", filepath.Join(dir, "disk"), filepath.Join(dir, "again"))
}

// TestPrograms takes programs as sources and targets, in one argument and in many.
func TestPrograms(t *testing.T) {
	peers.Need(t, "nbdkit")
	dir := t.TempDir()
	data := scattered(t, filepath.Join(dir, "a disk"), 3<<20, 1)
	run := func(args ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "imgtool", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%q: %v, %q", args, err, out)
		}
	}
	run("convert", "[ nbdkit -r file 'a disk' ]", "got")
	sameContent(t, "quoted", filepath.Join(dir, "got"), data)
	run("convert", "-q", "[", "nbdkit", "-r", "file", "a disk", "]", "got")
	sameContent(t, "words", filepath.Join(dir, "got"), data)
	if err := os.WriteFile(filepath.Join(dir, "got"), bytes.Repeat([]byte("old"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	run("convert", "--verify", `[ nbdkit -r file "a disk" ]`, "[", "nbdkit", "file", "got", "]")
	sameContent(t, "both", filepath.Join(dir, "got"), data)
	run("convert", "[ nbdkit sparse-random 1G ]", "null:")
	run("convert", "-O", "qcow2", "[ nbdkit sparse-random 1G ]", "null:")
	run("compare", "-q", "[ nbdkit -r file 'a disk' ]", "a disk")
	for _, c := range []struct {
		want string
		args []string
	}{
		{"imgtool: [ false ]: ", []string{"convert", "[ false ]", "got"}},
		{"imgtool: [ no-such-program ]: ", []string{"convert", "[ no-such-program ]", "got"}},
		{"imgtool: [ ]: there is no program", []string{"convert", "[ ]", "got"}},
	} {
		cmd := exec.CommandContext(t.Context(), "imgtool", c.args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%q: %v\n%s", c.args, err, out)
		}
	}
	sameContent(t, "after errors", filepath.Join(dir, "got"), data)
}
