package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/gzipmod"
)

func newModIndex(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "index FILE.gz",
		Short: "Fill in the index of an image that was written to a pipe",
		Long: `An image that was made on a pipe has room for its index, but nobody could go back and fill it in. This decodes the file once and
fills it in. A file whose index is complete is left alone.`,
		Example: `  imgtool mod make --keep name=boot disk.raw - | ssh host 'cat > disk.raw.gz; imgtool mod index disk.raw.gz'`,
		Args:    exactly(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.modIndex(cmd.Context(), args[0]) },
	}
}

func (a *app) modIndex(ctx context.Context, path string) error {
	f, m, err := openModFile(ctx, path, true)
	if err != nil {
		return err
	}
	defer f.Close()
	progress, end := a.showProgress("index")
	err = gzipmod.Rebuild(ctx, f, m, progress)
	end()
	if err != nil {
		return nameFile(path, modHint(err))
	}
	l, err := gzipmod.ReadLayout(ctx, f)
	if err != nil {
		return nameFile(path, err)
	}
	if a.json {
		return a.printJSON(newLayoutJSON(path, l))
	}
	a.printf("%s: the index is complete", path)
	return nil
}
