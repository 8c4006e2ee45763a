package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/gzipmod/mark"
)

func newModInfo(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "info FILE.gz",
		Short: "Show what is kept in a modifiable image, and its index",
		Long: `Show what the index of a modifiable image says. Header and trailer are read and compared, and nothing else: "imgtool mod verify" reads all.

Exit code 4 where they contradict each other.`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.modInfo(cmd.Context(), args[0]) },
	}
}

func (a *app) modInfo(ctx context.Context, path string) error {
	f, m, err := openModFile(ctx, path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	dirty, err := mark.Exists(ctx, m)
	if err != nil {
		return nameFile(path, err)
	}
	l, err := gzipmod.ReadLayout(ctx, f)
	if dirty && errors.As(err, new(*block.CorruptError)) {
		return &codeError{exitCorrupt, nameFile(path, modHint(gzipmod.ErrDirty))}
	}
	if err != nil {
		return nameFile(path, modHint(err))
	}
	// What is wrong with the end of the file does not keep the index from being shown.
	var wrong error
	if l.Complete {
		_, wrong = gzipmod.Open(ctx, block.NoClose(f), gzipmod.OpenOptions{Mark: m})
	}
	if a.json {
		o := newLayoutJSON(path, l)
		o.Dirty = &dirty
		return errors.Join(a.printJSON(o), nameFile(path, wrong))
	}
	a.sayLayout(l)
	a.sayKept(l)
	switch {
	case dirty:
		a.printf("state        a change was interrupted; run imgtool mod repair %s", path)
	case !l.Complete:
		a.printf("state        the index is reserved, not filled in; run imgtool mod index %s", path)
	case wrong == nil:
		a.printf("CRC-32       %08x", l.CRC())
	}
	return nameFile(path, wrong)
}
