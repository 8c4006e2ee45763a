package qcow2

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/internal/peers"
)

// TestAlternate lets us and qemu-io change one image in turn, which must stay equal to a model and clean.
func TestAlternate(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	rounds := 2
	if os.Getenv("IMGTOOL_SOAK") != "" {
		rounds = 60
	}
	list := append([]kindOfImage{
		{name: "lazy", options: "lazy_refcounts=on,cluster_size=4k"},
		{name: "zstd", options: "compression_type=zstd,cluster_size=8k"},
		{name: "falloc", options: "preallocation=falloc,extended_l2=on"},
	}, kinds...)
	for i, k := range list {
		t.Run(k.name, func(t *testing.T) {
			dir := memoryDir(t)
			t.Chdir(dir) // qemu-img looks there for the data file
			path := filepath.Join(dir, "image")
			const size = 4<<20 + 512*3
			f := k.template(t, size)
			dump(t, f.image, path)
			if f.data != nil {
				dump(t, f.data, filepath.Join(dir, "data"))
			}
			ok(t, os.WriteFile(filepath.Join(dir, "backing"), f.backing, 0o666))
			model := make([]byte, size)
			copy(model, f.backing)
			r := rand.New(rand.NewPCG(8, uint64(i)))
			for round := range rounds {
				ours(t, path, model, r)
				clean(t, path, "after us")
				theirs(t, path, model, r, !k.dataFile && k.backing == 0)
				clean(t, path, "after qemu-io")
				d := openPath(t, path, false)
				same(t, contents(t, d, r), model)
				ok(t, d.Close())
				if round%2 == 0 {
					same(t, rawOf(t, path), model)
				}
			}
		})
	}
}

func clean(t *testing.T, path, when string) {
	t.Helper()
	cmd := peers.Command(t, "qemu-img", "check", "-f", Name, path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: qemu-img check: %v\n%s", when, err, out)
	}
}

// somewhere chooses a range: small or large, at a cluster or not.
func somewhere(r *rand.Rand, size, unit int64) (off, n int64) {
	n = 1 + r.Int64N(1<<uint(4+r.IntN(15)))
	off = r.Int64N(size)
	if r.IntN(2) == 0 {
		off, n = block.RoundDown(off, unit), max(unit, block.RoundDown(n, unit))
	}
	return off, min(n, size-off)
}

// ours changes the image.
func ours(t *testing.T, path string, model []byte, r *rand.Rand) {
	t.Helper()
	d := openPath(t, path, true)
	for range 40 {
		off, n := somewhere(r, d.Size(), d.Info().PreferredBlock)
		p := model[off : off+n]
		switch what := r.IntN(8); {
		case what < 5:
			copy(p, noise(r, len(p)))
			ok(t, d.Write(ctx, p, off, 0))
		case what < 7:
			clear(p)
			ok(t, d.Zero(ctx, off, n, block.NoHole*block.Flags(r.IntN(2))))
		default:
			ok(t, d.Discard(ctx, off, n))
			ok(t, d.Read(ctx, p, off))
		}
		if r.IntN(10) == 0 {
			ok(t, d.Flush(ctx))
		}
	}
	same(t, contents(t, d, r), model)
	ok(t, d.Close())
}

// theirs lets qemu-io change the image.
func theirs(t *testing.T, path string, model []byte, r *rand.Rand, compress bool) {
	t.Helper()
	var commands []string
	for range 25 {
		off, n := somewhere(r, int64(len(model)), 4096)
		p := model[off : off+n]
		fill := 1 + r.IntN(250)
		kind := ""
		switch what := r.IntN(8); {
		case what < 4:
			kind = fmt.Sprintf("-P %d", fill)
		case what < 5 && compress && r.IntN(4) == 0: // whole clusters that are not there yet
			const unit = 2 << 20
			off = block.RoundDown(off, unit)
			if off+unit > int64(len(model)) {
				continue
			}
			n, p = unit, model[off:off+unit]
			commands = append(commands, fmt.Sprintf("discard %d %d", off, n))
			kind = fmt.Sprintf("-c -P %d", fill)
		case what < 7:
			kind, fill = "-z", 0
			if r.IntN(2) == 0 {
				kind = "-z -u"
			}
		default:
			kind = fmt.Sprintf("-P %d", fill)
		}
		for i := range p {
			p[i] = byte(fill)
		}
		commands = append(commands, fmt.Sprintf("write %s %d %d", kind, off, n))
	}
	qemuIO(t, path, commands...)
}
