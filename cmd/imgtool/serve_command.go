package main

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// killed is what the shell adds to the number of the signal that has ended a command.
const killed = 128

// runCommand runs the command of --run and returns its exit code as an error, nil for 0. Signals that ask for the end go on to the command, because the
// server ends with it; the second one kills it, and so does the time that --drain-timeout gives to clients.
func (r *running) runCommand() error {
	cmd := exec.Command("sh", "-c", r.command)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r.stdin, r.stdout, r.stderr
	cmd.Env = append(os.Environ(), r.variables(r.listeners[0], r.exportNames()[0])...)
	dieWithParent(cmd)

	started, ended := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the kernel watches the thread that starts the command, and not the process
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // the state tells all
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	failed := r.during(cmd, ended)
	if code := exitStatus(cmd.ProcessState); code != 0 {
		failed = errors.Join(&codeError{code: code}, failed)
	}
	return failed
}

// during waits for the end of the command, and returns why it was ended, where the server was the reason.
func (r *running) during(cmd *exec.Cmd, ended chan struct{}) error {
	var failed error
	ends, late := r.ends, make(<-chan time.Time)
	for sent := 0; ; {
		var sig os.Signal
		select {
		case <-ended:
			return failed
		case sig = <-r.signals:
			if sig == os.Interrupt && isTerminal(r.stdin) { // which has interrupted the command as well
				continue
			}
		case failed = <-ends:
			sig, ends = syscall.SIGTERM, nil
		case <-late:
			sig = os.Kill
		}
		if sent++; sent > 1 {
			sig = os.Kill
		}
		late = time.After(r.drainTime)
		_ = cmd.Process.Signal(sig) // it may have ended
	}
}
