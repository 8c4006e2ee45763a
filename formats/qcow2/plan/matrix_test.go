package plan

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/internal/peers"
	"github.com/imgtool/imgtool/segment"
)

// axis is an option, or something else about an image, and the values that are tried.
type axis struct {
	name   string
	values []string
}

const (
	compression = "compression" // none, or a compression_type
	form        = "form"        // where the plan comes from and goes to
	backing     = "backing"
)

var axes = []axis{
	{"compat", []string{"1.1", "0.10"}},
	{"cluster_size", []string{"64k", "512", "4k", "16k", "2M"}},
	{"refcount_bits", []string{"16", "1", "2", "4", "8", "32", "64"}},
	{compression, []string{"none", "zlib", "zstd"}},
	{"extended_l2", []string{"off", "on"}},
	{backing, []string{"no", "yes"}},
	{"preallocation", []string{"off", "metadata", "falloc", "full"}},
	{form, []string{"file", "pipe", "stream"}},
}

// combination is a value for each axis.
type combination []int

func (c combination) value(name string) string {
	i := slices.IndexFunc(axes, func(a axis) bool { return a.name == name })
	return axes[i].values[c[i]]
}

// values returns the options of a combination.
func (c combination) values() map[string]string {
	v := map[string]string{}
	for i, a := range axes {
		v[a.name] = a.values[c[i]]
	}
	if v[compression] == "zstd" {
		v["compression_type"] = "zstd"
	}
	if v[backing] == "yes" {
		v["backing_file"], v["backing_fmt"] = "base.raw", "raw"
	}
	maps.DeleteFunc(v, func(name, _ string) bool { return name == compression || name == form || name == backing })
	return v
}

func (c combination) String() string {
	var s []string
	for i, a := range axes {
		s = append(s, a.name+"="+a.values[c[i]])
	}
	return strings.Join(s, ",")
}

// product returns every combination.
func product() []combination {
	all := []combination{{}}
	for _, a := range axes {
		var next []combination
		for _, c := range all {
			for v := range a.values {
				next = append(next, append(slices.Clone(c), v))
			}
		}
		all = next
	}
	return all
}

// legal reports whether an image of the combination can be.
func (c combination) legal() bool {
	is := func(name, value string) bool { return c.value(name) == value }
	v2, prealloc := is("compat", "0.10"), !is("preallocation", "off")
	switch {
	case v2 && (!is("refcount_bits", "16") || is(compression, "zstd") || is("extended_l2", "on")),
		is("extended_l2", "on") && (is("cluster_size", "512") || is("cluster_size", "4k")),
		prealloc && (!is(compression, "none") || is(backing, "yes") && is("extended_l2", "off")):
		return false
	}
	return true
}

// pairwise returns few of the combinations in which every pair of values that occurs in them all occurs.
func pairwise(all []combination) []combination {
	type pair struct{ a, x, b, y int }
	pairs := func(c combination, do func(pair)) {
		for a := range c {
			for b := a + 1; b < len(c); b++ {
				do(pair{a, c[a], b, c[b]})
			}
		}
	}
	missing := map[pair]bool{}
	for _, c := range all {
		pairs(c, func(p pair) { missing[p] = true })
	}
	var chosen []combination
	for len(missing) > 0 {
		best, most := 0, 0
		for i, c := range all {
			n := 0
			pairs(c, func(p pair) {
				if missing[p] {
					n++
				}
			})
			if n > most {
				best, most = i, n
			}
		}
		pairs(all[best], func(p pair) { delete(missing, p) })
		chosen = append(chosen, all[best])
	}
	return chosen
}

// TestMatrix writes images of all kinds, which qemu-img has to find clean and equal to their source.
func TestMatrix(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	peers.Need(t, "qemu-img")
	all := slices.DeleteFunc(product(), func(c combination) bool { return !c.legal() })
	if os.Getenv("IMGTOOL_SOAK") == "" {
		all = pairwise(all)
	}
	dir := t.TempDir()
	base := sample(t, 4, 5<<20+512)
	base.Resize(t.Context(), 4<<20) // the disk is longer than what is below it
	if err := os.Rename(raw(t, base), filepath.Join(dir, "base.raw")); err != nil {
		t.Fatal(err)
	}
	whole := sample(t, 5, 5<<20+512)
	over := overlaid(t, base, whole.Size())
	names := map[string]string{"no": raw(t, whole), "yes": raw(t, over)}
	for _, c := range all {
		src := block.Device(whole)
		if c.value(backing) == "yes" {
			src = over
		}
		p := c.plan(t, src)
		name := filepath.Join(dir, "image.qcow2")
		out := written
		if c.value(form) == "pipe" {
			out = piped
		}
		if err := os.WriteFile(name, out(t, p, segment.Options{}), 0o600); err != nil {
			t.Fatal(err)
		}
		if text, err := peers.Command(t, "qemu-img", "check", name).CombinedOutput(); err != nil {
			t.Errorf("%v: check: %v\n%s", c, err, text)
		}
		if text, err := peers.Command(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", names[c.value(backing)], name).CombinedOutput(); err != nil {
			t.Errorf("%v: compare: %v\n%s", c, err, text)
		}
	}
	t.Logf("%d images", len(all))
}

func (c combination) plan(t *testing.T, src block.Device) *segment.Plan {
	opts := options(t, c.values())
	o := formats.CreateOptions{Compress: c.value(compression) != "none"}
	switch c.value(form) {
	case "stream":
		o.Size = -1
		return streamOf(t, src, o, opts, false)
	case "pipe":
		o.OneWay = true
	}
	return planOf(t, src, o, opts)
}

// overlaid returns a disk of n bytes, longer than what is below it, in which some ranges are of an upper layer.
func overlaid(t *testing.T, base block.Device, n int64) block.Device {
	t.Helper()
	lower, err := block.Concat(base, block.NewMemory(n-base.Size()))
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.NewOverlay(lower, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(6, 6))
	for off := r.Int64N(300 << 10); off < n; off += r.Int64N(500 << 10) {
		p := make([]byte, min(1+r.Int64N(200<<10), n-off))
		switch r.IntN(3) {
		case 0:
			err = d.Zero(t.Context(), off, int64(len(p)), 0)
		case 1:
			err = d.Zero(t.Context(), off, int64(len(p)), block.NoHole)
		default:
			for i := range p {
				p[i] = byte(i >> 8)
			}
			err = d.Write(t.Context(), p, off, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// TestRefused: what cannot be is refused, and is refused by qemu-img, too.
func TestRefused(t *testing.T) {
	peers.Need(t, "qemu-img")
	all := slices.DeleteFunc(product(), func(c combination) bool {
		return c.value(form) != "file" || c.value(compression) == "zlib"
	})
	asked := map[string]bool{}
	for _, c := range all {
		opts := options(t, c.values())
		_, err := opts.resolve(1<<20, c.value(compression) != "none")
		if (err == nil) != c.legal() {
			t.Errorf("%v: legal %v, and the answer is %v", c, c.legal(), err)
		}
		// qemu-img says itself what may be created; once for each reason.
		if err == nil || asked[err.Error()] || c.value(compression) != "none" && c.value("preallocation") != "off" {
			continue
		}
		asked[err.Error()] = true
		var list []string
		for k, v := range c.values() {
			list = append(list, k+"="+v)
		}
		name := filepath.Join(t.TempDir(), "image.qcow2")
		if out, qerr := peers.Command(t, "qemu-img", "create", "-u", "-f", "qcow2", "-o", strings.Join(list, ","), name, "1M").CombinedOutput(); qerr == nil {
			t.Errorf("%v: qemu-img creates it, and the answer is %v\n%s", c, err, out)
		}
	}
	if len(asked) < 4 {
		t.Errorf("only %d reasons were seen", len(asked))
	}
}

// TestLimits: the largest disk is that of qemu-img.
func TestLimits(t *testing.T) {
	peers.Need(t, "qemu-img")
	for _, c := range []struct {
		values string
		size   int64
	}{
		{"cluster_size=512", 128 << 30}, {"cluster_size=4k", 8 << 40}, {"cluster_size=64k", 2 << 50}, {"cluster_size=16k,extended_l2=on", 64 << 40},
	} {
		for _, over := range []int64{0, 1} {
			v := map[string]string{}
			for _, pair := range strings.Split(c.values, ",") {
				key, value, _ := strings.Cut(pair, "=")
				v[key] = value
			}
			_, err := options(t, v).resolve(c.size+over, false)
			qerr := peers.Command(t, "qemu-img", "measure", "-O", "qcow2", "-o", c.values, "--size", fmt.Sprint(c.size+over)).Run()
			if (err == nil) != (qerr == nil) || (err == nil) != (over == 0) {
				t.Errorf("%s, %d bytes: %v; qemu-img: %v", c.values, c.size+over, err, qerr)
			}
		}
	}
}
