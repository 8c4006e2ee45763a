package partition

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/imgtool/imgtool/block"
)

// ErrNone: the disk has no partition table. It may still hold a file system: see Probe.
var ErrNone = errors.New("no partition table")

// Scheme names, as in Table.Scheme.
const (
	GPT = "gpt"
	MBR = "mbr"
)

// maxProblems bounds Table.Problems: a table of garbage can be wrong in thousands of ways.
const maxProblems = 64

// Table is a partition table.
type Table struct {
	Scheme        string // GPT or MBR
	SectorSize    int64  // the unit of the table's addresses in bytes: 512 or 4096; always 512 for an MBR, which does not tell
	DiskGUID      string // GPT: upper case
	DiskSignature string // MBR: as 0x1234abcd

	// Partitions are in order of number, unused entries left out.
	Partitions []Partition

	// Problems says what is wrong, in sentences for people, though the partitions could be read: a damaged copy, overlaps, partitions
	// that leave the disk. It is empty for a table in good order.
	Problems []string

	// Metadata are the ranges that the table itself occupies, in order and apart from each other; ranges that touch are one. GPT: protective
	// MBR, primary header and entries, and the backup ones where they were found. MBR: the first sector, and that of each logical partition.
	Metadata []Range

	probed bool // the FS fields are filled
}

// Range is a range of a disk in bytes.
type Range struct{ Off, Len int64 }

// End returns the first byte after the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Partition is one entry of a Table.
type Partition struct {
	Number      int    // from 1, as in the system's device names; logical partitions of an MBR from 5
	Start, Size int64  // in bytes; Start+Size does not overflow, but may lie past the end of the disk
	Name        string // GPT: PartitionName
	Type        string // a short name such as esp, linux or swap; the TypeID of a type without one
	TypeID      string // GPT: PartitionTypeGUID in upper case; MBR: OSType as 0x83
	GUID        string // GPT: UniquePartitionGUID in upper case; else ""
	Attributes  uint64 // GPT: the bits of UEFI section 5.3.3, table 5-8
	Bootable    bool   // MBR: BootIndicator is 0x80; GPT: attribute bit 2, legacy BIOS bootable
	Logical     bool   // MBR: lies inside the extended partition

	// FS is what ProbeFileSystems found; before it, the zero value.
	FS FileSystem
}

// End returns the first byte after the partition.
func (p Partition) End() int64 { return p.Start + p.Size }

// Read returns the partition table of a disk, or ErrNone.
//
// A GPT comes first: a disk with a protective MBR has a GPT or nothing, and a GPT whose header is damaged is read from its backup. Where
// neither copy can be used Read returns a *block.CorruptError. Errors of reading d are returned as they are, except those of
// the backup of a GPT whose primary copy is good, which are told in Problems.
func Read(ctx context.Context, d block.Device) (*Table, error) {
	if d.Size() < mbrSize {
		return nil, ErrNone
	}
	sector := make([]byte, mbrSize)
	if err := d.Read(ctx, sector, 0); err != nil {
		return nil, err
	}
	m := parseMBR(sector)
	t, err := readGPT(ctx, d, m)
	if err != nil {
		return nil, err
	}
	if t == nil {
		if !m.valid {
			return nil, ErrNone
		}
		if t, err = readMBR(ctx, d, m); err != nil {
			return nil, err
		}
	}
	t.check(d.Size())
	return t, nil
}

// Window returns a partition as a device. It returns an error where the partition does not lie inside d.
// Closing the window closes d; see block.NoClose.
func (t *Table) Window(d block.Device, p Partition) (*block.Window, error) {
	w, err := block.NewWindow(d, p.Start, p.Size)
	if err != nil {
		return nil, fmt.Errorf("partition %d does not fit into the disk: %w", p.Number, err)
	}
	return w, nil
}

// ProbeFileSystems fills the FS field of every partition as Probe does, and leaves it empty for those that do not fit into the disk and
// for extended partitions, which hold others. A second call does nothing. It changes t, so nothing else may use t meanwhile.
func (t *Table) ProbeFileSystems(ctx context.Context, d block.Device) error {
	if t.probed {
		return nil
	}
	for i := range t.Partitions {
		p := &t.Partitions[i]
		if t.isExtended(*p) || block.CheckRange(p.Start, p.Size, d.Size()) != nil {
			continue
		}
		w, err := t.Window(d, *p)
		if err != nil {
			return err
		}
		if p.FS, err = Probe(ctx, w); err != nil {
			return fmt.Errorf("partition %d: %w", p.Number, err)
		}
	}
	t.probed = true
	return nil
}

// isExtended reports whether p is a container of logical partitions.
func (t *Table) isExtended(p Partition) bool { return t.Scheme == MBR && p.Type == extended }

// problem adds a sentence to Problems.
func (t *Table) problem(format string, args ...any) {
	switch len(t.Problems) {
	case maxProblems:
	case maxProblems - 1:
		t.Problems = append(t.Problems, "and more that is wrong")
	default:
		t.Problems = append(t.Problems, fmt.Sprintf(format, args...))
	}
}

// check looks for what is wrong with the partitions whatever the scheme, and puts Metadata in order.
func (t *Table) check(size int64) {
	t.Metadata = mergeRanges(t.Metadata, size)
	var primary, logical []Partition
	for _, p := range t.Partitions {
		if p.End() > size {
			t.problem("partition %d ends at byte %d, past the end of the disk at byte %d: has the disk been truncated?", p.Number, p.End(), size)
		}
		for _, r := range t.Metadata {
			if !t.isExtended(p) && p.Start < r.End() && r.Off < p.End() {
				t.problem("partition %d lies over the partition table's own bytes %d to %d", p.Number, r.Off, r.End()-1)
			}
		}
		if p.Logical {
			logical = append(logical, p)
		} else {
			primary = append(primary, p)
		}
	}
	t.checkOverlap(primary)
	t.checkOverlap(logical)
}

// checkOverlap reports partitions that share bytes. It sorts list.
func (t *Table) checkOverlap(list []Partition) {
	slices.SortStableFunc(list, func(a, b Partition) int { return cmp.Compare(a.Start, b.Start) })
	for i := 1; i < len(list); i++ {
		// list[i-1] is kept as the one that ends last so far.
		if list[i].Start < list[i-1].End() {
			t.problem("partitions %d and %d overlap", min(list[i-1].Number, list[i].Number), max(list[i-1].Number, list[i].Number))
		}
		if list[i].End() < list[i-1].End() {
			list[i] = list[i-1]
		}
	}
}

// mergeRanges clips ranges to the disk, sorts them and joins those that touch.
func mergeRanges(ranges []Range, size int64) []Range {
	slices.SortFunc(ranges, func(a, b Range) int { return cmp.Compare(a.Off, b.Off) })
	var out []Range
	for _, r := range ranges {
		r.Len = min(r.Len, size-r.Off)
		if r.Len <= 0 {
			continue
		}
		if n := len(out); n > 0 && r.Off <= out[n-1].End() {
			out[n-1].Len = max(out[n-1].End(), r.End()) - out[n-1].Off
			continue
		}
		out = append(out, r)
	}
	return out
}

// bytesOf returns the byte range of count sectors from lba, and whether it can be expressed.
func bytesOf(lba, count uint64, sectorSize int64) (Range, bool) {
	if lba > math.MaxInt64 || count > math.MaxInt64 {
		return Range{}, false
	}
	off, ok1 := block.Mul(int64(lba), sectorSize)
	n, ok2 := block.Mul(int64(count), sectorSize)
	_, ok3 := block.Add(off, n)
	return Range{off, n}, ok1 && ok2 && ok3
}
