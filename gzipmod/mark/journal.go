package mark

import (
	"encoding/binary"
	"hash/crc32"
)

// A journal is a base and batches, all little-endian:
//
//	base   "IMGMARK1", u64 size of the file, u32 length of the header, the gzip header as it was, u32 CRC-32 of all this
//	batch  u32 number of records, the records, u32 CRC-32 of both
//	record u32 region, u32 stored block in the region, u32 CRC-32 of the block's data as it was
const (
	magic     = "IMGMARK1"
	recordLen = 12
)

// Record says that a stored block may have changed, and how it was.
type Record struct {
	Region, Block uint32
	CRC           uint32
}

func appendSum(p []byte, from int) []byte {
	return binary.LittleEndian.AppendUint32(p, crc32.ChecksumIEEE(p[from:]))
}

// AppendBase appends what begins a journal: how long the file is, and its header.
func AppendBase(p []byte, fileSize int64, header []byte) []byte {
	le, from := binary.LittleEndian, len(p)
	p = le.AppendUint64(append(p, magic...), uint64(fileSize))
	p = le.AppendUint32(p, uint32(len(header)))
	return appendSum(append(p, header...), from)
}

// AppendBatch appends the announcement of changes to blocks.
func AppendBatch(p []byte, records []Record) []byte {
	le, from := binary.LittleEndian, len(p)
	p = le.AppendUint32(p, uint32(len(records)))
	for _, r := range records {
		p = le.AppendUint32(p, r.Region)
		p = le.AppendUint32(p, r.Block)
		p = le.AppendUint32(p, r.CRC)
	}
	return appendSum(p, from)
}

// Journal is what a mark holds.
type Journal struct {
	FileSize int64
	Header   []byte   // of the file, as it was
	Records  []Record // the first of a block counts
}

// Parse reads a journal. It returns nil where the base is not whole: then no change had begun. A batch that is not whole
// ends it: the change that it announces had not begun.
func Parse(p []byte) *Journal {
	le := binary.LittleEndian
	const fixed = len(magic) + 12
	if len(p) < fixed || string(p[:len(magic)]) != magic {
		return nil
	}
	n := int64(le.Uint32(p[fixed-4:]))
	if int64(len(p)-fixed) < n+4 {
		return nil
	}
	end := fixed + int(n)
	if crc32.ChecksumIEEE(p[:end]) != le.Uint32(p[end:]) {
		return nil
	}
	j := &Journal{FileSize: int64(le.Uint64(p[len(magic):])), Header: p[fixed:end]}
	for p = p[end+4:]; len(p) >= 8; {
		n := int64(le.Uint32(p))
		end := 4 + n*recordLen
		if int64(len(p)) < end+4 || crc32.ChecksumIEEE(p[:end]) != le.Uint32(p[end:]) {
			break
		}
		for q := p[4:end]; len(q) > 0; q = q[recordLen:] {
			j.Records = append(j.Records, Record{le.Uint32(q), le.Uint32(q[4:]), le.Uint32(q[8:])})
		}
		p = p[end+4:]
	}
	return j
}
