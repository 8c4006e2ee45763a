package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/cmd/imgtool/qemuimg"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/internal/sizes"
)

func newInfo(a *app) *cobra.Command {
	from := reading{glance: true, lazy: true}
	var whole bool
	c := &cobra.Command{
		Use:   "info [flags] IMAGE",
		Short: "Show what an image is",
		Long: `Show what an image is. Nothing that it refers to is opened for that, except for what the first sectors of the disk lie in. A reference that
would not be followed is shown with the reason. Of an image that its format refuses, what can be said is shown, and the reason is the error.

Exit codes: 0 described, 1 failed, 4 the image is corrupt, 5 with --backing-chain: the images refer to each other in a circle, or are too many.`,
		Example: `  imgtool info disk.qcow2
  imgtool info --json --backing-chain overlay.qcow2
  imgtool info disk.raw.gz::raw`,
		Args: exactly(1),
		RunE: func(c *cobra.Command, args []string) error {
			infos, failed := a.inspect(c.Context(), args[0], from, whole)
			if a.qemu != nil {
				return a.printQemuInfo(infos, whole, failed)
			}
			if len(infos) == 0 {
				return failed
			}
			var err error
			switch {
			case a.json && whole:
				err = a.printJSON(infos)
			case a.json:
				err = a.printJSON(infos[0])
			default:
				a.printInfos(infos)
			}
			return errors.Join(failed, err)
		},
	}
	from.flags(c)
	c.Flags().BoolVar(&whole, "backing-chain", false, "show all images that show through, the outermost first; in JSON a list")
	return c
}

// inspect describes an image and, where whole is set, those below it. With an error it returns what could be described all the same.
func (a *app) inspect(ctx context.Context, text string, from reading, whole bool) ([]imageInfo, error) {
	img, err := chain.Open(ctx, text, a.openOptions(from))
	if err != nil {
		return a.inspectBelow(ctx, text, from, err)
	}
	defer img.Close()
	info, err := a.describe(ctx, img)
	infos := []imageInfo{info}
	if err != nil || !whole {
		return infos, err
	}
	for dev := img.Device; dev != nil; {
		backed, ok := block.As[formats.Backed](dev)
		if !ok {
			break
		}
		ref, ok := backed.Backing()
		if !ok {
			break
		}
		if dev, err = backed.BackingDevice(ctx); err != nil {
			return infos, a.notFollowed(&infos[len(infos)-1], ref, nameError(img, err))
		}
		if info, err = a.describeBacking(ctx, dev, ref); err != nil {
			return append(infos, info), nameError(img, err)
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// notFollowed adds to info why its backing file cannot be followed, and returns err unless info has told that as a reference that is refused.
func (a *app) notFollowed(info *imageInfo, ref formats.Ref, err error) error {
	switch {
	case errors.Is(err, chain.ErrLoop) && a.qemu != nil:
		return &qemuimg.Error{Text: fmt.Sprintf("Backing file '%s' creates an infinite loop.", info.FullBacking), Exit: exitFailed}
	case !errors.Is(err, block.ErrDenied):
		return err
	case slices.ContainsFunc(info.Refused, func(r refusal) bool { return r.Kind == ref.Kind }):
		return nil
	}
	info.Refused = append(info.Refused, refusal{ref.Kind, ref.Name, message(err)})
	return err
}

// describeBacking describes an image that was opened because another one refers to it.
func (a *app) describeBacking(ctx context.Context, dev block.Device, ref formats.Ref) (imageInfo, error) {
	info := imageInfo{Filename: ref.Name, Format: dev.Info().Format, Layers: []layerInfo{{dev.Info().Format, chain.Sniffed}}}
	if ref.Format != "" {
		info.Layers[0].How = chain.Given
	}
	if path, err := chain.Path(ref); err == nil {
		info.Filename, info.ActualSize = path, actualSize(path)
	}
	return info, a.describeDevice(ctx, dev, &info)
}

// inspectBelow describes the file of an image that could not be opened because of refused.
func (a *app) inspectBelow(ctx context.Context, text string, from reading, refused error) ([]imageInfo, error) {
	b, err := chain.OpenBelow(ctx, text, a.openOptions(from))
	if err != nil {
		return nil, refused // the reason will be the same
	}
	defer b.Close()
	info := a.describeFile(b.Image)
	info.Format, info.Error = b.Format(), message(refused)
	return []imageInfo{info}, refused
}

// printInfos prints for people, in the order that qemu-img has.
func (a *app) printInfos(infos []imageInfo) {
	for i, info := range infos {
		if i > 0 {
			a.printf("")
		}
		a.printInfo(info)
	}
}

func (a *app) printInfo(i imageInfo) {
	a.printf("image: %s", printable(i.Filename))
	a.printf("file format: %s", i.Format)
	switch {
	case i.VirtualSize != nil:
		a.printf("virtual size: %s", sizes.FormatSize(*i.VirtualSize))
	case i.Probable != nil:
		a.printf("virtual size: ~ %s; to find out: imgtool info --index-file FILE %s", sizes.FormatSize(*i.Probable), i.Filename)
	case i.Error == "":
		a.printf("virtual size: known only after reading all of it")
	}
	if i.ActualSize != nil {
		a.printf("disk size: %s", sizes.FormatSize(*i.ActualSize))
	}
	a.printState(i)
	for _, r := range i.Refused {
		a.printf("not followed: %s", r.Reason)
	}
	for _, l := range i.Layers {
		a.printf("layer: %s (%s)", l.Name, l.How)
	}
	if i.Partitions != nil {
		a.printf("partition table: %s with %d partitions", i.Partitions.Scheme, i.Partitions.Count)
	}
	if len(i.Snapshots) > 0 {
		a.printSnapshots(i.Snapshots)
	}
	if i.Specific != nil {
		a.printf("Format specific information:")
		a.printFields(i.Specific.Data, "    ")
	}
}

// printState prints what qemu-img says between the sizes of an image and its snapshots.
func (a *app) printState(i imageInfo) {
	if i.Encrypted {
		a.printf("encrypted: yes")
	}
	if i.ClusterSize > 0 {
		a.printf("cluster_size: %d", i.ClusterSize)
	}
	if i.DirtyFlag {
		a.printf("cleanly shut down: no")
	}
	if i.Backing == "" {
		return
	}
	actual := ""
	if i.FullBacking != i.Backing {
		actual = fmt.Sprintf(" (actual path: %s)", printable(i.FullBacking))
	}
	a.printf("backing file: %s%s", printable(i.Backing), actual)
	if i.BackingFormat != "" {
		a.printf("backing file format: %s", printable(i.BackingFormat))
	}
}

// printFields prints named values one below the other, as qemu-img does.
func (a *app) printFields(fields formats.Fields, indent string) {
	for _, f := range fields {
		a.printValue(strings.ReplaceAll(f.Name, "-", " "), f.Value, indent)
	}
}

func (a *app) printValue(name string, value any, indent string) {
	const deeper = "    "
	if fields, ok := value.(formats.Fields); ok {
		a.printf("%s%s:", indent, name)
		a.printFields(fields, indent+deeper)
		return
	}
	list := reflect.ValueOf(value)
	if list.Kind() != reflect.Slice {
		a.printf("%s%s: %s", indent, name, printable(fmt.Sprint(value)))
		return
	}
	a.printf("%s%s:", indent, name)
	for i := range list.Len() {
		a.printValue(fmt.Sprintf("[%d]", i), list.Index(i).Interface(), indent+deeper)
	}
}

// printable returns s as a terminal may have it: an image can hold control characters in its names.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) || !utf8.ValidString(s) {
		return strconv.QuoteToGraphic(s)
	}
	return s
}
