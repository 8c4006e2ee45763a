package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/gzipmod/mark"
	"github.com/imgtool/imgtool/internal/sizes"
)

func newModRepair(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "repair FILE.gz",
		Short: "Put the checksums right after an interrupted change",
		Long: `If a change of a modifiable image was interrupted, a mark beside the file (FILE` + mark.Suffix + `) names what it was about to touch. This reads that
and nothing else, and puts the checksums right. The content stays as the interruption left it: patch again what was being patched.

Where there is no mark nothing is changed, and header and trailer are compared; "imgtool mod verify" reads all.`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.modRepair(cmd.Context(), args[0]) },
	}
}

func (a *app) modRepair(ctx context.Context, path string) error {
	f, m, err := openModFile(ctx, path, true)
	if err != nil {
		return err
	}
	defer f.Close()
	done, err := gzipmod.Repair(ctx, f, m)
	if errors.As(err, new(*block.CorruptError)) {
		err = block.WithHint(err, "only a whole mark of an interrupted change tells how to repair it: bring its mark, or make the image anew")
	}
	if err != nil {
		return nameFile(path, modHint(err))
	}
	if a.json {
		return a.printJSON(struct {
			Filename string `json:"filename"`
			Marked   bool   `json:"marked"`
			Bytes    int64  `json:"bytes-read"`
			Changed  int    `json:"blocks-changed"`
		}{path, done.Marked, done.Bytes, done.Wrong})
	}
	if !done.Marked {
		a.printf("%s: nothing to repair", path)
		return nil
	}
	a.printf("%s: repaired; read %s, %s had changed", path, sizes.FormatSize(done.Bytes), plural(done.Wrong, "block"))
	return nil
}
