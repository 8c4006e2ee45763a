package main

import "github.com/spf13/cobra"

func newNBDDiscard(a *app) *cobra.Command {
	v := &nbdErase{app: a, length: -1}
	c := &cobra.Command{
		Use:   "discard [flags] URI | [ PROGRAM ARG... ]",
		Short: "Tell an NBD server that what an export holds is not needed",
		Long: `Tell an NBD server that what an export holds, or a range of it, is not needed: it gives the space back, and what is read there afterwards is
anything. With --check nothing is changed, and the exit code says whether the range is sparse already.

` + eraseHelp + `

` + programHelp + `

Exit codes: 0 done, 1 failed or not confirmed, 2 the command line is wrong; with --check: 0 it is sparse, 2 it is not, 1 failed.`,
		Example: `  imgtool nbd discard nbd://server/export
  imgtool nbd discard --yes -o 1G -l 512M "nbd+unix:///?socket=/run/nbd.sock"`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error { return v.command(c, args, "discard") },
	}
	v.flags(c)
	return c
}
