//go:build !unix

package main

import (
	"context"
	"os"
)

// interruptible returns standard input as it is: a Read that waits for bytes cannot be ended here.
func interruptible(_ context.Context, stdin *os.File) (*os.File, func()) { return stdin, func() {} }
