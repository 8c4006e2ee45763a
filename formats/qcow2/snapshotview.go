package qcow2

import (
	"context"
	"io/fs"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// snapshotChunk is how much of the snapshot table is read at a time, in bytes.
const snapshotChunk = 64 << 10

// readSnapshots reads the snapshot table.
func (d *Device) readSnapshots(ctx context.Context) ([]ondisk.Snapshot, error) {
	start := int64(d.h.SnapshotsOffset)
	var list []ondisk.Snapshot
	var p []byte // of the table, from byte at of the file on
	for at := start; len(list) < int(d.h.NbSnapshots); {
		s, n, need, err := ondisk.ParseSnapshot(p, at, d.h)
		if err != nil {
			return nil, err
		}
		if need == 0 {
			list, p, at = append(list, s), p[min(n, len(p)):], at+int64(n)
			if at-start > ondisk.MaxSnapshotTableBytes {
				return nil, d.corrupt("snapshot table", start, "it has more than %d bytes", ondisk.MaxSnapshotTableBytes)
			}
			continue
		}
		have := int64(len(p))
		more := min(max(int64(need)-have, snapshotChunk), d.file.Size()-at-have)
		if more <= 0 {
			return nil, d.corrupt("snapshot table", start, "entry %d at byte %d leaves the file", len(list), at)
		}
		p = append(p, make([]byte, more)...)
		if err := d.file.Read(ctx, p[have:], at+have); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// findSnapshot returns the snapshot with an ID, or else with a name.
func (d *Device) findSnapshot(ctx context.Context, idOrName string) (ondisk.Snapshot, error) {
	list, err := d.readSnapshots(ctx)
	if err != nil {
		return ondisk.Snapshot{}, err
	}
	for _, s := range list {
		if s.ID == idOrName {
			return s, nil
		}
	}
	for _, s := range list {
		if s.Name == idOrName {
			return s, nil
		}
	}
	return ondisk.Snapshot{}, block.ErrorOf(fs.ErrNotExist, "there is no snapshot %q", idOrName)
}
