package ondisk

import "encoding/binary"

const (
	// OffsetMask are the bits of an L1, L2, refcount table or bitmap table entry that hold an offset in the file.
	OffsetMask uint64 = 0x00ff_ffff_ffff_fe00
	// MaxOffset is the largest offset that fits.
	MaxOffset = OffsetMask

	// Copied, in L1 and L2 entries: the refcount of what it points to is exactly one, so that it may be written in place.
	Copied uint64 = 1 << 63
	// Compressed, in L2 entries: the cluster is compressed; see CompressedRange.
	Compressed uint64 = 1 << 62
	// Zero, in L2 entries of version 3 without subclusters: the cluster reads as zero, whatever it points to.
	Zero uint64 = 1 << 0

	// L1Reserved and L2Reserved are bits that must be zero, the latter in standard entries (with subclusters Zero must be zero, too).
	L1Reserved uint64 = 0x7f00_0000_0000_01ff
	L2Reserved uint64 = 0x3f00_0000_0000_01fe
	// RefcountReserved are bits of a refcount table entry that must be zero.
	RefcountReserved uint64 = 0x1ff
)

const (
	// SectorSize is the unit in which compressed clusters are measured, in bytes.
	SectorSize = 512
	// Subclusters is how many parts a cluster has where L2 entries are extended.
	Subclusters = 32
	// MinExtendedL2ClusterBits: a subcluster has at least 512 bytes.
	MinExtendedL2ClusterBits = 14
)

// CompressedRange returns where the data of a compressed cluster lies: from off on, in at most n bytes, the last of which ends a sector; the file
// may end before.
func CompressedRange(entry uint64, clusterBits uint32) (off, n int64) {
	x := 62 - (clusterBits - 8)
	off = int64(entry & (1<<x - 1))
	sectors := int64(entry >> x & (1<<(clusterBits-8) - 1))
	return off, (sectors+1)*SectorSize - off%SectorSize
}

// CompressedEntry returns the L2 entry of a compressed cluster of n bytes at off, and whether both fit.
func CompressedEntry(off, n int64, clusterBits uint32) (entry uint64, ok bool) {
	x := 62 - (clusterBits - 8)
	sectors := (off%SectorSize+n+SectorSize-1)/SectorSize - 1
	if off < 0 || n <= 0 || off >= 1<<min(x, 56) || sectors >= 1<<(clusterBits-8) {
		return 0, false
	}
	return Compressed | uint64(sectors)<<x | uint64(off), true
}

// SubclusterBitmap is the second half of an extended L2 entry. Bit n of Alloc says that subcluster n lies in the cluster, bit n of
// Zero that it reads as zero; with neither it shows the backing file. Both must not be set.
type SubclusterBitmap uint64

// Alloc returns a bit for each subcluster that is allocated.
func (b SubclusterBitmap) Alloc() uint32 { return uint32(b) }

// Zero returns a bit for each subcluster that reads as zero.
func (b SubclusterBitmap) Zero() uint32 { return uint32(b >> 32) }

// Bitmap returns a SubclusterBitmap.
func Bitmap(alloc, zero uint32) SubclusterBitmap {
	return SubclusterBitmap(zero)<<32 | SubclusterBitmap(alloc)
}

// Refcount returns the i'th count of a refcount block.
func Refcount(block []byte, i int64, order uint32) uint64 {
	switch order {
	case 3:
		return uint64(block[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(block[i*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(block[i*4:]))
	case 6:
		return binary.BigEndian.Uint64(block[i*8:])
	}
	bits := int64(1) << order
	return uint64(block[i*bits/8]>>(i*bits%8)) & (1<<bits - 1)
}

// SetRefcount sets the i'th count of a refcount block to v, which must be at most MaxRefcount.
func SetRefcount(block []byte, i int64, order uint32, v uint64) {
	switch order {
	case 3:
		block[i] = byte(v)
	case 4:
		binary.BigEndian.PutUint16(block[i*2:], uint16(v))
	case 5:
		binary.BigEndian.PutUint32(block[i*4:], uint32(v))
	case 6:
		binary.BigEndian.PutUint64(block[i*8:], v)
	default:
		bits := int64(1) << order
		shift := i * bits % 8
		p := &block[i*bits/8]
		*p = *p&^byte((1<<bits-1)<<shift) | byte(v<<shift)
	}
}

// MaxRefcount returns the largest count that fits.
func MaxRefcount(order uint32) uint64 { return 1<<(1<<order) - 1 }
