package partition

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

// Superblocks of what no program here makes, or that should not be taken for one.
func TestProbeSynthetic(t *testing.T) {
	const uuid = "\x01\x23\x45\x67\x89\xAB\xCD\xEF\x01\x23\x45\x67\x89\xAB\xCD\xEF"
	const uuidText = "01234567-89ab-cdef-0123-456789abcdef"
	type at struct {
		off  int64
		text string
	}
	for name, c := range map[string]struct {
		put  []at
		want FileSystem
	}{
		"nothing":             {nil, FileSystem{}},
		"raid 1.1":            {[]at{{0, "\xFC\x4E\x2B\xA9\x01"}, {16, uuid}, {32, "host:0"}}, FileSystem{"linux_raid_member", "host:0", uuidText}},
		"raid 1.2":            {[]at{{4096, "\xFC\x4E\x2B\xA9\x01"}, {4096 + 16, uuid}, {4096 + 144, "\x08"}}, FileSystem{"linux_raid_member", "", uuidText}},
		"raid 1.2, elsewhere": {[]at{{4096, "\xFC\x4E\x2B\xA9\x01"}, {4096 + 16, uuid}, {4096 + 144, "\x09"}}, FileSystem{}},
		"raid over ext":       {[]at{{1024, "\x01"}, {1080, "\x53\xEF"}, {0, "\xFC\x4E\x2B\xA9\x01"}}, FileSystem{Type: "linux_raid_member"}},
		"erofs":               {[]at{{1024, "\xE2\xE1\xF5\xE0"}, {1024 + 48, uuid}, {1024 + 64, "vol"}}, FileSystem{"erofs", "vol", uuidText}},
		"squashfs":            {[]at{{0, "hsqs"}, {28, "\x04"}}, FileSystem{Type: "squashfs"}},
		"squashfs 3":          {[]at{{0, "hsqs"}, {28, "\x03"}}, FileSystem{}},
		"swap, old":           {[]at{{4086, "SWAP-SPACE"}}, FileSystem{Type: "swap"}},
		"swap, 64 KiB pages":  {[]at{{65526, "SWAPSPACE2"}, {1024, "\x00\x00\x00\x01"}, {1036, uuid}, {1052, "s"}}, FileSystem{"swap", "s", uuidText}},
		"swap of version 9":   {[]at{{4086, "SWAPSPACE2"}, {1024, "\x09"}}, FileSystem{}},
		"LUKS2":               {[]at{{0, "LUKS\xBA\xBE\x00\x02"}, {24, "lab"}, {168, uuidText}}, FileSystem{"crypto_LUKS", "lab", uuidText}},
		"LUKS3":               {[]at{{0, "LUKS\xBA\xBE\x00\x03"}, {168, uuidText}}, FileSystem{}},
		"LVM in sector 3": {[]at{{1536, "LABELONE\x03"}, {1536 + 20, "\x20"}, {1536 + 24, "LVM2 001abcdefghijklmnopqrstuvwxyz012345"}},
			FileSystem{"LVM2_member", "", "abcdef-ghij-klmn-opqr-stuv-wxyz-012345"}},
		"LVM, other sector": {[]at{{1536, "LABELONE\x01"}, {1536 + 20, "\x20"}, {1536 + 24, "LVM2 001"}}, FileSystem{}},
		"LVM, header far":   {[]at{{512, "LABELONE\x01"}, {512 + 20, "\xFF\xFF\xFF\xFF"}, {512 + 24, "LVM2 001"}}, FileSystem{}},
		"BitLocker":         {[]at{{0, "\xEB\x58\x90-FVE-FS-"}}, FileSystem{Type: "BitLocker"}},
		"BitLocker To Go": {[]at{{0, "\xEB\x58\x90MSWIN4.1"}, {424, "\x3B\xD6\x67\x49\x29\x2E\xD8\x4A\x83\x99\xF6\xA3\x39\xE3\xD0\x01"}},
			FileSystem{Type: "BitLocker"}},
		"ext, old revision": {[]at{{1024, "\x10"}, {1080, "\x53\xEF"}}, FileSystem{Type: "ext2"}},
		"ext, odd block":    {[]at{{1024, "\x10"}, {1048, "\x07"}, {1080, "\x53\xEF"}}, FileSystem{}},
		"label not UTF-8":   {[]at{{0, "XFSB"}, {108, "a\xFFb \n"}}, FileSystem{Type: "xfs", Label: "a\uFFFDb"}},
	} {
		d := newMemory(1 << 20)
		for _, p := range c.put {
			d.put([]byte(p.text), p.off)
		}
		if got, err := Probe(t.Context(), d); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
		}
		if d.read > probeHead {
			t.Errorf("%s: %d bytes were read", name, d.read)
		}
	}
}

func TestProbeTiny(t *testing.T) {
	for _, size := range []int64{0, 1, 3, 511, 512, 1080, 4096} {
		if got, err := Probe(t.Context(), newMemory(size)); err != nil || got != (FileSystem{}) {
			t.Errorf("%d zeros: %+v, %v", size, got, err)
		}
	}
	if got, err := Probe(t.Context(), memoryOf([]byte("XFSB"))); err != nil || got.Type != "xfs" {
		t.Errorf("a few bytes: %+v, %v", got, err)
	}
}

// rootDir returns directory entries of FAT: attribute, then name.
func rootDir(entries ...string) []byte {
	var b []byte
	for _, e := range entries {
		entry := make([]byte, dirEntrySize)
		copy(entry, e[1:])
		entry[11] = e[0]
		b = append(b, entry...)
	}
	return b
}

func TestFATLabel(t *testing.T) {
	const label, file, long = "\x08", "\x20", "\x0F"
	for _, c := range []struct {
		dir  []byte
		want string
	}{
		{rootDir(label + "BOOT       "), "BOOT"},
		{rootDir(file+"KERNEL  BIN", long+"BOOT       ", label+"\xE5OLD       ", label+"MY DISK    "), "MY DISK"},
		{rootDir(label + "NO NAME    "), "NO NAME"},
		{rootDir(file+"KERNEL  BIN", file+"\x00", label+"AFTER END  "), ""},
		{rootDir("\x18" + "DIRECTORY  "), ""},
		{rootDir(label + "\x05TAT       "), "\uFFFDTAT"},
		{nil, ""},
	} {
		d := newMemory(65536 * 512)
		d.put(fatBoot(), 0)
		d.put([]byte("\x78\x56\x34\x12"), 0x27)
		d.put(c.dir, (1+2*64)*512)
		want := FileSystem{Type: "vfat", Label: c.want, UUID: "1234-5678"}
		if got, err := Probe(t.Context(), d); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", c.dir, got, err, want)
		}
	}
}

func TestFAT32Chain(t *testing.T) {
	boot := fatBoot()
	boot[17], boot[18], boot[22] = 0, 0, 0
	binary.LittleEndian.PutUint32(boot[32:], 1<<20)
	binary.LittleEndian.PutUint32(boot[36:], 2048)
	boot[44] = 2
	const fat, root = 512, 512 + 2*2048*512
	disk := func() *memory {
		d := newMemory(512 << 20)
		d.put(boot, 0)
		for cluster := range int64(40) {
			var files []string
			for range 64 {
				files = append(files, "\x20FILE    TXT")
			}
			d.put(rootDir(files...), root+cluster*2048)
		}
		return d
	}
	link := func(d *memory, from, to uint32) { d.put(binary.LittleEndian.AppendUint32(nil, to), fat+int64(from)*4) }
	for name, c := range map[string]struct {
		make func(d *memory)
		want string
	}{
		"first cluster":  {func(d *memory) { d.put(rootDir("\x08ROOT       "), root) }, "ROOT"},
		"second cluster": {func(d *memory) { link(d, 2, 9); d.put(rootDir("\x08ROOT       "), root+7*2048) }, "ROOT"},
		"end":            {func(d *memory) { link(d, 2, 0x0FFFFFFF) }, ""},
		"loop":           {func(d *memory) { link(d, 2, 3); link(d, 3, 2) }, ""},
		"outside":        {func(d *memory) { link(d, 2, 0x0FFFFFF0) }, ""},
		"free":           {func(d *memory) {}, ""},
	} {
		d := disk()
		c.make(d)
		if got, err := Probe(t.Context(), d); err != nil || got != (FileSystem{Type: "vfat", Label: c.want}) {
			t.Errorf("%s: %+v, %v; want the label %q", name, got, err, c.want)
		}
		if d.read > probeHead+maxDir+4*maxChain {
			t.Errorf("%s: %d bytes were read", name, d.read)
		}
	}
	d := disk()
	d.fail, d.failFrom = errors.New("no medium"), root
	if _, err := Probe(t.Context(), d); !errors.Is(err, d.fail) {
		t.Errorf("reading the root directory fails: %v", err)
	}
}

func BenchmarkProbe(b *testing.B) {
	d := newMemory(1 << 20)
	for b.Loop() {
		if _, err := Probe(b.Context(), d); err != nil {
			b.Fatal(err)
		}
	}
}

// ntfsBoot returns the first sector of an NTFS volume with clusters of 4096 bytes, records of 1024, and its master file table in cluster 4.
func ntfsBoot() []byte {
	b := make([]byte, 512)
	copy(b, "\xEB\x52\x90NTFS    \x00\x02\x08")
	b[48], b[64] = 4, 0xF6
	binary.LittleEndian.PutUint64(b[72:], 0x09CBB6DE30C87310)
	return b
}

// volumeRecord returns a file record with a resident attribute before $VOLUME_NAME, whose value claims to have n bytes.
func volumeRecord(label string, n uint32) []byte {
	r := make([]byte, 1024)
	copy(r, "FILE")
	r[20] = 56
	binary.LittleEndian.PutUint32(r[56:], 0x10)
	binary.LittleEndian.PutUint32(r[60:], 48)
	name := r[56+48:]
	binary.LittleEndian.PutUint32(name, 0x60)
	binary.LittleEndian.PutUint32(name[4:], uint32(24+len(label)))
	binary.LittleEndian.PutUint32(name[16:], n)
	name[20] = 24
	copy(name[24:], label)
	binary.LittleEndian.PutUint32(name[24+len(label):], 0xFFFFFFFF)
	return r
}

func TestNTFSLabel(t *testing.T) {
	for name, c := range map[string]struct {
		boot   func(b []byte)
		record []byte
		want   string
	}{
		"label":         {nil, volumeRecord("D\x00\xE4\x00", 4), "Dä"},
		"value too far": {nil, volumeRecord("D\x00", 4), ""},
		"no record":     {nil, make([]byte, 1024), ""},
		"no attributes": {nil, append([]byte("FILE"), make([]byte, 1020)...), ""},
		"in clusters":   {func(b []byte) { b[64] = 1 }, nil, ""},
		"far away":      {func(b []byte) { copy(b[48:], "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF") }, nil, ""},
		"huge records":  {func(b []byte) { b[64] = 0x80 }, nil, ""},
	} {
		d := newMemory(1 << 20)
		boot := ntfsBoot()
		if c.boot != nil {
			c.boot(boot)
		}
		d.put(boot, 0)
		d.put(c.record, 4*4096+3*1024)
		want := FileSystem{Type: "ntfs", Label: c.want, UUID: "09CBB6DE30C87310"}
		if got, err := Probe(t.Context(), d); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
	}
}

// exfatBoot returns the first sector of an exFAT volume with clusters of 512 bytes, whose root directory begins in cluster 5.
func exfatBoot() []byte {
	b := make([]byte, 512)
	copy(b, "\xEB\x76\x90EXFAT   ")
	b[80], b[88], b[92], b[96], b[108] = 24, 64, 200, 5, 9
	binary.LittleEndian.PutUint32(b[100:], 0x9C238877)
	return b
}

func TestExFATLabel(t *testing.T) {
	const root, second = (64 + 3) * 512, (64 + 10) * 512
	for name, c := range map[string]struct {
		first, second, want string
	}{
		"label":           {"\x83\x02a\x00b\x00", "", "ab"},
		"too long":        {"\x83\x0Ca\x00b\x00", "", ""},
		"second cluster":  {strings.Repeat("\x03"+strings.Repeat("x", 31), 16), "\x83\x01a\x00", "a"},
		"end before it":   {"\x81", "\x83\x01a\x00", ""},
		"deleted, no end": {strings.Repeat("\x03"+strings.Repeat("x", 31), 16), strings.Repeat("\x03"+strings.Repeat("x", 31), 16), ""},
	} {
		d := newMemory(1 << 20)
		d.put(exfatBoot(), 0)
		d.put([]byte{12}, 24*512+5*4)
		d.put([]byte(c.first), root)
		d.put([]byte(c.second), second)
		want := FileSystem{Type: "exfat", Label: c.want, UUID: "9C23-8877"}
		if got, err := Probe(t.Context(), d); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, want)
		}
	}
	bad := exfatBoot()
	bad[108] = 200
	if got, err := Probe(t.Context(), memoryOf(bad)); err != nil || got != (FileSystem{}) {
		t.Errorf("sectors of 2^200 bytes: %+v, %v", got, err)
	}
}
