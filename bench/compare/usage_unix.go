//go:build unix

package main

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// maxRSS returns the largest resident size of a finished process and of those that it waited for, in bytes.
func maxRSS(p *os.ProcessState) int64 {
	if u, ok := p.SysUsage().(*syscall.Rusage); ok {
		return rssBytes(u)
	}
	return 0
}

// ownRSS returns the largest resident size of this process, in bytes.
func ownRSS() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return rssBytes(&u)
}

// rssBytes returns Maxrss in bytes: Darwin counts bytes, the others KiB.
func rssBytes(u *syscall.Rusage) int64 {
	if runtime.GOOS == "darwin" {
		return int64(u.Maxrss)
	}
	return int64(u.Maxrss) << 10
}

// settle waits until the system has written what earlier runs left in memory.
func settle() { exec.Command("sync").Run() }
