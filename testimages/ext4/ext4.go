// Package ext4 writes a new ext4 file system, all files at once, the same bytes for the same input.
//
// It is a builder, not a file system: [Format] decides where everything lies, writes superblock, group descriptors, bitmaps, inodes and
// directories, and returns where the content of every file belongs. The caller writes the content there, in any order.
//
// What it writes has 4 KiB blocks, 64-bit block numbers, extents and checksummed group descriptors, and no journal. All bitmaps and
// inode tables lie packed at the start (mke2fs calls that packed_meta_blocks), with one superblock. Groups that hold nothing are
// marked uninitialised, so that their bitmaps and inode tables stay holes: an empty file system of 1 TiB costs about 1 MiB.
// e2fsck -fn finds nothing to say about it, and Linux mounts it.
//
// The layout is described in the Linux kernel's Documentation/filesystems/ext4; field names are those used there.
package ext4

import (
	"context"
	"fmt"

	"github.com/imgtool/imgtool/block"
)

// BlockSize is the unit of allocation, in bytes.
const BlockSize = 4096

const (
	blocksPerGroup = 8 * BlockSize // what one block of bitmap covers
	inodesPerGroup = 4096          // one for every 32 KiB; 64 TiB then have 2³¹, which a 32-bit inode number can still tell apart
	inodeSize      = 256           // bytes
	tableBlocks    = inodesPerGroup * inodeSize / BlockSize
	minTail        = 1024 // blocks: a last group smaller than this is left out

	rootInode  = 2
	firstInode = 11 // the first that is not reserved: lost+found
)

// Options are the properties of a file system.
type Options struct {
	Label string   // volume name, at most 16 bytes
	UUID  [16]byte // also seeds the hash of directories
	Time  uint32   // every time stamp, in seconds since 1970

	// Scatter spreads the files as a used system has them: directories start in zones all over the device, large files come in pieces,
	// with gaps between. The number seeds the choice. With 0 the files lie whole, one behind the other.
	Scatter uint64
}

// File is a regular file or a symbolic link.
type File struct {
	Path string // relative to the root, elements separated by one slash: etc/hostname; parent directories are made, with mode 0755
	Mode uint16 // permission bits; ignored for a link
	Size int64  // bytes; ignored for a link
	Link string // what a symbolic link points to, 1 to 59 bytes; empty for a regular file
}

// Format writes a file system as large as d, which must read as zero, at least 8 MiB and at most 64 TiB.
//
// It returns for every file, in the order of files, the ranges of d that its bytes go to, in the file's order. Off and Len alone are set, and
// the lengths add up to the file's size. d has to be written by nobody else meanwhile.
func Format(ctx context.Context, d block.Device, o Options, files []File) ([][]block.Extent, error) {
	if len(o.Label) > 16 {
		return nil, fmt.Errorf("ext4: label %q is longer than 16 bytes", o.Label)
	}
	geo, err := newGeometry(d.Size())
	if err != nil {
		return nil, err
	}
	t, err := newTree(files)
	if err != nil {
		return nil, err
	}
	if n, most := int64(t.lastInode()), geo.groups*inodesPerGroup; n > most {
		return nil, fmt.Errorf("ext4: %d inodes are needed, %d bytes have %d: use fewer files or a larger device", n, d.Size(), most)
	}
	a := newAllocator(o.Scatter, geo.dataStart, geo.blocks)
	if err := t.place(a); err != nil {
		return nil, err
	}
	w := writer{ctx: ctx, dev: d, opt: o, geo: geo, tree: t, used: a.taken()}
	if err := w.write(); err != nil {
		return nil, err
	}
	return t.content(len(files)), nil
}

// geometry says where the parts of a file system lie. Numbers are blocks.
type geometry struct {
	blocks      int64 // of the file system; the device may have a few more
	groups      int64
	descBlocks  int64 // of group descriptors, from block 1
	blockBitmap int64 // the first group's; the other groups' follow
	inodeBitmap int64 // likewise
	inodeTable  int64 // likewise, tableBlocks each
	dataStart   int64 // everything before it is metadata
}

const (
	minSize = 8 << 20
	maxSize = 64 << 40
)

func newGeometry(size int64) (geometry, error) {
	if size < minSize || size > maxSize {
		return geometry{}, fmt.Errorf("ext4: a device of %d bytes is outside %d to %d", size, int64(minSize), int64(maxSize))
	}
	var g geometry
	g.blocks = size / BlockSize
	if tail := g.blocks % blocksPerGroup; tail < minTail && g.blocks > blocksPerGroup {
		g.blocks -= tail
	}
	g.groups = (g.blocks + blocksPerGroup - 1) / blocksPerGroup
	g.descBlocks = (g.groups*descSize + BlockSize - 1) / BlockSize
	g.blockBitmap = 1 + g.descBlocks
	g.inodeBitmap = g.blockBitmap + g.groups
	g.inodeTable = g.inodeBitmap + g.groups
	g.dataStart = g.inodeTable + g.groups*tableBlocks
	return g, nil
}

// groupBlocks returns how many blocks group i has: the last one may be short.
func (g geometry) groupBlocks(i int64) int64 {
	return min(blocksPerGroup, g.blocks-i*blocksPerGroup)
}

// Capacity returns how many bytes of blocks a device of size bytes has for files, directories and extent trees; 0 where Format refuses
// the size. With Options.Scatter an eighth of it may be spent on gaps.
func Capacity(size int64) int64 {
	g, err := newGeometry(size)
	if err != nil {
		return 0
	}
	return (g.blocks - g.dataStart) * BlockSize
}
