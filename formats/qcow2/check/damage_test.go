package check

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/internal/peers"
)

// recipe is an image to damage.
type recipe struct {
	name    string
	options string
	steps   []string // qemu-io commands; what begins with a hyphen is for qemu-img snapshot, with a plus for qemu-img bitmap
}

var recipes = []recipe{
	{"v3", "cluster_size=4k", []string{"write -P 1 0 200k", "write -P 2 1M 64k", "write -z 300k 20k", "write -c -P 3 400k 4k", "write -c -P 4 408k 4k"}},
	{"v2", "compat=0.10,cluster_size=512", []string{"write -P 1 0 200k", "write -P 2 1M 64k"}},
	{"snapshots", "cluster_size=2k,refcount_bits=8", []string{"write -P 1 0 200k", "-c one", "write -P 2 100k 300k", "-c two", "write -P 3 0 30k"}},
	{"subclusters", "extended_l2=on,cluster_size=16k", []string{"write -P 1 0 210k", "write -P 2 1M 2k", "write -z 301k 2k", "write -c -P 3 512k 16k"}},
	{"refcounts64", "cluster_size=512,refcount_bits=64", []string{"write -P 1 3M 300k", "-c one", "write -P 2 3M 10k"}},
	{"refcounts1", "cluster_size=1k,refcount_bits=1", []string{"write -P 1 3M 300k"}},
	{"bitmaps", "cluster_size=4k", []string{"write -P 1 1M 100k", "+--add -g 512", "write -P 2 2M 300k"}},
	{"preallocated", "cluster_size=8k,preallocation=metadata", []string{"write -P 1 1M 100k"}},
}

// build makes the image of a recipe.
func (r recipe) build(t testing.TB, dir string) string {
	t.Helper()
	name := filepath.Join(dir, r.name+".qcow2")
	peers.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", r.options, name, "4M")
	for i, s := range r.steps {
		switch s[0] {
		case '-':
			peers.Run(t, "qemu-img", append(append([]string{"snapshot"}, strings.Fields(s)...), name)...)
		case '+':
			peers.Run(t, "qemu-img", append(append([]string{"bitmap"}, strings.Fields(s[1:])...), name, fmt.Sprint("b", i))...)
		default:
			peers.Run(t, "qemu-io", "-f", "qcow2", "-c", s, name)
		}
	}
	return name
}

// damage changes some bytes of the metadata of an image, and says what.
func damage(t testing.TB, img []byte, r *rand.Rand) string {
	t.Helper()
	h, err := ondisk.ParseHeader(img[:min(len(img), 1<<16)])
	must(t, err)
	be, cs := binary.BigEndian, uint64(h.ClusterSize())
	// entry returns the place of an entry that is not zero in the table of n bytes at off, or in the header where earlier damage has moved the table away.
	entry := func(off, n uint64) uint64 {
		if off > uint64(len(img)) || n > uint64(len(img))-off {
			return 16 // the length of the name of the backing file, and cluster_bits
		}
		at := off
		for range 200 {
			at = off + r.Uint64N(n/8)*8
			if be.Uint64(img[at:]) != 0 {
				break
			}
		}
		return at
	}
	l2 := func() uint64 { return be.Uint64(img[entry(h.L1TableOffset, uint64(h.L1Size)*8):]) & ondisk.OffsetMask }
	block := func() uint64 {
		return be.Uint64(img[entry(h.RefcountTableOffset, uint64(h.RefcountTableClusters)*cs):])
	}
	change := func(what string, at uint64, v uint64) string {
		old := be.Uint64(img[at:])
		be.PutUint64(img[at:], v)
		return fmt.Sprintf("%s at %#x: %#x becomes %#x", what, at, old, v)
	}
	wild := func(old uint64) uint64 {
		switch r.IntN(6) {
		case 0:
			return 0
		case 1:
			return old ^ 1<<63
		case 2:
			return old ^ 1<<r.IntN(64)
		case 3:
			return r.Uint64N(uint64(len(img))/cs)*cs | old&^ondisk.OffsetMask
		case 4:
			return old + cs
		}
		return r.Uint64()
	}
	switch what := r.IntN(10); {
	case what < 5:
		if off := l2(); off != 0 && off < uint64(len(img)) {
			at := entry(off, cs)
			return change("L2 entry", at, wild(be.Uint64(img[at:])))
		}
	case what < 8:
		if off := block(); off != 0 && off+cs <= uint64(len(img)) {
			i, n := int64(r.Uint64N(min(uint64(len(img))/cs, uint64(h.RefcountBlockEntries())))), h.RefcountOrder
			old := ondisk.Refcount(img[off:], i, n)
			v := r.Uint64N(4) & ondisk.MaxRefcount(n)
			ondisk.SetRefcount(img[off:], i, n, v)
			return fmt.Sprintf("refcount %d at %#x: %d becomes %d", i, off, old, v)
		}
	case what == 8:
		at := entry(h.L1TableOffset, uint64(h.L1Size)*8)
		return change("L1 entry", at, wild(be.Uint64(img[at:])))
	}
	at := entry(h.RefcountTableOffset, cs)
	return change("refcount table entry", at, wild(be.Uint64(img[at:])))
}

// rounds returns how many rounds of a random test to make.
func rounds(n int) int {
	if os.Getenv("IMGTOOL_SOAK") != "" {
		return 20 * n
	}
	return n
}

func TestDamage(t *testing.T) {
	peers.Need(t, "qemu-img")
	peers.Need(t, "qemu-io")
	for n, rec := range recipes {
		t.Run(rec.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			sound, err := os.ReadFile(rec.build(t, dir))
			must(t, err)
			name := filepath.Join(dir, "damaged.qcow2")
			must(t, os.WriteFile(name, sound, 0o600))
			if r, told, err := run(t, name, formats.RepairNothing); code(r, err) != 0 {
				t.Fatalf("%+v %v %+v", r, err, told)
			}
			want, _ := qemuCheck(t, name)
			if r, _, _ := run(t, name, formats.RepairNothing); asTheirs(r) != want {
				t.Fatalf("%+v\nqemu-img has\n%+v", asTheirs(r), want)
			}
			for seed := range uint64(rounds(2)) {
				r := rand.New(rand.NewPCG(seed, uint64(n)))
				img := append([]byte(nil), sound...)
				var done []string
				for range 1 + r.IntN(3) {
					done = append(done, damage(t, img, r))
				}
				tryDamaged(t, name, img, fmt.Sprintf("seed %d: %s", seed, strings.Join(done, "; ")))
			}
		})
	}
}

// tryDamaged checks and repairs a damaged image by both.
func tryDamaged(t *testing.T, name string, img []byte, what string) {
	t.Helper()
	for _, how := range []formats.Repair{formats.RepairNothing, formats.RepairLeaks, formats.RepairAll} {
		must(t, os.WriteFile(name, img, 0o600))
		before, readable := content(t, name)
		must(t, os.WriteFile(name, img, 0o600))
		ours, told, err := run(t, name, how)
		after, afterCode := qemuCheck(t, name)
		now, stillReadable := content(t, name)

		must(t, os.WriteFile(name, img, 0o600))
		var args []string
		if how != formats.RepairNothing {
			args = []string{"-r", []string{"", "leaks", "all"}[how]}
		}
		theirs, want := qemuCheck(t, name, args...)
		got := code(ours, err)
		if zeroInV2 := got == 2 && img[7] == 2 && slices.ContainsFunc(told, hasZeroFlag); !zeroInV2 && !agree(how, got, want, afterCode) {
			t.Errorf("%s\nrepair %d: code %d, qemu-img has %d: %+v %v; %+v\nqemu-img: %+v\nof ours: %+v",
				what, how, got, want, asTheirs(ours), err, told[:min(len(told), 8)], theirs, after)
		}
		if how == formats.RepairNothing && got == 1 && err != nil {
			return
		}
		if readable && (!stillReadable || !bytes.Equal(now, before)) {
			t.Errorf("%s\nrepair %d: the content has changed", what, how)
		}
	}
}

// agree reports whether our exit code is right, where qemu-img has want, and afterwards says after of the image that we have repaired.
func agree(how formats.Repair, got, want, after int) bool {
	switch how {
	case formats.RepairLeaks:
		// qemu-img ends with an error where refcounts would have to be rebuilt.
		return got == want || want == 1 && got == 2 && after == 2
	case formats.RepairAll:
		// Some of what qemu-img leaves is repaired, and where it fails we need not.
		return got == want && after == got || got == 0 && after == 0 || got == 2 && want == 1 && after == 2
	}
	return got == want
}

// hasZeroFlag reports whether a problem is an L2 entry with bit 0 set. qemu-img does not mind it in version 2 when it checks, but when it reads.
func hasZeroFlag(p formats.Problem) bool {
	var entry uint64
	_, err := fmt.Sscanf(p.Text, "entry %v has reserved bits set", &entry)
	return err == nil && p.Part == partL2 && entry&ondisk.Zero != 0
}

// content returns what the disk holds, and whether qemu-img can read it. The image may be changed by that.
func content(t *testing.T, name string) ([]byte, bool) {
	t.Helper()
	raw := name + ".raw"
	if err := peers.Command(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", name, raw).Run(); err != nil {
		return nil, false
	}
	p, err := os.ReadFile(raw)
	must(t, err)
	return p, true
}
