package partition

import (
	"encoding/binary"
	"strings"
)

// probeExt recognises ext2, ext3, ext4 and an external journal of theirs. The superblock is at byte 1024; which of the three it is follows from the
// features that are in use, since each can do what the one before can.
func probeExt(p *prober) (FileSystem, error) {
	const (
		sb = 1024

		compatHasJournal  = 0x4
		incompatFiletype  = 0x2
		incompatRecover   = 0x4
		incompatJournal   = 0x8
		incompatMetaBG    = 0x10
		roCompatExt2      = 0x1 | 0x2 | 0x4 // sparse superblocks, large files, B-tree directories
		incompatExt3      = incompatFiletype | incompatRecover | incompatMetaBG
		maxLogBlockSize   = 6 // 64 KiB
		offLogBlockSize   = sb + 0x18
		offFeatureCompat  = sb + 0x5C
		offFeatureIncompt = sb + 0x60
		offFeatureRO      = sb + 0x64
	)
	if !p.has(sb+0x38, "\x53\xEF") || p.le32(offLogBlockSize) > maxLogBlockSize || p.le32(sb) == 0 && p.le32(offFeatureIncompt)&incompatJournal == 0 {
		return FileSystem{}, nil
	}
	fs := FileSystem{Type: "ext2", Label: p.text(sb+0x78, 16), UUID: p.uuid(sb + 0x68)}
	compat, incompat, ro := p.le32(offFeatureCompat), p.le32(offFeatureIncompt), p.le32(offFeatureRO)
	switch {
	case incompat&incompatJournal != 0:
		fs.Type = "jbd"
	case incompat&^incompatExt3 != 0 || ro&^roCompatExt2 != 0:
		fs.Type = "ext4"
	case compat&compatHasJournal != 0:
		fs.Type = "ext3"
	}
	return fs, nil
}

// probeXFS recognises XFS, whose superblock is the first sector.
func probeXFS(p *prober) (FileSystem, error) {
	if !p.has(0, "XFSB") {
		return FileSystem{}, nil
	}
	return FileSystem{Type: "xfs", Label: p.text(108, 12), UUID: p.uuid(32)}, nil
}

// probeBtrfs recognises btrfs by its superblock at 64 KiB.
func probeBtrfs(p *prober) (FileSystem, error) {
	const sb = 64 << 10
	if !p.has(sb+0x40, "_BHRfS_M") || p.le64(sb+0x30) != sb {
		return FileSystem{}, nil
	}
	return FileSystem{Type: "btrfs", Label: p.text(sb+0x12B, 256), UUID: p.uuid(sb + 0x20)}, nil
}

// probeF2FS recognises F2FS by its superblock at byte 1024.
func probeF2FS(p *prober) (FileSystem, error) {
	const sb = 1024
	if !p.has(sb, "\x10\x20\xF5\xF2") {
		return FileSystem{}, nil
	}
	return FileSystem{Type: "f2fs", Label: labelUTF16(p.head[sb+0x7C : sb+0x7C+1024]), UUID: p.uuid(sb + 0x6C)}, nil
}

// probeEROFS recognises EROFS by its superblock at byte 1024.
func probeEROFS(p *prober) (FileSystem, error) {
	const sb = 1024
	if !p.has(sb, "\xE2\xE1\xF5\xE0") {
		return FileSystem{}, nil
	}
	return FileSystem{Type: "erofs", Label: p.text(sb+64, 16), UUID: p.uuid(sb + 48)}, nil
}

// probeSquashfs recognises SquashFS of version 4, which has neither label nor UUID.
func probeSquashfs(p *prober) (FileSystem, error) {
	if !p.has(0, "hsqs") || p.le16(28) != 4 {
		return FileSystem{}, nil
	}
	return FileSystem{Type: "squashfs"}, nil
}

// probeSwap recognises swap space: a mark at the end of the first page, whose size depends on the machine, and from byte 1024 the header.
func probeSwap(p *prober) (FileSystem, error) {
	const header, version1 = 1024, 1
	for page := 4 << 10; page <= 64<<10; page *= 2 {
		if p.has(page-10, "SWAP-SPACE") {
			return FileSystem{Type: "swap"}, nil
		}
		if !p.has(page-10, "SWAPSPACE2") {
			continue
		}
		// The version is in the byte order of the machine.
		if p.le32(header) == version1 || binary.BigEndian.Uint32(p.head[header:]) == version1 {
			return FileSystem{Type: "swap", Label: p.text(header+28, 16), UUID: p.uuid(header + 12)}, nil
		}
	}
	return FileSystem{}, nil
}

// probeLVM recognises a physical volume of LVM2, whose label is in one of the first four sectors.
func probeLVM(p *prober) (FileSystem, error) {
	const idLen = 32
	for sector := range 4 {
		at := sector * 512
		// The sector's own number, and where in it the header with the identifier begins.
		if !p.has(at, "LABELONE") || !p.has(at+24, "LVM2 001") || p.le64(at+8) != uint64(sector) {
			continue
		}
		off := p.le32(at + 20)
		if off > 512-idLen {
			continue
		}
		id := p.text(at+int(off), idLen)
		fs := FileSystem{Type: "LVM2_member"}
		if len(id) == idLen {
			fs.UUID = strings.Join([]string{id[:6], id[6:10], id[10:14], id[14:18], id[18:22], id[22:26], id[26:]}, "-")
		}
		return fs, nil
	}
	return FileSystem{}, nil
}

// probeLUKS recognises LUKS1 and LUKS2, which blkid calls the same.
func probeLUKS(p *prober) (FileSystem, error) {
	if !p.has(0, "LUKS\xBA\xBE") {
		return FileSystem{}, nil
	}
	fs := FileSystem{Type: "crypto_LUKS", UUID: p.text(168, 40)}
	switch binary.BigEndian.Uint16(p.head[6:]) {
	case 1:
	case 2:
		fs.Label = p.text(24, 48)
	default:
		return FileSystem{}, nil
	}
	return fs, nil
}

// probeRAID recognises a member of a Linux RAID with metadata 1.1, at the start, or 1.2, at 4 KiB.
func probeRAID(p *prober) (FileSystem, error) {
	for _, sb := range []int{0, 4096} {
		// Magic, major version, and the superblock's own place in sectors.
		if p.has(sb, "\xFC\x4E\x2B\xA9") && p.le32(sb+4) == 1 && p.le64(sb+144) == uint64(sb/512) {
			return FileSystem{Type: "linux_raid_member", Label: p.text(sb+32, 32), UUID: p.uuid(sb + 16)}, nil
		}
	}
	return FileSystem{}, nil
}

// probeUDF recognises UDF by its volume recognition sequence, ECMA-167 part 2: descriptors from byte 32768 on, each at the start of a sector. One that
// is both UDF and ISO 9660 is UDF. Its label and identifier are stored further in, and not looked for.
func probeUDF(p *prober) (FileSystem, error) {
	const start = 32 << 10
	for _, sector := range []int{2048, 4096} {
		for at := start; at+6 <= probeHead; at += sector {
			switch string(p.head[at+1 : at+6]) {
			case "NSR02", "NSR03":
				return FileSystem{Type: "udf"}, nil
			case "BEA01", "CD001", "BOOT2", "CDW02":
				continue
			}
			at = probeHead // the sequence ends
		}
	}
	return FileSystem{}, nil
}

// probeISO9660 recognises ISO 9660 by its primary volume descriptor, sector 16 of 2048 bytes. What blkid gives as its UUID is the date of
// the last change, or else that of its making.
func probeISO9660(p *prober) (FileSystem, error) {
	const (
		descriptor = 16 * 2048
		created    = descriptor + 813
		modified   = descriptor + 830
	)
	if !p.has(descriptor, "\x01CD001\x01") {
		return FileSystem{}, nil
	}
	fs := FileSystem{Type: "iso9660", Label: strings.TrimLeft(p.text(descriptor+40, 32), " ")}
	for _, at := range []int{modified, created} {
		d := p.text(at, 16) // year, month, day, hour, minute, second, hundredths; digits
		if len(d) == 16 && strings.Trim(d, "0123456789") == "" && strings.Trim(d, "0") != "" {
			fs.UUID = strings.Join([]string{d[:4], d[4:6], d[6:8], d[8:10], d[10:12], d[12:14], d[14:]}, "-")
			break
		}
	}
	return fs, nil
}
