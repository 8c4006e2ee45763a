package testimages

import (
	"context"
	"fmt"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/partition"
	"github.com/imgtool/imgtool/testimages/ext4"
	"github.com/imgtool/imgtool/testimages/fat"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40

	// MinDisk and MaxDisk are the smallest and the largest disk, in bytes.
	MinDisk = 256 * mib
	MaxDisk = 64 * tib

	// MinData is the least that a disk holds, in bytes of file content.
	MinData = 16 * mib
)

// DiskOptions say what Disk makes. Two disks of the same options are the same, byte by byte.
type DiskOptions struct {
	Size int64  // of the disk in bytes: MinDisk to MaxDisk, a multiple of 512
	Seed uint64 // everything random follows from it: content, names, places, identifiers
	Data int64  // bytes of file content in all partitions, MinData to MaxData(Size); 0 means a quarter of Size, at most 2 GiB
}

// MaxData returns the most that a disk of size bytes can be asked to hold: three quarters of its root file system.
func MaxData(size int64) int64 {
	return ext4.Capacity(plan(size)[rootPart].Size) / 4 * 3
}

// Manifest says what is on a disk.
type Manifest struct {
	Size       int64       `json:"size"` // of the disk in bytes
	DiskGUID   string      `json:"disk_guid"`
	Partitions []Partition `json:"partitions"` // in order of number and place
	Files      []File      `json:"files"`      // all regular files, in order of partition and path
}

// Partition is one partition of a Manifest.
type Partition struct {
	Number     int    `json:"number"` // from 1
	Name       string `json:"name"`   // in the GPT; also the file system's label
	Type       string `json:"type"`   // GUID, upper case
	GUID       string `json:"guid"`   // upper case
	Off        int64  `json:"off"`    // in bytes
	Size       int64  `json:"size"`   // in bytes
	FileSystem string `json:"file_system"`
	UUID       string `json:"uuid"` // of the file system, as blkid prints it
}

// File is one regular file of a Manifest.
type File struct {
	Partition int    `json:"partition"` // its number
	Path      string `json:"path"`      // from the root of its file system, without a slash in front
	Size      int64  `json:"size"`      // in bytes
	SHA256    string `json:"sha256"`    // of the content, in hexadecimal
	Off       int64  `json:"off"`       // byte offset of the content on the disk, where it lies in one piece; else -1
}

// Find returns a file by the name of its partition and its path.
func (m *Manifest) Find(partition, path string) (File, bool) {
	for _, f := range m.Files {
		if m.Partitions[f.Partition-1].Name == partition && f.Path == path {
			return f, true
		}
	}
	return File{}, false
}

// Indexes of the partitions.
const (
	espPart = iota
	bootPart
	rootPart
	partCount
)

// Type GUIDs: of the UEFI specification, of a Linux file system, and of an x86-64 root in the Discoverable Partitions Specification.
const (
	typeESP   = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	typeLinux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	typeRoot  = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
)

const (
	partAlign = mib
	gptTail   = 33 * 512 // bytes of the backup table at the end of the disk
)

// epoch is every time stamp: a fixed one, in UTC.
func epoch() time.Time { return time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC) }

// plan returns where the partitions lie on a disk of size bytes.
func plan(size int64) [partCount]Partition {
	parts := [partCount]Partition{
		{Number: 1, Name: "esp", Type: typeESP, Size: 40 * mib, FileSystem: "vfat"},
		{Number: 2, Name: "boot", Type: typeLinux, Size: 64 * mib, FileSystem: "ext4"},
		{Number: 3, Name: "root", Type: typeRoot, FileSystem: "ext4"},
	}
	if size >= gib {
		parts[espPart].Size, parts[bootPart].Size = 100*mib, 384*mib
	}
	off := int64(partAlign)
	for i := range parts {
		parts[i].Off = off
		off += parts[i].Size
	}
	root := &parts[rootPart]
	root.Size = size - gptTail - root.Off
	return parts
}

// Disk writes a disk image to d, which it resizes and empties first where that is needed: a GPT with an EFI system partition, a boot and a
// root partition, and in their file systems what a small Linux has, or looks like it. See the comment on the package for what is promised.
//
// What stays zero is not written. d has to be used by nobody else meanwhile; Disk neither flushes nor closes it.
func Disk(ctx context.Context, d block.Device, o DiskOptions) (*Manifest, error) {
	if o.Size < MinDisk || o.Size > MaxDisk || o.Size%512 != 0 {
		return nil, fmt.Errorf("testimages: a size of %d bytes is not a multiple of 512 from %d to %d", o.Size, int64(MinDisk), int64(MaxDisk))
	}
	if o.Data == 0 {
		o.Data = min(o.Size/4, 2*gib)
	}
	if most := MaxData(o.Size); o.Data < MinData || o.Data > most {
		return nil, fmt.Errorf("testimages: %d bytes of data are outside %d to %d for a disk of %d bytes", o.Data, int64(MinData), most, o.Size)
	}
	if err := blank(ctx, d, o.Size); err != nil {
		return nil, err
	}
	m := &Manifest{Size: o.Size}
	parts := plan(o.Size)
	ids := newRandom(o.Seed, streamIDs)
	m.DiskGUID = ids.guid().String()
	var uuids [partCount]guid
	for i := range parts {
		uuids[i] = ids.guid()
		parts[i].GUID, parts[i].UUID = ids.guid().String(), uuids[i].lower()
	}
	parts[espPart].UUID = uuids[espPart].serial()
	m.Partitions = parts[:]

	w := newWords(o.Seed)
	catalog := newCatalog(w, o, m.Partitions)
	if err := m.writeGPT(ctx, d); err != nil {
		return nil, err
	}
	for i, p := range parts {
		files := catalog.in(i)
		window, err := block.NewWindow(d, p.Off, p.Size)
		if err != nil {
			return nil, err
		}
		var places [][]block.Extent
		if i == espPart {
			places, err = formatFAT(ctx, window, uuids[i], files)
		} else {
			places, err = formatExt4(ctx, window, p.Name, uuids[i], o.Seed, files)
		}
		if err != nil {
			return nil, err
		}
		listed, err := writeFiles(ctx, window, w, p, files, places)
		if err != nil {
			return nil, err
		}
		m.Files = append(m.Files, listed...)
	}
	return m, nil
}

func (m *Manifest) writeGPT(ctx context.Context, d block.Device) error {
	t := partition.Table{Scheme: partition.GPT, DiskGUID: m.DiskGUID}
	for _, p := range m.Partitions {
		t.Partitions = append(t.Partitions, partition.Partition{
			Number: p.Number, Start: p.Off, Size: p.Size, Name: p.Name, TypeID: p.Type, GUID: p.GUID,
		})
	}
	return partition.WriteGPT(ctx, d, t)
}

// blank makes d read as zero and have the size.
func blank(ctx context.Context, d block.Device, size int64) error {
	if d.Size() != size {
		if err := d.Resize(ctx, size); err != nil {
			return err
		}
	}
	for e, err := range block.Walk(ctx, d, block.Map{}, 0, size) {
		if err == nil && e.Flags&block.ExtZero == 0 {
			err = d.Zero(ctx, e.Off, e.Len, 0)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func formatFAT(ctx context.Context, d block.Device, uuid guid, files []*entry) ([][]block.Extent, error) {
	list := make([]fat.File, len(files))
	for i, f := range files {
		list[i] = fat.File{Path: f.path, Size: f.size}
	}
	content, err := fat.Format(ctx, d, fat.Options{Label: "ESP", Serial: uuid.number(), Time: epoch()}, list)
	if err != nil {
		return nil, err
	}
	places := make([][]block.Extent, len(content))
	for i, e := range content {
		if e.Len > 0 {
			places[i] = []block.Extent{e}
		}
	}
	return places, nil
}

// formatExt4 keeps the files of boot in one piece, so that they can be patched in place, and scatters those of root.
func formatExt4(ctx context.Context, d block.Device, name string, uuid guid, seed uint64, files []*entry) ([][]block.Extent, error) {
	list := make([]ext4.File, len(files))
	for i, f := range files {
		list[i] = ext4.File{Path: f.path, Mode: f.mode, Size: f.size, Link: f.link}
	}
	o := ext4.Options{Label: name, UUID: uuid, Time: uint32(epoch().Unix())}
	if name == "root" {
		o.Scatter = seed | 1<<63 // never 0
	}
	return ext4.Format(ctx, d, o, list)
}
