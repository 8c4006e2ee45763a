package ondisk

import (
	"encoding/binary"
	"slices"

	"github.com/imgtool/imgtool/block"
)

// BitmapsExtension is the header extension that says where the bitmap directory is.
type BitmapsExtension struct {
	NbBitmaps             uint32
	BitmapDirectorySize   uint64 // bytes
	BitmapDirectoryOffset uint64
}

const bitmapsExtensionLen = 24

// Bitmaps returns the bitmaps extension; nil where there is none, or where it is not valid because a program that does not know bitmaps has
// written the image since.
func (h *Header) Bitmaps() (*BitmapsExtension, error) {
	data, ok := h.Extension(ExtBitmaps)
	if !ok || h.AutoclearFeatures&AutoclearBitmaps == 0 {
		return nil, nil
	}
	bad := func(cause string, args ...any) error {
		return block.Corrupt(Format, "bitmaps extension", -1, cause, args...)
	}
	if len(data) != bitmapsExtensionLen {
		return nil, bad("it has %d bytes in place of %d", len(data), bitmapsExtensionLen)
	}
	be := binary.BigEndian
	x := &BitmapsExtension{be.Uint32(data), be.Uint64(data[8:]), be.Uint64(data[16:])}
	switch mask := uint64(h.ClusterSize() - 1); {
	case x.NbBitmaps == 0 || x.NbBitmaps > MaxBitmaps:
		return nil, bad("nb_bitmaps is %d, and has to be from 1 to %d", x.NbBitmaps, MaxBitmaps)
	case x.BitmapDirectoryOffset&mask != 0 || x.BitmapDirectoryOffset == 0 || x.BitmapDirectoryOffset > MaxOffset:
		return nil, bad("bitmap_directory_offset is %#x, which cannot be", x.BitmapDirectoryOffset)
	case x.BitmapDirectorySize > MaxBitmapDirectoryBytes || x.BitmapDirectorySize < uint64(x.NbBitmaps)*bitmapLen:
		return nil, bad("bitmap_directory_size is %d for %d bitmaps", x.BitmapDirectorySize, x.NbBitmaps)
	}
	return x, nil
}

// Encode returns the data of the extension.
func (x *BitmapsExtension) Encode() []byte {
	be := binary.BigEndian
	b := be.AppendUint32(nil, x.NbBitmaps)
	b = be.AppendUint32(b, 0)
	b = be.AppendUint64(b, x.BitmapDirectorySize)
	return be.AppendUint64(b, x.BitmapDirectoryOffset)
}

// Flags of a bitmap directory entry.
const (
	BitmapInUse               uint32 = 1 << iota // it was not stored after the last change
	BitmapAuto                                   // writes are to be recorded in it
	BitmapExtraDataCompatible                    // unknown extra data may be ignored
)

// BitmapDirtyTracking is the only type of a bitmap that there is.
const BitmapDirtyTracking uint8 = 1

// BitmapEntry is an entry of the bitmap directory.
type BitmapEntry struct {
	BitmapTableOffset uint64
	BitmapTableSize   uint32 // entries
	Flags             uint32
	Type              uint8
	GranularityBits   uint8
	ExtraData         []byte
	Name              string
}

// bitmapLen is the length of the fixed part of a bitmap directory entry, in bytes.
const bitmapLen = 24

// ParseBitmapDirectory parses the directory p, which lies at off in the file.
func ParseBitmapDirectory(p []byte, off int64, h *Header) ([]BitmapEntry, error) {
	var list []BitmapEntry
	be := binary.BigEndian
	for pos := 0; pos < len(p); {
		at := off + int64(pos)
		bad := func(cause string, args ...any) error {
			return block.Corrupt(Format, "bitmap directory", at, cause, args...)
		}
		q := p[pos:]
		if len(q) < bitmapLen {
			return nil, bad("%d bytes are left, less than an entry", len(q))
		}
		nameLen, extraLen := int64(be.Uint16(q[18:])), int64(be.Uint32(q[20:]))
		n := bitmapLen + nameLen + extraLen
		if n > int64(len(q)) {
			return nil, bad("an entry of %d bytes leaves the directory", n)
		}
		e := BitmapEntry{
			BitmapTableOffset: be.Uint64(q), BitmapTableSize: be.Uint32(q[8:]), Flags: be.Uint32(q[12:]), Type: q[16], GranularityBits: q[17],
			ExtraData: slices.Clone(q[bitmapLen:][:extraLen]), Name: string(q[bitmapLen+extraLen:][:nameLen]),
		}
		mask := uint64(h.ClusterSize() - 1)
		switch {
		case nameLen == 0 || nameLen > MaxNameLen:
			return nil, bad("a name of %d bytes", nameLen)
		case e.GranularityBits < MinBitmapGranularityBits || e.GranularityBits > MaxBitmapGranularityBits:
			return nil, bad("granularity_bits is %d, and has to be from %d to %d", e.GranularityBits, MinBitmapGranularityBits, MaxBitmapGranularityBits)
		case int64(e.BitmapTableSize)*8 > MaxBitmapTableBytes:
			return nil, bad("bitmap_table_size is %d, more than %d", e.BitmapTableSize, MaxBitmapTableBytes/8)
		case e.BitmapTableOffset&mask != 0 || e.BitmapTableOffset > MaxOffset || e.BitmapTableSize > 0 && e.BitmapTableOffset == 0:
			return nil, bad("bitmap_table_offset is %#x, which cannot be", e.BitmapTableOffset)
		case len(list) == MaxBitmaps:
			return nil, bad("more than %d bitmaps", MaxBitmaps)
		}
		list = append(list, e)
		pos += int(n+7) &^ 7
	}
	return list, nil
}

// Append appends the entry with its padding.
func (e *BitmapEntry) Append(b []byte) []byte {
	be := binary.BigEndian
	start := len(b)
	b = be.AppendUint64(b, e.BitmapTableOffset)
	b = be.AppendUint32(b, e.BitmapTableSize)
	b = be.AppendUint32(b, e.Flags)
	b = append(b, e.Type, e.GranularityBits)
	b = be.AppendUint16(b, uint16(len(e.Name)))
	b = be.AppendUint32(b, uint32(len(e.ExtraData)))
	b = append(b, e.ExtraData...)
	b = append(b, e.Name...)
	return append(b, make([]byte, -(len(b)-start)&7)...)
}

// Entries of a bitmap table: an offset of a cluster of bits, or none of the bits, or all.
const (
	// BitmapTableAllOnes, in an entry without an offset: all bits of the cluster are set.
	BitmapTableAllOnes uint64 = 1
	// BitmapTableReserved are bits that must be zero.
	BitmapTableReserved uint64 = 0xff00_0000_0000_01fe
)

// BitmapTableSize returns how many entries the table of a bitmap has that covers size bytes.
func (h *Header) BitmapTableSize(size uint64, granularityBits uint8) uint64 {
	span := uint64(h.ClusterSize()) * 8 << granularityBits
	return size/span + min(size%span, 1)
}
