package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/nbd/shell"
	"github.com/imgtool/imgtool/nbd/wire"
)

// nbdSh is one run of nbd sh.
type nbdSh struct {
	*app
	uri      string
	commands []string
	optMode  bool
	noHandle bool
	base     bool
}

func newNBDSh(a *app) *cobra.Command {
	v := &nbdSh{app: a}
	c := &cobra.Command{
		Use:   "sh [flags] [FILE]",
		Short: "Speak NBD by hand or by script",
		Long: `Speak NBD by hand or by script, in Starlark, a small Python. There is a handle h, with every option and command of the protocol as a method:
h.connect_uri("nbd://localhost"), h.get_size(), h.pread(512, 0), h.block_status(1024, 0), h.option(99, b"data"), h.command(nbd.CMD_READ, ...). dir(h) lists
them, dir(nbd) the constants; docs/nbd-sh.md describes them. Scripts are trusted: they connect to what they like.

Without FILE and -c, lines are read from standard input, and values printed. -c runs a command, or with - a script from standard input; several of them share
their variables, and FILE comes after them. The first error ends the program.

Exit codes: 0 done, 1 a script failed, 2 the command line is wrong.`,
		Example: `  imgtool nbd sh -u nbd://localhost -c 'print(h.get_size())'
  imgtool nbd sh -u "[ nbdkit memory 1M ]" --base-allocation
  imgtool nbd sh --opt-mode -u nbd://localhost -c 'print(h.opt_list())' -c 'h.opt_abort()'
  imgtool nbd sh test.star`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageOf(c, fmt.Errorf("sh takes at most 1 argument, and %d came", len(args)))
			}
			if v.noHandle && (v.uri != "" || v.optMode || v.base) {
				return usagef("-n makes no handle, which --uri, --opt-mode and --base-allocation are about")
			}
			return v.run(c.Context(), args)
		},
	}
	f := c.Flags()
	f.StringVarP(&v.uri, "uri", "u", "", "connect h to an NBD URI, or to a server that is started: \"[ PROGRAM ARG... ]\" in one word")
	f.StringArrayVarP(&v.commands, "command", "c", nil, "run a command instead of reading standard input; - is a script from there; may be given several times")
	f.BoolVar(&v.optMode, "opt-mode", false, "connecting leaves h in negotiation: h.opt_go() ends that")
	f.BoolVar(&v.base, "base-allocation", false, "ask for the context base:allocation")
	f.BoolVarP(&v.noHandle, "no-handle", "n", false, "make no handle h; nbd.handle() makes one")
	return c
}

func (v *nbdSh) run(ctx context.Context, files []string) error {
	s := shell.New(v.out, !v.noHandle)
	defer s.Close()
	if err := v.connect(ctx, s); err != nil {
		return err
	}
	for _, text := range v.commands {
		name, script := "-c", []byte(text)
		if text == "-" {
			var err error
			if script, err = io.ReadAll(v.stdin); err != nil {
				return err
			}
			name = "<stdin>"
		}
		if err := s.Run(ctx, name, script); err != nil {
			return err
		}
	}
	for _, name := range files {
		script, err := os.ReadFile(name)
		if err != nil {
			return nameFile(name, err)
		}
		if err := s.Run(ctx, name, script); err != nil {
			return err
		}
	}
	if len(v.commands) > 0 || len(files) > 0 {
		return nil
	}
	return s.Interact(ctx, v.lines())
}

// connect does what the flags say of h.
func (v *nbdSh) connect(ctx context.Context, s *shell.Shell) error {
	if v.noHandle {
		return nil
	}
	s.Handle().SetOptMode(v.optMode)
	if v.base {
		s.Handle().AddContext(wire.BaseAllocation)
	}
	switch {
	case v.uri == "":
		return nil
	case strings.HasPrefix(v.uri, "["):
		argv, err := chain.ProgramWords(v.uri)
		if err != nil {
			return err
		}
		return nameFile(argv[0], s.Start(ctx, argv))
	}
	return nameFile(v.uri, s.Connect(ctx, v.uri))
}

// lines returns what reads a line: from a terminal with a prompt and editing, else just so.
func (v *nbdSh) lines() func(prompt string) (string, error) {
	if !isTerminal(v.stdin) || !isTerminal(v.stdout) {
		in := bufio.NewReader(v.stdin)
		return func(string) (string, error) {
			line, err := in.ReadString('\n')
			if line != "" && errors.Is(err, io.EOF) {
				err = nil
			}
			return strings.TrimSuffix(line, "\n"), err
		}
	}
	t := term.NewTerminal(struct {
		io.Reader
		io.Writer
	}{v.stdin, v.stdout}, "")
	return func(prompt string) (string, error) {
		if err := v.out.Flush(); err != nil {
			return "", err
		}
		// While a command runs the terminal is as it was, so that Ctrl-C is a signal then.
		fd := int(v.stdin.Fd())
		before, err := term.MakeRaw(fd)
		if err != nil {
			return "", err
		}
		defer term.Restore(fd, before)
		t.SetPrompt(prompt)
		line, err := t.ReadLine()
		if errors.Is(err, io.EOF) {
			_, _ = v.stdout.WriteString("\r\n") // what follows begins a line
		}
		return line, err
	}
}
