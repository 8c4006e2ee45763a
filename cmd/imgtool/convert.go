package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/chain"
	"github.com/imgtool/imgtool/convert"
	"github.com/imgtool/imgtool/formats"
)

// conversion is one run of convert.
type conversion struct {
	*app
	from          reading
	snapshot      string // of the source; "" for its present state
	to            string // format; "" to find out
	options       []string
	backing       string // what the target shows where nothing is copied to it; "" for none
	backingFormat string
	granule       size
	workers       int
	request       size // bytes; 0 for what suits
	rate          size // bytes in a second; 0 for as many as can be
	size          size // of the source, which does not say; -1 for not given

	compress     bool
	inPlace      bool
	targetIsZero bool
	salvage      bool
	verify       bool
	bitmaps      bool
	skipBroken   bool // bitmaps that are not complete
	sync         bool
	cache        string
	sourceCache  string

	driver *formats.Driver
	values map[string]string // for the driver
}

// What --request-size may say, in bytes.
const (
	minRequest = 512
	maxRequest = 64 << 20
)

// convertInfo is what was done, in JSON. Sizes are in bytes.
type convertInfo struct {
	Source      string   `json:"source"` // the first one
	More        []string `json:"more-sources,omitempty"`
	Target      string   `json:"target"`
	Format      string   `json:"format"`
	VirtualSize int64    `json:"virtual-size"`
	Lost        int64    `json:"lost,omitempty"` // could not be read
	Verified    bool     `json:"verified,omitempty"`
}

func newConvert(a *app) *cobra.Command {
	v := &conversion{app: a, granule: convert.DefaultZeroGranule, size: -1}
	c := &cobra.Command{
		Use:   "convert [flags] SOURCE... TARGET",
		Short: "Copy an image to another, in any format",
		Long: `Copy an image to another, in any format. Holes and zeros of the source become holes of the target. Several sources are joined, each
filled up to whole sectors of 512 bytes.

A file is written under a temporary name and takes the place of TARGET when all is done; a disk and an NBD export are written in place, even where
they are the source, and so is everything with -n. - is standard input and output, null: forgets what is written to it, and [ CMD ARG... ] is an NBD
server that is started for the purpose.

With -B the target is an overlay: only what the source itself holds is copied, and not what its own backing file does. The backing file of
the target has to read as that of the source.

Exit codes: 0 done, 1 failed, 2 the command line is wrong, 3 done, but some of the data could not be read (--salvage), 4 the source is corrupt.`,
		Example: `  imgtool convert disk.raw disk.qcow2
  imgtool convert -c -o compression_type=zstd disk.raw disk.qcow2
  imgtool convert --verify disk.qcow2.gz /dev/sdx
  imgtool convert -B base.qcow2 -F qcow2 overlay.qcow2 copy.qcow2
  imgtool convert -l before-upgrade disk.qcow2 old.raw
  imgtool convert --salvage broken.img rescued.qcow2
  imgtool convert -c -O qcow2 disk.raw - | ssh host 'cat > disk.qcow2'
  imgtool convert --verify disk.qcow2 nbd://host/export
  imgtool convert [ nbdkit -r curl https://host/disk.img ] disk.qcow2`,
		Args: func(c *cobra.Command, args []string) error {
			if _, help, _ := parseOptions(v.options); len(args) < 2 && !help {
				return usageOf(c, fmt.Errorf("convert takes a source and a target, and %s came: %s", plural(len(args), "argument"), c.UseLine()))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) < 2 {
				return v.help(slices.Concat(args, []string{""})[0])
			}
			last := len(args) - 1
			return v.run(c.Context(), args[:last], args[last])
		},
	}
	v.flags(c)
	return c
}

func (v *conversion) flags(c *cobra.Command) {
	v.from.flags(c)
	v.from.connectionFlags(c)
	f := c.Flags()
	f.StringVarP(&v.snapshot, "snapshot", "l", "", "copy the source as it was at a snapshot: its ID or name, or snapshot.id=ID,snapshot.name=NAME")
	f.StringVarP(&v.to, "output-format", "O", "", "format of the target; without it the name's ending tells, and else it is raw")
	f.StringArrayVarP(&v.options, "options", "o", nil, "options of the target's format, k=v,...; help lists them")
	f.BoolVarP(&v.compress, "compress", "c", false, "compress the data of the target")
	f.StringVarP(&v.backing, "backing", "B", "", "backing file of the target, which is not copied; a relative name is looked up from the target's folder")
	f.StringVarP(&v.backingFormat, "backing-format", "F", "", "format of that backing file")
	f.VarP(&v.granule, "sparse", "S", "shortest run of zeros that becomes a hole; 0 allocates everything, but not with -c or -B")
	f.IntVarP(&v.workers, "workers", "m", 0, "requests, or goroutines that compress, at a time; 0 for one per processor, and as many as keep an NBD export busy")
	f.Var(&v.request, "request-size", "longest request in bytes; 0 for what suits the source and the target, 512k of NBD exports")
	f.VarP(&v.rate, "rate", "r", "bytes that are read from the source in a second; 0 for as many as can be")
	f.BoolVarP(&v.inPlace, "no-create", "n", false, "write into the image that TARGET is, which must be large enough and keeps its size")
	f.BoolVar(&v.targetIsZero, "target-is-zero", false, "TARGET, a disk, an NBD export or with -n any image, reads as zero everywhere, so that zeros need not be written")
	f.BoolVar(&v.salvage, "salvage", false, "go on where data cannot be read: such ranges are told, and zero in the copy")
	f.BoolVar(&v.verify, "verify", false, "read the target again through its own format, and compare it with the source; a new file that differs is removed")
	f.BoolVar(&v.bitmaps, "bitmaps", false, "copy the bitmaps of the source as well")
	f.BoolVar(&v.skipBroken, "skip-broken-bitmaps", false, "with --bitmaps: leave out those that are not complete")
	f.BoolVar(&v.sync, "sync", false, "wait until a new file is on the disk")
	f.Var(&v.size, "size", "size of the image, for a source that does not say, such as a pipe: if that is shorter, zeros follow, and if it is longer, it is an error")
	f.Lookup("size").DefValue = ""
	f.StringVarP(&v.cache, "cache", "t", "", "cache mode of the target as qemu-img has it: all but unsafe mean --sync, and the page cache is used with any")
	f.StringVarP(&v.sourceCache, "source-cache", "T", "", "cache mode of the source: accepted, and without effect")
	f.BoolP("unordered", "W", false, "accepted, and without effect: writes are in no order anyway")
}

// help prints the options of the target's format.
func (v *conversion) help(target string) error {
	d, err := v.outputDriver("-O", v.to, target)
	if err != nil {
		return err
	}
	return v.printOptions(d)
}

func (v *conversion) run(ctx context.Context, sources []string, target string) error {
	if help, err := v.check(len(sources), target); err != nil || help {
		if err != nil {
			return err
		}
		return v.help(target)
	}
	src, err := v.openSources(ctx, sources)
	if err != nil {
		return err
	}
	defer src.Close()
	if err := v.checkTarget(ctx, src, target); err != nil {
		return err
	}
	var n int64
	if v.inPlace {
		n, err = v.intoExisting(ctx, src, target)
	} else {
		n, err = v.create(ctx, src, target)
	}
	if errors.As(err, new(*block.CorruptError)) && !v.salvage && hintOf(err) == "" {
		err = block.WithHint(err, "--salvage copies what can be read")
	}
	if err != nil {
		return err
	}
	if v.json && target != chain.Standard {
		info := convertInfo{src.name(), sources[1:], target, v.driver.Name, n, src.lost(), v.verify}
		if err := v.printJSON(info); err != nil {
			return err
		}
	}
	if lost := src.lost(); lost > 0 {
		return &codeError{exitSalvaged, fmt.Errorf("%s: %s could not be read, and are zero in the copy", src.name(), plural(int(lost), "byte"))}
	}
	return nil
}

// check looks at the flags before any file is touched. help is set where only the options are asked for.
func (v *conversion) check(sources int, target string) (help bool, err error) {
	if v.driver, err = v.outputDriver("-O", v.to, target); err != nil {
		return false, err
	}
	if v.values, help, err = parseOptions(v.options); err != nil || help {
		return help, err
	}
	noCache := func(mode string) bool { // that qemu-img knows
		return mode != "" && !slices.Contains([]string{"none", "off", "writeback", "writethrough", "directsync", "unsafe"}, mode)
	}
	for _, c := range []struct {
		bad  bool
		text string
	}{
		{v.inPlace && len(v.values) > 0, "-o is for new images, and -n writes into one that exists"},
		{v.inPlace && v.compress, "-c is for new images, and -n writes into one that exists"},
		{v.targetIsZero && v.backing != "", "--target-is-zero: an image with a backing file is not zero"},
		{sources > 1 && v.snapshot != "", "-l takes one source"},
		{sources > 1 && v.bitmaps, "--bitmaps takes one source"},
		{sources > 1 && v.from.index != "", "--index-file takes one source"},
		{sources > 1 && v.backing != "", "-B takes one source: what is joined has no backing file"},
		{v.skipBroken && !v.bitmaps, "--skip-broken-bitmaps needs --bitmaps"},
		{v.verify && target == chain.Standard, "--verify: what went into a pipe cannot be read again"},
		{v.bitmaps && target == chain.Standard, "--bitmaps: bitmaps are not written to a pipe"},
		{v.workers < 0, "-m: say how many, or 0"},
		{v.request > 0 && (v.request < minRequest || v.request > maxRequest), "--request-size: from 512 to 64M, or 0"},
		{noCache(v.cache), "-t " + v.cache + ": there is no such cache mode"},
		{noCache(v.sourceCache), "-T " + v.sourceCache + ": there is no such cache mode"},
		{v.compress && !v.driver.Compresses && !v.driver.Transport, "-c: format " + v.driver.Name + " has no compression"},
	} {
		if c.bad {
			return false, usagef("%s", c.text)
		}
	}
	v.sync = v.sync || v.cache != "" && v.cache != "unsafe"
	if err := errors.Join(v.from.checkConnections(), v.checkBacking()); err != nil {
		return false, err
	}
	return false, checkOptions(v.driver, v.values)
}

// checkBacking brings together what -B, -F and -o say of the backing file.
func (v *conversion) checkBacking() error {
	if v.backing == "" {
		v.backing = v.values[backingFile]
	}
	if v.backingFormat == "" {
		v.backingFormat = v.values[backingFormat]
	}
	switch {
	case v.backing == "" && v.backingFormat != "":
		return usagef("-F %s: there is no backing file", v.backingFormat)
	case v.backing == "" || v.inPlace:
		return nil
	case !hasOption(v.driver, backingFile):
		return usagef("format %s has no backing file", v.driver.Name)
	}
	v.values[backingFile], v.values[backingFormat] = v.backing, v.backingFormat
	return nil
}

// checkTarget refuses a target that the sources, or its backing file, are read from, and a backing file that is not there.
func (v *conversion) checkTarget(ctx context.Context, src *origin, target string) error {
	for _, img := range src.images {
		if chain.SameFile(img, target) {
			return usagef("%s: the target is the source", target)
		}
		if img.Device == nil {
			continue
		}
		if err := v.refuseMember(ctx, img, target); err != nil {
			return err
		}
	}
	if v.from.index != "" && sameName(v.from.index, target) {
		return usagef("%s: the target is the index file", target)
	}
	if v.backing == "" || v.inPlace {
		return nil
	}
	ref := formats.Ref{Kind: formats.BackingFile, Name: v.backing, Format: v.backingFormat, From: target}
	if err := v.checkBackingFormat(ctx, ref); err != nil {
		return err
	}
	path, err := chain.Path(ref)
	if err != nil {
		return err
	}
	base, err := v.openFile(ctx, path, reading{format: v.backingFormat})
	if err != nil {
		return err
	}
	return errors.Join(v.refuseMember(ctx, base, target), base.Close())
}

// sourceDateEpoch returns the time that an image records as its own: that of SOURCE_DATE_EPOCH, or none.
func sourceDateEpoch() (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return time.Time{}, usagef("SOURCE_DATE_EPOCH=%s: not a number of seconds", text)
	}
	return time.Unix(n, 0).UTC(), nil
}

// sameName reports whether two paths lead to one file, be it there or not.
func sameName(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	if errX == nil && errY == nil {
		return os.SameFile(x, y)
	}
	a, errX = filepath.Abs(a)
	b, errY = filepath.Abs(b)
	return errX == nil && errY == nil && a == b
}
