//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// readyVariable tells a process that it is the server of --fork, and on which descriptor it says that it is ready.
const readyVariable = "IMGTOOL_READY_FD"

// inBackground reports whether this process is the server that another one has started for --fork.
func inBackground() bool { return os.Getenv(readyVariable) != "" }

// startInBackground starts this program again with the same arguments, in a session of its own, and returns when that one is ready, or has failed:
// then with its exit code.
func startInBackground(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ready, says, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(self)
	cmd.Args = os.Args
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{says}
	const firstExtra = 3
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d", readyVariable, firstExtra))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = says.Close() // the server has it
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	if n, _ := ready.Read(make([]byte, 1)); n > 0 {
		return cmd.Process.Release()
	}
	_ = cmd.Wait() // the state tells all
	return &codeError{code: max(exitStatus(cmd.ProcessState), exitFailed)}
}

// leaveForeground says that the server is ready, and lets go of standard output and error.
func leaveForeground() error {
	fd, err := strconv.Atoi(os.Getenv(readyVariable))
	if err != nil {
		return fmt.Errorf("%s: %w", readyVariable, err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for _, f := range []*os.File{os.Stdout, os.Stderr} {
		if err := redirect(int(null.Fd()), int(f.Fd())); err != nil {
			return errors.Join(err, null.Close())
		}
	}
	says := os.NewFile(uintptr(fd), "ready")
	_, err = says.Write([]byte{1})
	return errors.Join(err, says.Close(), null.Close(), os.Unsetenv(readyVariable))
}

// exitStatus returns the exit code of a process as the shell has it.
func exitStatus(p *os.ProcessState) int {
	if w, ok := p.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return killed + int(w.Signal())
	}
	return p.ExitCode()
}

// onStatsSignal calls f for every SIGUSR1 until what it returns is called.
func onStatsSignal(f func()) func() error {
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGUSR1)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case <-c:
				f()
			case <-done:
				return
			}
		}
	}()
	return func() error {
		signal.Stop(c)
		close(done)
		return nil
	}
}

// isReadOnlyFS reports whether a file cannot be written because of where it lies.
func isReadOnlyFS(err error) bool { return errors.Is(err, unix.EROFS) }
