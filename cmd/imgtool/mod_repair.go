package main

import (
	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/internal/sizes"
)

func newModRepair(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "repair FILE.gz",
		Short: "Put the checksums right after an interrupted change",
		Long: `If a change of a modifiable image was interrupted, a mark beside the file (FILE` + gzipmod.MarkSuffix + `) names what it was about to touch. This reads that
and nothing else, and puts the checksums right. The content stays as the interruption left it: patch again what was being patched.`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, path := cmd.Context(), args[0]
			f, mark, err := openModFile(ctx, path, true)
			if err != nil {
				return err
			}
			defer f.Close()
			done, err := gzipmod.Repair(ctx, f, mark)
			if err != nil {
				return nameFile(path, err)
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
		},
	}
}
