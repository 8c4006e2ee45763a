// Package shell runs scripts that speak NBD, in Starlark: a small Python without classes and exceptions.
//
// A script has the handle h, on which every option and command of the protocol is a method, named as in nbdsh where that has it, and the module nbd with
// constants and functions to make more handles. The variables of one script are there for the next. What scripts can do is in docs/nbd-sh.md.
package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"go.starlark.net/starlark"
	"go.starlark.net/syntax"
)

// options make the language as near to Python as it gets.
var options = &syntax.FileOptions{Set: true, While: true, TopLevelControl: true, GlobalReassign: true, Recursion: true, LoadBindsGlobally: true}

// Shell runs scripts one after another. It is used by one goroutine at a time.
type Shell struct {
	out     io.Writer
	thread  *starlark.Thread
	globals starlark.StringDict
	handles []*Handle
	ctx     context.Context // of the script that runs
	cookie  uint64          // the last that a raw command got
}

// New returns a shell that prints to out. With handle there is a handle h, which is not connected.
func New(out io.Writer, handle bool) *Shell {
	s := &Shell{out: out, ctx: context.Background()}
	s.thread = &starlark.Thread{Name: "nbd sh", Print: func(_ *starlark.Thread, text string) { fmt.Fprintln(out, text) }}
	s.globals = s.names()
	if handle {
		s.globals["h"] = s.newHandle()
	}
	return s
}

// Handle returns h; nil where there is none.
func (s *Shell) Handle() *Handle {
	h, _ := s.globals["h"].(*Handle)
	return h
}

// Connect connects h to what an NBD URI names.
func (s *Shell) Connect(ctx context.Context, uri string) error {
	s.ctx = ctx
	return s.Handle().connectURI(uri)
}

// Start starts a server, as nbd.Start does, and connects h to it.
func (s *Shell) Start(ctx context.Context, argv []string) error {
	s.ctx = ctx
	return s.Handle().connectProgram(argv)
}

// Run runs a script, which errors call name. It ends with ctx.
func (s *Shell) Run(ctx context.Context, name string, script []byte) error {
	f, err := options.Parse(name, script, 0)
	if err != nil {
		return err
	}
	return s.under(ctx, func() error { return starlark.ExecREPLChunk(f, s.thread, s.globals) })
}

// under runs f within ctx.
func (s *Shell) under(ctx context.Context, f func() error) error {
	s.ctx = ctx
	s.thread.Uncancel()
	stop := context.AfterFunc(ctx, func() { s.thread.Cancel("interrupted") })
	defer stop()
	err := f()
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return located(err)
}

// Interact runs what readLine returns, piece by piece, until it returns io.EOF. It prints the values of expressions, and errors.
func (s *Shell) Interact(ctx context.Context, readLine func(prompt string) (string, error)) error {
	for {
		prompt := "nbd> "
		var failed error
		f, err := options.ParseCompoundStmt("<stdin>", func() ([]byte, error) {
			line, err := readLine(prompt)
			prompt = "...> "
			failed = err
			return []byte(line + "\n"), err
		})
		switch {
		case errors.Is(failed, io.EOF):
			return ctx.Err()
		case failed != nil:
			return failed
		case err == nil:
			err = s.under(ctx, func() error { return s.step(f) })
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			fmt.Fprintln(s.out, err)
		}
	}
}

// step runs one piece of what is typed, and prints the value of an expression.
func (s *Shell) step(f *syntax.File) error {
	if len(f.Stmts) == 1 {
		if e, ok := f.Stmts[0].(*syntax.ExprStmt); ok {
			v, err := starlark.EvalExprOptions(f.Options, s.thread, e.X, s.globals)
			if err == nil && v != starlark.None {
				fmt.Fprintln(s.out, v)
			}
			return err
		}
	}
	return starlark.ExecREPLChunk(f, s.thread, s.globals)
}

// Close closes all handles, and ends the servers that they have started.
func (s *Shell) Close() {
	for _, h := range s.handles {
		h.close()
	}
	s.handles = nil
}

// located puts the place in the script before an error.
func located(err error) error {
	var e *starlark.EvalError
	if !errors.As(err, &e) {
		return err
	}
	var at []string
	for _, frame := range e.CallStack {
		if frame.Pos.Filename() != "<builtin>" {
			at = append(at, frame.Pos.String())
		}
	}
	return fmt.Errorf("%s: %w", strings.Join(at, ": "), e)
}
