package partition

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"reflect"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
)

const diskGUID = "11111111-2222-4333-8444-555555555555"

// sample is a table for a disk of sampleSize bytes.
func sample(sector int64) Table {
	return Table{
		SectorSize: sector, DiskGUID: diskGUID,
		Partitions: []Partition{
			{Number: 1, Start: 1 << 20, Size: 8 << 20, Name: "esp", Type: "esp"},
			{Number: 2, Start: 9 << 20, Size: 16 << 20, Name: "böot 🥾", Type: "linux", Attributes: attrLegacyBoot},
			{Number: 7, Start: 25 << 20, Size: 4096, TypeID: "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", GUID: "{aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee}"},
			{Number: 9, Start: 32 << 20, Size: 31 << 20, Name: strings.Repeat("x", 36), TypeID: "01234567-89AB-4DEF-8123-456789ABCDEF"},
		},
	}
}

const sampleSize = 64 << 20

func sampleDisk(t testing.TB, sector int64) *memory {
	t.Helper()
	d := newMemory(sampleSize)
	if err := WriteGPT(t.Context(), d, sample(sector)); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestWriteRead(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		d := sampleDisk(t, sector)
		table := mustRead(t, d)
		wantProblems(t, table)
		if table.Scheme != GPT || table.SectorSize != sector || table.DiskGUID != diskGUID || table.DiskSignature != "" {
			t.Errorf("table: %+v", table)
		}
		metadata := []Range{{0, 2*sector + gptArray}, {sampleSize - sector - gptArray, sector + gptArray}}
		if !reflect.DeepEqual(table.Metadata, metadata) {
			t.Errorf("metadata %v, want %v", table.Metadata, metadata)
		}
		want := sample(sector).Partitions
		want[0].TypeID, want[1].TypeID = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
		want[1].Bootable = true
		want[2].Type, want[2].GUID = "linux-root-x86-64", "AAAAAAAA-BBBB-4CCC-8DDD-EEEEEEEEEEEE"
		want[3].Type = want[3].TypeID
		disk, _ := parseGUID(diskGUID)
		for _, i := range []int{0, 1, 3} {
			want[i].GUID = derivedGUID(disk, want[i].Number).String()
		}
		if !reflect.DeepEqual(table.Partitions, want) {
			t.Errorf("partitions\n%+v, want\n%+v", table.Partitions, want)
		}
		if limit := 66*sector + mbrSize + 4096; d.read > limit {
			t.Errorf("sector size %d: %d bytes were read, more than %d", sector, d.read, limit)
		}
		// What was read can be written again, and gives the same disk.
		again := newMemory(sampleSize)
		if err := WriteGPT(t.Context(), again, *table); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(again.pages, d.pages) {
			t.Error("the table does not write back as it was read")
		}
	}
}

// The bytes of WriteGPT do not change. sfdisk 2.38 has read the disk with sectors of 4096 bytes, on a loop device of such sectors,
// and agreed with every field.
func TestWriteIsPinned(t *testing.T) {
	for sector, want := range map[int64]string{
		512:  "7b1de977aeacb0df292804332b257aeb7c6bf07b5d3ea4e35e6ec1c39ccb3051",
		4096: "12538400b9564c429cecda62a577ad48122fc04e2be62ccdf9864500edba2331",
	} {
		d := sampleDisk(t, sector)
		h := sha256.New()
		h.Write(d.bytes(0, 2*sector+gptArray))
		h.Write(d.bytes(sampleSize-sector-gptArray, sector+gptArray))
		if got := fmt.Sprintf("%x", h.Sum(nil)); got != want {
			t.Errorf("sector size %d: SHA-256 %s, want %s", sector, got, want)
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	for want, change := range map[string]func(*Table){
		"sector size":       func(t *Table) { t.SectorSize = 1024 },
		"disk GUID":         func(t *Table) { t.DiskGUID = "x" },
		"expected 1 to 128": func(t *Table) { t.Partitions[0].Number = 129 },
		"given twice":       func(t *Table) { t.Partitions[0].Number = 2 },
		"overlap":           func(t *Table) { t.Partitions[0].Size += 512 },
		"whole sectors":     func(t *Table) { t.Partitions[0].Start += 1 },
		"at least one":      func(t *Table) { t.Partitions[0].Size = 0 },
		"usable":            func(t *Table) { t.Partitions[3].Size = 1 << 62 },
		"usable bytes":      func(t *Table) { t.Partitions[0].Start = 1 << 62 },
		"name of a type":    func(t *Table) { t.Partitions[0].Type = "exp" },
		"zero GUID":         func(t *Table) { t.Partitions[0].TypeID = guid{}.String() },
		"UTF-16":            func(t *Table) { t.Partitions[0].Name = strings.Repeat("🥾", 19) },
		"none of them 0":    func(t *Table) { t.Partitions[0].Name = "a\x00b" },
		"is not a GUID":     func(t *Table) { t.Partitions[0].GUID = "1111111122223333444455555555555555-5" },
	} {
		table, d := sample(512), newMemory(sampleSize)
		change(&table)
		if err := WriteGPT(t.Context(), d, table); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		if len(d.pages) > 0 {
			t.Errorf("%s: something was written", want)
		}
	}
	if err := WriteGPT(t.Context(), newMemory(60*512), Table{DiskGUID: diskGUID}); err == nil || !strings.Contains(err.Error(), "too small") {
		t.Errorf("a tiny disk: %v", err)
	}
}

// The offsets of the two headers of a sample disk.
func headers(sector int64) (primary, backup int64) { return sector, sampleSize - sector }

func TestPrimaryDamaged(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		good := mustRead(t, sampleDisk(t, sector))
		primary, backup := headers(sector)
		for name, damage := range map[string]func(d *memory){
			"signature":  func(d *memory) { d.flip(primary) },
			"header":     func(d *memory) { d.flip(primary + 60) },
			"entries":    func(d *memory) { d.flip(2*sector + 5*128) },
			"wiped":      func(d *memory) { d.put(make([]byte, sector+gptArray), sector) },
			"MyLBA":      func(d *memory) { patchHeader(d, primary, func(h *gptHeader) { h.MyLBA = 2 }) },
			"HeaderSize": func(d *memory) { d.put([]byte{0xFF, 0xFF, 0xFF, 0xFF}, primary+12) },
		} {
			d := sampleDisk(t, sector)
			damage(d)
			table := mustRead(t, d)
			wantProblems(t, table, "the backup at LBA")
			if !reflect.DeepEqual(table.Partitions, good.Partitions) || !reflect.DeepEqual(table.Metadata, good.Metadata) ||
				table.SectorSize != sector || table.DiskGUID != diskGUID {
				t.Errorf("%s: the backup reads as\n%+v", name, table)
			}
			// With the backup gone too there is nothing left.
			d.flip(backup + 40)
			var corrupt *block.CorruptError
			if _, err := Read(t.Context(), d); !errors.As(err, &corrupt) || corrupt.Format != GPT {
				t.Errorf("%s: with both copies damaged: %v", name, err)
			}
		}
	}
}

// patchHeader changes the header at byte off and makes its CRC right again.
func patchHeader(d *memory, off int64, change func(*gptHeader)) {
	var h gptHeader
	_, _ = binary.Decode(d.bytes(off, gptHeaderSize), binary.LittleEndian, &h)
	change(&h)
	d.put(encodeHeader(h), off)
}

// patchArray changes the array of the primary copy and makes its CRCs right again.
func patchArray(d *memory, sector int64, change func(array []byte)) {
	array := d.bytes(2*sector, gptArray)
	change(array)
	d.put(array, 2*sector)
	patchHeader(d, sector, func(h *gptHeader) { h.PartitionEntryArrayCRC32 = crc32.ChecksumIEEE(array) })
}

// patchBoth changes the entries of both copies.
func patchBoth(d *memory, sector int64, change func(array []byte)) {
	patchArray(d, sector, change)
	array := d.bytes(2*sector, gptArray)
	d.put(array, sampleSize-sector-gptArray)
	patchHeader(d, sampleSize-sector, func(h *gptHeader) { h.PartitionEntryArrayCRC32 = crc32.ChecksumIEEE(array) })
}

func TestBackupDamaged(t *testing.T) {
	_, backup := headers(512)
	for want, damage := range map[string]func(d *memory){
		"corrupt header":                func(d *memory) { d.flip(backup + 60) },
		"no GPT header":                 func(d *memory) { d.flip(backup) },
		"corrupt partition entry array": func(d *memory) { d.flip(backup - 5) },
		"differs from the primary": func(d *memory) {
			patchArray(d, 512, func(array []byte) { array[6*128+60] ^= 1 })
		},
		"no medium": func(d *memory) { d.fail, d.failFrom = errors.New("no medium"), backup },
	} {
		d := sampleDisk(t, 512)
		damage(d)
		table := mustRead(t, d)
		wantProblems(t, table, want)
		if len(table.Partitions) != 4 {
			t.Errorf("%s: %d partitions", want, len(table.Partitions))
		}
	}
}

func TestDiskGrownOrTruncated(t *testing.T) {
	d := sampleDisk(t, 512)
	d.size *= 2
	table := mustRead(t, d)
	wantProblems(t, table, "it has been grown")
	if r := table.Metadata[len(table.Metadata)-1]; r.End() != sampleSize {
		t.Errorf("metadata %v: the backup is at %d", table.Metadata, sampleSize)
	}
	// The primary header, even damaged, and the protective MBR lead to the backup in the middle.
	d.flip(512 + 60)
	wantProblems(t, mustRead(t, d), "the backup at LBA 131071 is used")
	d = sampleDisk(t, 512)
	d.size *= 2
	d.flip(512)
	wantProblems(t, mustRead(t, d), "the backup at LBA 131071 is used")

	d = sampleDisk(t, 512)
	d.size = 40 << 20
	table = mustRead(t, d)
	wantProblems(t, table, "has it been truncated", "no GPT header", "partition 9 ends at byte")
	if len(table.Partitions) != 4 {
		t.Fatalf("%d partitions", len(table.Partitions))
	}
	var out *block.RangeError
	if _, err := table.Window(d, table.Partitions[3]); !errors.As(err, &out) {
		t.Errorf("a window past the end: %v", err)
	}
	if w, err := table.Window(d, table.Partitions[1]); err != nil || w.Size() != 16<<20 || w.Offset() != 9<<20 {
		t.Errorf("a window: %v, %v", w, err)
	}
	if err := table.ProbeFileSystems(t.Context(), d); err != nil {
		t.Error(err)
	}
}

func TestSuspectEntries(t *testing.T) {
	d := sampleDisk(t, 512)
	le := binary.LittleEndian
	patchBoth(d, 512, func(array []byte) {
		put := func(number int, first, last uint64) {
			copy(array[(number-1)*128:], array[:32])
			le.PutUint64(array[(number-1)*128+32:], first)
			le.PutUint64(array[(number-1)*128+40:], last)
		}
		put(3, 100, 99)
		put(4, 0, 1<<64-1)
		put(5, 1<<60, 1<<60+1)
		put(6, 3<<11, 40<<11) // over 1, 2, 7 and 9
		put(8, 1, 40)
	})
	table := mustRead(t, d)
	wantProblems(t, table, "partition 3 is left out", "partition 4 is left out", "partition 5 is left out",
		"partitions 1 and 6 overlap", "partitions 2 and 6 overlap", "partitions 6 and 7 overlap", "partitions 6 and 9 overlap",
		"partition 8, LBA 1 to 40, is outside", "partition 8 lies over")
	var numbers []int
	for _, p := range table.Partitions {
		numbers = append(numbers, p.Number)
	}
	if !reflect.DeepEqual(numbers, []int{1, 2, 6, 7, 8, 9}) {
		t.Errorf("partitions %v", numbers)
	}
}

func TestGarbageIsBounded(t *testing.T) {
	d := sampleDisk(t, 512)
	// 8192 partitions, all over each other and over the table: 1 MiB, the most that is accepted.
	array := make([]byte, maxArray)
	for i := range array {
		array[i] = 1
	}
	for i := 0; i < maxArray; i += 128 {
		binary.LittleEndian.PutUint64(array[i+32:], 1)
		binary.LittleEndian.PutUint64(array[i+40:], 1<<40)
	}
	d.put(array, 1<<20)
	patchHeader(d, 512, func(h *gptHeader) {
		h.PartitionEntryLBA, h.NumberOfPartitionEntries, h.PartitionEntryArrayCRC32 = 2048, maxArray/128, crc32.ChecksumIEEE(array)
	})
	table := mustRead(t, d)
	if len(table.Partitions) != 8192 || len(table.Problems) != maxProblems {
		t.Errorf("%d partitions, %d problems", len(table.Partitions), len(table.Problems))
	}
}

func TestHeaderLimits(t *testing.T) {
	for name, change := range map[string]func(*gptHeader){
		"huge count":        func(h *gptHeader) { h.NumberOfPartitionEntries = 1<<32 - 1 },
		"huge entries":      func(h *gptHeader) { h.SizeOfPartitionEntry = 1 << 31 },
		"tiny entries":      func(h *gptHeader) { h.SizeOfPartitionEntry = 64 },
		"odd entries":       func(h *gptHeader) { h.SizeOfPartitionEntry = 136 },
		"zero-size entries": func(h *gptHeader) { h.SizeOfPartitionEntry = 0 },
		"entries far out":   func(h *gptHeader) { h.PartitionEntryLBA = 1<<64 - 1 },
		"entries at end":    func(h *gptHeader) { h.PartitionEntryLBA = sampleSize/512 - 1 },
		"long header":       func(h *gptHeader) { h.HeaderSize = 513 },
		"short header":      func(h *gptHeader) { h.HeaderSize = 91 },
	} {
		d := sampleDisk(t, 512)
		patchHeader(d, 512, change)
		table := mustRead(t, d)
		if len(table.Problems) != 1 || !strings.Contains(table.Problems[0], "is used") || len(table.Partitions) != 4 {
			t.Errorf("%s: %d partitions, problems %q", name, len(table.Partitions), table.Problems)
		}
	}
}

// One entry more than is accepted, on a disk that has room for it and with the right CRC.
func TestArrayLimit(t *testing.T) {
	for entries, accepted := range map[uint32]bool{maxArray / 128: true, maxArray/128 + 1: false} {
		d := sampleDisk(t, 512)
		array := make([]byte, entries*128)
		copy(array, d.bytes(1024, 128))
		d.put(array, 2<<20)
		patchHeader(d, 512, func(h *gptHeader) {
			h.PartitionEntryLBA, h.NumberOfPartitionEntries, h.PartitionEntryArrayCRC32 = 4096, entries, crc32.ChecksumIEEE(array)
		})
		// The primary has one partition here, the backup four.
		if table := mustRead(t, d); (len(table.Partitions) == 1) != accepted {
			t.Errorf("%d entries: %d partitions, problems %q", entries, len(table.Partitions), table.Problems)
		}
	}
}

func TestEntrySizeIsHonoured(t *testing.T) {
	d := sampleDisk(t, 512)
	array := d.bytes(1024, gptArray)
	wide := make([]byte, 2*gptArray)
	for i := range gptEntries {
		copy(wide[i*256:], array[i*128:(i+1)*128])
	}
	d.put(wide, 512*2)
	patchHeader(d, 512, func(h *gptHeader) {
		h.SizeOfPartitionEntry, h.PartitionEntryArrayCRC32, h.FirstUsableLBA = 256, crc32.ChecksumIEEE(wide), 66
	})
	table := mustRead(t, d)
	wantProblems(t, table, "differs")
	if len(table.Partitions) != 4 || table.Partitions[3].Number != 9 || table.Metadata[0] != (Range{0, 66 * 512}) {
		t.Errorf("%+v", table)
	}
}

func TestProtectiveMBR(t *testing.T) {
	d := sampleDisk(t, 512)
	d.put(make([]byte, 512), 0)
	wantProblems(t, mustRead(t, d), "no protective MBR")

	// A real MBR: the GPT is left over from earlier.
	d = sampleDisk(t, 512)
	d.put([]byte{0x83}, 446+4)
	if table := mustRead(t, d); table.Scheme != MBR {
		t.Errorf("scheme %s", table.Scheme)
	}
	// A hybrid.
	d.put(d.bytes(446, 16), 446+16)
	d.put([]byte{0xEE}, 446+4)
	table := mustRead(t, d)
	wantProblems(t, table, "hybrid")
	if table.Scheme != GPT {
		t.Errorf("scheme %s", table.Scheme)
	}
	// A protective MBR alone.
	d = newMemory(sampleSize)
	d.put(encodeProtective(sampleSize/512), 0)
	var corrupt *block.CorruptError
	if _, err := Read(t.Context(), d); !errors.As(err, &corrupt) {
		t.Errorf("a protective MBR alone: %v", err)
	}
}

func TestReadErrors(t *testing.T) {
	broken := errors.New("no medium")
	for _, from := range []int64{0, 600, 1100} {
		d := sampleDisk(t, 512)
		d.fail, d.failFrom = broken, from
		if _, err := Read(t.Context(), d); !errors.Is(err, broken) {
			t.Errorf("reading fails from byte %d on: %v", from, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ctx, sampleDisk(t, 512)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for _, size := range []int64{0, 1, 511, 512, 1023, 4096, 1 << 20} {
		if _, err := Read(t.Context(), newMemory(size)); !errors.Is(err, ErrNone) {
			t.Errorf("%d zeros: %v", size, err)
		}
	}
}

func BenchmarkRead(b *testing.B) {
	d := sampleDisk(b, 512)
	for b.Loop() {
		mustRead(b, d)
	}
}
