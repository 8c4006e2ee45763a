package main

import (
	"context"
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/formats/gz"
	"github.com/imgtool/imgtool/gzipmod"
	"github.com/imgtool/imgtool/gzipmod/mark"
	"github.com/imgtool/imgtool/internal/sizes"
	"github.com/imgtool/imgtool/partition"
	"github.com/imgtool/imgtool/source/file"
)

func newMod(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "mod",
		Short: "Make and change modifiable gzipped images",
		Long: `A modifiable image is an ordinary .gz file, one member, that every gzip reader unpacks. Chosen ranges of the disk in it are kept
uncompressed, so that they can be changed in place, in milliseconds: the checksums are put right by arithmetic.`,
		Example: `  imgtool mod make --keep name=boot --keep gpt disk.raw disk.raw.gz
  imgtool mod patch disk.raw.gz --part name=boot < boot.img
  imgtool mod verify disk.raw.gz`,
		Args: noCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	a.add(cmd, 1, []command{
		{"plan", newModPlan}, {"make", newModMake}, {"patch", newModPatch}, {"verify", newModVerify},
		{"info", newModInfo}, {"index", newModIndex}, {"repair", newModRepair}, {"clone", newModClone},
	})
	return cmd
}

const selectorHelp = `A selector is the number of a partition, name=NAME, label=LABEL, type=TYPE, guid=GUID, gpt (the partition table itself), or
range=OFFSET+LENGTH.`

// parseSelectors reads what --keep was given.
func parseSelectors(texts []string) ([]partition.Selector, error) {
	var selectors []partition.Selector
	for _, text := range texts {
		s, err := partition.ParseSelector(text)
		if err != nil {
			return nil, &usageError{err: err}
		}
		selectors = append(selectors, s)
	}
	return selectors, nil
}

// nameFile returns err with the name of a file, unless it has one.
func nameFile(path string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.As(err, new(*chain.Error)) || errors.As(err, new(*usageError)) {
		return err
	}
	if e, ok := err.(*fs.PathError); ok && e.Path == path { // which says the name a second time
		err = e.Err
	}
	return &chain.Error{Name: path, Err: err}
}

// notStandard refuses - where a file is needed.
func notStandard(path string) error {
	if path == chain.Standard {
		return usagef("%s: a modifiable image has to be a file here, not a pipe; one of this name is written as ./%s", path, path)
	}
	return nil
}

// openModFile opens the file of a modifiable image, and the place of its mark, which is nil where there is none.
func openModFile(ctx context.Context, path string, write bool) (*file.Device, mark.Store, error) {
	if err := notStandard(path); err != nil {
		return nil, nil, err
	}
	f, err := file.Open(ctx, path, file.Options{Write: write})
	if err != nil {
		return nil, nil, nameFile(path, err)
	}
	return f, gz.MarkOf(f), nil
}

// openMod opens a modifiable image. Its Close closes the file.
func (a *app) openMod(ctx context.Context, path string, write bool) (*gzipmod.Device, error) {
	f, m, err := openModFile(ctx, path, write)
	if err != nil {
		return nil, err
	}
	d, err := gzipmod.Open(ctx, f, gzipmod.OpenOptions{Write: write, Mark: m, Cache: int64(a.memory) / 2})
	if err != nil {
		return nil, errors.Join(nameFile(path, modHint(err)), f.Close())
	}
	return d, nil
}

// modHint adds to an error of package gzipmod what the user can do.
func modHint(err error) error {
	switch {
	case errors.Is(err, gzipmod.ErrDirty):
		return block.WithHint(err, "imgtool mod repair puts them right")
	case errors.Is(err, gzipmod.ErrIncomplete):
		return block.WithHint(err, "imgtool mod index fills it in")
	case errors.Is(err, block.ErrNotFormat):
		return block.WithHint(errNotGzip, makeHint)
	case errors.Is(err, gzipmod.ErrNoIndex):
		return block.WithHint(err, makeHint)
	case errors.Is(err, gzipmod.ErrCompressed):
		return block.WithHint(err, "imgtool mod info shows what is kept")
	}
	return err
}

// errNotGzip says what block.ErrNotFormat means here.
var errNotGzip = errors.New("not a modifiable image: not even a gzip file")

const makeHint = "imgtool mod make makes a modifiable image"

// clearMark removes the mark of the file that path was before it was replaced, if that had one: it tells of a change of the old file.
func clearMark(ctx context.Context, path string) error {
	return nameFile(path, mark.File(path).Clear(ctx))
}

// layoutJSON is what mod plan, make and info print for programs.
type layoutJSON struct {
	Filename   string       `json:"filename,omitempty"`
	Size       int64        `json:"virtual-size"`
	FileSize   int64        `json:"file-size,omitempty"`
	HeaderSize int64        `json:"header-size"`
	ChunkSize  int64        `json:"chunk-size"`
	Chunks     int          `json:"chunks"`
	Complete   bool         `json:"complete"`
	Dirty      *bool        `json:"dirty,omitempty"`
	CRC        *uint32      `json:"crc32,omitempty"`
	Regions    []regionJSON `json:"regions"`
}

type regionJSON struct {
	Kind       string  `json:"kind"`
	Start      int64   `json:"start"`
	Length     int64   `json:"length"`
	FileOffset *int64  `json:"file-offset,omitempty"`
	CRC        *uint32 `json:"crc32,omitempty"`
}

func newLayoutJSON(path string, l *gzipmod.Layout) layoutJSON {
	o := layoutJSON{Filename: path, Size: l.Size, FileSize: l.FileSize, HeaderSize: l.HeaderLen(), ChunkSize: l.ChunkSize,
		Chunks: len(l.Chunks), Complete: l.Complete, Regions: []regionJSON{}}
	if l.Complete {
		crc := l.CRC()
		o.CRC = &crc
	}
	for _, r := range l.Regions {
		j := regionJSON{Kind: r.Kind.String(), Start: r.Off, Length: r.Len}
		if l.Complete {
			j.FileOffset, j.CRC = &r.FileOff, &r.CRC
		}
		o.Regions = append(o.Regions, j)
	}
	return o
}

// totals adds up the regions of each kind.
func totals(l *gzipmod.Layout) (bytes [3]int64, count [3]int) {
	for _, r := range l.Regions {
		bytes[r.Kind] += r.Len
		count[r.Kind]++
	}
	return bytes, count
}

// sayLayout prints a layout for people.
func (a *app) sayLayout(l *gzipmod.Layout) {
	bytes, count := totals(l)
	a.printf("image size   %s", sizes.FormatSize(l.Size))
	if l.FileSize > 0 {
		a.printf("file size    %s", sizes.FormatSize(l.FileSize))
	}
	a.printf("kept         %s in %s", sizes.FormatSize(bytes[gzipmod.Kept]), plural(count[gzipmod.Kept], "range"))
	a.printf("compressed   %s in %s of %s", sizes.FormatSize(bytes[gzipmod.Data]), plural(len(l.Chunks), "chunk"), sizes.FormatSize(l.ChunkSize))
	a.printf("holes        %s in %s", sizes.FormatSize(bytes[gzipmod.Hole]), plural(count[gzipmod.Hole], "run"))
	a.printf("header       %s", sizes.FormatSize(l.HeaderLen()))
}
