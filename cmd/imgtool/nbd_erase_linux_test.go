package main

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/internal/peers"
)

// TestNBDConfirm asks on a terminal before anything is erased.
func TestNBDConfirm(t *testing.T) {
	for _, c := range []struct {
		typed string
		code  int
	}{{"y\n", exitDone}, {"YES\n", exitDone}, {"n\n", exitFailed}, {"\n", exitFailed}, {"yellow\n", exitFailed}, {"\x04", exitFailed}} {
		uri := peerServer(t, "", "nbdkit", "-f", "-U", "SOCKET", "data", "1 2 3 4", "size=1M")
		master, slave := terminal(t)
		var stderr bytes.Buffer
		cmd := exec.Command("imgtool", "nbd", "zero", "-o", "2", "-l", "64k", uri)
		cmd.Stdin, cmd.Stderr = slave, &stderr
		if _, err := master.WriteString(c.typed); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Run() // the code is looked at
		if code := cmd.ProcessState.ExitCode(); code != c.code {
			t.Errorf("%q: code %d, %s", c.typed, code, &stderr)
		}
		if want := "PERMANENTLY ERASE " + uri + ", bytes 2 - 65537 (64 KiB (65536 bytes)) (y/N)? "; !strings.HasPrefix(stderr.String(), want) {
			t.Errorf("%q: asks %q, want %q", c.typed, &stderr, want)
		}
		want := "01 02 03 04 "
		if c.code == exitDone {
			want = "01 02 00 00 "
		}
		if got := output(t, "dump", uri); !bytes.HasPrefix(got, []byte("0000000000: "+want)) {
			t.Errorf("%q: then it holds\n%s", c.typed, got)
		}
	}
}

// TestNBDErasePeers erases exports of servers that are able to do different things.
func TestNBDErasePeers(t *testing.T) {
	if testing.Short() {
		t.Skip("so many starts of a program take long under the race detector")
	}
	for _, c := range []struct {
		program string
		args    []string
		call    string // which is tried
		code    int
		says    string
	}{
		{"nbdkit", []string{"null", "100G"}, "zero -y", exitDone, ""},
		{"nbdkit", []string{"null", "7E"}, "discard -y -o 6E -l 20G", exitDone, ""},
		{"nbdkit", []string{"memory", "1T"}, "zero -y -o 1k -l 6G --holes", exitDone, ""},
		{"nbdkit", []string{"--filter=nozero", "memory", "1M"}, "zero -y", exitFailed, "the server does not know WRITE_ZEROES for this export"},
		{"nbdkit", []string{"--filter=nozero", "memory", "1M"}, "zero --fast-zero -y", exitFailed, "WRITE_ZEROES"},
		{"nbdkit", []string{"--filter=nozero", "memory", "1M", "zeromode=emulate", "fastzeromode=none"}, "zero --fast-zero -y", exitFailed, "the server does not tell what it can do fast"},
		{"nbdkit", []string{"--filter=nozero", "memory", "1M", "zeromode=emulate", "fastzeromode=slow"}, "zero --fast-zero -y", exitFailed, "hint: it would take as long as writing"},
		{"nbdkit", []string{"--filter=nozero", "memory", "1M", "zeromode=emulate", "fastzeromode=slow"}, "zero -y", exitDone, ""},
		{"nbdkit", []string{"-r", "memory", "1M"}, "zero -y", exitFailed, "the export is read-only"},
		{"nbdkit", []string{"-r", "memory", "1M"}, "discard -y", exitFailed, "the export is read-only"},
		{"nbdkit", []string{"eval", "get_size=echo 1048576", "pread=exit 1", "pwrite=cat >/dev/null"}, "discard -y", exitFailed, "the server does not know TRIM for this export"},
		{"nbdkit", []string{"--filter=error", "memory", "1G", "error-zero=ENOSPC", "error-zero-rate=1"}, "zero -y -o 128M", exitFailed, "at byte 134217728: nbd: WRITE_ZEROES: server says: no space left"},
		{"nbdkit", []string{"--filter=error", "memory", "4G", "error-trim=EIO", "error-trim-rate=1"}, "discard -y", exitFailed, "at byte 0: nbd: TRIM: server says: input/output error"},
		{"nbdkit", []string{"--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=4k"}, "zero -y -o 1k", exitUsage, "the server has blocks of 4096 bytes"},
		{"nbdkit", []string{"--filter=blocksize-policy", "memory", "1000k", "blocksize-minimum=4k", "blocksize-error-policy=error"}, "zero -y -o 4k", exitDone, ""},
		{"nbdkit", []string{"--no-sr", "memory", "1G"}, "zero --check", exitDone, ""},
		{"nbdkit", []string{"--no-sr", "memory", "1G"}, "discard --check", exitFailed, "the server does not tell where the export is sparse"},
		{"nbdkit", []string{"--filter=noextents", "data", "@900000 1", "size=1M"}, "zero --check", exitNo, ""},
		{"nbdkit", []string{"--filter=noextents", "data", "@900000 1", "size=1M"}, "zero --check -l 900000", exitDone, ""},
		{"nbdkit", []string{"data", "@900000 1", "size=1M"}, "discard --check", exitNo, ""},
		{"nbdkit", []string{"data", "@900000 1", "size=1M"}, "discard --check -o 600k -l 200k", exitDone, ""},
		{"nbdkit", []string{"--filter=error", "data", "@900000 1", "size=1M", "error-pread=EIO", "error-pread-rate=1"}, "zero --check", exitFailed, "READ"},
	} {
		uri := peerServer(t, "", c.program, append([]string{"-f", "-U", "SOCKET"}, c.args...)...)
		cmd := exec.Command("imgtool", append(append([]string{"nbd"}, strings.Fields(c.call)...), uri)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		_ = cmd.Run() // the code is looked at
		if code := cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(stderr.String(), c.says) || c.code == exitDone && stderr.Len() > 0 {
			t.Errorf("%v, %s: code %d, %s", c.args, c.call, code, &stderr)
		}
	}
}

// TestNBDEraseHoles keeps a zeroed range allocated in a qcow2 image, and gives it back where that is allowed.
func TestNBDEraseHoles(t *testing.T) {
	peers.Need(t, "qemu-img")
	disk := t.TempDir() + "/disk.qcow2"
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "4M")
	peers.Run(t, "qemu-io", "-c", "write 0 4M", disk)
	uri := peerServer(t, "", "qemu-nbd", "-t", "-f", "qcow2", "-k", "SOCKET", "--discard=unmap", disk)
	output(t, "nbd", "zero", "-y", "-o", "1M", "-l", "1M", uri)
	output(t, "nbd", "zero", "-y", "--holes", "-o", "2M", "-l", "1M", uri)
	output(t, "nbd", "discard", "-y", "-o", "3M", "-l", "1M", uri)
	type extent struct {
		Start, Length, Offset int64
		Zero                  bool
	}
	for _, e := range decode[[]extent](t, peers.Run(t, "qemu-img", "map", "-U", "--output=json", disk)) {
		if zero, place := e.Start >= 1<<20, e.Start < 2<<20; e.Zero != zero || (e.Offset > 0) != place {
			t.Errorf("%+v: zero should be %v, and a place in the file %v", e, zero, place)
		}
	}
	for flags, code := range map[string]int{"-o 1M": exitDone, "-o 1M -l 3M": exitDone, "-o 1023k -l 2k": exitNo} {
		cmd := exec.Command("imgtool", append(strings.Fields("nbd zero --check "+flags), uri)...)
		_ = cmd.Run() // the code is looked at
		if got := cmd.ProcessState.ExitCode(); got != code {
			t.Errorf("%s: code %d, want %d", flags, got, code)
		}
	}
}

// TestNBDInterrupt ends commands that wait for a server.
func TestNBDInterrupt(t *testing.T) {
	slow := peerServer(t, "", "nbdkit", "-f", "-U", "SOCKET", "--filter=delay", "memory", "1M", "delay-read=60", "delay-zero=60", "delay-open=0", "delay-extents=60")
	mute := peerServer(t, "", "nbdkit", "-f", "-U", "SOCKET", "--filter=delay", "memory", "1M", "delay-open=60")
	for _, c := range []struct{ call, uri string }{
		{"nbd info", mute}, {"nbd list", mute}, {"nbd map", mute}, {"dump", mute},
		{"nbd info", slow}, {"nbd map", slow}, {"nbd zero --yes", slow}, {"dump", slow},
	} {
		cmd := exec.Command("imgtool", append(strings.Fields(c.call), c.uri)...)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // that it waits cannot be seen from outside; if it does not yet, it ends as well
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // the code is looked at
		if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || stderr.String() != "imgtool: interrupted\n" {
			t.Errorf("%s: code %d, %q", c.call, code, &stderr)
		}
	}
}
