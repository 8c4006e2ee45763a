package gzindex

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/crcmath"
)

// maxRatio is how many bytes a byte of DEFLATE data makes at most: two bits make 258.
const maxRatio = 1032

// GuessSize returns the probable size of the image in a gzip file, in bytes, from its first sectors and its last four bytes, and how it is
// known, for messages. Not ok means that there is no telling without reading all of the file.
//
// ISIZE is the size modulo 2^32 of the last member, so of the whole image where there is one member, as there nearly always is. Among the
// sizes that fit it, that of a disk at the end of which the backup of the image's GPT lies is taken where it is one, else the least that the
// length of the file and the partitions allow. An image that has been grown by a multiple of 4 GiB is guessed wrongly.
func GuessSize(ctx context.Context, file block.Device) (size int64, how string, ok bool) {
	n := file.Size()
	tail := make([]byte, 4)
	if n < leastFile || file.Read(ctx, tail, n-4) != nil {
		return 0, "", false
	}
	isize := int64(binary.LittleEndian.Uint32(tail))
	image, ok := head(ctx, file)
	if !ok || isize < int64(len(image)) && isize+isizeRange > n*maxRatio {
		return 0, "", false
	}
	gpt, _ := gptSize(image)
	if gpt > 0 && gpt&(isizeRange-1) == isize && gpt/maxRatio <= n {
		return gpt, "ISIZE and GPT", true
	}
	// DEFLATE data are hardly ever longer than what they hold: not so long that it would take another 4 GiB to explain it.
	least := max(n-n>>4-overhead, int64(len(image)))
	if size = atLeast(isize, max(least, gpt, mbrEnd(image))); size/maxRatio > n { // a table of something else
		size = atLeast(isize, least)
	}
	return size, "ISIZE", size/maxRatio <= n
}

// atLeast returns the first size from least on that isize stands for.
func atLeast(isize, least int64) int64 {
	return isize + block.RoundDown(max(0, least-isize+isizeRange-1), isizeRange)
}

const (
	leastFile  = 18      // bytes of a member that holds nothing
	overhead   = 4096    // bytes of header and trailer, more than there are as a rule
	isizeRange = 1 << 32 // ISIZE is modulo this
)

// headLen is how many bytes of an image show where its GPT is: LBA 1 with sectors of 4096 bytes.
const headLen = 2 * 4096

// head returns the first headLen bytes of the image, or all of a shorter one; not ok where that fails.
func head(ctx context.Context, file block.Device) ([]byte, bool) {
	s := NewScanner(&input{ctx: ctx, file: file}, ScanOptions{})
	buf := make([]byte, headLen+2*Slop)
	at := 0
	for at < headLen {
		n, err := s.Fill(buf, at)
		if err != nil {
			return buf[:at], err == io.EOF
		}
		at += n
	}
	return buf[:headLen], true
}

// The GPT header: UEFI Specification 2.10 section 5.3.2.
const (
	gptSignature    = "EFI PART"
	gptHeaderSize   = 12
	gptHeaderCRC32  = 16
	gptMyLBA        = 24
	gptAlternateLBA = 32
	gptHeaderLen    = 92
)

// gptSize returns the size of the disk of which p is the beginning, as its GPT gives it.
func gptSize(p []byte) (int64, bool) {
	le := binary.LittleEndian
	for _, sector := range []int{512, 4096} {
		if len(p) < 2*sector {
			continue
		}
		h := p[sector : 2*sector]
		n := le.Uint32(h[gptHeaderSize:])
		if string(h[:len(gptSignature)]) != gptSignature || n < gptHeaderLen || n > uint32(sector) || le.Uint64(h[gptMyLBA:]) != 1 {
			continue
		}
		crc := crc32.ChecksumIEEE(h[:gptHeaderCRC32])
		crc = crcmath.Combine(crc, crcmath.Zeros(4), 4)
		crc = crc32.Update(crc, crc32.IEEETable, h[gptHeaderCRC32+4:n])
		last := le.Uint64(h[gptAlternateLBA:])
		if crc == le.Uint32(h[gptHeaderCRC32:]) && last > 1 && last < 1<<50 {
			return int64(last+1) * int64(sector), true
		}
	}
	return 0, false
}

// The MBR: four records, and a signature.
const (
	mbrRecords   = 446
	mbrRecordLen = 16
	mbrActive    = 0x80 // may be set in the first byte of a record, which is 0 else
	mbrType      = 4    // in a record
	mbrStart     = 8
	mbrSectors   = 12
	mbrSignature = 510
	mbrLen       = 512
	gptProtected = 0xee // the type of a record that stands for a GPT
)

// mbrEnd returns where the last partition ends that the MBR at the beginning of p lists, in bytes; 0 where there is no MBR.
func mbrEnd(p []byte) (end int64) {
	if len(p) < mbrLen || p[mbrSignature] != 0x55 || p[mbrSignature+1] != 0xaa {
		return 0
	}
	le := binary.LittleEndian
	for r := p[mbrRecords:mbrSignature]; len(r) > 0; r = r[mbrRecordLen:] {
		if r[0]&^mbrActive != 0 {
			return 0 // a boot sector with code or text here
		}
		if r[mbrType] != 0 && r[mbrType] != gptProtected {
			end = max(end, (int64(le.Uint32(r[mbrStart:]))+int64(le.Uint32(r[mbrSectors:])))*mbrLen)
		}
	}
	return end
}
