//go:build unix

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/imgtool/imgtool/internal/peers"
)

// servedImages makes the same disk of 8 MiB, with a partition, in several formats. It returns chains for them and for the partition, and their bytes.
func servedImages(t *testing.T) (disk, part []byte, chains map[string][]byte) {
	t.Helper()
	for _, program := range []string{"sgdisk", "gzip", "qemu-img"} {
		peers.Need(t, program)
	}
	dir := t.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	data := bytes.Repeat([]byte("all work and no play makes a disk "), 1000)
	content := make([]byte, 8<<20)
	copy(content[2<<20:], data)
	copy(content[5<<20:], data)
	check(t, writeSparse(raw, content))
	peers.Run(t, "sgdisk", "-n", "1:2048:+1M", "-n", "2:4096:+4M", "-c", "2:root", raw)
	peers.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, filepath.Join(dir, "disk.qcow2"))
	copySparse(t, filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "disk.qcow2"))
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", filepath.Join(dir, "over.qcow2"))
	peers.Run(t, "gzip", "-k", raw)
	for _, name := range []string{"mod.gz", "part.gz"} {
		output(t, "mod", "make", "-k", "name=root", raw, filepath.Join(dir, name))
	}
	disk = readFile(t, raw)
	part = disk[2<<20 : 6<<20]
	return disk, part, map[string][]byte{
		raw: disk, filepath.Join(dir, "disk.qcow2"): disk, filepath.Join(dir, "over.qcow2"): disk, raw + ".gz": disk, raw + ".gz::gz::part=2": part,
		filepath.Join(dir, "mod.gz"): disk, filepath.Join(dir, "part.gz") + "::gz::part=name=root": part, raw + ".gz::cow": disk,
	}
}

// TestServePeers reads images of several formats with other programs' clients, and changes those that can be changed.
func TestServePeers(t *testing.T) {
	if testing.Short() {
		t.Skip("so many starts of a program take long under the race detector")
	}
	for _, program := range []string{"nbdinfo", "nbdcopy", "qemu-io"} {
		peers.Need(t, program)
	}
	_, _, chains := servedImages(t)
	for chain, want := range chains {
		t.Run(filepath.Base(chain), func(t *testing.T) {
			at := len(want)/2 - 8704 // inside the partition, the part of a modifiable image that can be changed
			s := startServe(t, chain)
			copied := filepath.Join(t.TempDir(), "copy")
			peers.Run(t, "nbdcopy", s.uri, copied)
			if !bytes.Equal(readFile(t, copied), want) {
				t.Error("nbdcopy gets other bytes")
			}
			peers.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", s.uri, copied)
			if !bytes.Equal(readFile(t, copied), want) {
				t.Error("qemu-img gets other bytes")
			}
			writable := !strings.Contains(chain, "disk.raw.gz") || strings.HasSuffix(chain, "::cow")
			if code := exitOf(t, peers.Command(t, "nbdinfo", "--can", "write", s.uri)); (code == 0) != writable {
				t.Errorf("nbdinfo --can write: %d", code)
			}
			if writable {
				peers.Run(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -P 0x5a %d 8k", at), "-c", "flush", "-c", fmt.Sprintf("read -P 0x5a %d 8k", at), s.uri)
			}
			s.stop(syscall.SIGTERM, exitDone)
			after := output(t, "convert", "-q", "-O", "raw", chain, "-")
			changed := !bytes.Equal(after, want)
			if changed != (writable && !strings.HasSuffix(chain, "::cow")) {
				t.Errorf("the image has changed: %v", changed)
			}
			if changed && !bytes.Equal(after[at:at+8192], bytes.Repeat([]byte{0x5a}, 8192)) {
				t.Error("the image has not what was written")
			}
		})
	}
}

// exitOf runs a command and returns its exit code.
func exitOf(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	code, _, _ := runCommand(t, cmd)
	return code
}

// TestServeExports lists several exports with other programs' clients.
func TestServeExports(t *testing.T) {
	peers.Need(t, "nbd-client")
	s := startServe(t, "-e", "a", "memory:1M", "-e", "b c", "pattern:2M", "--description", "x", "--description", "the y", "--default-export", "b c")
	if text := string(peers.Run(t, "nbd-client", "-l", "-unix", s.socket())); !strings.Contains(text, "a: x\nb c: the y") {
		t.Errorf("nbd-client -l: %s", text)
	}
	for name, want := range map[string]string{"a": "1048576\n", "b%20c": "2097152\n", "": "2097152\n"} {
		if got := peers.Run(t, "nbdinfo", "--size", "nbd+unix:///"+name+"?socket="+s.socket()); string(got) != want {
			t.Errorf("%q: %s", name, got)
		}
	}
	if code := exitOf(t, peers.Command(t, "nbdinfo", "--size", "nbd+unix:///nope?socket="+s.socket())); code != 1 {
		t.Errorf("a name that is none: %d", code)
	}
	s.stop(syscall.SIGTERM, exitDone)
}

// TestServeContexts compares depths and bitmaps with those that qemu-nbd serves of the same image.
func TestServeContexts(t *testing.T) {
	for _, program := range []string{"qemu-img", "qemu-io", "qemu-nbd", "nbdinfo"} {
		peers.Need(t, program)
	}
	dir := t.TempDir()
	base, over := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "over.qcow2")
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", base, "4M")
	peers.Run(t, "qemu-io", "-f", "qcow2", "-c", "write 1M 1M", base)
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, over)
	peers.Run(t, "qemu-img", "bitmap", "--add", "-f", "qcow2", over, "monday")
	peers.Run(t, "qemu-io", "-f", "qcow2", "-c", "write 3M 128k", over)
	peers.Run(t, "qemu-img", "bitmap", "--disable", "-f", "qcow2", over, "monday")
	s := startServe(t, "-r", "--allow-references", "-B", "monday", over)
	q := peers.Command(t, "qemu-nbd", "-r", "-t", "-f", "qcow2", "-B", "monday", "-A", "-k", filepath.Join(dir, "q"), over)
	check(t, q.Start())
	defer func() { _, _ = q.Process.Kill(), q.Wait() }()
	for peers.Command(t, "nbdinfo", "--size", "nbd+unix:///?socket="+filepath.Join(dir, "q")).Run() != nil {
	}
	for _, context := range []string{"base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:monday"} {
		ours := peers.Run(t, "nbdinfo", "--map="+context, s.uri)
		theirs := peers.Run(t, "nbdinfo", "--map="+context, "nbd+unix:///?socket="+filepath.Join(dir, "q"))
		if !bytes.Equal(ours, theirs) || bytes.Count(ours, []byte("\n")) < 3 {
			t.Errorf("%s:\n%sqemu-nbd:\n%s", context, ours, theirs)
		}
	}
	s.stop(syscall.SIGTERM, exitDone)
	for flag, want := range map[string]bool{"-A=false": false, "-A": true} {
		s := startServe(t, "-r", flag, "--allow-references", over)
		text := string(peers.Run(t, "nbdinfo", s.uri))
		if strings.Contains(text, "qemu:allocation-depth") != want || strings.Contains(text, "monday") {
			t.Errorf("%s: %s", flag, text)
		}
		s.stop(syscall.SIGTERM, exitDone)
	}
}

// TestServeTLS serves with certificates and with keys, to clients that have them and to clients that have not.
func TestServeTLS(t *testing.T) {
	for _, program := range []string{"certtool", "psktool", "nbdinfo"} {
		peers.Need(t, program)
	}
	dir := t.TempDir()
	peers.Run(t, "psktool", "-u", "alice", "-p", filepath.Join(dir, "keys"))
	certificates(t, dir)
	plain := regexp.MustCompile(`^nbds(.*?)(&?tls-[^&]*)*$`)
	for _, c := range []struct {
		args          []string
		user          string
		secure, plain bool
	}{
		{[]string{"--tls-psk", filepath.Join(dir, "keys")}, "alice@", true, false},
		{[]string{"--tls-psk", filepath.Join(dir, "keys")}, "bob@", false, false},
		{[]string{"--tls=on", "--tls-psk", filepath.Join(dir, "keys")}, "alice@", true, true},
		{[]string{"--tls=require", "--tls-certificates", dir}, "", true, false},
		{[]string{"--tls-certificates", dir, "--tls-verify-peer"}, "", true, false},
	} {
		s := startServe(t, append(c.args, "-i", "localhost", "-p", "0", "null:1M")...)
		uri := strings.Replace(s.uri, "127.0.0.1", "localhost", 1)
		if c.plain { // which is then what is told
			uri = strings.Replace(uri, "nbd:", "nbds:", 1) + "?tls-psk-file=" + filepath.Join(dir, "keys")
		}
		secure := strings.Replace(uri, "//", "//"+c.user, 1)
		if code, _, stderr := runCommand(t, peers.Command(t, "nbdinfo", "--size", secure)); (code == 0) != c.secure {
			t.Errorf("%q: %s: %d %s", c.args, secure, code, stderr)
		}
		if code, _, stderr := runCommand(t, peers.Command(t, "nbdinfo", "--size", plain.ReplaceAllString(uri, "nbd$1"))); (code == 0) != c.plain {
			t.Errorf("%q without TLS: %d %s", c.args, code, stderr)
		}
		s.stop(syscall.SIGTERM, exitDone)
	}
}

// certificates makes an authority and certificates of a server on localhost and of a client in a folder, under the names that GnuTLS programs have for
// them.
func certificates(t *testing.T, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, who := range []struct{ name, template string }{
		{"ca", "cn = authority\nca\ncert_signing_key\n"},
		{"server", "cn = localhost\ndns_name = localhost\nip_address = 127.0.0.1\ntls_www_server\nencryption_key\nsigning_key\n"},
		{"client", "cn = client\ntls_www_client\nencryption_key\nsigning_key\n"},
	} {
		writeFile(t, at(who.name+".info"), []byte(who.template))
		peers.Run(t, "certtool", "--generate-privkey", "--key-type=ecdsa", "--outfile", at(who.name+"-key.pem"))
		args := []string{"--generate-self-signed"}
		if who.name != "ca" {
			args = []string{"--generate-certificate", "--load-ca-certificate", at("ca-cert.pem"), "--load-ca-privkey", at("ca-key.pem")}
		}
		peers.Run(t, "certtool", append(args, "--load-privkey", at(who.name+"-key.pem"), "--template", at(who.name+".info"),
			"--outfile", at(who.name+"-cert.pem"))...)
	}
}

// TestServeStarted has clients start the server: with a socket that they hand over, and with one connection on standard input and output.
func TestServeStarted(t *testing.T) {
	peers.Need(t, "nbdinfo")
	program, err := exec.LookPath("imgtool")
	check(t, err)
	if got := peers.Run(t, "nbdinfo", "--size", "[", program, "serve", "null:3M", "]"); string(got) != "3145728\n" {
		t.Errorf("%s", got)
	}
	peers.Need(t, "nbdsh")
	sh := peers.Command(t, "nbdsh", "-c", `
h.connect_command(["`+program+`", "serve", "--single", "memory:1M"])
h.pwrite(b"x" * 512, 4096)
assert h.pread(512, 4096) == b"x" * 512
assert h.get_size() == 1048576
h.shutdown()
`)
	sh.Env = append(sh.Env, "PATH=/usr/bin:"+os.Getenv("PATH")) // whose python has the module
	if code, _, stderr := runCommand(t, sh); code != 0 {
		t.Errorf("nbdsh: %d %s", code, stderr)
	}
	if path, err := exec.LookPath("systemd-socket-activate"); err == nil {
		dir, err := os.MkdirTemp("", "serve")
		check(t, err)
		defer os.RemoveAll(dir)
		sock := filepath.Join(dir, "s")
		cmd := exec.Command(path, "-l", sock, program, "serve", "--exit-last", "null:3M")
		check(t, cmd.Start())
		for {
			if _, err := os.Stat(sock); err == nil {
				break
			}
		}
		if got := peers.Run(t, "nbdinfo", "--size", "nbd+unix:///?socket="+sock); string(got) != "3145728\n" {
			t.Errorf("%s", got)
		}
		check(t, cmd.Wait())
	}
}

// TestServeVerify has fio write and read back, and an image changed by way of a FUSE file.
func TestServeVerify(t *testing.T) {
	peers.Need(t, "fio")
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	output(t, "create", "-q", "-f", "qcow2", path, "32M")
	s := startServe(t, path)
	cmd := peers.Command(t, "fio", "--name=x", "--ioengine=nbd", "--uri="+s.uri, "--rw=randrw", "--bs=4k-64k", "--iodepth=16", "--size=16M", "--verify=crc32c",
		"--verify_fatal=1", "--randseed=1", "--output=/dev/null")
	cmd.Dir = t.TempDir() // where it leaves its state
	if code, stdout, stderr := runCommand(t, cmd); code != 0 {
		t.Errorf("fio: %d %s%s", code, stdout, stderr)
	}
	s.stop(syscall.SIGTERM, exitDone)
	output(t, "check", path)
}
