package main

import (
	"context"

	"github.com/spf13/cobra"
)

// nbdList is one run of nbd list.
type nbdList struct {
	*app
	at      nbdTarget
	content bool
	color   string
}

func newNBDList(a *app) *cobra.Command {
	v := &nbdList{app: a}
	c := &cobra.Command{
		Use:   "list [flags] URI | [ PROGRAM ARG... ]",
		Short: "Show all exports of an NBD server",
		Long: `Show all exports that an NBD server lists, as nbdinfo --list does. Which one the URI names does not matter. A server need not list what it has.

` + programHelp + `

Exit codes: 0 done, 1 failed, for one of the exports or for all, 2 the command line is wrong.`,
		Example: `  imgtool nbd list nbd://server
  imgtool nbd list --json --content "nbd+unix:///?socket=/run/nbd.sock"`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := v.at.parse(args[0]); err != nil {
				return err
			}
			return v.run(c.Context())
		},
	}
	v.at.flags(c)
	c.Flags().BoolVar(&v.content, "content", false, "look at what the exports hold as well")
	colorFlag(c, &v.color)
	return c
}

func (v *nbdList) run(ctx context.Context) error {
	p, err := v.painter(v.color)
	if err != nil {
		return err
	}
	s, err := v.at.connect(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	listed, err := s.List(s.ctx)
	if err != nil {
		return s.named(err)
	}
	info := newServerInfo(s.Conn)
	if !v.json {
		printServer(p, info)
	}
	if v.content { // which each export has a connection for; there are servers that serve one at a time
		s.Close()
	}
	var failed error
	for _, l := range listed {
		e, err := v.describe(ctx, s, l.Name)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if failed != nil {
				v.log().Error(message(failed))
			}
			failed = err
			continue
		}
		if l.Description != "" {
			e.Description = shown(l.Description)
		}
		if info.Exports = append(info.Exports, e); !v.json {
			printExport(p, e, info.Extended)
		}
	}
	if v.json {
		if err := v.printJSON(info); err != nil {
			return err
		}
	}
	return failed
}

// describe returns what the server tells of one export: on the connection that s is, or where the content is asked for on another one.
func (v *nbdList) describe(ctx context.Context, s *nbdSession, export string) (exportInfo, error) {
	if !v.content {
		return s.describe(ctx, v.app, export, false)
	}
	s, err := v.at.connect(ctx)
	if err != nil {
		return exportInfo{}, err
	}
	defer s.Close()
	return s.describe(ctx, v.app, export, true)
}
