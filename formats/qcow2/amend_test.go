package qcow2

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/internal/peers"
)

// amendable makes an image with data, zero clusters with a place and without one, and then does more to it.
func amendable(t testing.TB, path, options, more string) {
	t.Helper()
	args := []string{"create", "-q", "-f", Name}
	if options != "" {
		args = append(args, strings.Fields(options)...)
	}
	qemuImg(t, append(args, path, "4M")...)
	qemuIO(t, path, "write -P 1 0 100k", "write -P 2 2M 300k", "write -z 1M 64k", "write -z 2M 128k", "write -z -u 2240k 64k")
	for _, m := range strings.Split(more, ";") {
		switch words := strings.Fields(m); {
		case m == "":
		case words[0] == "write" || words[0] == "discard":
			qemuIO(t, path, m)
		case words[0] == "resize":
			qemuImg(t, "resize", "-f", Name, path, words[1])
		default:
			qemuImg(t, append(words, path)...)
		}
	}
}

// What comes of a change: what comes of qemu-img's, or we refuse what qemu-img makes.
const (
	asTheirs = iota
	weRefuse
)

// amendCases are images, what is done to them before, and changes.
var amendCases = []struct {
	options, more, amend string
	code                 int
}{
	{"", "", "compat=0.10", asTheirs},
	{"", "", "compat=v2", asTheirs},
	{"", "", "compat=bogus", asTheirs},
	{"-o compat=0.10", "", "compat=1.1", asTheirs},
	{"-o compat=0.10", "snapshot -c one", "compat=v3", asTheirs},
	{"-o compat=0.10", "", "compat=v3,lazy_refcounts=on", asTheirs},
	{"-o compat=0.10", "", "lazy_refcounts=on", asTheirs},
	{"-o compat=0.10", "", "refcount_bits=8", asTheirs},
	{"-o compat=0.10", "", "compat=1.1,refcount_bits=8", asTheirs},
	{"-o lazy_refcounts=on", "", "compat=0.10", asTheirs},
	{"-o lazy_refcounts=on", "", "compat=0.10,lazy_refcounts=on", weRefuse}, // qemu-img forgets the one
	{"-o lazy_refcounts=on", "", "lazy_refcounts=off", asTheirs},
	{"-o refcount_bits=8", "", "compat=0.10", asTheirs},
	{"-o refcount_bits=8", "", "compat=0.10,refcount_bits=16", asTheirs},
	{"", "", "refcount_bits=64", asTheirs},
	{"", "", "refcount_bits=1", asTheirs},
	{"", "", "refcount_bits=3", asTheirs},
	{"", "", "refcount_bits=128", asTheirs},
	{"", "", "refcount_bits=0", asTheirs},
	{"", "snapshot -c one", "refcount_bits=1", asTheirs},
	{"", "snapshot -c one;write 0 300k;snapshot -c two", "refcount_bits=2", asTheirs},
	{"", "snapshot -c one;write 0 200k;snapshot -c two;write 1M 32k", "compat=0.10", asTheirs},
	{"", "snapshot -c one;resize +1M", "compat=0.10", asTheirs},
	{"-b base -F raw", "snapshot -c one;write 0 200k;snapshot -c two;write 1M 32k", "compat=0.10", asTheirs},
	{"-b base -F raw", "", "compat=0.10", asTheirs},
	{"-b base -F raw -o cluster_size=512", "", "compat=0.10", asTheirs},
	{"-b base -F raw -o cluster_size=2M", "discard 1M 3M", "compat=0.10", asTheirs},
	{"-b base -F raw -o compat=0.10,cluster_size=512", "snapshot -c one", "compat=1.1,refcount_bits=32", asTheirs},
	{"-o cluster_size=512,refcount_bits=64", "", "refcount_bits=1", asTheirs},
	{"-o cluster_size=512,refcount_bits=1", "", "refcount_bits=64", asTheirs},
	{"-o extended_l2=on", "", "compat=0.10", asTheirs},
	{"-o extended_l2=on", "snapshot -c one", "refcount_bits=4", asTheirs},
	{"-o compression_type=zstd", "", "compat=0.10", asTheirs},
	{"-o compression_type=zstd", "write -c 3M 64k", "compat=0.10", asTheirs},
	{"", "write -c 3M 64k", "compat=0.10", asTheirs},
	{"-o data_file=data", "", "compat=0.10", asTheirs},
	{"-o data_file=data", "", "data_file=data2", asTheirs},
	{"-o data_file=data", "", "data_file=", weRefuse}, // what qemu-img makes nobody can open
	{"-o data_file=data", "", "data_file_raw=on", asTheirs},
	{"-o data_file=data", "", "refcount_bits=64", asTheirs},
	{"-o data_file=data,data_file_raw=on", "", "data_file_raw=on", asTheirs},
	{"-o data_file=data,data_file_raw=on", "", "data_file_raw=off", asTheirs},
	{"", "", "data_file=data", asTheirs},
	{"", "", "data_file_raw=on", asTheirs},
	{"", "", "data_file_raw=off", asTheirs},
	{"", "", "cluster_size=64k", asTheirs},
	{"", "", "size=8M", asTheirs},
	{"", "", "size=2M", weRefuse}, // data would be lost without a word
	{"", "", "size=8M,compat=0.10,refcount_bits=16", asTheirs},
	{"", "", "preallocation=off", asTheirs},
	{"", "", "compression_type=zlib", asTheirs},
	{"", "", "extended_l2=off", asTheirs},
	{"-b base -F raw", "", "backing_file=", asTheirs},
	{"-b base -F raw", "", "backing_fmt=qcow2", asTheirs},
	{"", "", "nonsense=1", asTheirs},
	{"", "", "lazy_refcounts=maybe", asTheirs},
	{"", "", "compat=1.1,refcount_bits=16", asTheirs},
	{"", "", "lazy_refcounts=on,cluster_size=4k", asTheirs},
}

// TestAmend makes the same changes as qemu-img, and compares what comes of it.
func TestAmend(t *testing.T) {
	dir := memoryDir(t)
	t.Chdir(dir) // where the other files are
	r := rand.New(rand.NewPCG(30, 0))
	ok(t, os.WriteFile("base", noise(r, 3<<20), 0o666))
	for i, a := range amendCases {
		t.Run(fmt.Sprintf("%s %s %s", a.options, a.more, a.amend), func(t *testing.T) {
			if os.Getenv("IMGTOOL_SOAK") == "" && i%5 != 0 {
				t.Skip("IMGTOOL_SOAK is not set")
			}
			amendable(t, "mine", a.options, a.more)
			p, err := os.ReadFile("mine")
			ok(t, err)
			ok(t, os.WriteFile("theirs", p, 0o666))
			before := contentsOf(t, "mine")
			d := openPath(t, filepath.Join(dir, "mine"), true)
			values := map[string]string{}
			for _, pair := range strings.Split(a.amend, ",") {
				key, value, _ := strings.Cut(pair, "=")
				values[key] = value
			}
			k, _ := block.As[formats.Amender](d)
			err = k.Amend(ctx, values)
			ok(t, d.Close())
			theirs := peers.Command(t, "qemu-img", "amend", "-f", Name, "-o", a.amend, "theirs")
			if out, failed := theirs.CombinedOutput(); a.code == asTheirs && (failed == nil) != (err == nil) {
				t.Fatalf("we say %v, and qemu-img %v: %s", err, failed, out)
			}
			if err != nil {
				if q, _ := os.ReadFile("mine"); !bytes.Equal(p, q) {
					t.Fatal("what was refused has changed the image")
				}
				if a.code == asTheirs {
					return
				}
			}
			if a.code == weRefuse {
				if err == nil {
					t.Fatal("it was not refused")
				}
				return
			}
			if strings.Contains(a.amend, "data2") {
				ok(t, os.Rename("data", "data2"))
			}
			clean(t, "mine", "after us")
			if got, want := infoOf(t, "mine"), infoOf(t, "theirs"); got != want {
				t.Fatalf("%s\nwant %s", got, want)
			}
			after := contentsOf(t, "mine")
			for name, want := range before {
				same(t, after[name][:len(want)], want)
			}
		})
	}
}

// infoOf returns what qemu-img info says of an image, without what depends on its place.
func infoOf(t testing.TB, path string) string {
	t.Helper()
	var info map[string]any
	ok(t, json.Unmarshal(qemuImg(t, "info", "-f", Name, "--output=json", path), &info))
	delete(info, "actual-size")
	delete(info, "filename")
	return fmt.Sprint(info)
}

// contentsOf returns what qemu-img reads from an image, and from its snapshots.
func contentsOf(t testing.TB, path string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{"": rawOf(t, path)}
	var info struct{ Snapshots []struct{ Name string } }
	ok(t, json.Unmarshal(qemuImg(t, "info", "-f", Name, "--output=json", path), &info))
	for _, s := range info.Snapshots {
		all[s.Name] = rawOf(t, path, "-l", s.Name)
	}
	return all
}

// TestAmendGoesOn writes through a handle that has changed its image.
func TestAmendGoesOn(t *testing.T) {
	for _, options := range []string{"cluster_size=4k", "cluster_size=2M"} { // with the latter qemu-img takes minutes to amend
		t.Run(options, func(t *testing.T) { amendAndWrite(t, options) })
	}
}

func amendAndWrite(t *testing.T, options string) {
	path := filepath.Join(memoryDir(t), "image")
	create(t, path, options, "8M")
	d := openPath(t, path, true)
	k, _ := block.As[*Device](d)
	r := rand.New(rand.NewPCG(31, 0))
	model := make([]byte, 8<<20)
	for i, change := range []string{"refcount_bits=64", "refcount_bits=1", "lazy_refcounts=on", "refcount_bits=8", "refcount_bits=16", "compat=0.10", "compat=1.1", "refcount_bits=2"} {
		for range 20 {
			off := r.Int64N(int64(len(model)) - 100<<10)
			p := noise(r, 1+r.IntN(100<<10))
			if r.IntN(3) == 0 {
				clear(p)
				ok(t, d.Zero(ctx, off, int64(len(p)), 0))
			} else {
				ok(t, d.Write(ctx, p, off, 0))
			}
			copy(model[off:], p)
		}
		key, value, _ := strings.Cut(change, "=")
		if err := k.Amend(ctx, map[string]string{key: value}); err != nil {
			t.Fatalf("%s: %v", change, err)
		}
		if i == 3 {
			ok(t, k.CreateSnapshot(ctx, "one", time.Now()))
		}
	}
	same(t, contents(t, d, r), model)
	ok(t, d.Close())
	clean(t, path, "after us")
	same(t, rawOf(t, path), model)
}

// TestAmendCrash lets the power fail at every moment of changes: what the disk shows, and its snapshot, are never touched.
func TestAmendCrash(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	for i, c := range []struct{ options, change string }{
		{"-o cluster_size=4k,refcount_bits=64", "refcount_bits=2"},
		{"-o cluster_size=512", "refcount_bits=64"},
		{"-o cluster_size=4k -b backing -F raw", "compat=0.10"},
		{"-o cluster_size=4k", "compat=0.10"},
		{"-o compat=0.10,cluster_size=4k -b backing -F raw", "compat=1.1"},
		{"-o compat=0.10,cluster_size=4k", "compat=1.1,refcount_bits=4,lazy_refcounts=on"},
	} {
		t.Run(c.options+" "+c.change, func(t *testing.T) {
			t.Chdir(t.TempDir())
			backing := noise(rand.New(rand.NewPCG(32, 0)), 3<<20)
			ok(t, os.WriteFile("backing", backing, 0o666))
			amendable(t, "image", c.options, "snapshot -c one;write 64k 64k")
			want := contentsOf(t, "image")
			f := files{image: memoryOf(t, "image"), backing: backing}
			initial := []*block.Memory{f.image.Clone()}
			var log blocktest.Log
			d, err := Open(ctx, block.NoClose(log.Recorder(f.image)), formats.OpenOptions{Write: true, Refer: f.refer})
			ok(t, err)
			values := map[string]string{}
			for _, pair := range strings.Split(c.change, ",") {
				key, value, _ := strings.Cut(pair, "=")
				values[key] = value
			}
			k, _ := block.As[formats.Amender](d)
			ok(t, k.Amend(ctx, values))
			ok(t, d.Close())
			states, kept := 0, 1
			if os.Getenv("IMGTOOL_SOAK") != "" {
				kept = 4
			}
			for s := range log.Replay(blocktest.Crashes{Initial: initial, Torn: kept, Reordered: kept, Seed: uint64(i)}) {
				states++
				g := files{image: s.Devices[0], backing: backing}
				if res, err := check.Check(ctx, g.image, formats.CheckOptions{}); err != nil || res.Corruptions > 0 || res.CheckErrors > 0 {
					t.Fatalf("%s: %+v, %v", s.What, res, err)
				}
				for name, p := range want {
					o := formats.OpenOptions{Refer: g.refer}
					if name != "" {
						o.Values = map[string]string{"snapshot": name}
					}
					d, err := Open(ctx, block.NoClose(g.image), o)
					if err != nil {
						t.Fatalf("%s: %v", s.What, err)
					}
					got := make([]byte, d.Size())
					if err := d.Read(ctx, got, 0); err != nil || !bytes.Equal(got, p) {
						t.Fatalf("%s: snapshot %q is not what it was: %v", s.What, name, err)
					}
					ok(t, d.Close())
				}
				if states%40 == 0 {
					g.checkWithQemu(t, s.What)
				}
			}
			t.Logf("%d states", states)
			if states < 10 {
				t.Fatalf("only %d states", states)
			}
			h, err := ondisk.ReadHeader(ctx, f.image)
			ok(t, err)
			if want := strings.Contains(c.change, "0.10"); (h.Version == 2) != want {
				t.Fatalf("version %d", h.Version)
			}
		})
	}
}
