package gzipmod

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/gzipmod/mark"
)

// deviceMark is a mark.Store in a device, as mark.File is one in a file: there is one where the device has bytes.
type deviceMark struct{ d block.Device }

func (m deviceMark) Load(context.Context) ([]byte, error) {
	p := make([]byte, m.d.Size())
	if len(p) == 0 {
		return nil, nil
	}
	return p, m.d.Read(ctx, p, 0)
}

func (m deviceMark) Save(ctx context.Context, p []byte) error {
	if err := m.d.Resize(ctx, 0); err != nil {
		return err
	}
	return m.Append(ctx, p)
}

func (m deviceMark) Append(ctx context.Context, p []byte) error {
	if err := m.d.Write(ctx, p, m.d.Size(), 0); err != nil {
		return err
	}
	return m.d.Flush(ctx)
}

func (m deviceMark) Clear(ctx context.Context) error { return m.d.Resize(ctx, 0) }

// TestCrashWhileChanging lets the power fail at every moment of a series of changes, with writes torn and reordered, and demands that each
// time the file is either right or can be repaired, and holds everything that was flushed.
func TestCrashWhileChanging(t *testing.T) {
	const kept = 260000 // five stored blocks, with a hole before it and data behind
	base := append(make([]byte, 100<<10), image(50, kept+50000)...)
	from := int64(100 << 10)
	file := mod(t, device(t, base), Options{Keep: []Range{span(from, kept)}}, 2)
	initial := file.Clone()

	var log blocktest.Log
	mark := deviceMark{log.Recorder(block.NewMemory(0))}
	d, err := Open(ctx, log.Recorder(file), OpenOptions{Write: true, Mark: mark})
	check(t, err)
	r := rand.New(rand.NewPCG(9, 9))
	versions := [][]byte{bytes.Clone(base)} // the image after each write
	flushed := []int{0}                     // by number of the log's mark: how many writes were durable
	for i := range 12 {
		p := bytes.Clone(versions[len(versions)-1])
		off := from + r.Int64N(kept-70000)
		q := p[off : off+1+r.Int64N(70000)]
		for k := range q {
			q[k] = byte(r.Uint32())
		}
		versions = append(versions, p)
		check(t, d.Write(ctx, q, off, 0))
		if i%3 == 2 {
			check(t, d.Flush(ctx))
			flushed = append(flushed, len(versions)-1)
			log.Mark(len(flushed) - 1)
		}
		if i == 7 { // as when nothing is written for a while
			d.changes.removeIdle()
		}
	}
	check(t, d.Close())
	flushed = append(flushed, len(versions)-1)
	log.Mark(len(flushed) - 1)

	torn := 3
	if testing.Short() {
		torn = 2
	}
	states := 0
	for s := range log.Replay(blocktest.Crashes{Initial: []*block.Memory{nil, initial}, Torn: torn, Reordered: torn, Seed: 1}) {
		states++
		mark, file := deviceMark{s.Devices[0]}, s.Devices[1]
		if states%5 == 0 {
			interruptedRepair(t, mark.d.(*block.Memory), file, s.What)
			continue
		}
		if _, err := Repair(ctx, file, mark); err != nil {
			t.Fatalf("%s: %v", s.What, err)
		}
		sound(t, file, mark, s.What)
		between(t, content(t, openRead(t, file)), versions[flushed[s.Mark]:], s.What)
	}
	t.Logf("%d states", states)
	if states < 100 {
		t.Fatalf("only %d states", states)
	}
}

func openRead(t *testing.T, file block.Device) *Device {
	d, err := Open(ctx, block.NoClose(file), OpenOptions{})
	check(t, err)
	return d
}

// sound checks that the file is in order and has no mark.
func sound(t *testing.T, file block.Device, m mark.Store, what string) {
	t.Helper()
	if dirty, err := mark.Exists(ctx, m); dirty || err != nil {
		t.Fatalf("%s: the mark is still there, %v", what, err)
	}
	_, problems, err := Verify(ctx, file, VerifyOptions{Workers: 1})
	if err != nil || len(problems) > 0 {
		t.Fatalf("%s: %v, %v", what, err, problems)
	}
}

// between checks that every sector of the file holds what it held in one of the versions.
func between(t *testing.T, got []byte, versions [][]byte, what string) {
	t.Helper()
sectors:
	// Sectors of the file are not those of the image: a piece without a sector boundary of the file in it is 1 byte in general.
	for off := range got {
		for _, v := range versions {
			if got[off] == v[off] {
				continue sectors
			}
		}
		t.Fatalf("%s: byte %d is %#02x, which it never was", what, off, got[off])
	}
}

// interruptedRepair lets the power fail at every moment of a repair.
func interruptedRepair(t *testing.T, markDevice, file *block.Memory, what string) {
	t.Helper()
	initial := []*block.Memory{markDevice.Clone(), file.Clone()}
	var log blocktest.Log
	m := deviceMark{log.Recorder(markDevice)}
	if _, err := Repair(ctx, log.Recorder(file), m); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for s := range log.Replay(blocktest.Crashes{Initial: initial, Torn: 2, Reordered: 2}) {
		what := what + "; while repairing, " + s.What
		mark := deviceMark{s.Devices[0]}
		if _, err := Repair(ctx, s.Devices[1], mark); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		sound(t, s.Devices[1], mark, what)
	}
}

// TestCrashWhileRebuilding does the same to the making of an index.
func TestCrashWhileRebuilding(t *testing.T) {
	file := device(t, seeds(t)[1]).(*block.Memory)
	initial := file.Clone()
	var log blocktest.Log
	mark := deviceMark{log.Recorder(block.NewMemory(0))}
	check(t, Rebuild(ctx, log.Recorder(file), mark, nil))
	verify(t, file)
	for s := range log.Replay(blocktest.Crashes{Initial: []*block.Memory{nil, initial}, Torn: 20, Reordered: 10}) {
		mark, file := deviceMark{s.Devices[0]}, s.Devices[1]
		if _, err := Repair(ctx, file, mark); err != nil {
			t.Fatalf("%s: %v", s.What, err)
		}
		if err := Rebuild(ctx, file, mark, nil); err != nil {
			t.Fatalf("%s: %v", s.What, err)
		}
		sound(t, file, mark, s.What)
	}
}
