// Command imgtool converts, inspects and compares disk images, and makes compressed images that can be changed.
//
// One constructor and one file for each command; root.go lists them and holds what they share. exit.go turns errors into
// messages and exit codes, in one place.
package main

import (
	"bufio"
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"
)

func main() {
	// Most commands are over before memory matters. For the others --memory sets a limit; see app.check.
	debug.SetGCPercent(400)
	os.Exit(run(os.Args[1:]))
}

// run executes one command line and returns the exit code.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	// Whoever asks for SIGPIPE is not killed by it, and can remove temporary files: the write fails with EPIPE instead.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	stdin, restore := interruptible(ctx, os.Stdin)
	defer restore()
	a := &app{
		args:  args,
		stdin: stdin, stdout: os.Stdout, stderr: os.Stderr, out: bufio.NewWriter(os.Stdout),
		json: slices.Contains(args, "--json"), // so that what is wrong with other flags is told in JSON as well
	}
	root := newRoot(a)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if e := a.flush(); err == nil {
		err = e
	}
	if err != nil && ctx.Err() != nil {
		err = ctx.Err() // whatever it looked like
	}
	return a.finish(err)
}
