package ext4

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"

	"github.com/imgtool/imgtool/block"
)

// writer puts on the device what the rest has decided.
type writer struct {
	ctx  context.Context
	dev  block.Device
	opt  Options
	geo  geometry
	tree *tree
	used []run // blocks of data, directories and extent trees, sorted
}

// put writes b from block blk, in requests that any device takes.
func (w *writer) put(b []byte, blk int64) error {
	off := blk * BlockSize
	for piece := range slices.Chunk(b, 1<<20) {
		if err := w.dev.Write(w.ctx, piece, off, 0); err != nil {
			return err
		}
		off += int64(len(piece))
	}
	return nil
}

func (w *writer) write() error {
	for _, n := range w.tree.nodes {
		if err := w.directory(n); err != nil {
			return err
		}
	}
	if err := w.inodes(); err != nil {
		return err
	}
	free, err := w.bitmaps()
	if err != nil {
		return err
	}
	if err := w.descriptors(free); err != nil {
		return err
	}
	return w.super(free)
}

// directory writes the entries of a directory, and for any node the blocks of its extent tree.
func (w *writer) directory(n *node) error {
	if n.isDir() {
		entries := n.entries()
		for _, r := range n.runs {
			k := r.len * BlockSize
			if err := w.put(entries[:k], r.start); err != nil {
				return err
			}
			entries = entries[k:]
		}
	}
	first := int64(0) // block of the file
	for i, leaf := range n.leaves {
		runs := n.runs[i*extentsLeaf : min((i+1)*extentsLeaf, len(n.runs))]
		b := encode(extentHeader{Magic: extentMagic, Entries: uint16(len(runs)), Max: extentsLeaf})
		b = append(b, encodeLeaves(runs, first)...)
		if err := w.put(append(b, make([]byte, BlockSize-len(b))...), leaf.start); err != nil {
			return err
		}
		first += blocksOf(runs)
	}
	return nil
}

func blocksOf(runs []run) (n int64) {
	for _, r := range runs {
		n += r.len
	}
	return n
}

// encodeLeaves returns extents for runs that hold the blocks of a file from first.
func encodeLeaves(runs []run, first int64) []byte {
	var b []byte
	for _, r := range runs {
		b = append(b, encode(extentLeaf{
			Block: uint32(first), Len: uint16(r.len), StartHi: uint16(r.start >> 32), StartLo: uint32(r.start),
		})...)
		first += r.len
	}
	return b
}

// extentRoot returns what an inode holds of the node's extent tree.
func (n *node) extentRoot() []byte {
	if len(n.leaves) == 0 {
		b := encode(extentHeader{Magic: extentMagic, Entries: uint16(len(n.runs)), Max: extentsInline})
		return append(b, encodeLeaves(n.runs, 0)...)
	}
	b := encode(extentHeader{Magic: extentMagic, Entries: uint16(len(n.leaves)), Max: extentsInline, Depth: 1})
	first := int64(0)
	for i, leaf := range n.leaves {
		b = append(b, encode(extentIndex{Block: uint32(first), LeafLo: uint32(leaf.start), LeafHi: uint16(leaf.start >> 32)})...)
		first += blocksOf(n.runs[i*extentsLeaf : min((i+1)*extentsLeaf, len(n.runs))])
	}
	return b
}

// inodes writes the used part of the inode tables, which lie one behind the other.
func (w *writer) inodes() error {
	reserved := w.tree.nodes[0].ino - 1
	table := make([]byte, int(reserved)*inodeSize, int(w.tree.lastInode())*inodeSize)
	for _, n := range w.tree.nodes {
		table = append(table, make([]byte, int(n.ino-1)*inodeSize-len(table))...)
		table = append(table, encode(w.inode(n))...)
	}
	return w.put(table, w.geo.inodeTable)
}

func (w *writer) inode(n *node) inode {
	at := w.opt.Time
	i := inode{
		Mode: n.mode, SizeLo: uint32(n.size), SizeHigh: uint32(n.size >> 32), LinksCount: 1,
		Atime: at, Ctime: at, Mtime: at, Crtime: at, ExtraIsize: extraIsize,
		BlocksLo: uint32((blocksOf(n.runs) + int64(len(n.leaves))) * (BlockSize / 512)),
	}
	if n.link != "" {
		copy(i.Block[:], n.link)
		return i
	}
	i.Flags = inodeExtents
	copy(i.Block[:], n.extentRoot())
	if n.isDir() {
		i.LinksCount = 2 // its name and "."; and ".." of each directory in it
		for _, c := range n.children {
			if c.isDir() {
				i.LinksCount++
			}
		}
	}
	return i
}

// bitmaps writes the bitmaps of every group that holds something, and returns how many blocks each group has free.
func (w *writer) bitmaps() (free []int64, err error) {
	free = make([]int64, w.geo.groups)
	used := append([]run{{0, w.geo.dataStart}}, w.used...)
	bitmap := make([]byte, BlockSize)
	for i := range w.geo.groups {
		clear(bitmap)
		first, size := i*blocksPerGroup, w.geo.groupBlocks(i)
		free[i] = size
		for len(used) > 0 && used[0].start < first+size {
			from, to := max(used[0].start, first), min(used[0].end(), first+size)
			setBits(bitmap, from-first, to-first)
			free[i] -= to - from
			if used[0].end() > to {
				break
			}
			used = used[1:]
		}
		if w.blockUninit(i, free) {
			continue
		}
		setBits(bitmap, size, blocksPerGroup) // past the end of the device
		if err := w.put(bitmap, w.geo.blockBitmap+i); err != nil {
			return nil, err
		}
	}
	for i := int64(0); i*inodesPerGroup < int64(w.tree.lastInode()); i++ {
		clear(bitmap)
		setBits(bitmap, 0, w.inodesIn(i))
		setBits(bitmap, inodesPerGroup, blocksPerGroup)
		if err := w.put(bitmap, w.geo.inodeBitmap+i); err != nil {
			return nil, err
		}
	}
	return free, nil
}

// blockUninit reports whether group i has no bitmap of blocks: it is empty, and not the last, which is short and must have one.
func (w *writer) blockUninit(i int64, free []int64) bool {
	return free[i] == blocksPerGroup && i != w.geo.groups-1
}

// inodesIn returns how many inodes of group i are used: always the first ones.
func (w *writer) inodesIn(i int64) int64 {
	return min(max(int64(w.tree.lastInode())-i*inodesPerGroup, 0), inodesPerGroup)
}

// setBits sets the bits from from up to, not including, to.
func setBits(b []byte, from, to int64) {
	for ; from < to && from%8 != 0; from++ {
		b[from/8] |= 1 << (from % 8)
	}
	for ; from+8 <= to; from += 8 {
		b[from/8] = 0xff
	}
	for ; from < to; from++ {
		b[from/8] |= 1 << (from % 8)
	}
}

// descriptors writes the table of group descriptors.
func (w *writer) descriptors(free []int64) error {
	dirs := make([]uint16, w.geo.groups)
	for _, n := range w.tree.nodes {
		if n.isDir() {
			dirs[(n.ino-1)/inodesPerGroup]++
		}
	}
	g := w.geo
	table := make([]byte, 0, g.descBlocks*BlockSize)
	seed := crc16(0xffff, w.opt.UUID[:])
	for i := range g.groups {
		blockBitmap, inodeBitmap, inodeTable := g.blockBitmap+i, g.inodeBitmap+i, g.inodeTable+i*tableBlocks
		inodes := inodesPerGroup - w.inodesIn(i)
		d := groupDesc{
			BlockBitmapLo: uint32(blockBitmap), BlockBitmapHi: uint32(blockBitmap >> 32),
			InodeBitmapLo: uint32(inodeBitmap), InodeBitmapHi: uint32(inodeBitmap >> 32),
			InodeTableLo: uint32(inodeTable), InodeTableHi: uint32(inodeTable >> 32),
			FreeBlocksCountLo: uint16(free[i]), FreeInodesCountLo: uint16(inodes), ItableUnusedLo: uint16(inodes),
			UsedDirsCountLo: dirs[i], Flags: bgInodeZeroed,
		}
		if w.blockUninit(i, free) {
			d.Flags |= bgBlockUninit
		}
		if inodes == inodesPerGroup {
			d.Flags |= bgInodeUninit
		}
		b := encode(d)
		sum := crc16(seed, binary.LittleEndian.AppendUint32(nil, uint32(i)))
		sum = crc16(crc16(sum, b[:descChecksum]), b[descChecksum+2:])
		binary.LittleEndian.PutUint16(b[descChecksum:], sum)
		table = append(table, b...)
	}
	return w.put(table, 1)
}

// super writes the superblock. There is no second one: sparse_super2 without backups.
func (w *writer) super(free []int64) error {
	freeBlocks := int64(0)
	for _, n := range free {
		freeBlocks += n
	}
	g, at := w.geo, w.opt.Time
	reserved := freeBlocks / 100 * reservedPercent
	s := superblock{
		InodesCount:   uint32(g.groups * inodesPerGroup),
		BlocksCountLo: uint32(g.blocks), BlocksCountHi: uint32(g.blocks >> 32),
		RBlocksCountLo: uint32(reserved), RBlocksCountHi: uint32(reserved >> 32),
		FreeBlocksCountLo: uint32(freeBlocks), FreeBlocksCountHi: uint32(freeBlocks >> 32),
		FreeInodesCount: uint32(g.groups*inodesPerGroup) - w.tree.lastInode(),
		LogBlockSize:    2, LogClusterSize: 2, // 1024 << 2
		BlocksPerGroup: blocksPerGroup, ClustersPerGroup: blocksPerGroup, InodesPerGroup: inodesPerGroup,
		Wtime: at, Lastcheck: at, MkfsTime: at, MaxMntCount: maxMntNever,
		Magic: superMagic, State: stateClean, Errors: errorsContinue, RevLevel: dynamicRev,
		FirstIno: firstInode, InodeSize: inodeSize, DescSize: descSize,
		FeatureCompat:   compatSparseSuper2,
		FeatureIncompat: incompatFiletype | incompatExtents | incompat64bit | incompatFlexBG,
		FeatureRoCompat: roCompatLargeFile | roCompatHugeFile | roCompatGdtCsum | roCompatDirNlink | roCompatExtraIsize,
		UUID:            w.opt.UUID, HashSeed: w.opt.UUID, DefHashVersion: hashHalfMD4, Flags: flagSignedHash,
		DefaultMountOpts: mountXattrACL, MinExtraIsize: extraIsize, WantExtraIsize: extraIsize,
	}
	copy(s.VolumeName[:], w.opt.Label)
	// One flexible group holds all, which is what lets the metadata lie packed.
	for 1<<s.LogGroupsPerFlex < g.groups {
		s.LogGroupsPerFlex++
	}
	b := make([]byte, BlockSize)
	copy(b[superOffset:], encode(s))
	return w.put(bytes.TrimRight(b, "\x00"), 0)
}
