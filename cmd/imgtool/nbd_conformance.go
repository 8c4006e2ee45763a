package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/conformance"
)

// exitDeviates is the exit code of nbd conformance for a server that does what it must not.
const exitDeviates = 3

// nbdConformance is one run of nbd conformance.
type nbdConformance struct {
	*app
	at          nbdTarget
	patterns    []string
	level       string
	all         bool
	destructive bool
	timeout     time.Duration
}

// conformanceReport is what nbd conformance prints in JSON.
type conformanceReport struct {
	Server shown                `json:"server"`
	Counts map[string]int       `json:"counts"`
	Checks []conformance.Result `json:"checks"`
}

func newNBDConformance(a *app) *cobra.Command {
	v := &nbdConformance{app: a}
	var list bool
	c := &cobra.Command{
		Use:   "conformance [flags] URI | [ PROGRAM ARG... ]",
		Short: "Try whether an NBD server keeps the rules of the protocol",
		Long: `Try whether an NBD server, of whatever make, keeps the rules of the protocol's specification. Each check has a connection of its own and sends
frames, right ones and wrong ones, as no good client does: a server may fall over, so try one that nobody depends on. What it must not do
is a fail, what it should not do a warn, what it could do better a note; what it does not offer, or the export is too small for, is skipped.
What needs TLS is tried where the URI is an nbds one.

Nothing is written without --destructive. With it, the first 40 MiB of the export are read before and written back after, where the server
still serves then: holes may have become zeroes, and what other clients write meanwhile is lost.

` + programHelp + `

Exit codes: 0 the server does nothing that it must not, 3 it does, 1 it could not be tried, or stopped serving, 2 the command line is wrong.`,
		Example: `  imgtool nbd conformance nbd://localhost/disk
  imgtool nbd conformance --destructive [ nbdkit memory 64M ]
  imgtool nbd conformance --check meta --check "info/block-size*" --all nbd://localhost
  imgtool nbd conformance --list`,
		Args: func(c *cobra.Command, args []string) error {
			if list {
				return exactly(0)(c, args)
			}
			return exactly(1)(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error {
			level, err := conformance.ParseLevel(v.level)
			if err != nil {
				return usagef("--level: %w", err)
			}
			checks, err := conformance.Select(v.patterns, level)
			if err != nil {
				return usagef("--check: %w", err)
			}
			if list {
				return v.list(checks)
			}
			if err := v.at.parse(args[0]); err != nil {
				return err
			}
			return v.run(c.Context(), checks)
		},
	}
	f := c.Flags()
	f.BoolVar(&list, "list", false, "list the checks, and try nothing")
	f.StringArrayVar(&v.patterns, "check", nil, "try the checks whose name fits a pattern, or is in the area of that name; may be given several times")
	f.StringVar(&v.level, "level", "quality", "try the checks of rules that bind as much, or more: must, should or quality")
	f.BoolVar(&v.all, "all", false, "print what was passed or skipped as well")
	f.BoolVar(&v.destructive, "destructive", false, "write to the export")
	f.DurationVar(&v.timeout, "timeout", conformance.DefaultTimeout, "how long one check may take; a server that is silent for so long fails it")
	return c
}

func (v *nbdConformance) run(ctx context.Context, checks []*conformance.Check) error {
	dialer, err := v.dialer()
	if err != nil {
		return nameFile(v.at.name(), err)
	}
	defer dialer.Close() // with what code a program ends matters to nobody
	target := conformance.Target{Dial: dialer.Dial, Export: v.at.export, Destructive: v.destructive, Timeout: v.timeout}
	if v.at.argv != nil {
		target.Stop = dialer.Close
	}
	if dialer.Secure() {
		target.Upgrade = dialer.Upgrade
	}
	report := conformanceReport{Server: shown(v.at.name()), Counts: map[string]int{}, Checks: []conformance.Result{}}
	err = conformance.Run(ctx, target, checks, func(r conformance.Result) {
		r.Detail = shown(r.Detail).String()
		report.Counts[r.Outcome.String()]++
		report.Checks = append(report.Checks, r)
		if !v.json {
			v.print(r)
		}
	})
	if err != nil {
		err = nameFile(v.at.name(), err)
	} else if report.Counts["fail"] > 0 {
		err = &codeError{code: exitDeviates}
	}
	if v.json {
		return errors.Join(v.printJSON(report), err)
	}
	if len(report.Checks) > 0 {
		v.printf("%s", report.counts())
	}
	return err
}

func (v *nbdConformance) dialer() (*nbd.Dialer, error) {
	if v.at.argv != nil {
		return nbd.StartDialer(v.at.argv)
	}
	return nbd.NewDialer(v.at.uri, true)
}

// print shows one result, and lets people see at once what is done.
func (v *nbdConformance) print(r conformance.Result) {
	passed := r.Outcome == conformance.Pass || r.Outcome == conformance.Skip
	if passed && !v.all {
		return
	}
	v.printf("%-4s  %-33s %-7s  %s", r.Outcome, r.ID, r.Level, r.Rule)
	if r.Detail != "" {
		v.printf("      %s", r.Detail)
	}
	_ = v.out.Flush() // which the end of the command does once more, and tells of
}

// counts says how many checks ended how.
func (r *conformanceReport) counts() string {
	var parts []string
	for _, o := range []conformance.Outcome{conformance.Pass, conformance.Fail, conformance.Warn, conformance.Note, conformance.Skip} {
		parts = append(parts, fmt.Sprintf("%d %s", r.Counts[o.String()], o))
	}
	return strings.Join(parts, ", ")
}

// ruleInfo is a check in JSON.
type ruleInfo struct {
	Check   string            `json:"check"`
	Level   conformance.Level `json:"level"`
	Section string            `json:"section"`
	Rule    string            `json:"rule"`
	Needs   []string          `json:"needs"`
}

// list shows the checks that there are.
func (v *nbdConformance) list(checks []*conformance.Check) error {
	if v.json {
		all := []ruleInfo{}
		for _, c := range checks {
			all = append(all, ruleInfo{c.ID, c.Level, c.Section, c.Rule, append([]string{}, c.Needs()...)})
		}
		return v.printJSON(all)
	}
	w := tabwriter.NewWriter(v.out, 0, 8, 2, ' ', 0)
	for _, c := range checks {
		fmt.Fprintf(w, "%s\t%s\t%s\n", c.ID, c.Level, c.Rule)
	}
	return w.Flush()
}
