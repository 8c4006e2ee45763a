package main

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// redirect makes the descriptor to mean what from means.
func redirect(from, to int) error { return unix.Dup3(from, to, 0) }

// dieWithParent has a command end when this process is killed.
func dieWithParent(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
