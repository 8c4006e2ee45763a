package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/source/file"
	"github.com/imgtool/imgtool/testimages"
)

func newSynth(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "synth",
		Short: "Make images for tests and measurements",
		Args:  noCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSynthDisk(a))
	return cmd
}

func newSynthDisk(a *app) *cobra.Command {
	var size, data string
	var seed uint64
	cmd := &cobra.Command{
		Use:   "disk [--size SIZE] [--seed N] TARGET",
		Short: "Make a disk: GPT, EFI system partition, /boot and root with files",
		Long: `Make a raw disk image with a GPT, a FAT32 EFI system partition, an ext4 /boot and an ext4 root, filled with files that compress as those of
a Linux system do, and with holes between them. The same size, data and seed make the same bytes on every machine.

With --json the list of files is printed: where each lies on the disk, and its SHA-256.`,
		Example: "  imgtool synth disk --size 6G --seed 1 disk.raw",
		Args:    exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, path := cmd.Context(), args[0]
			o := testimages.DiskOptions{Seed: seed}
			var err error
			if o.Size, err = sizes.ParseSize(size); err != nil {
				return usagef("--size: %w", err)
			}
			if data != "" {
				if o.Data, err = sizes.ParseSize(data); err != nil {
					return usagef("--data: %w", err)
				}
			}
			if o.Size < testimages.MinDisk || o.Size > testimages.MaxDisk {
				return usagef("--size %s: from %s to %s", size, sizes.FormatSize(testimages.MinDisk), sizes.FormatSize(testimages.MaxDisk))
			}
			p, err := file.Create(path, file.CreateOptions{})
			if err != nil {
				return nameFile(path, err)
			}
			m, err := testimages.Disk(ctx, p.Device(), o)
			if err == nil {
				err = p.Commit(false)
			}
			if err != nil {
				return errors.Join(nameFile(path, err), p.Abort())
			}
			if a.json {
				return a.printJSON(m)
			}
			a.printf("%s: %s, %s in %s", path, sizes.FormatSize(m.Size), plural(len(m.Files), "file"), plural(len(m.Partitions), "partition"))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&size, "size", "1G", "size of the disk")
	f.StringVar(&data, "data", "", "how much the files hold together; by default a quarter of the disk, at most 2G")
	f.Uint64Var(&seed, "seed", 1, "another seed makes another disk")
	return cmd
}
