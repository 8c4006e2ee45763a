//go:build unix

package nbd

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// grace is how long a server may take to end before it is killed.
const grace = 10 * time.Second

// maxSocket is how long the path of a Unix socket can be in bytes on every system.
const maxSocket = 103

// server is a child process that serves a Unix socket.
type server struct {
	dir     string
	socket  string
	cmd     *exec.Cmd
	greeted atomic.Bool   // it has answered a connection
	ended   chan struct{} // closed when the process has ended
	result  error         // of it; set before ended is closed
}

// startServer starts argv with a listening socket as file 3.
func startServer(argv []string) (*server, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, err
	}
	const name, random = "socket", len("/nbd-4294967295/")
	dir := os.TempDir()
	if len(dir)+random+len(name) > maxSocket {
		dir = "/tmp"
	}
	dir, err = os.MkdirTemp(dir, "nbd-")
	if err != nil {
		return nil, err
	}
	s := &server{dir: dir, socket: filepath.Join(dir, name), ended: make(chan struct{})}
	if err := s.start(path, argv); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return s, nil
}

func (s *server) start(path string, argv []string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	// Only the child listens: when it is gone nobody waits in vain.
	defer l.Close()
	file, err := l.File()
	if err != nil {
		return err
	}
	defer file.Close()
	// LISTEN_PID has to be the child's own number, which only the child knows. The shell sees the program and its arguments as words, not as text.
	args := append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh", path}, argv[1:]...)
	s.cmd = exec.Command("/bin/sh", args...)
	s.cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=unknown")
	s.cmd.ExtraFiles = []*os.File{file}
	s.cmd.Stdout, s.cmd.Stderr = os.Stderr, os.Stderr
	dieWithParent(s.cmd)
	started := make(chan error)
	go func() {
		// The kernel takes the end of the thread that started a child for the end of its parent: this one stays as long as the child.
		runtime.LockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			s.result = s.cmd.Wait()
			close(s.ended)
		}
		runtime.UnlockOSThread()
	}()
	return <-started
}

// status says how the process has ended.
func (s *server) status() string { return s.cmd.ProcessState.String() }

// stop ends the process and removes its socket.
func (s *server) stop() error {
	err := s.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-s.ended:
	case <-timer.C:
		s.cmd.Process.Kill()
		<-s.ended
	}
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}
