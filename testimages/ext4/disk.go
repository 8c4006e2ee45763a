package ext4

import "encoding/binary"

const (
	descSize = 64 // bytes of a group descriptor, with 64-bit block numbers

	superOffset = 1024 // of the superblock in the file system
	superMagic  = 0xef53
	extentMagic = 0xf30a
)

// Features: see "The Super Block".
const (
	compatSparseSuper2 = 0x200

	incompatFiletype = 0x2
	incompatExtents  = 0x40
	incompat64bit    = 0x80
	incompatFlexBG   = 0x200

	roCompatLargeFile  = 0x2
	roCompatHugeFile   = 0x8
	roCompatGdtCsum    = 0x10
	roCompatDirNlink   = 0x20
	roCompatExtraIsize = 0x40
)

// superblock is described in "The Super Block". Offsets of the parts are given where a reader may want to count.
type superblock struct {
	InodesCount       uint32
	BlocksCountLo     uint32
	RBlocksCountLo    uint32
	FreeBlocksCountLo uint32
	FreeInodesCount   uint32
	FirstDataBlock    uint32
	LogBlockSize      uint32
	LogClusterSize    uint32
	BlocksPerGroup    uint32 // 0x20
	ClustersPerGroup  uint32
	InodesPerGroup    uint32
	Mtime             uint32
	Wtime             uint32
	MntCount          uint16
	MaxMntCount       uint16
	Magic             uint16
	State             uint16
	Errors            uint16
	MinorRevLevel     uint16
	Lastcheck         uint32 // 0x40
	Checkinterval     uint32
	CreatorOs         uint32
	RevLevel          uint32
	DefResuid         uint16
	DefResgid         uint16
	FirstIno          uint32
	InodeSize         uint16
	BlockGroupNr      uint16
	FeatureCompat     uint32
	FeatureIncompat   uint32 // 0x60
	FeatureRoCompat   uint32
	UUID              [16]byte
	VolumeName        [16]byte
	LastMounted       [64]byte
	AlgorithmUsage    uint32
	PreallocBlocks    uint8
	PreallocDirBlocks uint8
	ReservedGdtBlocks uint16
	JournalUUID       [16]byte // 0xd0
	JournalInum       uint32
	JournalDev        uint32
	LastOrphan        uint32
	HashSeed          [16]byte
	DefHashVersion    uint8
	JnlBackupType     uint8
	DescSize          uint16
	DefaultMountOpts  uint32 // 0x100
	FirstMetaBg       uint32
	MkfsTime          uint32
	JnlBlocks         [68]byte
	BlocksCountHi     uint32 // 0x150
	RBlocksCountHi    uint32
	FreeBlocksCountHi uint32
	MinExtraIsize     uint16
	WantExtraIsize    uint16
	Flags             uint32 // 0x160
	RaidStride        uint16
	MmpInterval       uint16
	MmpBlock          uint64
	RaidStripeWidth   uint32
	LogGroupsPerFlex  uint8
	_                 [1024 - 0x175]byte // checksums, quotas, snapshots, and error records: all zero here
}

const (
	stateClean      = 1
	errorsContinue  = 1
	maxMntNever     = 0xffff
	dynamicRev      = 1
	hashHalfMD4     = 1
	flagSignedHash  = 1
	mountXattrACL   = 0xc
	extraIsize      = 32
	reservedPercent = 5
)

// Flags of a groupDesc.
const (
	bgInodeUninit = 1
	bgBlockUninit = 2
	bgInodeZeroed = 4
)

// groupDesc is described in "Block Group Descriptors".
type groupDesc struct {
	BlockBitmapLo     uint32
	InodeBitmapLo     uint32
	InodeTableLo      uint32
	FreeBlocksCountLo uint16
	FreeInodesCountLo uint16
	UsedDirsCountLo   uint16
	Flags             uint16
	ExcludeBitmapLo   uint32
	BlockBitmapCsumLo uint16
	InodeBitmapCsumLo uint16
	ItableUnusedLo    uint16
	Checksum          uint16 // 0x1e
	BlockBitmapHi     uint32
	InodeBitmapHi     uint32
	InodeTableHi      uint32
	_                 [20]byte // the upper halves of counts that are below 2¹⁶, and reserved ones
}

const descChecksum = 0x1e // offset of groupDesc.Checksum

// inode is described in "Index Nodes".
type inode struct {
	Mode       uint16
	UID        uint16
	SizeLo     uint32
	Atime      uint32
	Ctime      uint32
	Mtime      uint32
	Dtime      uint32
	GID        uint16
	LinksCount uint16
	BlocksLo   uint32 // in units of 512 bytes
	Flags      uint32
	Version    uint32
	Block      [60]byte // the root of the extent tree, or the target of a link
	Generation uint32
	FileACLLo  uint32
	SizeHigh   uint32
	_          [16]byte
	ExtraIsize uint16 // 0x80
	ChecksumHi uint16
	_          [12]byte // fractions of seconds
	Crtime     uint32
	_          [inodeSize - 0x94]byte
}

const (
	modeDir  = 0x4000
	modeFile = 0x8000
	modeLink = 0xa000

	inodeExtents = 0x80000 // Flags: Block holds an extent tree
)

// extentHeader starts every node of an extent tree. See "Extent Tree".
type extentHeader struct {
	Magic, Entries, Max, Depth uint16
	Generation                 uint32
}

// extentLeaf maps a run of the file; Len is at most maxExtent.
type extentLeaf struct {
	Block   uint32 // of the file
	Len     uint16
	StartHi uint16
	StartLo uint32
}

// extentIndex points to a node of the next level.
type extentIndex struct {
	Block  uint32
	LeafLo uint32
	LeafHi uint16
	_      uint16
}

const (
	extentEntry   = 12                                 // bytes of a header, a leaf and an index alike
	extentsInline = 4                                  // entries in an inode
	extentsLeaf   = BlockSize/extentEntry - 1          // entries in a block
	maxExtents    = extentsInline * extentsLeaf        // one level below the inode is enough here
	maxExtent     = 1 << 15                            // blocks
	maxFile       = int64(1)<<32*BlockSize - BlockSize // bytes: file blocks have 32-bit numbers
)

// encode returns the bytes of values of fixed size, one behind the other.
func encode(values ...any) []byte {
	var b []byte
	for _, v := range values {
		var err error
		if b, err = binary.Append(b, binary.LittleEndian, v); err != nil {
			panic("ext4: " + err.Error()) // a type without a fixed size: our mistake
		}
	}
	return b
}

// crc16 continues a CRC-16 with polynomial x¹⁶+x¹⁵+x²+1, bits reflected, over p.
func crc16(crc uint16, p []byte) uint16 {
	const poly = 0xa001
	for _, b := range p {
		crc ^= uint16(b)
		for range 8 {
			crc = crc>>1 ^ poly&-(crc&1)
		}
	}
	return crc
}
