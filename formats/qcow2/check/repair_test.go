package check

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/internal/peers"
)

// memory returns a device that holds img.
func memory(t testing.TB, img []byte) *block.Memory {
	t.Helper()
	m := block.NewMemory(int64(len(img)))
	must(t, m.Write(t.Context(), img, 0, 0))
	return m
}

// recorder remembers what is written between two flushes.
type recorder struct {
	block.Filter
	epochs [][]write
}

type write struct {
	off  int64
	data []byte
}

func (r *recorder) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if len(r.epochs) == 0 {
		r.epochs = [][]write{nil}
	}
	last := &r.epochs[len(r.epochs)-1]
	*last = append(*last, write{off, append([]byte(nil), p...)})
	return r.Filter.Write(ctx, p, off, f)
}

func (r *recorder) Flush(ctx context.Context) error {
	r.epochs = append(r.epochs, nil)
	return r.Filter.Flush(ctx)
}

// tooLow returns how many clusters that begin below end are counted lower than they are used.
func tooLow(t *testing.T, dev block.Device, end int) int {
	t.Helper()
	n := 0
	_, err := Check(t.Context(), dev, formats.CheckOptions{Problem: func(p formats.Problem) {
		if p.Kind == formats.Corruption && p.Part == partCluster && p.Off < int64(end) {
			n++
		}
	}})
	must(t, err)
	return n
}

// TestCrash interrupts repairs: whatever part of what was written since the last flush has reached the disk, no cluster is counted too low that
// was not before, and the next repair comes to the same end.
func TestCrash(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	peers.Need(t, "qemu-img")
	peers.Need(t, "qemu-io")
	for n, rec := range recipes {
		t.Run(rec.name, func(t *testing.T) {
			sound, err := os.ReadFile(rec.build(t, t.TempDir()))
			must(t, err)
			for seed := range uint64(rounds(12)) {
				r := rand.New(rand.NewPCG(seed, uint64(n)))
				img := append([]byte(nil), sound...)
				var done []string
				for range 1 + r.IntN(4) {
					done = append(done, damage(t, img, r))
				}
				interrupt(t, img, r, strings.Join(done, "; "))
			}
		})
	}
}

func interrupt(t *testing.T, img []byte, r *rand.Rand, what string) {
	t.Helper()
	disk := memory(t, img)
	rec := &recorder{Filter: block.Filter{Device: disk.Clone()}}
	want, err := Check(t.Context(), rec, formats.CheckOptions{Repair: formats.RepairAll})
	if err != nil { // what cannot be repaired may be reported so
		return
	}
	low := max(tooLow(t, disk, len(img)), tooLow(t, rec, len(img))) // what one look cannot compare, and what cannot be counted
	for _, epoch := range rec.epochs {
		for range 3 {
			crashed := disk.Clone()
			for _, w := range epoch {
				switch r.IntN(3) {
				case 0: // torn
					n := min(len(w.data), r.IntN(len(w.data)/512+1)*512)
					if n == 0 {
						continue
					}
					must(t, crashed.Write(t.Context(), w.data[:n], w.off, 0))
				case 1:
					must(t, crashed.Write(t.Context(), w.data, w.off, 0))
				}
			}
			if n := tooLow(t, crashed, len(img)); n > low {
				t.Fatalf("%s: %d clusters are counted too low after a crash, and %d before", what, n, low)
			}
			got, err := Check(t.Context(), crashed, formats.CheckOptions{Repair: formats.RepairAll})
			if err != nil || code(got, nil) != code(want, nil) {
				t.Fatalf("%s: after a crash %+v %v, and without %+v", what, got, err, want)
			}
		}
		for _, w := range epoch {
			must(t, disk.Write(t.Context(), w.data, w.off, 0))
		}
	}
}

// TestMarks: the dirty and corrupt bits go with the last damage, and unknown autoclear bits with the first write.
func TestMarks(t *testing.T) {
	peers.Need(t, "qemu-img")
	peers.Need(t, "qemu-io")
	sound, err := os.ReadFile(recipes[0].build(t, t.TempDir()))
	must(t, err)
	binary.BigEndian.PutUint64(sound[incompatibleField:], ondisk.IncompatDirty|ondisk.IncompatCorrupt)
	binary.BigEndian.PutUint64(sound[autoclearField:], 1<<40)
	for _, how := range []formats.Repair{formats.RepairNothing, formats.RepairLeaks, formats.RepairAll} {
		dev := memory(t, sound)
		_, err := Check(t.Context(), dev, formats.CheckOptions{Repair: how})
		must(t, err)
		h, err := ondisk.ReadHeader(t.Context(), dev)
		must(t, err)
		if clean := h.IncompatibleFeatures == 0 && h.AutoclearFeatures == 0; clean != (how != formats.RepairNothing) {
			t.Errorf("repair %d: features %#x, %#x", how, h.IncompatibleFeatures, h.AutoclearFeatures)
		}
	}
}

// TestReadOnly: a repair of what cannot be written is refused, a check is not.
func TestReadOnly(t *testing.T) {
	peers.Need(t, "qemu-img")
	peers.Need(t, "qemu-io")
	sound, err := os.ReadFile(recipes[0].build(t, t.TempDir()))
	must(t, err)
	dev := block.Protect(memory(t, sound))
	if _, err := Check(t.Context(), dev, formats.CheckOptions{Repair: formats.RepairLeaks}); err != block.ErrReadOnly {
		t.Errorf("repair: %v", err)
	}
	_, err = Check(t.Context(), dev, formats.CheckOptions{})
	must(t, err)
}

// TestEmptyEntry: an entry of an L1 table that has nothing but the COPIED flag is damage, and is cleared.
func TestEmptyEntry(t *testing.T) {
	img := small(t, 9, 0)
	dev := memory(t, img)
	sound, err := Check(t.Context(), dev, formats.CheckOptions{Repair: formats.RepairAll})
	must(t, err)
	if code(sound, nil) != 0 {
		t.Fatalf("%+v", sound)
	}
	h, err := ondisk.ReadHeader(t.Context(), dev)
	must(t, err)
	must(t, dev.Write(t.Context(), binary.BigEndian.AppendUint64(nil, ondisk.Copied), int64(h.L1TableOffset), 0))
	before, err := Check(t.Context(), dev, formats.CheckOptions{})
	must(t, err)
	after, err := Check(t.Context(), dev, formats.CheckOptions{Repair: formats.RepairAll})
	must(t, err)
	if before.Corruptions != 1 || code(after, nil) != 0 || after.CorruptionsFixed != 1 {
		t.Errorf("%+v becomes %+v", before, after)
	}
}
