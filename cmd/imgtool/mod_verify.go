package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/gzipmod/mark"
	"github.com/imgtool/imgtool/internal/sizes"
)

func newModVerify(a *app) *cobra.Command {
	var workers int
	cmd := &cobra.Command{
		Use:   "verify FILE.gz",
		Short: "Check every byte of a modifiable image",
		Long: `Decode a modifiable image with all processors, and check every chunk, every checksum, the index and the trailer against each other.

Exit code 4 where something is wrong.`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.verify(cmd.Context(), args[0], workers) },
	}
	cmd.Flags().IntVarP(&workers, "workers", "m", 0, "how many processors to use; 0 means all")
	return cmd
}

func (a *app) verify(ctx context.Context, path string, workers int) error {
	f, m, err := openModFile(ctx, path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	dirty, err := mark.Exists(ctx, m)
	if err != nil {
		return nameFile(path, err)
	}
	if dirty {
		return &codeError{exitCorrupt, nameFile(path, modHint(gzipmod.ErrDirty))}
	}
	progress, end := a.showProgress("verify")
	l, problems, err := gzipmod.Verify(ctx, f, gzipmod.VerifyOptions{Workers: workers, Progress: progress})
	end()
	if err != nil {
		return nameFile(path, modHint(err))
	}
	var bad error
	if len(problems) > 0 {
		bad = &codeError{exitCorrupt, nil}
	}
	if a.json {
		texts := []string{}
		for _, p := range problems {
			texts = append(texts, p.Error())
		}
		return errors.Join(bad, a.printJSON(struct {
			layoutJSON
			Problems []string `json:"problems"`
		}{newLayoutJSON(path, l), texts}))
	}
	for _, p := range problems {
		fmt.Fprintf(a.stderr, "imgtool: %s: %v\n", path, p)
	}
	if bad == nil {
		a.printf("%s: %s, CRC-32 %08x, all %s and %s good", path, sizes.FormatSize(l.Size), l.CRC(),
			plural(len(l.Regions), "region"), plural(len(l.Chunks), "chunk"))
	}
	return bad
}
