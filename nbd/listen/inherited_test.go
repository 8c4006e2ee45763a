//go:build unix

package listen

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestInherited hands sockets to a process, which is this test again.
func TestInherited(t *testing.T) {
	if os.Getenv("LISTEN_TEST") != "" {
		inherit1(t)
		return
	}
	dir := t.TempDir()
	unixListener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer unixListener.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	connected, other := os.NewFile(uintptr(pair[0]), "pair"), os.NewFile(uintptr(pair[1]), "pair")
	defer connected.Close()
	defer other.Close()
	u, err := unixListener.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	f, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct {
		env, want string
		files     []*os.File
	}{
		{"LISTEN_PID=$$ LISTEN_FDS=2", "2 unix tcp unset", []*os.File{u, f}},
		{"LISTEN_PID=1 LISTEN_FDS=2", "0", []*os.File{u, f}},
		{"LISTEN_PID=$$", "0", nil},
		{"LISTEN_PID=$$ LISTEN_FDS=1", "is a connection", []*os.File{connected}},
		{"LISTEN_PID=$$ LISTEN_FDS=1", "descriptor 3", []*os.File{os.Stderr}},
		{"LISTEN_PID=$$ LISTEN_FDS=0", "LISTEN_FDS=0", nil},
		{"LISTEN_PID=$$ LISTEN_FDS=99999999999999999999", "not a number of sockets", nil},
	} {
		cmd := exec.Command("sh", "-c", c.env+` LISTEN_TEST=1 exec "$0" -test.run '^TestInherited$' -test.v`, os.Args[0])
		cmd.ExtraFiles = c.files
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v, want %q:\n%s", c.env, err, c.want, out)
		}
	}
}

// inherit1 tells what has been handed over.
func inherit1(t *testing.T) {
	list, err := Inherited()
	text := strconv.Itoa(len(list))
	for _, l := range list {
		text += " " + l.Addr().Network()
	}
	if _, ok := os.LookupEnv("LISTEN_FDS"); !ok {
		text += " unset"
	}
	t.Log(text, err)
	if err := CloseAll(list); err != nil {
		t.Error(err)
	}
}
