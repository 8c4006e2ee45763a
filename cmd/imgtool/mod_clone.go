package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/gzipmod/mark"
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
			ctx, flags := cmd.Context(), cmd.Flags()
			if flags.Changed("from") {
				place, err := p.parse()
				if err != nil {
					return err
				}
				return a.clone(ctx, args[0], args[1], sync, &place, p.from)
			}
			if flags.Changed("part") || flags.Changed("offset") || flags.Changed("seek") {
				return usagef("--part, --offset and --seek need --from, the bytes to write")
			}
			return a.clone(ctx, args[0], args[1], sync, nil, "")
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.part, "part", "", "the partition to write to")
	f.StringVar(&p.offset, "offset", "", "the byte of the image to write from")
	f.StringVar(&p.seek, "seek", "0", "how many bytes from there to skip")
	f.StringVar(&p.from, "from", "", "the file to patch in; - is standard input")
	f.BoolVar(&sync, "sync", false, "return when the file is on the disk")
	return cmd
}

// cloned says what clone did.
type cloned struct {
	Source   string   `json:"source"`
	Filename string   `json:"filename"`
	FileSize int64    `json:"file-size"`
	Method   string   `json:"method"`
	Patch    *patched `json:"patch,omitempty"`
}

// clone copies a modifiable image and changes the copy before it gets its name. place may be nil, for a mere copy.
func (a *app) clone(ctx context.Context, source, target string, sync bool, place *patchPlace, from string) error {
	if err := notStandard(target); err != nil {
		return err
	}
	if file.SamePath(source, target) {
		return usagef("%s: the target is the source", target)
	}
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
	done := cloned{Source: source, Filename: target, FileSize: src.Size()}
	done.Method, err = file.Clone(ctx, pending.Device(), src)
	if err == nil && place != nil {
		done.Patch, err = a.patchPending(ctx, pending, target, *place, from)
	}
	if err == nil {
		err = pending.Commit(sync)
	}
	if err != nil {
		return errors.Join(nameFile(target, err), pending.Abort())
	}
	if err := clearMark(ctx, target); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(done)
	}
	a.printf("%s: a copy of %s, %s by %s", target, source, sizes.FormatSize(done.FileSize), done.Method)
	if done.Patch != nil {
		a.printf("%v", done.Patch)
	}
	return nil
}

// patchPending patches a copy that has no name yet: if this is interrupted nothing is left of it.
func (a *app) patchPending(ctx context.Context, pending *file.Pending, target string, place patchPlace, from string) (*patched, error) {
	d, err := gzipmod.Open(ctx, block.NoClose(pending.Device()), gzipmod.OpenOptions{Write: true, Mark: mark.None{}})
	if err != nil {
		return nil, err
	}
	done, err := a.patchOpen(ctx, d, target, place, from)
	return &done, err
}
