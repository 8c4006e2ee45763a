package main

import (
	"github.com/spf13/cobra"
)

func newNBD(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "nbd",
		Short: "Look at, try and attach exports of NBD servers",
		Long: `Tools over the Network Block Device protocol. Where one takes a URI it is an NBD URI: nbd://HOST[:PORT]/EXPORT,
nbd+unix:///EXPORT?socket=PATH, nbds:// and nbds+unix:// with TLS, nbd+vsock://CID[:PORT]/EXPORT.
imgtool nbd info --help tells of programs in its place.`,
		Args: noCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	a.add(cmd, 1, []command{
		{"info", newNBDInfo}, {"list", newNBDList}, {"map", newNBDMap}, {"discard", newNBDDiscard}, {"zero", newNBDZero},
		{"conformance", newNBDConformance}, {"sh", newNBDSh},
		{"connect", newNBDConnect}, {"disconnect", newNBDDisconnect},
	})
	return cmd
}
