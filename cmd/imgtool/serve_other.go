//go:build !unix

package main

import (
	"context"
	"os"
	"os/exec"
)

func inBackground() bool                { return false }
func leaveForeground() error            { return nil }
func onStatsSignal(func()) func() error { return func() error { return nil } }
func isReadOnlyFS(error) bool           { return false }
func dieWithParent(*exec.Cmd)           {}
func exitStatus(p *os.ProcessState) int { return p.ExitCode() }
func startInBackground(context.Context) error {
	return usagef("--fork: this system cannot do that")
}
