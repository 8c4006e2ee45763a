package gzipmod

import (
	"fmt"
	"math"
	"sort"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/deflate"
	"github.com/imgtool/imgtool/internal/crcmath"
)

const (
	// StoredLen is the length of the data of every stored block of a kept range but its last, which may be shorter: the largest multiple
	// of 4096 that the 16 bits of LEN hold with room to spare, so that no page of 4 KiB straddles a block header.
	StoredLen = 15 * 4096
	// storedHeader is the length of a stored block's header that starts on a byte boundary: BFINAL and BTYPE, LEN, NLEN.
	storedHeader = 5
	// KeepUnit is what the ends of kept ranges are rounded outward to.
	KeepUnit = 4096

	// minChunk is what is compressed at a time. A longer chunk of the index is several of these, one after another.
	minChunk = 1 << 20
	maxChunk = 1 << 30
)

// Kind says how a region of the image lies in the file.
type Kind uint8

const (
	// Data is compressed in independent chunks.
	Data Kind = iota
	// Hole is a run of zeros.
	Hole
	// Kept lies in stored blocks and can be changed.
	Kept
	kinds
)

func (k Kind) String() string {
	if k >= kinds {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return [...]string{"data", "hole", "kept"}[k]
}

// Region is a range of the image that lies in the file in one way.
type Region struct {
	Kind    Kind
	Off     int64  // in the image, bytes
	Len     int64  // in the image, bytes, at least 1
	FileOff int64  // of its first DEFLATE block; 0 while the index is only reserved
	CRC     uint32 // CRC-32 of the content

	chunk int // Data: the first of its chunks
}

// End returns the first byte of the image after the region.
func (r Region) End() int64 { return r.Off + r.Len }

// Chunk is an independently compressed piece of a Data region. Chunks end at multiples of the layout's ChunkSize, and
// where their region does.
type Chunk struct {
	FileLen uint32 // bytes of its DEFLATE blocks, the marker that aligns its end included
	CRC     uint32 // CRC-32 of the content
}

// Layout says which byte of an image lies where in the file.
type Layout struct {
	Size      int64 // of the image, bytes
	FileSize  int64 // of the file, bytes; 0 while the index is only reserved
	ChunkSize int64 // bytes of the image in a chunk, at most
	Regions   []Region
	Chunks    []Chunk // of all Data regions, in order
	Complete  bool    // offsets, lengths and CRCs are filled in

	headerLen int64 // of the gzip header
}

// HeaderLen returns the length of the gzip header in bytes: where the DEFLATE stream begins.
func (l *Layout) HeaderLen() int64 { return l.headerLen }

// chunksOf returns how many chunks there are in n bytes of data at off: they are cut at multiples of chunkSize of the image.
func chunksOf(off, n, chunkSize int64) int64 { return (off%chunkSize+n-1)/chunkSize + 1 }

// chunkRange returns the range of the image that chunk i of a region holds; i counts from the region's first.
func (l *Layout) chunkRange(r Region, i int) (off, n int64) {
	off = block.RoundDown(r.Off, l.ChunkSize) + int64(i)*l.ChunkSize
	end := min(off+l.ChunkSize, r.End())
	off = max(off, r.Off)
	return off, end - off
}

// storedFileLen returns the length in the file of a kept range of n bytes.
func storedFileLen(n int64) int64 { return n + storedHeader*((n-1)/StoredLen+1) }

// storedOff returns where byte i of a kept region lies in the file.
func (r Region) storedOff(i int64) int64 { return r.FileOff + i + storedHeader*(i/StoredLen+1) }

// regionAt returns the index of the region that holds byte off of the image.
func (l *Layout) regionAt(off int64) int {
	return sort.Search(len(l.Regions), func(i int) bool { return l.Regions[i].End() > off })
}

// CRC returns the CRC-32 of the image as it follows from the regions'.
func (l *Layout) CRC() uint32 {
	var crc uint32
	for _, r := range l.Regions {
		crc = crcmath.Combine(crc, r.CRC, r.Len)
	}
	return crc
}

// tail holds what follows the last region: an empty final block, CRC-32 and ISIZE (RFC 1952 section 2.3.1).
const tailLen = int64(len(finalBlock)) + 8

const finalBlock = "\x01\x00\x00\xff\xff"

// fine returns a layout of the same regions whose chunks are of minChunk, with nothing filled in.
func (l *Layout) fine() *Layout {
	f := &Layout{Size: l.Size, ChunkSize: minChunk, headerLen: l.headerLen}
	for _, r := range l.Regions {
		r = Region{Kind: r.Kind, Off: r.Off, Len: r.Len, chunk: len(f.Chunks)}
		if r.Kind == Data {
			f.Chunks = append(f.Chunks, make([]Chunk, chunksOf(r.Off, r.Len, minChunk))...)
		}
		f.Regions = append(f.Regions, r)
	}
	return f
}

// complete fills in l from its fine layout, which has been filled in and is used up.
func (l *Layout) complete(fine *Layout) error {
	for fine.ChunkSize < l.ChunkSize {
		fine.coarsen()
	}
	l.Regions, l.Chunks, l.Complete = fine.Regions, fine.Chunks, true
	return l.place()
}

// coarsen doubles ChunkSize: two chunks of a region that lie in the same multiple of it are one.
func (l *Layout) coarsen() {
	var chunks []Chunk
	double := 2 * l.ChunkSize
	for i := range l.Regions {
		r := &l.Regions[i]
		if r.Kind != Data {
			continue
		}
		before, first := *r, len(chunks)
		for k, c := range l.chunks(before) {
			off, n := l.chunkRange(before, k)
			if last := len(chunks) - 1; last >= first && off%double != 0 {
				chunks[last] = Chunk{FileLen: chunks[last].FileLen + c.FileLen, CRC: crcmath.Combine(chunks[last].CRC, c.CRC, n)}
				continue
			}
			chunks = append(chunks, c)
		}
		r.chunk = first
	}
	l.Chunks, l.ChunkSize = chunks, double
}

// place fills in the file offsets from the chunks' lengths, and the size of the file. It returns an error on overflow.
func (l *Layout) place() error {
	off := l.headerLen
	for i := range l.Regions {
		r := &l.Regions[i]
		r.FileOff = off
		n := l.fileLen(*r)
		if n < 0 || off > math.MaxInt64-n-tailLen {
			return fmt.Errorf("region %d ends past the largest file offset", i)
		}
		off += n
	}
	l.FileSize = off + tailLen
	return nil
}

// fileLen returns the length of a region in the file.
func (l *Layout) fileLen(r Region) int64 {
	switch r.Kind {
	case Hole:
		return deflate.ZerosLen(r.Len)
	case Kept:
		return storedFileLen(r.Len)
	}
	var n int64
	for _, c := range l.chunks(r) {
		n += int64(c.FileLen)
	}
	return n
}

// chunks returns the chunks of a Data region.
func (l *Layout) chunks(r Region) []Chunk {
	return l.Chunks[r.chunk : r.chunk+int(chunksOf(r.Off, r.Len, l.ChunkSize))]
}

// chunkFileOff returns where chunk k of a Data region lies in the file.
func (l *Layout) chunkFileOff(r Region, k int) int64 {
	off := r.FileOff
	for _, c := range l.chunks(r)[:k] {
		off += int64(c.FileLen)
	}
	return off
}
