package gzipmod

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/compress/deflate"
	"github.com/imgtool/imgtool/gzipmod/mark"
	"github.com/imgtool/imgtool/internal/crcmath"
)

// Repaired says what Repair did.
type Repaired struct {
	Marked bool // there was a mark
	Blocks int  // stored blocks that were read again
	Bytes  int64
	Wrong  int // how many of them differ from what they were before the interrupted change
}

// Repair puts the checksums of file right after a change was interrupted: it reads what the mark names and nothing else, writes index and
// trailer, and removes the mark. The content stays as the interruption left it: of every sector the old or the new bytes. The file must be
// locked against other writers. Interrupted itself, it can be run again. Without a mark it only compares the trailer with the index.
func Repair(ctx context.Context, file block.Device, m mark.Store) (Repaired, error) {
	var done Repaired
	if m == nil {
		return done, errNoMark
	}
	p, err := m.Load(ctx)
	if err != nil {
		return done, fmt.Errorf("reading the mark: %w", err)
	}
	if p == nil {
		return done, checkWhole(ctx, file)
	}
	done.Marked = true
	j := mark.Parse(p)
	if j == nil { // the crash came before the first change
		if err := checkWhole(ctx, file); err != nil {
			return done, fmt.Errorf("its mark is not whole, which tells that no change had begun, but %w", err)
		}
		return done, m.Clear(ctx)
	}
	l, err := layoutBefore(ctx, file, j)
	if err != nil {
		return done, err
	}
	if l.Complete {
		base := slices.Clone(l.Regions)
		if err := done.rehash(ctx, file, l, j.Records); err != nil {
			return done, err
		}
		if err := done.settled(ctx, file, l, base); err != nil {
			return done, err
		}
		trailer := binary.LittleEndian.AppendUint32(nil, l.CRC())
		if err := file.Write(ctx, trailer, l.FileSize-8, 0); err != nil {
			return done, err
		}
	}
	if err := file.Write(ctx, l.marshalIndex(), indexOff, 0); err != nil {
		return done, err
	}
	if err := file.Flush(ctx); err != nil {
		return done, err
	}
	return done, m.Clear(ctx)
}

// layoutBefore returns the layout as it was before the change, if the journal belongs to this file.
func layoutBefore(ctx context.Context, file block.Device, j *mark.Journal) (*Layout, error) {
	foreign := func(why string) error {
		return block.WithHint(fmt.Errorf("the mark does not belong to this file: %s", why),
			"if the file was replaced after the interruption, remove the mark beside it")
	}
	l, err := parseHeader(j.Header)
	if err != nil {
		return nil, foreign(err.Error())
	}
	now := make([]byte, len(j.Header))
	if l.Complete && (j.FileSize != l.FileSize || file.Size() < l.FileSize) || file.Size() < int64(len(now)) {
		return nil, foreign(fmt.Sprintf("it is for %d bytes, the file has %d", j.FileSize, file.Size()))
	}
	if err := file.Read(ctx, now, 0); err != nil {
		return nil, err
	}
	if !bytes.Equal(unchanged(j, l, now), unchanged(j, l, j.Header)) {
		return nil, foreign("their headers differ in more than the checksums of the change")
	}
	return l, nil
}

// unchanged returns a copy of a header without the fields that the change, or Rebuild, writes.
func unchanged(j *mark.Journal, l *Layout, header []byte) []byte {
	p := bytes.Clone(header)
	index := p[indexOff:]
	clear(index[atCRC : atCRC+4])
	regions := index[fixedLen : fixedLen+len(l.Regions)*regionLen]
	if !l.Complete {
		index[atState] = 0
		clear(index[atFileSize : atFileSize+8])
		clear(index[fixedLen+len(regions):])
		for ; len(regions) > 0; regions = regions[regionLen:] {
			clear(regions[8:regionLen]) // offset and CRC
		}
		return p
	}
	for _, rec := range j.Records {
		if int64(rec.Region) < int64(len(l.Regions)) {
			clear(regions[rec.Region*regionLen+regionCRC : (rec.Region+1)*regionLen])
		}
	}
	return p
}

// rehash changes the CRCs of the layout's regions by what became of the blocks that the records name.
func (d *Repaired) rehash(ctx context.Context, file block.Device, l *Layout, records []mark.Record) error {
	seen := make(map[blockID]bool, len(records))
	buf := make([]byte, StoredLen)
	for _, rec := range records {
		if err := ctx.Err(); err != nil {
			return err
		}
		id, at := blockID{int(rec.Region), int(rec.Block)}, int64(rec.Block)*StoredLen
		if id.region >= len(l.Regions) || l.Regions[id.region].Kind != Kept || at >= l.Regions[id.region].Len {
			return fmt.Errorf("the mark names block %d of region %d, which is not in a kept range", rec.Block, rec.Region)
		}
		if seen[id] {
			continue
		}
		seen[id] = true
		r := &l.Regions[id.region]
		p := buf[:min(StoredLen, r.Len-at)]
		if err := file.Read(ctx, p, r.storedOff(at)); err != nil {
			return err
		}
		if delta := crc32.ChecksumIEEE(p) ^ rec.CRC; delta != 0 {
			d.Wrong++
			// If the system failed to write it before, it may be in memory only, and taken for written.
			if err := file.Write(ctx, p, r.storedOff(at), 0); err != nil {
				return err
			}
			r.CRC ^= crcmath.Across(r.Len - at - int64(len(p))).Shift(delta)
		}
		d.Blocks++
		d.Bytes += int64(len(p))
	}
	return nil
}

// settled reads those regions again whose CRC in the file is neither that of the mark nor what follows from its blocks: checksums
// were settled between two changes, or the mark is older than the file and should not be believed.
func (d *Repaired) settled(ctx context.Context, file block.Device, l *Layout, base []Region) error {
	now, err := ReadLayout(ctx, file)
	if errors.As(err, new(*block.CorruptError)) {
		return nil // the index is torn: it was being written when the crash came
	}
	if err != nil {
		return err
	}
	for i := range l.Regions {
		r := &l.Regions[i]
		if present := now.Regions[i].CRC; present == base[i].CRC || present == r.CRC {
			continue
		}
		if r.CRC, err = readStored(ctx, file, *r, 0, r.Len); err != nil {
			return err
		}
		d.Bytes += r.Len
	}
	return nil
}

// Rebuild fills in the index of a file that was written to a pipe: it decodes the stream from front to back, finds every chunk, checks the
// trailer, and writes the index in place. The mark covers the write. Where the index is complete it only compares the trailer with it.
func Rebuild(ctx context.Context, file block.Device, m mark.Store, progress func(done, total int64)) error {
	if m == nil {
		return errNoMark
	}
	dirty, err := mark.Exists(ctx, m)
	if err != nil {
		return err
	}
	if dirty {
		return ErrDirty
	}
	l, header, err := readLayout(ctx, file)
	if err != nil {
		return err
	}
	if l.Complete {
		return checkWhole(ctx, file)
	}
	s := scanner{file: file, layout: l.fine(), u: newUnpacker(), pos: l.headerLen}
	for i := range s.layout.Regions {
		r := &s.layout.Regions[i]
		if err := s.region(ctx, r); err != nil {
			return err
		}
		if progress != nil {
			progress(r.End(), l.Size)
		}
	}
	if err := l.complete(s.layout); err != nil {
		return err
	}
	if err := checkSize(file, l); err != nil {
		return err
	}
	if err := checkTail(ctx, file, l); err != nil {
		return err
	}
	if err := m.Save(ctx, mark.AppendBase(nil, l.FileSize, header)); err != nil {
		return err
	}
	if err := file.Write(ctx, l.marshalIndex(), indexOff, 0); err != nil {
		return fmt.Errorf("%w: %w", ErrDirty, err)
	}
	if err := file.Flush(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrDirty, err)
	}
	return m.Clear(ctx)
}

// scanner walks through the DEFLATE stream of a file whose regions are known and whose offsets are not.
type scanner struct {
	file   block.Device
	layout *Layout
	u      *unpacker
	pos    int64
	window []byte
}

func (s *scanner) region(ctx context.Context, r *Region) error {
	r.FileOff = s.pos
	switch r.Kind {
	case Hole:
		r.CRC = crcmath.Zeros(r.Len)
		s.pos += deflate.ZerosLen(r.Len)
		return nil // Verify compares it; the trailer's CRC does not depend on how zeros are written
	case Kept:
		crc, err := readStored(ctx, s.file, *r, 0, r.Len)
		r.CRC = crc
		s.pos += storedFileLen(r.Len)
		return err
	}
	for k := range s.layout.chunks(*r) {
		_, n := s.layout.chunkRange(*r, k)
		c, err := s.chunk(ctx, n)
		if err != nil {
			return block.Corrupt(indexFormat, fmt.Sprintf("chunk %d", r.chunk+k), s.pos, "%w", err)
		}
		s.layout.Chunks[r.chunk+k] = c
		r.CRC = crcmath.Combine(r.CRC, c.CRC, n)
		s.pos += int64(c.FileLen)
	}
	return nil
}

// chunk finds the end of the chunk of n bytes at pos.
func (s *scanner) chunk(ctx context.Context, n int64) (Chunk, error) {
	// What DEFLATE cannot shrink it stores: 5 bytes more per block of at least 16 KiB.
	most := min(n+n>>11+1024, s.file.Size()-s.pos)
	if most <= 0 {
		return Chunk{}, errTruncated
	}
	if int64(cap(s.window)) < most {
		s.window = make([]byte, most)
	}
	w, p := s.window[:most], s.u.scratch(n)
	if err := s.file.Read(ctx, w, s.pos); err != nil {
		return Chunk{}, err
	}
	used, err := s.u.consumed(p, w)
	if errors.Is(err, io.ErrUnexpectedEOF) && s.pos+most == s.file.Size() {
		return Chunk{}, errTruncated
	}
	if err != nil {
		return Chunk{}, err
	}
	// The decoder may stand a few bytes before or behind the end of the last symbol; the marker follows within a few more.
	const slack = 16
	at, last := max(used-slack, 0), min(used+slack, len(w))
	for {
		i := bytes.Index(w[at:last], []byte(chunkEnd))
		if i < 0 {
			return Chunk{}, errChunkEnd
		}
		packed := s.u.room(at + i + len(chunkEnd))
		copy(packed, w)
		if s.u.unpack(p, packed) == nil {
			return Chunk{FileLen: uint32(len(packed)), CRC: crc32.ChecksumIEEE(p)}, nil
		}
		at += i + 1
	}
}
