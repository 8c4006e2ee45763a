package partition

import (
	"bytes"
	"cmp"
	"context"
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
	gptSignature  = "EFI PART"
	gptHeaderSize = 92 // of revision 1.0, in bytes; HeaderSize may say more, up to a sector

	// Limits on what a header may ask for. The specification wants at least 16 KiB of entries, of 128 * 2^n bytes each.
	minEntrySize = 128
	maxEntrySize = 4096
	maxArray     = 1 << 20

	attrLegacyBoot = 1 << 2 // "legacy BIOS bootable", UEFI table 5-8
)

// sectorSizes are the logical sector sizes that a GPT is looked for with, in this order.
var sectorSizes = []int64{512, 4096}

// errNoHeader: there is no header at this place, damaged or not.
var errNoHeader = errors.New("no GPT header")

// gptHeader is the header of UEFI section 5.3.2, table 5-5.
type gptHeader struct {
	Signature                [8]byte
	Revision                 uint32
	HeaderSize               uint32
	HeaderCRC32              uint32
	Reserved                 uint32
	MyLBA                    uint64
	AlternateLBA             uint64
	FirstUsableLBA           uint64
	LastUsableLBA            uint64
	DiskGUID                 guid
	PartitionEntryLBA        uint64
	NumberOfPartitionEntries uint32
	SizeOfPartitionEntry     uint32
	PartitionEntryArrayCRC32 uint32
}

// gptEntry is the partition entry of UEFI section 5.3.3, table 5-6.
type gptEntry struct {
	PartitionTypeGUID   guid
	UniquePartitionGUID guid
	StartingLBA         uint64
	EndingLBA           uint64 // inclusive
	Attributes          uint64
	PartitionName       [36]uint16
}

// gptCopy is one of the two copies of a GPT. One whose header could not be trusted has a sectorSize and a header, and no array.
type gptCopy struct {
	gptHeader
	sectorSize int64
	lba        uint64 // where the header was read
	array      []byte // of entries, NumberOfPartitionEntries * SizeOfPartitionEntry bytes
}

// readCopy reads and checks the copy whose header lies at lba. Where it is not good the error is errNoHeader or a *block.CorruptError,
// with the header as it was read, or that of the device.
func readCopy(ctx context.Context, d block.Device, sectorSize int64, lba uint64) (gptCopy, error) {
	c := gptCopy{sectorSize: sectorSize, lba: lba}
	r, ok := bytesOf(lba, 1, sectorSize)
	if !ok || block.CheckRange(r.Off, r.Len, d.Size()) != nil {
		return c, errNoHeader
	}
	sector := make([]byte, sectorSize)
	if err := d.Read(ctx, sector, r.Off); err != nil {
		return c, err
	}
	if string(sector[:len(gptSignature)]) != gptSignature {
		return c, errNoHeader
	}
	// It cannot fail: the sector is longer than the header.
	_, _ = binary.Decode(sector, binary.LittleEndian, &c.gptHeader)
	if err := c.checkHeader(sector, r.Off); err != nil {
		return c, err
	}
	n := int64(c.NumberOfPartitionEntries) * int64(c.SizeOfPartitionEntry)
	at, ok := bytesOf(c.PartitionEntryLBA, 0, sectorSize)
	if !ok || block.CheckRange(at.Off, n, d.Size()) != nil {
		return c, block.Corrupt(GPT, "header", r.Off, "PartitionEntryLBA %d is outside the disk", c.PartitionEntryLBA)
	}
	array := make([]byte, n)
	if err := d.Read(ctx, array, at.Off); err != nil {
		return c, err
	}
	if sum := crc32.ChecksumIEEE(array); sum != c.PartitionEntryArrayCRC32 {
		return c, block.Corrupt(GPT, "partition entry array", at.Off, "its CRC is %#08x, the header says %#08x", sum, c.PartitionEntryArrayCRC32)
	}
	c.array = array
	return c, nil
}

// checkHeader checks the header in a sector at byte off, as far as that can be done without reading more.
func (c *gptCopy) checkHeader(sector []byte, off int64) error {
	bad := func(cause string, args ...any) error { return block.Corrupt(GPT, "header", off, cause, args...) }
	if c.HeaderSize < gptHeaderSize || int64(c.HeaderSize) > c.sectorSize {
		return bad("HeaderSize is %d, expected %d to %d", c.HeaderSize, gptHeaderSize, c.sectorSize)
	}
	if sum := headerCRC(sector[:c.HeaderSize]); sum != c.HeaderCRC32 {
		return bad("its CRC is %#08x, it says %#08x", sum, c.HeaderCRC32)
	}
	if c.MyLBA != c.lba {
		return bad("MyLBA is %d, but it lies at %d", c.MyLBA, c.lba)
	}
	size := c.SizeOfPartitionEntry
	if size < minEntrySize || size > maxEntrySize || size&(size-1) != 0 {
		return bad("SizeOfPartitionEntry is %d, expected 128, 256 ... %d", size, maxEntrySize)
	}
	if n := int64(c.NumberOfPartitionEntries) * int64(size); n > maxArray {
		return bad("%d partition entries of %d bytes are more than the %d bytes that are accepted", c.NumberOfPartitionEntries, size, maxArray)
	}
	return nil
}

// headerCRC returns the CRC of a header, with its own field taken as zero.
func headerCRC(header []byte) uint32 {
	const field = 16 // byte offset of HeaderCRC32
	sum := crc32.ChecksumIEEE(header[:field])
	sum = crc32.Update(sum, crc32.IEEETable, make([]byte, 4))
	return crc32.Update(sum, crc32.IEEETable, header[field+4:])
}

// survivable reports whether err says that a copy is missing or damaged, rather than that the device could not be read.
func survivable(err error) bool {
	var corrupt *block.CorruptError
	return errors.Is(err, errNoHeader) || errors.As(err, &corrupt)
}

// readGPT returns the GPT of a disk, or nil where it has none.
func readGPT(ctx context.Context, d block.Device, m firstSector) (*Table, error) {
	primary, err := readPrimary(ctx, d)
	if err != nil && !survivable(err) {
		return nil, err
	}
	seen := !errors.Is(err, errNoHeader)
	// Without a protective MBR a header is taken for a GPT only where nothing else claims the disk: it may be left over from earlier.
	if !m.protective && (!seen || m.valid || m.volume) {
		return nil, nil
	}
	t := &Table{Scheme: GPT}
	use := primary
	if err == nil {
		t.SectorSize = primary.sectorSize
		if !d.Info().Probable { // else it would take reading everything before it
			if err := t.checkBackup(ctx, d, primary); err != nil {
				return nil, err
			}
		}
	} else {
		if use, err = readBackup(ctx, d, m, primary, err); err != nil {
			return nil, err
		}
		t.SectorSize = use.sectorSize
		t.problem("the primary GPT header or its entries are damaged or missing: the backup at LBA %d is used (sgdisk can restore the primary)", use.lba)
		// The header and the entries belong where the damaged ones lie.
		t.addMetadata(1, 1)
		t.addArray(use, 2)
	}
	t.Metadata = append(t.Metadata, Range{0, t.SectorSize})
	t.addMetadata(use.lba, 1)
	t.addArray(use, use.PartitionEntryLBA)
	t.DiskGUID = use.DiskGUID.String()
	t.checkProtective(m)
	t.addEntries(use)
	return t, nil
}

// readPrimary looks for the primary copy at LBA 1 for each sector size. Where none is good the error is that of a damaged one, if any.
func readPrimary(ctx context.Context, d block.Device) (gptCopy, error) {
	var damaged gptCopy
	var cause error = errNoHeader
	for _, size := range sectorSizes {
		c, err := readCopy(ctx, d, size, 1)
		if err == nil || !survivable(err) {
			return c, err
		}
		if errors.Is(cause, errNoHeader) {
			damaged, cause = c, err
		}
	}
	return damaged, cause
}

// readBackup looks for the backup copy of a disk whose primary copy is damaged or missing: at the end of the disk, then, in case the disk
// has been grown, where the primary header or the protective MBR say that the end was.
func readBackup(ctx context.Context, d block.Device, m firstSector, primary gptCopy, cause error) (gptCopy, error) {
	for _, size := range sectorSizes {
		if d.Size() < size {
			continue
		}
		places := []uint64{uint64(d.Size()/size - 1)}
		if !errors.Is(cause, errNoHeader) && primary.sectorSize == size {
			places = append(places, primary.AlternateLBA)
		}
		for _, r := range m.PartitionRecord {
			if r.OSType == osTypeProtective {
				places = append(places, uint64(r.StartingLBA)+uint64(r.SizeInLBA)-1)
			}
		}
		for _, lba := range places {
			c, err := readCopy(ctx, d, size, lba)
			if err == nil || !survivable(err) {
				return c, err
			}
			if errors.Is(cause, errNoHeader) {
				cause = err
			}
		}
	}
	if errors.Is(cause, errNoHeader) {
		return gptCopy{}, block.Corrupt(GPT, "header", mbrSize, "the protective MBR is there, but neither a primary nor a backup header")
	}
	return gptCopy{}, fmt.Errorf("no copy of the partition table can be used: %w", cause)
}

// checkBackup looks at the backup of a good primary copy, and tells what is wrong with it. It fails only where ctx has ended.
func (t *Table) checkBackup(ctx context.Context, d block.Device, primary gptCopy) error {
	last := uint64(d.Size()/t.SectorSize - 1)
	lba := primary.AlternateLBA
	switch {
	case lba > last:
		t.problem("the backup GPT belongs at LBA %d, but the disk ends at LBA %d: has it been truncated?", lba, last)
		lba = last
	case lba < last:
		t.problem("the backup GPT belongs at LBA %d, but the disk ends at LBA %d: it has been grown (sgdisk -e moves the backup)", lba, last)
	}
	backup, err := readCopy(ctx, d, t.SectorSize, lba)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !errors.Is(err, errNoHeader) {
		t.addMetadata(lba, 1)
	}
	if err != nil {
		t.problem("the backup GPT cannot be used: %v", err)
		return nil
	}
	t.addArray(backup, backup.PartitionEntryLBA)
	if backup.DiskGUID != primary.DiskGUID || !bytes.Equal(backup.array, primary.array) {
		t.problem("the backup GPT is good but differs from the primary, which is used")
	}
	return nil
}

// addMetadata counts sectors as part of the table.
func (t *Table) addMetadata(lba, sectors uint64) {
	if r, ok := bytesOf(lba, sectors, t.SectorSize); ok {
		t.Metadata = append(t.Metadata, r)
	}
}

// addArray counts the sectors of the partition entries of c as part of the table, as if they began at lba.
func (t *Table) addArray(c gptCopy, lba uint64) {
	// An array is at most maxArray long.
	n, _ := block.RoundUp(int64(len(c.array)), t.SectorSize)
	t.addMetadata(lba, uint64(n/t.SectorSize))
}

// checkProtective tells what is wrong with the protective MBR.
func (t *Table) checkProtective(m firstSector) {
	if !m.protective {
		t.problem("there is no protective MBR: other programs may take the disk for an empty one")
		return
	}
	hybrid := slices.ContainsFunc(m.PartitionRecord[:], func(r mbrRecord) bool { return r.used() && r.OSType != osTypeProtective })
	if hybrid {
		t.problem("the MBR is a hybrid: it has partitions of its own besides the protective one, which are ignored")
	}
}

// addEntries adds the partitions of c.
func (t *Table) addEntries(c gptCopy) {
	size := int(c.SizeOfPartitionEntry)
	for i := range int(c.NumberOfPartitionEntries) {
		var e gptEntry
		// It cannot fail: an entry is at least minEntrySize long.
		_, _ = binary.Decode(c.array[i*size:(i+1)*size], binary.LittleEndian, &e)
		if e.PartitionTypeGUID == (guid{}) {
			continue
		}
		number := i + 1
		if e.EndingLBA < e.StartingLBA {
			t.problem("partition %d is left out: it ends at LBA %d, before it starts at LBA %d", number, e.EndingLBA, e.StartingLBA)
			continue
		}
		r, ok := bytesOf(e.StartingLBA, e.EndingLBA-e.StartingLBA+1, t.SectorSize)
		if !ok || e.EndingLBA > math.MaxInt64 {
			t.problem("partition %d is left out: LBA %d to %d is more than any disk has", number, e.StartingLBA, e.EndingLBA)
			continue
		}
		if e.StartingLBA < c.FirstUsableLBA || e.EndingLBA > c.LastUsableLBA {
			t.problem("partition %d, LBA %d to %d, is outside the usable LBA %d to %d",
				number, e.StartingLBA, e.EndingLBA, c.FirstUsableLBA, c.LastUsableLBA)
		}
		id := e.PartitionTypeGUID.String()
		t.Partitions = append(t.Partitions, Partition{
			Number: number, Start: r.Off, Size: r.Len, Name: textUTF16(e.PartitionName[:]),
			Type: cmp.Or(gptTypes[id], id), TypeID: id, GUID: e.UniquePartitionGUID.String(),
			Attributes: e.Attributes, Bootable: e.Attributes&attrLegacyBoot != 0,
		})
	}
}

// textUTF16 returns the text up to the first NUL. What is not valid becomes U+FFFD.
func textUTF16(units []uint16) string {
	if i := slices.Index(units, 0); i >= 0 {
		units = units[:i]
	}
	return string(utf16.Decode(units))
}
