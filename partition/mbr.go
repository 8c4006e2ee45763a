package partition

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/imgtool/imgtool/block"
)

const (
	mbrSize      = 512    // of a master or extended boot record, in bytes
	mbrSignature = 0xAA55 // at byte 510

	active = 0x80 // the one BootIndicator other than 0

	osTypeProtective = 0xEE // OSType of the record that covers a GPT disk

	firstLogical = 5   // the number of the first logical partition
	maxLogical   = 256 // more boot records than this in the chain are not followed
)

// mbrRecord is a partition record of UEFI section 5.2.1, table 5-2. The CHS fields are ignored: they cannot say where anything lies on
// a disk of today.
type mbrRecord struct {
	BootIndicator byte
	StartingCHS   [3]byte
	OSType        byte
	EndingCHS     [3]byte
	StartingLBA   uint32
	SizeInLBA     uint32
}

// mbr is a master boot record, UEFI section 5.2.1, table 5-1, and the boot record in front of a logical partition, which has the same layout.
type mbr struct {
	BootCode               [440]byte
	UniqueMBRDiskSignature uint32
	Unknown                uint16
	PartitionRecord        [4]mbrRecord
	Signature              uint16
}

// firstSector is what the first 512 bytes of a disk say about partition tables.
type firstSector struct {
	mbr
	valid      bool // it is a partition table
	protective bool // it is valid and stands before a GPT
	volume     bool // it is the boot sector of a file system
}

// used reports whether a record describes anything.
func (r mbrRecord) used() bool { return r.SizeInLBA != 0 }

// extended reports whether a record points to boot records of logical partitions.
func (r mbrRecord) extended() bool { return mbrTypes[r.OSType] == extended }

// decodeMBR unpacks 512 bytes.
func decodeMBR(sector []byte) (m mbr) {
	// It cannot fail: the sector has the size of the struct.
	_, _ = binary.Decode(sector, binary.LittleEndian, &m)
	return m
}

// parseMBR decides whether the first 512 bytes of a disk are a partition table. The signature alone says little: the boot sectors of
// FAT, NTFS and exFAT have it too.
func parseMBR(sector []byte) firstSector {
	f := firstSector{mbr: decodeMBR(sector), volume: isBootSector(sector)}
	if f.Signature != mbrSignature {
		return f
	}
	used, plausible := 0, true
	for i, r := range f.PartitionRecord {
		if r.BootIndicator != 0 && r.BootIndicator != active {
			return f
		}
		if !r.used() {
			continue
		}
		used++
		f.protective = f.protective || r.OSType == osTypeProtective
		// A record that covers the boot record itself is what mkfs.fat --mbr puts into the boot sector of a volume.
		plausible = plausible && r.StartingLBA > 0 && r.OSType != 0
		for _, o := range f.PartitionRecord[:i] {
			apart := uint64(o.StartingLBA)+uint64(o.SizeInLBA) <= uint64(r.StartingLBA) ||
				uint64(r.StartingLBA)+uint64(r.SizeInLBA) <= uint64(o.StartingLBA)
			plausible = plausible && (!o.used() || apart)
		}
	}
	switch {
	case f.volume:
		// A disk can be both: boot code that keeps the parameters of a volume, and a table in order behind it.
		f.valid = used > 0 && plausible
	case used == 0:
		// The boot sector of a partition with a boot loader looks like a table without partitions, but has no disk signature.
		f.valid = f.UniqueMBRDiskSignature != 0
	default:
		f.valid = true
	}
	f.protective = f.protective && f.valid
	return f
}

// isBootSector reports whether a sector begins a FAT, NTFS, exFAT or BitLocker volume: a jump, then the BIOS parameter block.
func isBootSector(sector []byte) bool {
	if sector[0] != 0xE9 && (sector[0] != 0xEB || sector[2] != 0x90) {
		return false
	}
	switch string(sector[3:11]) {
	case "NTFS    ", "EXFAT   ", "-FVE-FS-":
		return true
	}
	return parseBPB(sector) != nil
}

// readMBR returns the table of a disk whose first sector is a valid MBR.
func readMBR(ctx context.Context, d block.Device, m firstSector) (*Table, error) {
	t := &Table{
		Scheme: MBR, SectorSize: mbrSize, DiskSignature: fmt.Sprintf("0x%08x", m.UniqueMBRDiskSignature),
		Metadata: []Range{{0, mbrSize}},
	}
	for i, r := range m.PartitionRecord {
		if !r.used() {
			continue
		}
		t.Partitions = append(t.Partitions, r.partition(i+1, 0))
	}
	for _, p := range t.Partitions[:len(t.Partitions):len(t.Partitions)] {
		if t.isExtended(p) {
			if err := t.readLogical(ctx, d, p); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

// partition returns a record as a Partition. base is what StartingLBA counts from, in bytes.
func (r mbrRecord) partition(number int, base int64) Partition {
	// 32 bits of sectors of 512 bytes, twice, are far from overflowing.
	p := Partition{
		Number: number, Start: base + int64(r.StartingLBA)*mbrSize, Size: int64(r.SizeInLBA) * mbrSize,
		TypeID: fmt.Sprintf("0x%02X", r.OSType), Bootable: r.BootIndicator == active,
	}
	p.Type = cmp.Or(mbrTypes[r.OSType], p.TypeID)
	return p
}

// readLogical follows the chain of boot records in an extended partition: each describes one logical partition, relative to itself, and
// where the next one lies, relative to the extended partition. What breaks the chain ends it, and is told in Problems.
func (t *Table) readLogical(ctx context.Context, d block.Device, ext Partition) error {
	number := firstLogical
	for _, p := range t.Partitions {
		number = max(number, p.Number+1)
	}
	seen := map[int64]bool{}
	for off := ext.Start; ; {
		if seen[off] || len(seen) == maxLogical {
			t.problem("the boot records of the logical partitions go on for ever: the one at byte %d comes again", off)
			return nil
		}
		seen[off] = true
		if block.CheckRange(off, mbrSize, d.Size()) != nil {
			t.problem("the boot record at byte %d, in extended partition %d, lies past the end of the disk", off, ext.Number)
			return nil
		}
		sector := make([]byte, mbrSize)
		if err := d.Read(ctx, sector, off); err != nil {
			return err
		}
		m := decodeMBR(sector)
		if m.Signature != mbrSignature {
			t.problem("the boot record at byte %d, in extended partition %d, has no signature: logical partitions from %d on are lost", off, ext.Number, number)
			return nil
		}
		t.Metadata = append(t.Metadata, Range{off, mbrSize})
		data, next := t.splitRecords(m, off)
		if data != nil {
			p := data.partition(number, off)
			p.Logical = true
			if p.Start < ext.Start || p.End() > ext.End() {
				t.problem("logical partition %d leaves extended partition %d", number, ext.Number)
			}
			t.Partitions = append(t.Partitions, p)
			number++
		}
		if next == nil {
			return nil
		}
		off = ext.Start + int64(next.StartingLBA)*mbrSize
	}
}

// splitRecords returns the record of a boot record at byte off that describes its partition, and the one that points to the next boot
// record; nil where there is none.
func (t *Table) splitRecords(m mbr, off int64) (data, next *mbrRecord) {
	for i := range m.PartitionRecord {
		r := &m.PartitionRecord[i]
		switch {
		case !r.used():
		case r.extended() && next == nil:
			next = r
		case !r.extended() && data == nil:
			data = r
		default:
			t.problem("the boot record at byte %d has more records than a partition and the next boot record: record %d is ignored", off, i+1)
		}
	}
	return data, next
}
