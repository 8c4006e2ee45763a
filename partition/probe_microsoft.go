package partition

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/imgtool/imgtool/block"
)

// bpb is what the BIOS parameter block of a FAT volume says, Microsoft's FAT specification section 3. Its fields are checked against each other.
type bpb struct {
	bytesPerSector int64
	clusterSize    int64 // bytes
	reserved       int64 // bytes before the first FAT
	fatSize        int64 // bytes of each FAT
	numFATs        int64
	rootEntries    int64 // 0 for FAT32
	rootCluster    uint32
	clusters       int64
}

// FAT is FAT32 from this many clusters on.
const fat32Clusters = 65525

// parseBPB returns the parameter block in the first sector of a FAT volume, or nil where there is none that makes sense.
func parseBPB(sector []byte) *bpb {
	u16 := func(off int) int64 { return int64(binary.LittleEndian.Uint16(sector[off:])) }
	u32 := func(off int) int64 { return int64(binary.LittleEndian.Uint32(sector[off:])) }
	size, perCluster := u16(11), int64(sector[13])
	media := sector[21]
	switch {
	case size < 512 || size > 4096 || bits.OnesCount64(uint64(size)) != 1:
		return nil
	case bits.OnesCount64(uint64(perCluster)) != 1:
		return nil
	case media < 0xF8 && media != 0xF0:
		return nil
	}
	b := &bpb{
		bytesPerSector: size, clusterSize: perCluster * size, reserved: u16(14) * size, numFATs: int64(sector[16]),
		rootEntries: u16(17), fatSize: u16(22) * size,
	}
	total := u16(19)
	if total == 0 {
		total = u32(32)
	}
	if b.fatSize == 0 { // only FAT32 has the field for larger ones
		b.fatSize, b.rootCluster = u32(36)*size, uint32(u32(44))
	}
	if b.reserved == 0 || b.numFATs == 0 || b.numFATs > 2 || b.fatSize == 0 {
		return nil
	}
	data := total*size - b.rootOffset() - b.rootSize()
	if data <= 0 {
		return nil
	}
	b.clusters = data / b.clusterSize
	return b
}

// rootOffset returns where the root directory of FAT12 and FAT16 begins, in bytes.
func (b *bpb) rootOffset() int64 { return b.reserved + b.numFATs*b.fatSize }

// rootSize returns the size of the root directory of FAT12 and FAT16 in bytes, in whole sectors.
func (b *bpb) rootSize() int64 {
	// It is at most 65535 entries of 32 bytes.
	n, _ := block.RoundUp(b.rootEntries*dirEntrySize, b.bytesPerSector)
	return n
}

// Entries of FAT and exFAT directories have the same size. A label is one of the first entries: a directory is not read further than this.
const (
	dirEntrySize = 32
	maxDir       = 64 << 10 // bytes
	maxChain     = 64       // clusters
)

// probeFAT recognises FAT12, FAT16 and FAT32, which blkid all calls vfat. The label is that of the root directory, as
// systems show it; the one in the boot sector may be out of date, and is not used.
func probeFAT(p *prober) (FileSystem, error) {
	if p.head[0] != 0xE9 && p.head[0] != 0xEB {
		return FileSystem{}, nil
	}
	b := parseBPB(p.head)
	if b == nil {
		return FileSystem{}, nil
	}
	const serial16, serial32 = 0x27, 0x43
	fs := FileSystem{Type: "vfat"}
	var err error
	if b.rootEntries == 0 && b.rootCluster != 0 {
		fs.UUID = p.serial(serial32)
		fs.Label, err = p.search(clusterChain{b.reserved, b.rootOffset(), b.clusterSize, b.rootCluster, b.clusters, 1<<28 - 1}, fatLabel)
		return fs, err
	}
	if b.clusters >= fat32Clusters {
		return FileSystem{}, nil
	}
	fs.UUID = p.serial(serial16)
	dir, err := p.read(b.rootOffset(), int(min(b.rootSize(), maxDir)))
	fs.Label, _ = fatLabel(dir)
	return fs, err
}

// serial returns a volume serial number as blkid writes it, "" for zero.
func (p *prober) serial(off int) string {
	n := p.le32(off)
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%04X-%04X", n>>16, n&0xFFFF)
}

// clusterChain is where a directory of FAT32 or exFAT lies: a chain of clusters, linked by a table of 32-bit numbers. All but first and clusters
// are in bytes.
type clusterChain struct {
	table       int64 // offset of the FAT
	heap        int64 // offset of the first cluster, whose number is 2
	clusterSize int64
	first       uint32 // the number of the chain's first cluster
	clusters    int64  // how many the volume has
	mask        uint32 // the bits of a number that count
}

// search calls look with one cluster of the chain after the other, until it returns true.
func (p *prober) search(c clusterChain, look func(dir []byte) (label string, done bool)) (string, error) {
	const lowest = 2
	size := int(min(c.clusterSize, maxDir))
	cluster := int64(c.first & c.mask)
	for left := min(maxChain, maxDir/size); left > 0 && lowest <= cluster && cluster < lowest+c.clusters; left-- {
		// 32 bits of clusters of at most 32 MiB: far from overflowing.
		dir, err := p.read(c.heap+(cluster-lowest)*c.clusterSize, size)
		if err != nil || dir == nil {
			return "", err
		}
		if label, done := look(dir); done {
			return label, nil
		}
		next, err := p.read(c.table+cluster*4, 4)
		if err != nil || next == nil {
			return "", err
		}
		cluster = int64(binary.LittleEndian.Uint32(next) & c.mask)
	}
	return "", nil
}

// fatLabel returns the label in a piece of a FAT root directory, and whether the search is over: it was found, or the directory ends.
func fatLabel(dir []byte) (label string, done bool) {
	const (
		attrVolumeID  = 0x08
		attrDirectory = 0x10
		attrLongName  = 0x0F
		attrMask      = 0x3F

		deleted  = 0xE5
		escapeE5 = 0x05 // stands for 0xE5 at the start of a name
	)
	for ; len(dir) >= dirEntrySize; dir = dir[dirEntrySize:] {
		e := dir[:dirEntrySize]
		if e[0] == 0 {
			return "", true
		}
		attr := e[11]
		hasCluster := binary.LittleEndian.Uint16(e[20:]) != 0 || binary.LittleEndian.Uint16(e[26:]) != 0
		if e[0] == deleted || hasCluster || attr&attrMask == attrLongName || attr&(attrVolumeID|attrDirectory) != attrVolumeID {
			continue
		}
		name := [11]byte(e)
		if name[0] == escapeE5 {
			name[0] = deleted
		}
		return labelText(name[:]), true
	}
	return "", false
}

// probeExFAT recognises exFAT. Its label is an entry of the root directory, Microsoft's exFAT specification section 7.3.
func probeExFAT(p *prober) (FileSystem, error) {
	if !p.has(3, "EXFAT   ") {
		return FileSystem{}, nil
	}
	fs := FileSystem{Type: "exfat", UUID: p.serial(100)}
	sectorShift, clusterShift := p.head[108], p.head[109]
	if sectorShift < 9 || sectorShift > 12 || clusterShift > 25-sectorShift {
		return FileSystem{}, nil
	}
	chain := clusterChain{
		table: int64(p.le32(80)) << sectorShift, heap: int64(p.le32(88)) << sectorShift, clusterSize: 1 << (sectorShift + clusterShift),
		clusters: int64(p.le32(92)), first: p.le32(96), mask: 1<<32 - 1,
	}
	var err error
	fs.Label, err = p.search(chain, exfatLabel)
	return fs, err
}

// exfatLabel returns the label in a piece of an exFAT root directory, and whether the search is over.
func exfatLabel(dir []byte) (label string, done bool) {
	const endOfDirectory, volumeLabel, maxLabel = 0x00, 0x83, 11
	for ; len(dir) >= dirEntrySize; dir = dir[dirEntrySize:] {
		switch n := int(dir[1]); {
		case dir[0] == endOfDirectory:
			return "", true
		case dir[0] == volumeLabel && n <= maxLabel:
			return labelUTF16(dir[2 : 2+2*n]), true
		}
	}
	return "", false
}

// probeNTFS recognises NTFS. Its label is an attribute of the file $Volume, record 3 of the master file table.
func probeNTFS(p *prober) (FileSystem, error) {
	const volumeRecord = 3
	sectorSize, perCluster := int64(p.le16(11)), int64(p.head[13])
	if !p.has(3, "NTFS    ") || sectorSize < 256 || sectorSize > 4096 || bits.OnesCount64(uint64(sectorSize)) != 1 || perCluster == 0 {
		return FileSystem{}, nil
	}
	fs := FileSystem{Type: "ntfs", UUID: fmt.Sprintf("%016X", p.le64(72))}
	if perCluster > 128 { // a power of two, negative: for clusters above 64 KiB
		perCluster = 1 << min(256-perCluster, 16)
	}
	clusterSize := sectorSize * perCluster
	// So is the size of a record, which is in clusters where it is positive.
	recordSize := int64(int8(p.head[64])) * clusterSize
	if recordSize < 0 {
		recordSize = 1 << min(-int64(int8(p.head[64])), 16)
	}
	mft, ok := block.Mul(int64(p.le64(48)&(1<<63-1)), clusterSize)
	if !ok || recordSize < 512 || recordSize > maxDir {
		return fs, nil
	}
	at, ok := block.Add(mft, volumeRecord*recordSize)
	if !ok {
		return fs, nil
	}
	record, err := p.read(at, int(recordSize))
	fs.Label = ntfsLabel(record)
	return fs, err
}

// ntfsLabel returns the value of the attribute $VOLUME_NAME in a file record, "" where there is none.
func ntfsLabel(record []byte) string {
	const volumeName, end, resident = 0x60, 0xFFFFFFFF, 0
	if len(record) < 24 || string(record[:4]) != "FILE" {
		return ""
	}
	at := int(binary.LittleEndian.Uint16(record[20:]))
	// An attribute header of a resident attribute is 24 bytes long.
	for at+24 <= len(record) {
		a := record[at:]
		kind, size := binary.LittleEndian.Uint32(a), int64(binary.LittleEndian.Uint32(a[4:]))
		if kind == end || size < 24 || size > int64(len(a)) {
			return ""
		}
		if kind == volumeName && a[8] == resident {
			n, off := int64(binary.LittleEndian.Uint32(a[16:])), int64(binary.LittleEndian.Uint16(a[20:]))
			if off+n > size {
				return ""
			}
			return labelUTF16(a[off : off+n])
		}
		at += int(size)
	}
	return ""
}

// probeBitLocker recognises a volume encrypted by BitLocker, on a fixed disk or a removable one. Its identifier is stored further in, and not looked for.
func probeBitLocker(p *prober) (FileSystem, error) {
	const toGo = "\x3B\xD6\x67\x49\x29\x2E\xD8\x4A\x83\x99\xF6\xA3\x39\xE3\xD0\x01" // 4967D63B-2E29-4AD8-8399-F6A339E3D001
	if p.has(3, "-FVE-FS-") || p.has(3, "MSWIN4.1") && p.has(424, toGo) {
		return FileSystem{Type: "BitLocker"}, nil
	}
	return FileSystem{}, nil
}
