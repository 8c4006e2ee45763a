package listen

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"
)

// TestStdioSocket makes a connection of the two ends of one socket, which is what it was.
func TestStdioSocket(t *testing.T) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	again, err := syscall.Dup(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	c, err := Stdio(os.NewFile(uintptr(fds[0]), "in"), os.NewFile(uintptr(again), "out"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := c.(*net.UnixConn); !ok {
		t.Errorf("it is a %T", c)
	}
	other := os.NewFile(uintptr(fds[1]), "other")
	defer other.Close()
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if p, err := io.ReadAll(other); string(p) != "hello" || err != nil {
		t.Errorf("%q, %v: a copy of the socket is left open", p, err)
	}
}
