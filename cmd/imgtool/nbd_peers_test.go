package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/internal/peers"
)

// peerServer starts an NBD server that listens at a socket, which its arguments name SOCKET, with a file for the argument CONFIG:TEXT, until the test ends, and returns the URI of an export of it.
func peerServer(t *testing.T, export, program string, args ...string) (uri string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "imgtool") // the path of a socket has to be short
	if err != nil {
		t.Fatal(err)
	}
	socket, daemon := filepath.Join(dir, "s"), filepath.Join(dir, "pid")
	for i, a := range args {
		args[i] = strings.NewReplacer("SOCKET", socket, "PIDFILE", daemon).Replace(a)
		if config, ok := strings.CutPrefix(args[i], "CONFIG:"); ok {
			args[i] = filepath.Join(dir, "config")
			if err := os.WriteFile(args[i], []byte(config), 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	cmd := exec.Command(peers.Need(t, program), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if b, err := os.ReadFile(daemon); err == nil { // of one that has gone to the background
			if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
				if p, err := os.FindProcess(pid); err == nil {
					_ = p.Kill()
				}
			}
		}
		os.RemoveAll(dir)
	})
	for range 1000 {
		select {
		case <-ended:
			if !cmd.ProcessState.Success() {
				t.Fatalf("%s %v: %s", program, args, &stderr)
			}
		default:
		}
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + socket
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s %v does not listen: %s", program, args, &stderr)
	return ""
}

// peerServers lists servers of all kinds with different abilities, and starts them one by one.
func peerServers(t *testing.T, f func(t *testing.T, uri string)) {
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.raw")
	if err := writeSparse(disk, append(make([]byte, 1<<20), bytes.Repeat([]byte("imgtool!"), 40000)...)); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 4<<20); err != nil {
		t.Fatal(err)
	}
	base, over := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "over.qcow2")
	peers.Run(t, "qemu-img", "convert", "-O", "qcow2", disk, base)
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", over)
	peers.Run(t, "qemu-img", "bitmap", "--add", over, "b0")
	peers.Run(t, "qemu-io", "-c", "write 2M 64k", "-c", "write -z 3M 64k", over)
	exports := filepath.Join(dir, "exports")
	if err := os.Mkdir(exports, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two words", "drei%25ä"} {
		if err := os.WriteFile(filepath.Join(exports, name), make([]byte, 1000*len(name)), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	config := fmt.Sprintf("CONFIG:[generic]\nunixsock = SOCKET\nallowlist = true\n[disk]\nexportname = %s\nreadonly = true\n[other]\nexportname = %s\n", disk, base)

	for _, s := range []struct {
		name, export, program string
		args                  []string
	}{
		{"memory", "", "nbdkit", []string{"memory", "1G"}},
		{"read-only", "", "nbdkit", []string{"-r", "memory", "1003"}},
		{"empty", "", "nbdkit", []string{"memory", "0"}},
		{"data", "", "nbdkit", []string{"data", "1 @0x10000 2 @0x30000 3 @100000000 4"}},
		{"simple", "", "nbdkit", []string{"--no-sr", "memory", "1M"}},
		{"newstyle", "", "nbdkit", []string{"--mask-handshake=0", "memory", "1M"}},
		{"oldstyle", "", "nbdkit", []string{"-o", "memory", "1M"}},
		{"nozero", "", "nbdkit", []string{"--filter=nozero", "--filter=nocache", "memory", "1M"}},
		{"single", "", "nbdkit", []string{"--filter=multi-conn", "memory", "1M", "multi-conn-mode=disable"}},
		{"noextents", "", "nbdkit", []string{"--filter=noextents", "file", disk}},
		{"blocks", "", "nbdkit", []string{"--filter=blocksize-policy", "file", disk, "blocksize-minimum=512", "blocksize-preferred=64K", "blocksize-maximum=1M"}},
		{"described", "", "nbdkit", []string{"--filter=exportname", "file", disk, "exportdesc=fixed:what it is", "exportname=a/b", "default-export=a/b"}},
		{"folder", "two words", "nbdkit", []string{"file", "dir=" + exports}},
		{"qemu", "disk", "qemu-nbd", []string{"-t", "-f", "raw", "-k", "SOCKET", "-x", "disk", "-D", "a disk", disk}},
		{"qcow2", "", "qemu-nbd", []string{"-t", "-r", "-f", "qcow2", "-k", "SOCKET", "-A", "-B", "b0", over}},
		{"daemon", "second", "qemu-storage-daemon", []string{"--blockdev", "driver=file,node-name=f,filename=" + disk, "--nbd-server", "addr.type=unix,addr.path=SOCKET",
			"--export", "type=nbd,id=a,node-name=f,name=first", "--export", "type=nbd,id=b,node-name=f,name=second,description=again"}},
		{"nbd-server", "disk", "nbd-server", []string{"-C", config, "-p", "PIDFILE"}},
	} {
		t.Run(s.name, func(t *testing.T) {
			if s.program == "nbdkit" {
				s.args = append([]string{"-f", "-U", "SOCKET"}, s.args...)
			}
			f(t, peerServer(t, s.export, s.program, s.args...))
		})
	}
}

// both runs nbdinfo and imgtool, and returns what they print, and their exit codes.
func both(t *testing.T, uri string, theirs, ours []string) (a, b string, codeA, codeB int) {
	t.Helper()
	run := func(cmd *exec.Cmd) (string, int) {
		out, _ := cmd.Output() // the code is looked at
		return string(out), cmd.ProcessState.ExitCode()
	}
	a, codeA = run(peers.Command(t, "nbdinfo", append(theirs, uri)...))
	b, codeB = run(exec.Command("imgtool", append(append([]string{"nbd"}, ours...), uri)...))
	return a, b, codeA, codeB
}

// TestNBDInfo compares info, list and map with nbdinfo, text byte by byte and JSON by what it says, on servers of all kinds. Some are asked everything,
// and with IMGTOOL_SOAK=1 all are.
func TestNBDInfo(t *testing.T) {
	if testing.Short() {
		t.Skip("so many starts of a program take long under the race detector")
	}
	peers.Need(t, "nbdinfo")
	peerServers(t, func(t *testing.T, uri string) {
		calls := []struct{ theirs, ours string }{
			{"--no-content", "info --no-content"},
			{"--list --json", "list --json"},
			{"--map", "map"},
			{"--size", "info --size"},
			{"--list", "list"},
			{"--map --totals", "info --map --totals"},
			{"--map=qemu:allocation-depth", "map -x qemu:allocation-depth"},
			{"--map=qemu:dirty-bitmap:b0", "info --map=qemu:dirty-bitmap:b0"},
			{"--no-content --json", "info --no-content --json"},
			{"--map --json", "map --json"},
			{"--map --json --totals", "map --json --totals"},
		}
		switch path.Base(t.Name()) {
		case "data", "folder", "qcow2", "oldstyle":
		default:
			if os.Getenv("IMGTOOL_SOAK") != "1" {
				calls = calls[:4]
			}
		}
		for _, c := range calls {
			theirs, ours, codeA, codeB := both(t, uri, strings.Fields(c.theirs), strings.Fields(c.ours))
			if c.theirs == "--size" && codeA != 0 {
				t.Fatalf("nbdinfo --size: code %d", codeA) // what nobody can speak with compares with everything
			}
			if codeA != codeB {
				t.Errorf("%s: code %d, nbdinfo %d\n%s\n%s", c.ours, codeB, codeA, ours, theirs)
				continue
			}
			if strings.Contains(c.ours, "--json") && codeA == 0 {
				sameJSON(t, c.ours, ours, theirs)
			} else if ours != theirs && codeA == 0 {
				t.Errorf("%s:\n%s\nnbdinfo:\n%s", c.ours, ours, theirs)
			}
		}
		if path.Base(t.Name()) == "nbd-server" { // whose answer to INFO has a size of 0
			if _, out, _ := imgtool(t, "nbd", "info", uri); !strings.Contains(out, "export-size: 4194304 (4M)") {
				t.Errorf("info: %s", out)
			}
		}
	})
}

// sameJSON compares two texts, but for what only newer versions of nbdinfo than Debian's have.
func sameJSON(t *testing.T, what, ours, theirs string) {
	t.Helper()
	a, b := decode[any](t, []byte(ours)), decode[any](t, []byte(theirs))
	if m, ok := a.(map[string]any); ok {
		if m["extended"] != false {
			t.Errorf("%s: extended is %v", what, m["extended"])
		}
		delete(m, "extended")
		for _, e := range m["exports"].([]any) {
			if v := e.(map[string]any)["can_block_status_payload"]; v != false {
				t.Errorf("%s: can_block_status_payload is %v", what, v)
			}
			delete(e.(map[string]any), "can_block_status_payload")
		}
	}
	if !reflect.DeepEqual(a, b) {
		x, _ := json.MarshalIndent(a, "", " ")
		y, _ := json.MarshalIndent(b, "", " ")
		t.Errorf("%s:\n%s\nnbdinfo:\n%s", what, x, y)
	}
}

// TestNBDInfoQuestions compares the exit codes of --can and --is with those of nbdinfo.
func TestNBDInfoQuestions(t *testing.T) {
	peers.Need(t, "nbdinfo")
	words := []string{"connect", "read", "write", "read-only", "rotational", "tls", "cache", "df", "fast-zero", "flush", "fua", "multi-conn", "trim", "zero",
		"structured-reply", "Fast_Zero"}
	for _, args := range [][]string{
		{"memory", "1M"}, {"-r", "--no-sr", "memory", "1M"}, {"--filter=nozero", "--filter=nocache", "memory", "1M"},
	} {
		uri := peerServer(t, "", "nbdkit", append([]string{"-f", "-U", "SOCKET"}, args...)...)
		for _, w := range words {
			_, out, theirs, ours := both(t, uri, []string{"--can", w}, []string{"info", "--can", w})
			if theirs != ours || out != "" {
				t.Errorf("%v: --can %s: %d %q, nbdinfo %d", args, w, ours, out, theirs)
			}
		}
	}
}
