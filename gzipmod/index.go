package gzipmod

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"

	"github.com/imgtool/imgtool/block"
)

// The gzip header (RFC 1952 section 2.3): ten bytes, XLEN, one extra subfield that holds the index, and no FNAME, FCOMMENT or FHCRC.
const (
	headerFixed = 10 // ID1 ID2 CM FLG MTIME XFL OS
	subfieldOff = headerFixed + 2
	indexOff    = subfieldOff + subfieldHeader
	flagExtra   = 4 // FLG.FEXTRA
	osUnknown   = 255
	subfieldID  = "IM"
	paddingID   = "IP" // a second subfield, of zeros, where the index turned out shorter than the room left for it

	subfieldHeader = 4     // identifier and LEN
	maxHeader      = 16384 // busybox reads the extra field through a buffer of 16 KiB
	maxIndex       = maxHeader - indexOff
	indexVersion   = 1
	stateReserved  = 0 // only sizes and kinds are true
	stateComplete  = 1
)

// The index: a fixed part, the regions, the chunks; all little-endian. Offsets are from the start of the index.
const (
	atVersion    = 0  // u8
	atState      = 1  // u8
	atStoredUnit = 2  // u16: StoredLen / 4096
	atCRC        = 4  // u32: CRC-32 of the whole index with this field zero
	atSize       = 8  // u64: length of the image
	atFileSize   = 16 // u64: length of the file
	atChunkSize  = 24 // u32
	atRegions    = 28 // u32: number of regions
	atChunks     = 32 // u32: number of chunks
	fixedLen     = 36

	regionLen    = 20 // u64 length with the kind in the top 8 bits, u64 file offset, u32 CRC-32
	regionCRC    = 16
	kindShift    = 56
	chunkLen     = 8 // u32 file length, u32 CRC-32
	indexFormat  = "gz"
	indexPart    = "index"
	maxImageSize = 1<<kindShift - 1
)

// indexLen returns the length of an index.
func indexLen(regions, chunks int64) int64 { return fixedLen + regions*regionLen + chunks*chunkLen }

// marshalIndex returns the layout's index.
func (l *Layout) marshalIndex() []byte {
	le := binary.LittleEndian
	p := make([]byte, fixedLen, indexLen(int64(len(l.Regions)), int64(len(l.Chunks))))
	p[atVersion] = indexVersion
	if l.Complete {
		p[atState] = stateComplete
	}
	le.PutUint16(p[atStoredUnit:], StoredLen/4096)
	le.PutUint64(p[atSize:], uint64(l.Size))
	le.PutUint64(p[atFileSize:], uint64(l.FileSize))
	le.PutUint32(p[atChunkSize:], uint32(l.ChunkSize))
	le.PutUint32(p[atRegions:], uint32(len(l.Regions)))
	le.PutUint32(p[atChunks:], uint32(len(l.Chunks)))
	for _, r := range l.Regions {
		p = le.AppendUint64(p, uint64(r.Len)|uint64(r.Kind)<<kindShift)
		p = le.AppendUint64(p, uint64(r.FileOff))
		p = le.AppendUint32(p, r.CRC)
	}
	for _, c := range l.Chunks {
		p = le.AppendUint32(p, c.FileLen)
		p = le.AppendUint32(p, c.CRC)
	}
	le.PutUint32(p[atCRC:], crc32.ChecksumIEEE(p))
	return p
}

// marshalHeader returns the gzip header with the index in it. mtime is in seconds since 1970, 0 for none.
func (l *Layout) marshalHeader(mtime uint32) []byte {
	le := binary.LittleEndian
	index := l.marshalIndex()
	p := gzipHeader(mtime)
	p = le.AppendUint16(p, uint16(4+len(index)))
	p = append(p, subfieldID...)
	p = le.AppendUint16(p, uint16(len(index)))
	return append(p, index...)
}

// gzipHeader returns the header up to XLEN.
func gzipHeader(mtime uint32) []byte {
	p := []byte{0x1f, 0x8b, 8, flagExtra, 0, 0, 0, 0, 0, osUnknown}
	binary.LittleEndian.PutUint32(p[4:], mtime)
	return p
}

// ErrNoIndex: the file is a gzip file, but holds no index of ours: it is not a modifiable image.
var ErrNoIndex = errors.New("not a modifiable image: no index of imgtool in the gzip header")

// parseHeader reads the gzip header at the start of p, which holds the first maxHeader bytes of the file or all of a shorter one. It
// returns ErrNotFormat for what is no gzip file and ErrNoIndex for a foreign one.
func parseHeader(p []byte) (*Layout, error) {
	if len(p) < headerFixed || p[0] != 0x1f || p[1] != 0x8b {
		return nil, block.ErrNotFormat
	}
	le := binary.LittleEndian
	if p[2] != 8 || p[3] != flagExtra || len(p) < indexOff || string(p[subfieldOff:subfieldOff+2]) != subfieldID {
		return nil, ErrNoIndex
	}
	xlen, n := int(le.Uint16(p[headerFixed:])), int(le.Uint16(p[subfieldOff+2:]))
	end := subfieldOff + xlen
	if end > maxHeader || indexOff+n > end {
		return nil, block.Corrupt(indexFormat, "extra field", headerFixed, "XLEN is %d around an index of %d bytes", xlen, n)
	}
	if len(p) < end {
		return nil, block.Corrupt(indexFormat, indexPart, indexOff, "%w, it ends inside the index", errTruncated)
	}
	if padding := p[indexOff+n : end]; len(padding) > 0 && !isPadding(padding) {
		return nil, block.Corrupt(indexFormat, "extra field", int64(indexOff+n), "what follows the index is no padding")
	}
	l, err := parseIndex(p[indexOff : indexOff+n])
	if err != nil {
		return nil, err
	}
	l.headerLen = int64(end)
	if !l.Complete {
		return l, nil
	}
	return l, l.checkPlaces()
}

// isPadding reports whether p is a padding subfield and nothing else.
func isPadding(p []byte) bool {
	return len(p) >= subfieldHeader && string(p[:2]) == paddingID && int(binary.LittleEndian.Uint16(p[2:])) == len(p)-subfieldHeader &&
		block.IsZero(p[subfieldHeader:])
}

// parseIndex reads an index and checks it against itself.
func parseIndex(p []byte) (*Layout, error) {
	corrupt := func(at int, cause string, args ...any) error {
		return block.Corrupt(indexFormat, indexPart, indexOff+int64(at), cause, args...)
	}
	le := binary.LittleEndian
	if len(p) < fixedLen {
		return nil, corrupt(0, "%d bytes are too few", len(p))
	}
	if p[atVersion] != indexVersion {
		return nil, corrupt(atVersion, "version %d is not known; a newer imgtool may read it", p[atVersion])
	}
	sum := crc32.Update(crc32.ChecksumIEEE(p[:atCRC]), crc32.IEEETable, make([]byte, 4))
	if sum = crc32.Update(sum, crc32.IEEETable, p[atCRC+4:]); sum != le.Uint32(p[atCRC:]) {
		return nil, corrupt(atCRC, "its CRC-32 is %08x, not %08x", sum, le.Uint32(p[atCRC:]))
	}
	size, fileSize := le.Uint64(p[atSize:]), le.Uint64(p[atFileSize:])
	regions, chunks := int64(le.Uint32(p[atRegions:])), int64(le.Uint32(p[atChunks:]))
	l := &Layout{Size: int64(size), FileSize: int64(fileSize), ChunkSize: int64(le.Uint32(p[atChunkSize:])), Complete: p[atState] == stateComplete}
	switch {
	case p[atState] > stateComplete:
		return nil, corrupt(atState, "state %d is not known", p[atState])
	case le.Uint16(p[atStoredUnit:]) != StoredLen/4096:
		return nil, corrupt(atStoredUnit, "stored blocks of %d pages are not known", le.Uint16(p[atStoredUnit:]))
	case size > maxImageSize:
		return nil, corrupt(atSize, "image size %d is too large", size)
	case fileSize > math.MaxInt64:
		return nil, corrupt(atFileSize, "file size %d is too large", fileSize)
	case l.ChunkSize < minChunk || l.ChunkSize > maxChunk || l.ChunkSize&(l.ChunkSize-1) != 0:
		return nil, corrupt(atChunkSize, "chunk size %d is not a power of two in %d to %d", l.ChunkSize, minChunk, maxChunk)
	case regions > maxIndex || chunks > maxIndex || indexLen(regions, chunks) != int64(len(p)):
		return nil, corrupt(atRegions, "%d regions and %d chunks do not make %d bytes", regions, chunks, len(p))
	}
	l.Regions, l.Chunks = make([]Region, regions), make([]Chunk, chunks)
	if err := l.parseRegions(p[fixedLen:]); err != nil {
		return nil, corrupt(fixedLen, "%w", err)
	}
	p = p[fixedLen+regions*regionLen:]
	for i := range l.Chunks {
		l.Chunks[i] = Chunk{FileLen: le.Uint32(p[i*chunkLen:]), CRC: le.Uint32(p[i*chunkLen+4:])}
	}
	return l, nil
}

func (l *Layout) parseRegions(p []byte) error {
	le := binary.LittleEndian
	var off, chunks int64
	for i := range l.Regions {
		v := le.Uint64(p[i*regionLen:])
		r := Region{Kind: Kind(v >> kindShift), Off: off, Len: int64(v & maxImageSize), CRC: le.Uint32(p[i*regionLen+regionCRC:]), chunk: int(chunks)}
		fileOff := le.Uint64(p[i*regionLen+8:])
		if r.Kind >= kinds {
			return fmt.Errorf("region %d: %v is not known", i, r.Kind)
		}
		if r.Len == 0 || r.Len > l.Size-off {
			return fmt.Errorf("region %d at byte %d of the image has length %d, the image has %d bytes", i, off, r.Len, l.Size)
		}
		if fileOff > math.MaxInt64 {
			return fmt.Errorf("region %d: file offset %d is too large", i, fileOff)
		}
		r.FileOff = int64(fileOff)
		if r.Kind == Data {
			if chunks += chunksOf(r.Off, r.Len, l.ChunkSize); chunks > int64(len(l.Chunks)) {
				return fmt.Errorf("region %d needs more than the %d chunks there are", i, len(l.Chunks))
			}
		}
		l.Regions[i] = r
		off = r.End()
	}
	if off != l.Size || chunks != int64(len(l.Chunks)) {
		return fmt.Errorf("the regions cover %d of %d bytes and %d of %d chunks", off, l.Size, chunks, len(l.Chunks))
	}
	return nil
}

// checkPlaces checks that what a complete index says twice is said alike: file offsets follow from lengths.
func (l *Layout) checkPlaces() error {
	want := Layout{ChunkSize: l.ChunkSize, Regions: append([]Region(nil), l.Regions...), Chunks: l.Chunks, headerLen: l.headerLen}
	if err := want.place(); err != nil {
		return block.Corrupt(indexFormat, indexPart, indexOff+fixedLen, "%w", err)
	}
	for i, r := range l.Regions {
		if r.FileOff != want.Regions[i].FileOff {
			return block.Corrupt(indexFormat, indexPart, indexOff+fixedLen+int64(i)*regionLen,
				"region %d is said to lie at byte %d of the file, but what lies before it ends at %d", i, r.FileOff, want.Regions[i].FileOff)
		}
		if r.Kind != Data {
			continue
		}
		for k, c := range l.chunks(r) {
			// No DEFLATE stream expands by more than 1032, nor does ours shrink to more than it was and a little: so a small file
			// cannot ask for much memory, nor a sparse one.
			_, n := l.chunkRange(r, k)
			if most := n + n>>8 + 4096; int64(c.FileLen) > most {
				return block.Corrupt(indexFormat, indexPart, indexOff+fixedLen+int64(len(l.Regions))*regionLen+int64(r.chunk+k)*chunkLen,
					"chunk %d has %d bytes in the file, too many for %d", r.chunk+k, c.FileLen, n)
			}
			if int64(c.FileLen) < n/1032 {
				return block.Corrupt(indexFormat, indexPart, indexOff+fixedLen+int64(len(l.Regions))*regionLen+int64(r.chunk+k)*chunkLen,
					"chunk %d has %d bytes in the file, too few for %d", r.chunk+k, c.FileLen, n)
			}
		}
	}
	if l.FileSize != want.FileSize {
		return block.Corrupt(indexFormat, indexPart, indexOff+atFileSize, "the file is said to have %d bytes, its parts have %d", l.FileSize, want.FileSize)
	}
	return nil
}
