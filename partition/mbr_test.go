package partition

import (
	"encoding/binary"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// record is a partition record in short.
type record struct {
	kind        byte
	start, size uint32 // sectors
}

// bootRecord returns the sector of a master or extended boot record.
func bootRecord(signature uint32, records ...record) []byte {
	m := mbr{UniqueMBRDiskSignature: signature, Signature: mbrSignature}
	for i, r := range records {
		m.PartitionRecord[i] = mbrRecord{OSType: r.kind, StartingLBA: r.start, SizeInLBA: r.size}
	}
	b := make([]byte, mbrSize)
	_, _ = binary.Encode(b, binary.LittleEndian, m)
	return b
}

// extendedDisk has partitions 1, an extended 2, and logical 5, 6, 7; 4 is a container too. Sizes in sectors.
func extendedDisk() *memory {
	d := newMemory(sampleSize)
	d.put(bootRecord(0x1234ABCD, record{0x83, 2048, 2048}, record{0x05, 8192, 32768}, record{}, record{0x0F, 65536, 4096}), 0)
	d.put(bootRecord(0, record{0x83, 63, 1000}, record{0x05, 4096, 4096}), 8192*512)
	d.put(bootRecord(0, record{0x82, 63, 1000}, record{0x05, 8192, 4096}), (8192+4096)*512)
	d.put(bootRecord(0, record{}, record{}, record{0x0B, 64, 1000}), (8192+8192)*512)
	d.put(bootRecord(0, record{0x07, 2048, 2048}), 65536*512)
	return d
}

func TestLogicalPartitions(t *testing.T) {
	table := mustRead(t, extendedDisk())
	wantProblems(t, table)
	want := []Partition{
		{Number: 1, Start: 2048, Size: 2048, Type: "linux", TypeID: "0x83"},
		{Number: 2, Start: 8192, Size: 32768, Type: "extended", TypeID: "0x05"},
		{Number: 4, Start: 65536, Size: 4096, Type: "extended", TypeID: "0x0F"},
		{Number: 5, Start: 8192 + 63, Size: 1000, Type: "linux", TypeID: "0x83", Logical: true},
		{Number: 6, Start: 8192 + 4096 + 63, Size: 1000, Type: "swap", TypeID: "0x82", Logical: true},
		{Number: 7, Start: 8192 + 8192 + 64, Size: 1000, Type: "fat32", TypeID: "0x0B", Logical: true},
		{Number: 8, Start: 65536 + 2048, Size: 2048, Type: "ntfs", TypeID: "0x07", Logical: true},
	}
	for i := range want {
		want[i].Start *= 512
		want[i].Size *= 512
	}
	if !reflect.DeepEqual(table.Partitions, want) {
		t.Errorf("partitions\n%+v, want\n%+v", table.Partitions, want)
	}
	metadata := []Range{{0, 512}, {8192 * 512, 512}, {(8192 + 4096) * 512, 512}, {(8192 + 8192) * 512, 512}, {65536 * 512, 512}}
	if !reflect.DeepEqual(table.Metadata, metadata) {
		t.Errorf("metadata %v, want %v", table.Metadata, metadata)
	}
	if table.Scheme != MBR || table.DiskSignature != "0x1234abcd" || table.SectorSize != 512 || table.DiskGUID != "" {
		t.Errorf("%+v", table)
	}
}

func TestBrokenChains(t *testing.T) {
	const second = (8192 + 4096) * 512
	for name, c := range map[string]struct {
		boot       []byte // at second
		problem    string
		partitions int
	}{
		"loop to itself":     {bootRecord(0, record{0x82, 63, 1000}, record{0x05, 4096, 4096}), "go on for ever", 6},
		"loop to the first":  {bootRecord(0, record{0x82, 63, 1000}, record{0x05, 0, 4096}), "go on for ever", 6},
		"no signature":       {make([]byte, 512), "has no signature", 5},
		"past the end":       {bootRecord(0, record{0x82, 63, 1000}, record{0x05, 1<<32 - 1, 4096}), "past the end of the disk", 6},
		"too many records":   {bootRecord(0, record{0x82, 63, 1000}, record{0x83, 2000, 1000}), "record 2 is ignored", 6},
		"leaves container":   {bootRecord(0, record{0x82, 40000, 1000}), "leaves extended partition 2", 6},
		"overlapping":        {bootRecord(0, record{0x82, 1, 0x1000}, record{0x05, 8192, 1}), "partition 6 lies over the partition table's own bytes", 7},
		"over another chain": {bootRecord(0, record{0x82, 63, 1000}, record{0x05, 65536 - 8192, 1}), "leaves extended partition 2", 7},
	} {
		d := extendedDisk()
		d.put(c.boot, second)
		table := mustRead(t, d)
		if !slices.ContainsFunc(table.Problems, func(p string) bool { return strings.Contains(p, c.problem) }) {
			t.Errorf("%s: problems %q, want %q", name, table.Problems, c.problem)
		}
		if len(table.Partitions) != c.partitions {
			t.Errorf("%s: %d partitions, want %d", name, len(table.Partitions), c.partitions)
		}
	}
}

func TestLongChainEnds(t *testing.T) {
	d := newMemory(1 << 30)
	d.put(bootRecord(1, record{0x05, 1, 1 << 20}), 0)
	for i := range uint32(2000) {
		d.put(bootRecord(0, record{0x83, 1, 1}, record{0x05, 2 * (i + 1), 2}), int64(1+2*i)*512)
	}
	table := mustRead(t, d)
	if len(table.Partitions) != 1+maxLogical {
		t.Errorf("%d partitions", len(table.Partitions))
	}
	wantProblems(t, table, "go on for ever")
}

func TestPrimaryProblems(t *testing.T) {
	d := newMemory(sampleSize)
	d.put(bootRecord(1, record{0x83, 0, 100}, record{0x83, 50, 100}, record{0x83, 1 << 20, 1 << 20}, record{0x42, 2048, 1}), 0)
	table := mustRead(t, d)
	wantProblems(t, table, "partition 1 lies over", "partitions 1 and 2 overlap", "partition 3 ends at byte 1073741824")
	if p := table.Partitions[3]; p.Type != "0x42" || p.TypeID != "0x42" {
		t.Errorf("%+v", p)
	}
}

// fatBoot returns the first sector of a FAT16 volume.
func fatBoot() []byte {
	b := make([]byte, 512)
	copy(b, "\xEB\x3C\x90mkfs.fat")
	binary.LittleEndian.PutUint16(b[11:], 512)
	b[13] = 4
	binary.LittleEndian.PutUint16(b[14:], 1)
	b[16] = 2
	binary.LittleEndian.PutUint16(b[17:], 512)
	b[21] = 0xF8
	binary.LittleEndian.PutUint16(b[22:], 64)
	binary.LittleEndian.PutUint32(b[32:], 65536)
	b[510], b[511] = 0x55, 0xAA
	return b
}

func TestWhatIsNoMBR(t *testing.T) {
	put := func(b []byte, at int, s string) []byte { copy(b[at:], s); return b }
	fake := bootRecord(7, record{0x0C, 0, 65536}) // as mkfs.fat --mbr writes it into the boot sector
	for name, c := range map[string]struct {
		sector []byte
		isMBR  bool
	}{
		"FAT":                     {fatBoot(), false},
		"FAT, text in the table":  {put(fatBoot(), 446, "Remove disks or other media and press a key to restart, please"), false},
		"FAT with a fake table":   {put(fatBoot(), 440, string(fake[440:])), false},
		"FAT and a real table":    {put(fatBoot(), 440, string(bootRecord(7, record{0x83, 2048, 2048})[440:])), true},
		"NTFS":                    {put(fatBoot(), 3, "NTFS    "), false},
		"exFAT":                   {put(bootRecord(1), 0, "\xEB\x76\x90EXFAT   "), false},
		"boot loader":             {put(bootRecord(0), 0, "\xEB\x63\x90"), false},
		"empty":                   {bootRecord(1), true},
		"boot loader and a table": {put(bootRecord(0, record{0x83, 2048, 2048}), 0, "\xEB\x63\x90"), true},
		"bad status":              {put(bootRecord(1, record{0x83, 2048, 2048}), 446, "\x01"), false},
		"active":                  {put(bootRecord(1, record{0x83, 2048, 2048}), 446, "\x80"), true},
		"no signature":            {put(bootRecord(1, record{0x83, 2048, 2048}), 510, "\x00"), false},
	} {
		d := newMemory(sampleSize)
		d.put(c.sector, 0)
		table, err := Read(t.Context(), d)
		if c.isMBR && (err != nil || table.Scheme != MBR) {
			t.Errorf("%s: %v, %v; want an MBR", name, table, err)
		}
		if !c.isMBR && !errors.Is(err, ErrNone) {
			t.Errorf("%s: %v, %v; want ErrNone", name, table, err)
		}
		if name == "active" && !table.Partitions[0].Bootable {
			t.Errorf("partition 1 is active: %+v", table.Partitions[0])
		}
	}
}
