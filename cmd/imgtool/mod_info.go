package main

import (
	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/gzipmod"
)

func newModInfo(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "info FILE.gz",
		Short: "Show what is kept in a modifiable image, and its index",
		Args:  exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, path := cmd.Context(), args[0]
			f, mark, err := openModFile(ctx, path, false)
			if err != nil {
				return err
			}
			defer f.Close()
			l, err := gzipmod.ReadLayout(ctx, f)
			if err != nil {
				return nameFile(path, modHint(err))
			}
			journal, err := mark.Load(ctx)
			if err != nil {
				return nameFile(path, err)
			}
			dirty := journal != nil
			if a.json {
				o := newLayoutJSON(path, l)
				o.Dirty = &dirty
				return a.printJSON(o)
			}
			a.sayLayout(l)
			a.sayKept(l)
			switch {
			case dirty:
				a.printf("state        a change was interrupted; run imgtool mod repair %s", path)
			case !l.Complete:
				a.printf("state        the index is reserved, not filled in; run imgtool mod index %s", path)
			default:
				a.printf("CRC-32       %08x", l.CRC())
			}
			return nil
		},
	}
}
