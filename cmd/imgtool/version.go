package main

import (
	"runtime"

	"github.com/spf13/cobra"
)

func newVersion(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  exactly(0),
		RunE: func(*cobra.Command, []string) error {
			system := runtime.GOOS + "/" + runtime.GOARCH
			if a.json {
				return a.printJSON(map[string]string{"version": programVersion(), "go": runtime.Version(), "system": system})
			}
			a.printf("imgtool %s %s %s", programVersion(), runtime.Version(), system)
			return nil
		},
	}
}
