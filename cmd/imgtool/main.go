// Command imgtool converts, inspects and compares disk images, and makes compressed images that can be changed.
//
// One constructor and one file for each command; root.go lists them and holds what they share. exit.go turns errors into
// messages and exit codes, in one place.
package main

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"syscall"
)

func main() {
	// Most commands are over before memory matters. For the others --memory sets a limit; see app.check.
	debug.SetGCPercent(400)
	os.Exit(run(asQemuImg(os.Args)))
}

// run executes one command line, of imgtool or of qemu-img, and returns the exit code.
func run(args []string, qemu bool) int {
	if !qemu {
		args = joinPrograms(args)
	}
	ctx, stop := signal.NotifyContext(context.Background(), endingSignals()...)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	// Whoever asks for SIGPIPE is not killed by it, and can remove temporary files: the write fails with EPIPE instead.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	stdin, restore := interruptible(ctx, os.Stdin)
	defer restore()
	a := &app{
		args:  args,
		stdin: stdin, stdout: os.Stdout, stderr: os.Stderr, out: bufio.NewWriter(os.Stdout),
		json: !qemu && slices.Contains(args, "--json"), // so that what is wrong with other flags is told in JSON as well
	}
	err := a.execute(ctx, qemu)
	if e := a.flush(); err == nil {
		err = e
	}
	if err != nil && ctx.Err() != nil && !errors.As(err, new(*endError)) {
		err = ctx.Err() // whatever it looked like
	}
	return a.finish(err)
}

// endingSignals returns the signals that end the program: without those that are ignored, as a shell has it in the background, and nohup.
func endingSignals() []os.Signal {
	return append(slices.DeleteFunc([]os.Signal{os.Interrupt, syscall.SIGHUP}, signal.Ignored), syscall.SIGTERM)
}

// execute runs the command that the arguments name.
func (a *app) execute(ctx context.Context, qemu bool) error {
	if qemu {
		if err := a.beQemuImg(); err != nil || len(a.args) == 0 {
			return err
		}
	}
	root := newRoot(a)
	root.SetArgs(a.args)
	if c, _, err := root.Find(a.args); err == nil && c.Name() == "resize" {
		root.SetArgs(negativeLast(a.args))
	}
	err := root.ExecuteContext(ctx)
	if a.percent != nil {
		a.percent.end(err)
	}
	return err
}
