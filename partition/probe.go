package partition

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/imgtool/imgtool/block"
)

// FileSystem is what a superblock says. The names of types, and how labels and UUIDs are written, are those of blkid.
type FileSystem struct {
	Type  string // ext2 ext3 ext4 jbd xfs btrfs f2fs erofs squashfs swap vfat exfat ntfs iso9660 udf crypto_LUKS LVM2_member linux_raid_member BitLocker; "" where none of them
	Label string // valid UTF-8; "" where there is none
	UUID  string // a serial number for vfat, exfat and ntfs, a date for iso9660; "" where there is none
}

// probeHead is how much of the start of a device is looked at: up to the end of the superblock of btrfs.
const probeHead = 68 << 10

// prober is a device whose file system is asked for.
type prober struct {
	ctx  context.Context
	dev  block.Device
	head []byte // the first probeHead bytes; a shorter device is padded with zeros
}

// probes are tried in this order. What wraps other things comes first, since it may leave their superblocks in place; then those whose
// superblock is in the first sectors, which the making of any other file system overwrites; at the end those whose mark lies far in, and
// so may be left over.
var probes = []func(p *prober) (FileSystem, error){
	probeRAID, probeLVM, probeLUKS, probeBitLocker,
	probeNTFS, probeExFAT, probeFAT, probeXFS, probeSquashfs,
	probeExt, probeF2FS, probeEROFS, probeSwap,
	probeUDF, probeISO9660, probeBtrfs,
}

// Probe says which file system, or other content, begins at the start of d. FileSystem.Type is "" where it is none that is known.
//
// It reads the first 68 KiB, and of a FAT, exFAT or NTFS volume the record that holds the label: a few KiB more, up to 64 KiB in all, anywhere on
// the device. Members of a RAID whose superblock lies at their end (metadata 0.90 and 1.0) appear as what they hold.
// A superblock is checked as far as it takes not to mistake something else for it; whether the file system is sound is not asked.
func Probe(ctx context.Context, d block.Device) (FileSystem, error) {
	p := &prober{ctx: ctx, dev: d, head: make([]byte, probeHead)}
	if err := d.Read(ctx, p.head[:min(probeHead, d.Size())], 0); err != nil {
		return FileSystem{}, err
	}
	for _, probe := range probes {
		fs, err := probe(p)
		if err != nil {
			return FileSystem{}, fmt.Errorf("looking for the label of %s: %w", fs.Type, err)
		}
		if fs.Type != "" {
			return fs, nil
		}
	}
	return FileSystem{}, nil
}

// read returns n bytes from off, or nil where they do not lie inside the device.
func (p *prober) read(off int64, n int) ([]byte, error) {
	if block.CheckRange(off, int64(n), p.dev.Size()) != nil {
		return nil, nil
	}
	b := make([]byte, n)
	return b, p.dev.Read(p.ctx, b, off)
}

// has reports whether the head holds magic at off.
func (p *prober) has(off int, magic string) bool {
	return string(p.head[off:off+len(magic)]) == magic
}

// le16, le32 and le64 return little-endian fields of the head.
func (p *prober) le16(off int) uint16 { return binary.LittleEndian.Uint16(p.head[off:]) }
func (p *prober) le32(off int) uint32 { return binary.LittleEndian.Uint32(p.head[off:]) }
func (p *prober) le64(off int) uint64 { return binary.LittleEndian.Uint64(p.head[off:]) }

// text returns the label in n bytes of the head.
func (p *prober) text(off, n int) string { return labelText(p.head[off : off+n]) }

// uuid returns the UUID in 16 bytes of the head.
func (p *prober) uuid(off int) string { return formatUUID(p.head[off : off+16]) }

// labelText returns a label up to the first NUL, without the spaces after it. What is not UTF-8 becomes U+FFFD.
func labelText(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return strings.TrimRightFunc(strings.ToValidUTF8(string(b), string(utf8.RuneError)), unicode.IsSpace)
}

// labelUTF16 returns a label of little-endian UTF-16 as labelText does.
func labelUTF16(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return labelText([]byte(string(utf16.Decode(units))))
}

// formatUUID returns 16 bytes as a UUID in lower case, "" for zeros.
func formatUUID(b []byte) string {
	if block.IsZero(b) {
		return ""
	}
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
