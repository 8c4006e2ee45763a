package main

import (
	"github.com/spf13/cobra"
)

func newNBDZero(a *app) *cobra.Command {
	v := &nbdErase{app: a, zero: true, length: -1}
	c := &cobra.Command{
		Use:   "zero [flags] URI | [ PROGRAM ARG... ]",
		Short: "Let an NBD server make an export zero",
		Long: `Let an NBD server make an export, or a range of it, zero, without zeros being sent. It stays allocated, unless --holes is given. With --check
nothing is changed, and the exit code says whether the range reads as zero already.

` + eraseHelp + `

` + programHelp + `

Exit codes: 0 done, 1 failed or not confirmed, 2 the command line is wrong; with --check: 0 it reads as zero, 2 it does not, 1 failed.`,
		Example: `  imgtool nbd zero nbd://server/export
  imgtool nbd zero --yes --fast-zero --holes "nbd+unix:///?socket=/run/nbd.sock"`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error { return v.command(c, args, "zero") },
	}
	v.flags(c)
	f := c.Flags()
	f.BoolVar(&v.fast, "fast-zero", false, "fail at once where it would take as long as writing")
	f.BoolVar(&v.holes, "holes", false, "the server may give the space back")
	return c
}
