package plan

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/deflate"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// Options are what users may set of a new image, by the names that QEMU gives them; see formats.ParseOptions.
type Options struct {
	ClusterSize     int64  `option:"cluster_size" help:"unit of allocation, a power of two from 512 to 2M; at least 16k with extended_l2"`
	Compat          string `option:"compat" enum:"1.1|v3|0.10|v2" help:"version of the format: 3 (1.1, v3), or 2 (0.10, v2) for what is older than 2012"`
	RefcountBits    int    `option:"refcount_bits" help:"width of a reference count: 1, 2, 4, 8, 16, 32 or 64"`
	LazyRefcounts   bool   `option:"lazy_refcounts" help:"let writers put off the update of reference counts"`
	ExtendedL2      bool   `option:"extended_l2" help:"allocate in 32nds of a cluster"`
	CompressionType string `option:"compression_type" enum:"zlib|zstd" help:"how compressed clusters are compressed"`
	Preallocation   string `option:"preallocation" enum:"off|metadata|falloc|full" help:"what is allocated before it is written to"`
	BackingFile     string `option:"backing_file" help:"image that shows through where this one holds nothing"`
	BackingFmt      string `option:"backing_fmt" help:"format of the backing file"`
	DataFile        string `option:"data_file" help:"file beside the image that holds the data"`
	DataFileRaw     bool   `option:"data_file_raw" help:"keep the data file valid as a raw image"`
	Level           int    `option:"level" help:"effort of compression: 1 to 9 for zlib, 1 to 22 for zstd; 0 is the default of each"`
	Window          int64  `option:"window" help:"how far back zlib looks, in bytes, from 256 to 32k; some readers fail above 4k"`
}

// Defaults returns the options of an image of which nothing is said. They are QEMU's.
func Defaults() *Options {
	return &Options{
		ClusterSize: 64 << 10, Compat: "1.1", RefcountBits: 16, CompressionType: "zlib", Preallocation: string(formats.PreallocOff), Window: 4096,
	}
}

const maxZstdLevel = 22

// geometry is what follows from options and size.
type geometry struct {
	Options
	header   ondisk.Header // without what depends on the content
	size     int64         // of the disk, a multiple of sectors; -1 where it is not known
	compress bool
	prealloc formats.Preallocation
	backing  bool
}

// resolve checks the options. size is -1 where it is not known.
func (o Options) resolve(size int64, compress bool) (*geometry, error) {
	g := &geometry{Options: o, size: -1, compress: compress, prealloc: formats.Preallocation(o.Preallocation), backing: o.BackingFile != ""}
	h := &g.header
	h.Version = 3
	if o.Compat == "0.10" || o.Compat == "v2" {
		h.Version = 2
	}
	if c := o.ClusterSize; c < 1<<ondisk.MinClusterBits || c > 1<<ondisk.MaxClusterBits || c&(c-1) != 0 {
		return nil, fmt.Errorf("cluster_size is %d, and has to be a power of two from %d to %d", c, 1<<ondisk.MinClusterBits, 1<<ondisk.MaxClusterBits)
	}
	if b := o.RefcountBits; b < 1 || b > 1<<ondisk.MaxRefcountOrder || b&(b-1) != 0 {
		return nil, fmt.Errorf("refcount_bits is %d, and has to be a power of two from 1 to %d", b, 1<<ondisk.MaxRefcountOrder)
	}
	h.ClusterBits = uint32(bits.TrailingZeros64(uint64(o.ClusterSize)))
	h.RefcountOrder = uint32(bits.TrailingZeros(uint(o.RefcountBits)))
	if err := g.setFeatures(); err != nil {
		return nil, err
	}
	if err := g.checkCompression(); err != nil {
		return nil, err
	}
	if err := g.checkFiles(); err != nil {
		return nil, err
	}
	if size >= 0 {
		fits := false
		if g.size, fits = block.RoundUp(size, ondisk.SectorSize); !fits {
			return nil, g.tooLarge(size)
		}
		if err := g.checkSize(g.size); err != nil {
			return nil, err
		}
	}
	if g.DataFileRaw && g.prealloc == formats.PreallocOff { // all of the data file is the disk's
		g.prealloc = formats.PreallocMetadata
	}
	_, err := h.Encode() // whether the names fit
	return g, err
}

// setFeatures sets the feature bits and the extensions.
func (g *geometry) setFeatures() error {
	h := &g.header
	newer := []struct {
		on   bool
		name string
		bits *uint64
		bit  uint64
	}{
		{g.LazyRefcounts, "lazy_refcounts", &h.CompatibleFeatures, ondisk.CompatLazyRefcounts},
		{g.ExtendedL2, "extended_l2", &h.IncompatibleFeatures, ondisk.IncompatExtendedL2},
		{g.CompressionType == "zstd", "compression_type zstd", &h.IncompatibleFeatures, ondisk.IncompatCompression},
		{g.DataFile != "", "data_file", &h.IncompatibleFeatures, ondisk.IncompatDataFile},
		{g.DataFileRaw, "data_file_raw", &h.AutoclearFeatures, ondisk.AutoclearDataFileRaw},
		{g.RefcountBits != 16, "refcount_bits other than 16", new(uint64), 0},
	}
	for _, f := range newer {
		if f.on && h.Version < 3 {
			return block.WithHint(fmt.Errorf("version 2 does not have %s", f.name), "say compat=1.1")
		}
		if f.on {
			*f.bits |= f.bit
		}
	}
	if g.CompressionType == "zstd" {
		h.CompressionType = ondisk.CompressionZstd
	}
	if g.ExtendedL2 && h.ClusterBits < ondisk.MinExtendedL2ClusterBits {
		return fmt.Errorf("cluster_size is %d, and extended_l2 needs at least %d", g.ClusterSize, 1<<ondisk.MinExtendedL2ClusterBits)
	}
	h.BackingFile = g.BackingFile
	if g.BackingFmt != "" {
		h.SetExtension(ondisk.ExtBackingFormat, []byte(g.BackingFmt))
	}
	if g.DataFile != "" {
		h.SetExtension(ondisk.ExtDataFile, []byte(g.DataFile))
	}
	if h.Version < 3 {
		return nil
	}
	h.SetExtension(ondisk.ExtFeatureNames, ondisk.EncodeFeatureNames(ondisk.KnownFeatureNames()))
	if _, err := h.Encode(); err != nil { // the names are of use only to readers that know less
		h.SetExtension(ondisk.ExtFeatureNames, nil)
	}
	return nil
}

func (g *geometry) checkCompression() error {
	maxLevel := deflate.MaxLevel
	if g.header.CompressionType == ondisk.CompressionZstd {
		maxLevel = maxZstdLevel
	}
	switch {
	case g.Level < 0 || g.Level > maxLevel:
		return fmt.Errorf("level is %d, and has to be from 1 to %d, or 0 for the default", g.Level, maxLevel)
	case g.Window < 256 || g.Window > 32<<10 || g.Window&(g.Window-1) != 0:
		return fmt.Errorf("window is %d, and has to be a power of two from 256 to %d", g.Window, 32<<10)
	case g.compress && g.prealloc != formats.PreallocOff:
		return errors.New("compressed images cannot be preallocated")
	case g.compress && g.DataFile != "":
		return errors.New("compressed data cannot lie in a data file")
	}
	return nil
}

// checkFiles checks what concerns other files.
func (g *geometry) checkFiles() error {
	switch {
	case len(g.BackingFile) > ondisk.MaxNameLen:
		return fmt.Errorf("the name of the backing file has %d bytes, more than %d", len(g.BackingFile), ondisk.MaxNameLen)
	case g.BackingFmt != "" && !g.backing:
		return errors.New("backing_fmt is given without backing_file")
	case g.backing && g.prealloc != formats.PreallocOff && !g.ExtendedL2:
		return block.WithHint(errors.New("what is preallocated would hide the backing file"), "say extended_l2=on")
	case g.DataFileRaw && g.DataFile == "":
		return errors.New("data_file_raw is given without data_file")
	case g.DataFileRaw && g.backing:
		return errors.New("data_file_raw makes the data file all of the disk, so that there can be no backing_file")
	}
	return nil
}

// checkSize returns an error where a disk of this size does not fit the limits of the format.
func (g *geometry) checkSize(size int64) error {
	if size < 0 || g.header.L1Needed(uint64(size)) > ondisk.MaxL1Bytes/8 || uint64(size) > ondisk.MaxOffset {
		return g.tooLarge(size)
	}
	return nil
}

func (g *geometry) tooLarge(size int64) error {
	most := int64(ondisk.MaxL1Bytes/8) * g.header.L1Span()
	if most <= 0 || uint64(most) > ondisk.MaxOffset {
		most = int64(ondisk.MaxOffset)
	}
	err := fmt.Errorf("a disk of %d bytes is too large: with clusters of %d bytes it can have %d", size, g.ClusterSize, most)
	if g.header.ClusterBits < ondisk.MaxClusterBits {
		return block.WithHint(err, "say a larger cluster_size")
	}
	return err
}
