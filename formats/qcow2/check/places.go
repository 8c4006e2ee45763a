package check

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// The names of structures in problems.
const (
	partHeader     = "header"
	partL1         = "L1 table"
	partL2         = "L2 table"
	partTable      = "refcount table"
	partBlock      = "refcount block"
	partSnapshots  = "snapshot table"
	partBitmaps    = "bitmap directory"
	partBitmap     = "bitmap table"
	partEncryption = "encryption header"
	partCluster    = "cluster"
)

// maxEncryptionHeader bounds the encryption header, in bytes: LUKS needs 2 MiB at most, LUKS2 16 MiB.
const maxEncryptionHeader = 32 << 20

// place is a range of the file that one structure takes. Those that are fixed are written where they lie, so that none may share a cluster with
// another.
type place struct {
	part      string
	off, len  int64
	refcounts bool // it is part of the reference counts
}

// places is where the structures of the image are that are no tables of clusters.
type places struct {
	fixed   []place
	l1      []span // of the disk and of the snapshots
	bitmaps []span // bitmap tables
	table   []byte // the refcount table
	// snapshots is the snapshot table as it should be, where entries of it lack what they must have.
	snapshots []byte
	blocks    []blockRef
}

// blockRef is an entry of the refcount table.
type blockRef struct {
	index int64 // in the table
	off   int64
	state blockState
}

type blockState uint8

const (
	blockGood   blockState = iota
	blockAbsent            // outside the file: it counts nothing
	blockBad               // it cannot be said what it counts
	blockTwice             // it lies where one with a lower index does: neither can it
)

// readPlaces reads what the header leads to, but for L1 and L2 tables.
func (c *checker) readPlaces() error {
	h, cs := c.h, c.h.ClusterSize()
	c.places = places{fixed: []place{{part: partHeader, len: cs}}}
	c.addTable(&c.places.l1, partL1, int64(h.L1TableOffset), int64(h.L1Size), true)
	c.fix(place{part: partTable, off: int64(h.RefcountTableOffset), len: int64(h.RefcountTableClusters) * cs, refcounts: true})
	for _, read := range []func() error{c.readSnapshots, c.readEncryption, c.readBitmaps, c.readTable} {
		if err := read(); err != nil {
			if !isCorrupt(err) {
				return err
			}
			c.damaged(err)
		}
	}
	c.checkOverlaps()
	return nil
}

// fix adds a fixed place.
func (c *checker) fix(p place) { c.places.fixed = append(c.places.fixed, p) }

// addTable adds a table of n entries of 8 bytes, unless it lies outside the file.
func (c *checker) addTable(list *[]span, part string, off, n int64, active bool) {
	if n == 0 {
		return
	}
	if off+n*8-c.size >= c.h.ClusterSize() {
		c.corrupt(1, part, off, "it has %d entries, and the file ends at byte %d", n, c.size)
		c.seen.hidden = true
		return
	}
	s := span{off: off, end: off + n*8, w: 1}
	if active {
		s.active = 1
	}
	*list = append(*list, s)
}

// damaged counts a structure that cannot be followed.
func (c *checker) damaged(err error) {
	c.seen.hidden = true
	part, off := partHeader, int64(-1)
	cause := err
	if e := (*block.CorruptError)(nil); errors.As(err, &e) {
		part, off, cause = e.Part, e.Off, e.Err
	}
	c.corrupt(1, part, off, "%v", cause)
}

func (c *checker) readSnapshots() error {
	if c.h.NbSnapshots == 0 {
		return nil
	}
	list, n, err := ondisk.ReadSnapshots(c.ctx, c.dev, c.h)
	if err != nil {
		return err
	}
	off := int64(c.h.SnapshotsOffset)
	var whole []byte
	c.places.fixed = append(c.places.fixed, place{part: partSnapshots, off: off, len: n})
	if c.h.HasDataFile() {
		c.corrupt(1, partSnapshots, off, "there are %d snapshots, and the data lies in another file, which has none", len(list))
	}
	for i := range list {
		s := &list[i]
		if c.h.Version >= 3 && !s.HasDiskSize {
			c.corrupt(1, partSnapshots, off, "snapshot %q (%q) has no size of its disk, and version 3 has to", s.ID, s.Name)
			c.seen.incomplete = true
		}
		s.HasDiskSize = true
		whole = s.Append(whole)
		c.addTable(&c.places.l1, partL1, int64(s.L1TableOffset), int64(s.L1Size), false)
	}
	if c.seen.incomplete && len(whole) <= ondisk.MaxSnapshotTableBytes {
		c.places.snapshots = whole
	}
	return nil
}

// readEncryption finds the header of LUKS.
func (c *checker) readEncryption() error {
	data, found := c.h.Extension(ondisk.ExtEncryption)
	if !found || c.h.CryptMethod != ondisk.CryptLUKS {
		return nil
	}
	if len(data) < 16 {
		return block.Corrupt(ondisk.Format, partEncryption, -1, "its header extension has %d bytes in place of 16", len(data))
	}
	off, n := binary.BigEndian.Uint64(data), binary.BigEndian.Uint64(data[8:])
	if off%uint64(c.h.ClusterSize()) != 0 || off > ondisk.MaxOffset || n > maxEncryptionHeader {
		return block.Corrupt(ondisk.Format, partEncryption, -1, "%d bytes at %#x cannot be", n, off)
	}
	c.fix(place{part: partEncryption, off: int64(off), len: int64(n)})
	return nil
}

func (c *checker) readBitmaps() error {
	x, err := c.h.Bitmaps()
	if x == nil || err != nil {
		return err
	}
	off, n := int64(x.BitmapDirectoryOffset), int64(x.BitmapDirectorySize)
	if off+n > c.size {
		return block.Corrupt(ondisk.Format, partBitmaps, off, "it has %d bytes, and the file ends at byte %d", n, c.size)
	}
	p := make([]byte, n)
	if err := c.dev.Read(c.ctx, p, off); err != nil {
		return err
	}
	c.fix(place{part: partBitmaps, off: off, len: n})
	list, err := ondisk.ParseBitmapDirectory(p, off, c.h)
	if err != nil {
		return err
	}
	for _, b := range list {
		c.addTable(&c.places.bitmaps, partBitmap, int64(b.BitmapTableOffset), int64(b.BitmapTableSize), false)
	}
	return nil
}

// checkOverlaps looks for structures that are written where they lie and share a cluster.
func (c *checker) checkOverlaps() {
	list := slices.Clone(c.places.fixed)
	for _, s := range c.places.l1 {
		if s.active > 0 {
			list = append(list, place{part: partL1, off: s.off, len: s.end - s.off})
		}
	}
	list = slices.DeleteFunc(list, func(p place) bool { return p.part == partSnapshots || p.len == 0 }) // a new one is written elsewhere
	slices.SortFunc(list, func(a, b place) int { return cmp.Compare(a.off, b.off) })
	for i := 1; i < len(list); i++ {
		before, p := list[i-1], list[i]
		if end := (before.off + before.len - 1) >> c.h.ClusterBits; end >= p.off>>c.h.ClusterBits {
			c.corrupt(1, p.part, p.off, "it lies in a cluster of the %s", before.part)
			c.seen.overlaps = true
			c.seen.rebuild = c.seen.rebuild || p.refcounts || before.refcounts
		}
	}
}

// countBitmaps counts and judges what bitmap tables refer to.
func (c *checker) countBitmaps() error {
	c.countSpans(partBitmap, c.places.bitmaps)
	return c.entries(c.places.bitmaps, func(e uint64, at int64, s span) error {
		off := int64(e & ondisk.OffsetMask)
		switch {
		case e&ondisk.BitmapTableReserved != 0, off != 0 && e&ondisk.BitmapTableAllOnes != 0:
			c.corrupt(int64(s.w), partBitmap, at, "entry %#x has reserved bits set", e)
		case off&(c.h.ClusterSize()-1) != 0:
			c.corrupt(int64(s.w), partBitmap, at, "entry %#x leads to bits that do not begin with a cluster", e)
		case off != 0:
			c.addRange(partBitmap, at, off, c.h.ClusterSize(), s.w, refOther)
		}
		return nil
	})
}
