//go:build unix && !linux

package main

import (
	"os/exec"

	"golang.org/x/sys/unix"
)

// redirect makes the descriptor to mean what from means.
func redirect(from, to int) error { return unix.Dup2(from, to) }

// dieWithParent would have a command end when this process is killed, which this system does not offer.
func dieWithParent(*exec.Cmd) {}
