package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/cmd/imgtool/qemuimg"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/all"
	"github.com/imgtool/imgtool/internal/sizes"
)

// app is what the commands share.
type app struct {
	args                  []string // of the program
	stdin, stdout, stderr *os.File
	out                   *bufio.Writer // over stdout: what people and programs read; images go to stdout itself

	json     bool
	quiet    bool
	verbose  bool
	allow    bool
	logLevel string
	memory   size
	progress string

	qemu    *qemuimg.Call // what is asked for under the name qemu-img; nil under its own
	percent *percent      // then; nil before a command runs
}

const (
	ownMemory     = 32 << 20  // what the program needs besides buffers and caches, in bytes
	defaultMemory = 256 << 20 // the budget for all buffers and caches, in bytes
	minMemory     = 1 << 20   // the smallest budget that can be kept, in bytes
)

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "imgtool",
		Short: "Convert, inspect and change disk images",
		Long: `imgtool opens every image as the same thing, a sparse block device: a file, a partition in it, gzip around it, any nesting of
these. Wherever a command takes an image it takes a chain: SOURCE[::LAYER[=ARG][,KEY=VALUE]...]..., as in disk.raw.gz::gz::part=2.
"imgtool formats" lists the sources and layers there are.

Exit codes:
` + exitHelp(),
		Args:              noCommand,
		RunE:              func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: a.check,
		SilenceErrors:     true,
		SilenceUsage:      true,
	}
	root.SetOut(a.out)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return usageOf(c, err) })

	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", a.json, "print JSON for programs, errors included")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print results and errors only: no warnings, no progress")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "the same as --log-level=debug")
	f.StringVar(&a.logLevel, "log-level", "warn", "least important message to log: debug, info, warn or error")
	f.StringVarP(&a.progress, "progress", "p", "", "show progress on standard error: auto, bar, lines or json")
	f.Lookup("progress").NoOptDefVal = "auto"
	a.memory = defaultMemory
	f.Var(&a.memory, "memory", "what buffers and caches may hold together")
	f.Lookup("memory").DefValue = "256M"
	f.BoolVar(&a.allow, "allow-references", false, "follow whatever other files an image refers to, wherever they are")

	a.add(root, 0, []command{
		{"info", newInfo}, {"create", newCreate}, {"convert", newConvert}, {"compare", newCompare}, {"check", newCheck}, {"map", newMap},
		{"measure", newMeasure}, {"resize", newResize}, {"rebase", newRebase}, {"commit", newCommit}, {"snapshot", newSnapshot},
		{"bitmap", newBitmap}, {"amend", newAmend}, {"dd", newDD}, {"bench", newBench}, {"serve", newServe}, {"mount", newMount}, {"unmount", newUnmount},
		{"partitions", newPartitions}, {"dump", newDump},
		{"mod", newMod}, {"nbd", newNBD}, {"demo", newDemo}, {"synth", newSynth}, {"formats", newFormats}, {"version", newVersion},
	})
	return root
}

// command is a command that is made where it is needed.
type command struct {
	name string
	make func(*app) *cobra.Command
}

// add gives parent the command that the depth'th argument names, or all of them, which help, completion and mistakes need. Making all
// of them takes as long as the rest of a short command.
func (a *app) add(parent *cobra.Command, depth int, list []command) {
	for _, c := range list {
		if depth < len(a.args) && a.args[depth] == c.name {
			parent.AddCommand(c.make(a))
			return
		}
	}
	for _, c := range list {
		parent.AddCommand(c.make(a))
	}
}

// noCommand is for commands that only hold others: it refuses words that name none of them.
func noCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	err := fmt.Errorf("%q is not a command", args[0])
	if like := c.SuggestionsFor(args[0]); len(like) > 0 {
		err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(like, " or "))
	}
	return usageOf(c, err)
}

// check looks at the global flags.
func (a *app) check(*cobra.Command, []string) error {
	var l slog.Level
	if err := l.UnmarshalText([]byte(a.logLevel)); err != nil {
		return usagef("--log-level=%s: say debug, info, warn or error", a.logLevel)
	}
	switch a.progress {
	case "", "auto", "bar", "lines", "json":
	default:
		return usagef("--progress=%s: say auto, bar, lines or json", a.progress)
	}
	if a.memory < minMemory {
		return usagef("--memory=%d: the least is %s", a.memory, sizes.FormatSize(minMemory))
	}
	debug.SetMemoryLimit(int64(a.memory) + ownMemory) // garbage counts as well
	return nil
}

// exactly returns a check for the number of arguments, whose names are those of the command's usage line.
func exactly(n int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return usageOf(c, fmt.Errorf("%s takes %s, and %d came: %s", c.Name(), plural(n, "argument"), len(args), c.UseLine()))
	}
}

// log returns the logger for warnings about images.
func (a *app) log() *slog.Logger {
	if a.qemu != nil {
		return slog.New(qemuLog{a})
	}
	noTime := func(_ []string, at slog.Attr) slog.Attr {
		if at.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return at
	}
	o := &slog.HandlerOptions{Level: a.level(), ReplaceAttr: noTime}
	if a.json {
		return slog.New(slog.NewJSONHandler(a.stderr, o))
	}
	return slog.New(slog.NewTextHandler(a.stderr, o))
}

// level returns the level of the least important message that is logged.
func (a *app) level() slog.Level {
	var level slog.Level
	_ = level.UnmarshalText([]byte(a.logLevel)) // check has refused what is wrong
	switch {
	case a.quiet:
		level = slog.LevelError
	case a.verbose:
		level = slog.LevelDebug
	}
	return level
}

// registry returns the formats there are.
func (a *app) registry() formats.Registry {
	if a.qemu != nil {
		return qemuimg.Formats(all.Drivers())
	}
	return all.Drivers()
}

// openOptions returns how images are opened. A quarter of the memory is for the caches of a layer.
func (a *app) openOptions(r reading) chain.Options {
	return chain.Options{
		Registry: a.registry(), Format: r.format, IndexFile: r.index, Glance: r.glance, Lazy: r.lazy,
		Gate: a.gate(), Log: a.log(), Memory: int64(a.memory) / 4, Stdin: a.stdin, NoLock: r.share, NBD: r.nbd,
	}
}

// printJSON prints v for programs.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "    ")
	return e.Encode(v)
}

// printf prints a line for people. What goes wrong with it is told by flush.
func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.out, format+"\n", args...) }

// flush writes what has been printed.
func (a *app) flush() error {
	if err := a.out.Flush(); err != nil {
		return &chain.Error{Name: standardOutput, Err: err}
	}
	return nil
}

// standardOutput is what errors call it, here and in package chain.
const standardOutput = "standard output"

// size is a flag that holds a number of bytes.
type size int64

func (s *size) String() string { return strconv.FormatInt(int64(*s), 10) }
func (s *size) Type() string   { return "size" }
func (s *size) Set(text string) error {
	n, err := sizes.ParseSize(text)
	*s = size(n)
	return err
}

// programVersion returns the version that the program was built from.
func programVersion() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "(devel)"
}
