package partition

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"unicode/utf16"

	"github.com/imgtool/imgtool/block"
)

const (
	gptRevision = 0x00010000
	gptEntries  = 128 // of 128 bytes: the 16 KiB that the specification wants at least
	gptArray    = gptEntries * minEntrySize
)

// WriteGPT writes the protective MBR and both copies of a GPT to d, and nothing else. What it writes follows from t and the size
// of d alone.
//
// It uses t.SectorSize (512 where it is 0), t.DiskGUID, and of each partition Number, Start, Size, Name, GUID, Attributes and TypeID, or
// Type where that is empty. DiskGUID must be given; a partition without a GUID gets one made from DiskGUID and its number. Partitions
// must begin and end on sectors, lie apart from each other and from the table, and have numbers from 1 to 128; otherwise nothing is written.
func WriteGPT(ctx context.Context, d block.Device, t Table) error {
	sector := cmp.Or(t.SectorSize, 512)
	if !slices.Contains(sectorSizes, sector) {
		return fmt.Errorf("sector size %d: expected 512 or 4096", sector)
	}
	disk, err := parseGUID(t.DiskGUID)
	if err != nil {
		return fmt.Errorf("disk GUID: %w", err)
	}
	arraySectors := gptArray / sector
	sectors := d.Size() / sector
	h := gptHeader{
		Revision: gptRevision, HeaderSize: gptHeaderSize, MyLBA: 1, AlternateLBA: uint64(sectors - 1),
		FirstUsableLBA: uint64(2 + arraySectors), LastUsableLBA: uint64(sectors - 2 - arraySectors), DiskGUID: disk, PartitionEntryLBA: 2,
		NumberOfPartitionEntries: gptEntries, SizeOfPartitionEntry: minEntrySize,
	}
	copy(h.Signature[:], gptSignature)
	if sectors < 2*(2+arraySectors) {
		return fmt.Errorf("a disk of %d bytes is too small for a GPT, which needs %d", d.Size(), 2*(2+arraySectors)*sector)
	}
	array, err := encodeArray(t.Partitions, h, sector)
	if err != nil {
		return err
	}
	h.PartitionEntryArrayCRC32 = crc32.ChecksumIEEE(array)
	backup := h
	backup.MyLBA, backup.AlternateLBA = h.AlternateLBA, h.MyLBA
	backup.PartitionEntryLBA = uint64(sectors - 1 - arraySectors)

	// The first sectors: protective MBR, header, entries.
	head := make([]byte, 2*sector, 2*sector+gptArray)
	copy(head, encodeProtective(sectors))
	copy(head[sector:], encodeHeader(h))
	if err := d.Write(ctx, append(head, array...), 0, 0); err != nil {
		return err
	}
	// The last ones: entries, header.
	tail := append(array, make([]byte, sector)...)
	copy(tail[gptArray:], encodeHeader(backup))
	return d.Write(ctx, tail, (sectors-1-arraySectors)*sector, 0)
}

// encodeArray checks the partitions and returns them as an array of entries.
func encodeArray(list []Partition, h gptHeader, sector int64) ([]byte, error) {
	array := make([]byte, gptArray)
	first, end := int64(h.FirstUsableLBA)*sector, int64(h.LastUsableLBA+1)*sector
	for i, p := range list {
		if p.Number < 1 || p.Number > gptEntries {
			return nil, fmt.Errorf("partition number %d: expected 1 to %d", p.Number, gptEntries)
		}
		if p.Start%sector != 0 || p.Size%sector != 0 || p.Size <= 0 {
			return nil, fmt.Errorf("partition %d: start %d and size %d must be whole sectors of %d bytes, at least one", p.Number, p.Start, p.Size, sector)
		}
		if p.Start < first || p.Start > end || p.Size > end-p.Start {
			return nil, fmt.Errorf("partition %d: start %d, size %d is outside the usable bytes %d to %d", p.Number, p.Start, p.Size, first, end-1)
		}
		for _, o := range list[:i] {
			if o.Number == p.Number {
				return nil, fmt.Errorf("partition number %d is given twice", p.Number)
			}
			if p.Start < o.End() && o.Start < p.End() {
				return nil, fmt.Errorf("partitions %d and %d overlap", o.Number, p.Number)
			}
		}
		e, err := encodeEntry(p, h.DiskGUID, sector)
		if err != nil {
			return nil, fmt.Errorf("partition %d: %w", p.Number, err)
		}
		// It cannot fail: the slot has the size of an entry.
		_, _ = binary.Encode(array[(p.Number-1)*minEntrySize:], binary.LittleEndian, e)
	}
	return array, nil
}

// encodeEntry returns a partition, whose place has been checked, as an entry.
func encodeEntry(p Partition, disk guid, sector int64) (gptEntry, error) {
	e := gptEntry{
		StartingLBA: uint64(p.Start / sector), EndingLBA: uint64(p.End()/sector - 1), Attributes: p.Attributes,
		UniquePartitionGUID: derivedGUID(disk, p.Number),
	}
	var err error
	if e.PartitionTypeGUID, err = typeGUID(cmp.Or(p.TypeID, p.Type)); err != nil {
		return e, fmt.Errorf("type: %w, nor the name of a type", err)
	}
	if e.PartitionTypeGUID == (guid{}) {
		return e, errors.New("type: the zero GUID means an unused entry")
	}
	if p.GUID != "" {
		if e.UniquePartitionGUID, err = parseGUID(p.GUID); err != nil {
			return e, err
		}
	}
	name := utf16.Encode([]rune(p.Name))
	if len(name) > len(e.PartitionName) || slices.Contains(name, 0) {
		return e, fmt.Errorf("name %q: expected at most %d UTF-16 units, none of them 0", p.Name, len(e.PartitionName))
	}
	copy(e.PartitionName[:], name)
	return e, nil
}

// derivedGUID returns the GUID of a partition for which none was given: random in looks (RFC 9562 version 8), always the same.
func derivedGUID(disk guid, number int) guid {
	sum := sha256.Sum256(binary.LittleEndian.AppendUint32(disk[:], uint32(number)))
	g := guid(sum[:16])
	g[7] = g[7]&0x0F | 0x80 // version, in the high byte of the third field
	g[8] = g[8]&0x3F | 0x80 // variant
	return g
}

// encodeHeader returns a header with its CRC.
func encodeHeader(h gptHeader) []byte {
	h.HeaderCRC32 = 0
	b := make([]byte, gptHeaderSize)
	_, _ = binary.Encode(b, binary.LittleEndian, h)
	h.HeaderCRC32 = headerCRC(b)
	_, _ = binary.Encode(b, binary.LittleEndian, h)
	return b
}

// encodeProtective returns the protective MBR of UEFI section 5.2.3 for a disk of so many sectors.
func encodeProtective(sectors int64) []byte {
	m := mbr{Signature: mbrSignature}
	m.PartitionRecord[0] = mbrRecord{
		OSType: osTypeProtective, StartingCHS: [3]byte{0x00, 0x02, 0x00}, EndingCHS: [3]byte{0xFF, 0xFF, 0xFF},
		StartingLBA: 1, SizeInLBA: uint32(min(sectors-1, math.MaxUint32)),
	}
	b := make([]byte, mbrSize)
	_, _ = binary.Encode(b, binary.LittleEndian, m)
	return b
}
