package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/source/file"
)

func newModClone(a *app) *cobra.Command {
	var p patchFlags
	var sync bool
	cmd := &cobra.Command{
		Use:   "clone SOURCE.gz TARGET.gz [--part SELECTOR|--offset N [--seek N] --from PATH]",
		Short: "Copy a modifiable image, and change the copy",
		Long: `Make a variant of a modifiable image. Where the file system can share blocks between files (XFS, Btrfs, bcachefs), the variant takes no more room than what is
changed in it; elsewhere the kernel copies. With --from the copy is patched as by "imgtool mod patch" before it gets its name.`,
		Example: "  imgtool mod clone metal.raw.gz aws.raw.gz --part name=boot --from boot-aws.img",
		Args:    exactly(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			patching := cmd.Flags().Changed("from")
			if !patching && (p.part != "" || p.offset != "") {
				return usagef("--part and --offset need --from, the bytes to write")
			}
			if file.SamePath(args[0], args[1]) {
				return usagef("%s: the target is the source", args[1])
			}
			if patching {
				return a.clone(cmd.Context(), args[0], args[1], sync, &p)
			}
			return a.clone(cmd.Context(), args[0], args[1], sync, nil)
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.part, "part", "", "the partition to write to")
	f.StringVar(&p.offset, "offset", "", "the byte of the image to write from")
	f.StringVar(&p.seek, "seek", "0", "how many bytes of the partition, or behind the offset, to skip")
	f.StringVar(&p.from, "from", "", "the file to patch in; - is standard input")
	f.BoolVar(&sync, "sync", false, "return when the file is on the disk")
	return cmd
}

// clone copies a modifiable image and changes the copy before it gets its name. p may be nil.
func (a *app) clone(ctx context.Context, source, target string, sync bool, p *patchFlags) error {
	d, err := a.openMod(ctx, source, false)
	if err != nil {
		return err
	}
	defer d.Close()
	if d.Dirty() {
		return nameFile(source, modHint(gzipmod.ErrDirty))
	}
	src, err := file.Open(ctx, source, file.Options{})
	if err != nil {
		return nameFile(source, err)
	}
	defer src.Close()
	pending, err := file.Create(target, file.CreateOptions{})
	if err != nil {
		return nameFile(target, err)
	}
	how, err := file.Clone(ctx, pending.Device(), src)
	if err != nil {
		return errors.Join(nameFile(target, err), pending.Abort())
	}
	a.printf("%s: a copy of %s, %s by %s", target, source, sizes.FormatSize(src.Size()), how)
	if p != nil {
		// The copy has no name yet: if this is interrupted nothing is left of it.
		c, err := gzipmod.Open(ctx, block.NoClose(pending.Device()), gzipmod.OpenOptions{Write: true, Mark: gzipmod.NoMark{}})
		if err == nil {
			err = a.patchOpen(ctx, c, target, *p)
		}
		if err != nil {
			return errors.Join(nameFile(target, err), pending.Abort())
		}
	}
	if err := pending.Commit(sync); err != nil {
		return errors.Join(nameFile(target, err), pending.Abort())
	}
	return nil
}
