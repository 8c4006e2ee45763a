package ondisk

import (
	"context"
	"encoding/binary"
	"io"
	"slices"

	"github.com/imgtool/imgtool/block"
)

// Snapshot is an entry of the snapshot table.
type Snapshot struct {
	L1TableOffset uint64
	L1Size        uint32 // entries
	ID            string // unique; at most 65535 bytes
	Name          string
	DateSec       uint32 // since 1970
	DateNsec      uint32
	VMClockNsec   uint64 // that the guest had run
	VMStateSize   uint64 // bytes; entries without extra data have 32 bits for it
	DiskSize      uint64 // bytes; where the entry does not say, that of the header
	Icount        uint64 // instructions executed; NoIcount where the entry does not say

	// Unknown is extra data behind the fields known here; it is kept.
	Unknown []byte
	// HasDiskSize says that the entry has VMStateSize in 64 bits and DiskSize; a new one should.
	HasDiskSize bool
}

// NoIcount is the Icount of a guest whose instructions were not counted.
const NoIcount = ^uint64(0)

// Lengths of the fixed part of a snapshot table entry, and of what is known of its extra data, in bytes.
const (
	snapshotLen          = 40
	snapshotExtraSizes   = 16
	snapshotExtraIcounts = 24
)

// ParseSnapshot parses the entry at the start of p, which lies at off in the file, and returns its length with padding. h gives the defaults.
// It needs more bytes where need is not 0: so many at least.
func ParseSnapshot(p []byte, off int64, h *Header) (s Snapshot, length, need int, err error) {
	if len(p) < snapshotLen {
		return s, 0, snapshotLen, nil
	}
	be := binary.BigEndian
	idLen, nameLen, extraLen := int(be.Uint16(p[12:])), int(be.Uint16(p[14:])), int64(be.Uint32(p[36:]))
	if extraLen > MaxSnapshotExtra {
		return s, 0, 0, block.Corrupt(Format, "snapshot table", off+36, "extra_data_size is %d, more than %d", extraLen, MaxSnapshotExtra)
	}
	n := snapshotLen + int(extraLen) + idLen + nameLen
	length = (n + 7) &^ 7
	if len(p) < n {
		return s, 0, n, nil
	}
	extra := p[snapshotLen:][:extraLen]
	text := p[snapshotLen+int(extraLen):]
	s = Snapshot{
		L1TableOffset: be.Uint64(p), L1Size: be.Uint32(p[8:]), ID: string(text[:idLen]), Name: string(text[idLen:][:nameLen]),
		DateSec: be.Uint32(p[16:]), DateNsec: be.Uint32(p[20:]), VMClockNsec: be.Uint64(p[24:]), VMStateSize: uint64(be.Uint32(p[32:])),
		DiskSize: h.Size, Icount: NoIcount,
	}
	if extraLen >= snapshotExtraSizes {
		s.VMStateSize, s.DiskSize, s.HasDiskSize = be.Uint64(extra), be.Uint64(extra[8:]), true
	}
	if extraLen >= snapshotExtraIcounts {
		s.Icount = be.Uint64(extra[16:])
		if len(extra) > snapshotExtraIcounts {
			s.Unknown = slices.Clone(extra[snapshotExtraIcounts:])
		}
	}
	mask := uint64(h.ClusterSize() - 1)
	switch {
	case int64(s.L1Size)*8 > MaxL1Bytes:
		return s, 0, 0, block.Corrupt(Format, "snapshot table", off+8, "l1_size is %d, and an L1 table has at most %d entries", s.L1Size, MaxL1Bytes/8)
	case s.L1TableOffset&mask != 0 || s.L1TableOffset > MaxOffset || s.L1Size > 0 && s.L1TableOffset == 0:
		return s, 0, 0, block.Corrupt(Format, "snapshot table", off, "l1_table_offset is %#x, which cannot be", s.L1TableOffset)
	}
	return s, length, 0, nil
}

// Append appends the entry with its padding.
func (s *Snapshot) Append(b []byte) []byte {
	be := binary.BigEndian
	start := len(b)
	b = be.AppendUint64(b, s.L1TableOffset)
	b = be.AppendUint32(b, s.L1Size)
	b = be.AppendUint16(b, uint16(len(s.ID)))
	b = be.AppendUint16(b, uint16(len(s.Name)))
	b = be.AppendUint32(b, s.DateSec)
	b = be.AppendUint32(b, s.DateNsec)
	b = be.AppendUint64(b, s.VMClockNsec)
	if s.HasDiskSize {
		b = be.AppendUint32(b, uint32(min(s.VMStateSize, 1<<32-1)))
		b = be.AppendUint32(b, uint32(snapshotExtraIcounts+len(s.Unknown)))
		b = be.AppendUint64(b, s.VMStateSize)
		b = be.AppendUint64(b, s.DiskSize)
		b = be.AppendUint64(b, s.Icount)
		b = append(b, s.Unknown...)
	} else {
		b = be.AppendUint32(b, uint32(s.VMStateSize))
		b = be.AppendUint32(b, 0)
	}
	b = append(b, s.ID...)
	b = append(b, s.Name...)
	return append(b, make([]byte, -(len(b)-start)&7)...)
}

// ReadSnapshots reads the snapshot table, and returns its length in bytes as well.
func ReadSnapshots(ctx context.Context, dev block.Device, h *Header) ([]Snapshot, int64, error) {
	var list []Snapshot
	var p []byte // what has been read of the table behind the entries in list
	start := int64(h.SnapshotsOffset)
	off, end := start, start
	for len(list) < int(h.NbSnapshots) {
		s, n, need, err := ParseSnapshot(p, off, h)
		switch {
		case err != nil:
			return nil, 0, err
		case off-start > MaxSnapshotTableBytes:
			return nil, 0, block.Corrupt(Format, "snapshot table", off, "it has more than %d bytes", MaxSnapshotTableBytes)
		case need == 0:
			list = append(list, s)
			p, off = p[min(n, len(p)):], off+int64(n) // the file may end before the padding of the last entry
			continue
		}
		q := make([]byte, max(0, min(max(int64(need-len(p)), snapshotBatch), dev.Size()-end)))
		if len(q) == 0 {
			return nil, 0, block.Corrupt(Format, "snapshot table", off, "the file ends inside it: %w", io.ErrUnexpectedEOF)
		}
		if err := dev.Read(ctx, q, end); err != nil {
			return nil, 0, err
		}
		p, end = append(p, q...), end+int64(len(q))
	}
	return list, off - start, nil
}

// snapshotBatch is how much of a snapshot table is read at a time, in bytes.
const snapshotBatch = 64 << 10
