package ondisk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/imgtool/imgtool/block"
)

// Magic begins every file: "QFI\xfb".
const Magic = 0x514649fb

// Lengths of the header in bytes: of version 2, of version 3 at least, and with every field of it that is known here.
const (
	HeaderLenV2  = 72
	HeaderLenV3  = 104
	HeaderLenMax = 112
)

// Incompatible features: a reader that does not know one must not read.
const (
	IncompatDirty uint64 = 1 << iota
	IncompatCorrupt
	IncompatDataFile
	IncompatCompression
	IncompatExtendedL2

	IncompatKnown = IncompatDirty | IncompatCorrupt | IncompatDataFile | IncompatCompression | IncompatExtendedL2
)

// Compatible features: whoever does not know one may ignore it.
const CompatLazyRefcounts uint64 = 1 << 0

// Autoclear features: a writer that does not know one clears it.
const (
	AutoclearBitmaps uint64 = 1 << iota
	AutoclearDataFileRaw

	AutoclearKnown = AutoclearBitmaps | AutoclearDataFileRaw
)

// Values of Header.CryptMethod.
const (
	CryptNone uint32 = iota
	CryptAES
	CryptLUKS
)

// Values of Header.CompressionType.
const (
	CompressionZlib uint8 = iota
	CompressionZstd
)

// fields are the fixed fields of a header, in the order of the file; version 2 ends before the features.
type fields struct {
	Magic                 uint32
	Version               uint32
	BackingFileOffset     uint64
	BackingFileSize       uint32
	ClusterBits           uint32
	Size                  uint64
	CryptMethod           uint32
	L1Size                uint32
	L1TableOffset         uint64
	RefcountTableOffset   uint64
	RefcountTableClusters uint32
	NbSnapshots           uint32
	SnapshotsOffset       uint64

	IncompatibleFeatures uint64
	CompatibleFeatures   uint64
	AutoclearFeatures    uint64
	RefcountOrder        uint32
	HeaderLength         uint32

	CompressionType uint8
	Padding         [7]byte
}

// Header is what cluster 0 of the file holds: the fixed fields, the header extensions and the name of the backing file.
// Of version 2 the fields that it has not are set to what they mean there: no features, 16 bits, 72 bytes, zlib.
type Header struct {
	Version               uint32 // 2 or 3
	ClusterBits           uint32
	Size                  uint64 // of the disk, in bytes
	CryptMethod           uint32
	L1Size                uint32 // entries
	L1TableOffset         uint64
	RefcountTableOffset   uint64
	RefcountTableClusters uint32
	NbSnapshots           uint32
	SnapshotsOffset       uint64
	IncompatibleFeatures  uint64
	CompatibleFeatures    uint64
	AutoclearFeatures     uint64
	RefcountOrder         uint32 // a refcount has 1<<RefcountOrder bits
	CompressionType       uint8

	// Unknown are the bytes of the fixed part behind the last field that is known here; they are kept.
	Unknown     []byte
	Extensions  []Extension // in the order of the file, unknown ones too, without the end marker
	BackingFile string      // "" for none
}

// ClusterSize returns the length of a cluster in bytes.
func (h *Header) ClusterSize() int64 { return 1 << h.ClusterBits }

// ExtendedL2 reports whether L2 entries have 16 bytes and describe subclusters.
func (h *Header) ExtendedL2() bool { return h.IncompatibleFeatures&IncompatExtendedL2 != 0 }

// L2EntryLen returns the length of an L2 entry in bytes.
func (h *Header) L2EntryLen() int64 {
	if h.ExtendedL2() {
		return 16
	}
	return 8
}

// L2Entries returns how many entries an L2 table has.
func (h *Header) L2Entries() int64 { return h.ClusterSize() / h.L2EntryLen() }

// L1Span returns how many bytes of the disk an L1 entry stands for.
func (h *Header) L1Span() int64 { return h.L2Entries() << h.ClusterBits }

// L1Needed returns how many L1 entries a disk of the given size needs.
func (h *Header) L1Needed(size uint64) uint64 {
	span := uint64(h.L1Span())
	return size/span + min(size%span, 1)
}

// RefcountBlockEntries returns how many clusters a refcount block counts.
func (h *Header) RefcountBlockEntries() int64 { return h.ClusterSize() * 8 >> h.RefcountOrder }

// HasDataFile reports whether the data lies in another file.
func (h *Header) HasDataFile() bool { return h.IncompatibleFeatures&IncompatDataFile != 0 }

// HeaderLength returns the length of the fixed part in bytes, as it is written.
func (h *Header) HeaderLength() int {
	if h.Version < 3 {
		return HeaderLenV2
	}
	return HeaderLenMax + len(h.Unknown)
}

// ReadHeader reads the header of the image in dev. It returns block.ErrNotFormat where dev holds something else, and a
// *block.CorruptError where a field contradicts the specification or the limits. Unknown incompatible features are left to the caller;
// see UnknownFeatures.
func ReadHeader(ctx context.Context, dev block.Device) (*Header, error) {
	first := make([]byte, min(HeaderLenMax, dev.Size()))
	if err := dev.Read(ctx, first, 0); err != nil {
		return nil, err
	}
	if len(first) < 8 || binary.BigEndian.Uint32(first) != Magic {
		return nil, block.ErrNotFormat
	}
	if v := binary.BigEndian.Uint32(first[4:]); v != 2 && v != 3 {
		return nil, fmt.Errorf("%w: qcow version %d", block.ErrNotFormat, v)
	}
	if len(first) < HeaderLenV2 {
		return nil, corrupt(0, "the file ends inside it: %w", io.ErrUnexpectedEOF)
	}
	bits := binary.BigEndian.Uint32(first[20:])
	if err := checkClusterBits(bits); err != nil {
		return nil, err
	}
	cluster := make([]byte, min(int64(1)<<bits, dev.Size()))
	if err := dev.Read(ctx, cluster, 0); err != nil {
		return nil, err
	}
	return ParseHeader(cluster)
}

// ParseHeader parses cluster 0 of a file, or as much of it as the file has. See ReadHeader.
func ParseHeader(cluster []byte) (*Header, error) {
	var f fields
	buf := make([]byte, HeaderLenMax)
	n := copy(buf, cluster)
	if n < HeaderLenV2 {
		return nil, corrupt(0, "the file ends inside it: %w", io.ErrUnexpectedEOF)
	}
	if _, err := binary.Decode(buf, binary.BigEndian, &f); err != nil {
		return nil, err
	}
	switch {
	case f.Magic != Magic:
		return nil, block.ErrNotFormat
	case f.Version == 2:
		f.IncompatibleFeatures, f.CompatibleFeatures, f.AutoclearFeatures = 0, 0, 0
		f.RefcountOrder, f.HeaderLength, f.CompressionType = 4, HeaderLenV2, CompressionZlib
	case f.Version != 3:
		return nil, fmt.Errorf("%w: qcow version %d", block.ErrNotFormat, f.Version)
	}
	if err := checkClusterBits(f.ClusterBits); err != nil {
		return nil, err
	}
	if err := f.checkLength(len(cluster)); err != nil {
		return nil, err
	}
	if f.HeaderLength <= HeaderLenV3 {
		f.CompressionType = CompressionZlib
	}
	h := &Header{
		Version: f.Version, ClusterBits: f.ClusterBits, Size: f.Size, CryptMethod: f.CryptMethod, L1Size: f.L1Size, L1TableOffset: f.L1TableOffset,
		RefcountTableOffset: f.RefcountTableOffset, RefcountTableClusters: f.RefcountTableClusters, NbSnapshots: f.NbSnapshots,
		SnapshotsOffset: f.SnapshotsOffset, IncompatibleFeatures: f.IncompatibleFeatures, CompatibleFeatures: f.CompatibleFeatures,
		AutoclearFeatures: f.AutoclearFeatures, RefcountOrder: f.RefcountOrder, CompressionType: f.CompressionType,
	}
	if f.HeaderLength > HeaderLenMax {
		h.Unknown = slices.Clone(cluster[HeaderLenMax:f.HeaderLength])
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	return h, h.parseVariable(cluster, f)
}

// checkLength checks header_length. n is how much of cluster 0 there is.
func (f *fields) checkLength(n int) error {
	switch l := int64(f.HeaderLength); {
	case f.Version == 2:
		return nil
	case l < HeaderLenV3:
		return corrupt(100, "header_length is %d, and version 3 has at least %d", l, HeaderLenV3)
	case l > 1<<f.ClusterBits:
		return corrupt(100, "header_length is %d, more than a cluster", l)
	case l%8 != 0:
		return corrupt(100, "header_length is %d, not a multiple of 8", l)
	case l > int64(n):
		return corrupt(100, "the file ends inside it: %w", io.ErrUnexpectedEOF)
	}
	return nil
}

// check checks the fixed fields against each other and the limits.
func (h *Header) check() error {
	mask := uint64(h.ClusterSize() - 1)
	switch {
	case h.Size > math.MaxInt64-mask:
		return corrupt(24, "size is %d, more than any disk", h.Size)
	case h.CryptMethod > CryptLUKS:
		return corrupt(32, "crypt_method is %d, which is not known", h.CryptMethod)
	case int64(h.L1Size)*8 > MaxL1Bytes:
		return corrupt(36, "l1_size is %d, and an L1 table has at most %d entries", h.L1Size, MaxL1Bytes/8)
	case uint64(h.L1Size) < h.L1Needed(h.Size):
		return corrupt(36, "l1_size is %d, and a disk of %d bytes needs %d", h.L1Size, h.Size, h.L1Needed(h.Size))
	case h.L1TableOffset&mask != 0 || h.L1TableOffset > MaxOffset || h.L1Size > 0 && h.L1TableOffset == 0:
		return corrupt(40, "l1_table_offset is %#x, which cannot be", h.L1TableOffset)
	case h.RefcountTableOffset&mask != 0 || h.RefcountTableOffset > MaxOffset || h.RefcountTableOffset == 0:
		return corrupt(48, "refcount_table_offset is %#x, which cannot be", h.RefcountTableOffset)
	case h.RefcountTableClusters == 0:
		return corrupt(56, "there is no refcount table")
	case int64(h.RefcountTableClusters) > MaxRefcountTableBytes>>h.ClusterBits && h.RefcountTableClusters > 1:
		return corrupt(56, "refcount_table_clusters is %d, and the table has at most %d bytes", h.RefcountTableClusters, MaxRefcountTableBytes)
	case h.NbSnapshots > MaxSnapshots:
		return corrupt(60, "nb_snapshots is %d, more than %d", h.NbSnapshots, MaxSnapshots)
	case h.SnapshotsOffset&mask != 0 || h.SnapshotsOffset > MaxOffset:
		return corrupt(64, "snapshots_offset is %#x, which cannot be", h.SnapshotsOffset)
	case h.RefcountOrder > MaxRefcountOrder:
		return corrupt(96, "refcount_order is %d, more than %d", h.RefcountOrder, MaxRefcountOrder)
	}
	return h.checkFeatures()
}

func (h *Header) checkFeatures() error {
	announced := h.IncompatibleFeatures&IncompatCompression != 0
	switch {
	case h.CompressionType > CompressionZstd:
		return corrupt(104, "compression_type is %d, which is not known", h.CompressionType)
	case announced != (h.CompressionType != CompressionZlib):
		return corrupt(104, "compression_type is %d, and incompatible feature 3 says otherwise", h.CompressionType)
	case h.ExtendedL2() && h.ClusterBits < MinExtendedL2ClusterBits:
		return corrupt(20, "cluster_bits is %d, and extended L2 entries need at least %d", h.ClusterBits, MinExtendedL2ClusterBits)
	}
	return nil
}

// parseVariable parses what follows the fixed part.
func (h *Header) parseVariable(cluster []byte, f fields) error {
	end := int64(len(cluster))
	if off, n := f.BackingFileOffset, int64(f.BackingFileSize); off != 0 {
		switch {
		case n > MaxNameLen:
			return corrupt(16, "the name of the backing file has %d bytes, more than %d", n, MaxNameLen)
		case off < uint64(f.HeaderLength) || off > uint64(h.ClusterSize()) || int64(off)+n > h.ClusterSize():
			return corrupt(8, "the name of the backing file lies at %#x, outside the first cluster", off)
		case int64(off)+n > int64(len(cluster)):
			return corrupt(8, "the file ends inside the name of the backing file: %w", io.ErrUnexpectedEOF)
		}
		h.BackingFile = string(cluster[off:][:n])
		end = int64(off)
	}
	var err error
	h.Extensions, err = parseExtensions(cluster[:end], int64(f.HeaderLength))
	if errors.Is(err, errExtensionEnd) && h.Version == 2 { // what version 2 wrote before there were extensions
		return nil
	}
	return err
}

// Encode returns the bytes from the start of the file to the end of the header, the extensions and the name of the backing file; the rest of
// cluster 0 is zero. It fails where they do not fit into a cluster.
func (h *Header) Encode() ([]byte, error) {
	f := fields{
		Magic: Magic, Version: h.Version, ClusterBits: h.ClusterBits, Size: h.Size, CryptMethod: h.CryptMethod, L1Size: h.L1Size,
		L1TableOffset: h.L1TableOffset, RefcountTableOffset: h.RefcountTableOffset, RefcountTableClusters: h.RefcountTableClusters,
		NbSnapshots: h.NbSnapshots, SnapshotsOffset: h.SnapshotsOffset, IncompatibleFeatures: h.IncompatibleFeatures,
		CompatibleFeatures: h.CompatibleFeatures, AutoclearFeatures: h.AutoclearFeatures, RefcountOrder: h.RefcountOrder,
		HeaderLength: uint32(h.HeaderLength()), CompressionType: h.CompressionType,
	}
	tail := appendExtensions(nil, h.Extensions)
	if h.BackingFile != "" {
		f.BackingFileOffset = uint64(h.HeaderLength() + len(tail))
		f.BackingFileSize = uint32(len(h.BackingFile))
	}
	var b bytes.Buffer
	if err := binary.Write(&b, binary.BigEndian, &f); err != nil {
		return nil, err
	}
	b.Truncate(min(b.Len(), h.HeaderLength()))
	b.Write(h.Unknown)
	b.Write(tail)
	b.WriteString(h.BackingFile)
	if n := int64(b.Len()); n > h.ClusterSize() {
		return nil, fmt.Errorf("the header, its extensions and the name of the backing file need %d bytes, more than a cluster of %d", n, h.ClusterSize())
	}
	return b.Bytes(), nil
}

func checkClusterBits(bits uint32) error {
	if bits < MinClusterBits || bits > MaxClusterBits {
		return corrupt(20, "cluster_bits is %d, and has to be from %d to %d", bits, MinClusterBits, MaxClusterBits)
	}
	return nil
}

func corrupt(off int64, cause string, args ...any) error {
	return block.Corrupt(Format, "header", off, cause, args...)
}
