package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/convert"
)

// Exit codes. compare has its own, those of qemu-img.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitSalvaged    = 3
	exitCorrupt     = 4
	exitDenied      = 5
	exitKey         = 6
	exitInterrupted = 130
)

// exitHelp returns the table of exit codes for the help.
func exitHelp() string {
	var b strings.Builder
	for _, e := range []struct {
		code    int
		meaning string
	}{
		{exitDone, "done"},
		{exitFailed, "failed"},
		{exitUsage, "the command line is wrong"},
		{exitSalvaged, "done, but some of the data could not be read"},
		{exitCorrupt, "an image is corrupt"},
		{exitDenied, "an image refers to something that it may not: see --allow-references"},
		{exitKey, "wrong key"},
		{exitInterrupted, "interrupted"},
	} {
		fmt.Fprintf(&b, "  %3d  %s\n", e.code, e.meaning)
	}
	return b.String() + `compare: 0 the same, 1 they differ, 2 cannot be opened, 3 and 4 cannot be read.
check: 0 clean, 1 could not be checked, 2 corrupt, 3 some space is wasted, 63 the format has no check.
nbd info, zero and discard that are asked something: 0 yes, 2 no, 1 failed.`
}

// exitCode returns the code for an error.
func exitCode(err error) int {
	var own *codeError
	var usage *usageError
	var chainUsage *chain.UsageError
	var corrupt *block.CorruptError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &own):
		return own.code
	case errors.As(err, &usage), errors.As(err, &chainUsage):
		return exitUsage
	case errors.Is(err, block.ErrDenied):
		return exitDenied
	case errors.Is(err, block.ErrKey):
		return exitKey
	case errors.As(err, &corrupt):
		return exitCorrupt
	default:
		return exitFailed
	}
}

// codeError is an error, or with a nil err a result, that has an exit code of its own.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}
func (e *codeError) Unwrap() error { return e.err }

// endError is an error of a program that signals end, and do not interrupt: what went wrong at the end, or the code of its command.
type endError struct{ err error }

func (e *endError) Error() string { return e.err.Error() }
func (e *endError) Unwrap() error { return e.err }

// atEnd makes what err holds, if that is an error, one that a signal is no excuse for.
func atEnd(err *error) {
	if *err != nil {
		*err = &endError{*err}
	}
}

// usageError says that the command line is wrong.
type usageError struct {
	err error
	cmd string // whose help tells more; "" where the message says all
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...)}
}

// usageOf returns a usageError that points to the help of c.
func usageOf(c *cobra.Command, err error) error { return &usageError{err, c.CommandPath()} }

// finish tells what went wrong, and returns the exit code. Under the name qemu-img both are of that program.
func (a *app) finish(err error) int {
	if a.qemu != nil {
		return a.finishQemuImg(err)
	}
	code := exitCode(err)
	var own *codeError
	switch {
	case err == nil, errors.As(err, &own) && own.err == nil, isBrokenPipe(err):
		return code
	case code == exitInterrupted:
		err = errors.New("interrupted")
	}
	text, hint := message(err), hintOf(err)
	if a.json {
		e := struct {
			Message string `json:"message"`
			Hint    string `json:"hint,omitempty"`
			Exit    int    `json:"exit"`
		}{text, hint, code}
		if line, err := json.Marshal(map[string]any{"error": e}); err == nil {
			fmt.Fprintf(a.stderr, "%s\n", line)
			return code
		}
	}
	fmt.Fprintf(a.stderr, "imgtool: %s\n", text)
	if hint != "" {
		fmt.Fprintf(a.stderr, "hint: %s\n", hint)
	}
	return code
}

// isBrokenPipe reports whether nobody reads standard output any more, which is no reason to say anything.
func isBrokenPipe(err error) bool {
	var named *chain.Error
	return errors.Is(err, syscall.EPIPE) && errors.As(err, &named) && named.Name == standardOutput
}

// message returns err in one line, the file first.
func message(err error) string {
	text := err.Error()
	var at *convert.Error
	var named *chain.Error
	if errors.As(err, &at) && errors.As(at.Err, &named) {
		text = named.Error()
		if cause := named.Err.Error(); !strings.Contains(cause, " at byte ") { // else the image says it more exactly
			text = fmt.Sprintf("%s: %s at byte %d: %s", named.Name, at.Op, at.Off, cause)
		}
	}
	return strings.ReplaceAll(text, "\n", "; ")
}

// unnamed is message without the name of an image, for where the name is told beside it.
func unnamed(image string, err error) string { return strings.TrimPrefix(message(err), image+": ") }

// hintOf returns what the user can do, or "".
func hintOf(err error) string {
	var h *block.Hint
	if errors.As(err, &h) {
		return h.Text
	}
	var u *usageError
	if errors.As(err, &u) && u.cmd != "" {
		return u.cmd + " --help says more"
	}
	return ""
}
