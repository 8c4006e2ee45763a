// Package fat writes a new FAT32 file system, all files at once, the same bytes for the same input.
//
// It is a builder, not a file system: [Format] decides where everything lies, writes boot sectors, allocation tables and directories, and
// returns where the content of every file belongs. Files lie whole, one behind the other. Names are short ones (8.3), which is what
// an EFI system partition needs.
//
// The layout follows Microsoft's "FAT: General Overview of On-Disk Format", version 1.03; field names are those used there.
package fat

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/imgtool/imgtool/block"
)

const (
	sectorSize  = 512
	reserved    = 32         // sectors before the first table
	tables      = 2          // copies of the file allocation table
	entrySize   = 4          // bytes in a table
	rootCluster = 2          // also the first cluster that exists
	endOfChain  = 0x0fffffff // table entry of a last cluster
	media       = 0xf8       // fixed disk
	backupBoot  = 6          // sector

	minClusters = 65525 // with fewer it would be a FAT16, whatever it says
	maxClusters = 1 << 22
	maxSize     = 32 << 30
)

// Options are the properties of a file system.
type Options struct {
	Label  string    // at most 11 bytes of upper-case ASCII
	Serial uint32    // volume serial number
	Time   time.Time // every time stamp; kept to 2 seconds, in the time's own zone, 1980 to 2107
}

// File is a regular file.
type File struct {
	Path string // relative to the root, elements separated by one slash, each a short name: EFI/BOOT/BOOTX64.EFI
	Size int64  // bytes, below 4 GiB
}

// Format writes a file system as large as d, which must read as zero, at least 34 MiB and at most 32 GiB.
//
// It returns for every file, in the order of files, the range of d that its bytes go to: Off and Len alone are set, and an empty file has Len 0.
// d has to be written by nobody else meanwhile.
func Format(ctx context.Context, d block.Device, o Options, files []File) ([]block.Extent, error) {
	if len(o.Label) > 11 || !legal(o.Label, labelChars) {
		return nil, fmt.Errorf("fat: label %q is not 0 to 11 upper-case letters, digits, spaces and _-", o.Label)
	}
	if y := o.Time.Year(); y < 1980 || y > 2107 {
		return nil, fmt.Errorf("fat: the year %d is outside 1980 to 2107", y)
	}
	geo, err := newGeometry(d.Size())
	if err != nil {
		return nil, err
	}
	t, err := newTree(geo, o, files)
	if err != nil {
		return nil, err
	}
	for _, part := range []struct {
		sector int64
		bytes  []byte
	}{
		{0, geo.bootSector(o)},
		{1, geo.fsInfo(t.next)},
		{backupBoot, geo.bootSector(o)},
		{backupBoot + 1, geo.fsInfo(t.next)},
		{reserved, t.table()},
		{reserved + geo.tableSectors, t.table()},
	} {
		if err := put(ctx, d, part.bytes, part.sector*sectorSize); err != nil {
			return nil, err
		}
	}
	for _, dir := range t.dirs {
		if err := put(ctx, d, dir.entries, geo.offset(dir.cluster)); err != nil {
			return nil, err
		}
	}
	return t.content, nil
}

// put writes b in requests that any device takes.
func put(ctx context.Context, d block.Device, b []byte, off int64) error {
	for piece := range slices.Chunk(b, 1<<20) {
		if err := d.Write(ctx, piece, off, 0); err != nil {
			return err
		}
		off += int64(len(piece))
	}
	return nil
}

// geometry says where the parts of a file system lie.
type geometry struct {
	sectors        int64 // of the file system
	clusterSectors int64
	clusters       int64
	tableSectors   int64 // of one table
}

// newGeometry chooses the largest clusters, up to 4 KiB, of which there are enough for FAT32, or of 8 KiB where there would be too many.
func newGeometry(size int64) (geometry, error) {
	for _, clusterSectors := range []int64{8, 4, 2, 1, 16} {
		g := geometry{sectors: size / sectorSize, clusterSectors: clusterSectors}
		// As many table entries as there would be clusters if the tables took no room: a little more than needed.
		most := (g.sectors - reserved) / clusterSectors
		g.tableSectors = ((most+rootCluster)*entrySize + sectorSize - 1) / sectorSize
		g.clusters = (g.sectors - reserved - tables*g.tableSectors) / clusterSectors
		if size <= maxSize && minClusters <= g.clusters && g.clusters <= maxClusters {
			return g, nil
		}
	}
	return geometry{}, fmt.Errorf("fat: a device of %d bytes is outside 34 MiB to %d bytes", size, int64(maxSize))
}

func (g geometry) clusterSize() int64 { return g.clusterSectors * sectorSize }

// offset returns where a cluster starts, in bytes.
func (g geometry) offset(cluster int64) int64 {
	return (reserved + tables*g.tableSectors + (cluster-rootCluster)*g.clusterSectors) * sectorSize
}

// bootSector is described in "Boot Sector and BPB".
func (g geometry) bootSector(o Options) []byte {
	b := append(make([]byte, 0, sectorSize), 0xeb, 0x58, 0x90) // BS_jmpBoot: to the code
	b = append(b, "IMGTOOL "...)
	b = encode(b, bpb{
		BytsPerSec: sectorSize, SecPerClus: uint8(g.clusterSectors), RsvdSecCnt: reserved, NumFATs: tables, Media: media,
		SecPerTrk: 63, NumHeads: 255, TotSec32: uint32(g.sectors), FATSz32: uint32(g.tableSectors),
		RootClus: rootCluster, FSInfo: 1, BkBootSec: backupBoot,
		DrvNum: 0x80, BootSig: 0x29, VolID: o.Serial, VolLab: o.label(), FilSysType: [8]byte([]byte("FAT32   ")),
	})
	b = append(b, 0xf4, 0xeb, 0xfd) // the code: hlt, and again
	return signed(b)
}

// bpb is the BIOS parameter block of FAT32, from byte 11 of the boot sector.
type bpb struct {
	BytsPerSec uint16
	SecPerClus uint8
	RsvdSecCnt uint16
	NumFATs    uint8
	RootEntCnt uint16
	TotSec16   uint16
	Media      uint8
	FATSz16    uint16
	SecPerTrk  uint16
	NumHeads   uint16
	HiddSec    uint32
	TotSec32   uint32
	FATSz32    uint32
	ExtFlags   uint16
	FSVer      uint16
	RootClus   uint32
	FSInfo     uint16
	BkBootSec  uint16
	Reserved   [12]byte
	DrvNum     uint8
	Reserved1  uint8
	BootSig    uint8
	VolID      uint32
	VolLab     [11]byte
	FilSysType [8]byte
}

// fsInfo is described in "FAT32 FSInfo Sector Structure". next is the first free cluster.
func (g geometry) fsInfo(next int64) []byte {
	b := make([]byte, sectorSize)
	copy(b, "RRaA")
	copy(b[484:], "rrAa")
	binary.LittleEndian.PutUint32(b[488:], uint32(g.clusters+rootCluster-next)) // FSI_Free_Count
	binary.LittleEndian.PutUint32(b[492:], uint32(next))                        // FSI_Nxt_Free
	return signed(b[:492+4])
}

// signed returns a whole sector that starts with b and ends with the signature.
func signed(b []byte) []byte {
	s := make([]byte, sectorSize)
	copy(s, b)
	s[510], s[511] = 0x55, 0xaa
	return s
}

func (o Options) label() (l [11]byte) {
	copy(l[:], fmt.Sprintf("%-11s", o.Label))
	return l
}

// encode appends a value of fixed size to b.
func encode(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.LittleEndian, v)
	if err != nil {
		panic("fat: " + err.Error()) // a type without a fixed size: our mistake
	}
	return b
}
