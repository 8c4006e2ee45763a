package nbd

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel end the child when this process ends, however that happens.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
}
