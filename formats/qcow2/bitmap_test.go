package qcow2

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/check"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
	"github.com/imgtool/imgtool/internal/peers"
)

// dirtyRanges returns what is set in a bitmap, as "offset+length" in KiB.
func dirtyRanges(t testing.TB, d block.Device, name string) string {
	t.Helper()
	var all []block.Extent
	for off := int64(0); off < d.Size(); {
		list, err := d.Extents(ctx, block.Map{Bitmap: name}, off, d.Size()-off, nil)
		ok(t, err)
		for _, e := range list {
			if e.Off != off || e.Len <= 0 || e.End() > d.Size() {
				t.Fatalf("extent %+v at %d", e, off)
			}
			all = block.AppendExtent(all, 0, e)
			off = e.End()
		}
	}
	return rangesText(all)
}

func rangesText(list []block.Extent) string {
	var b strings.Builder
	for _, e := range list {
		if e.Flags&block.ExtDirty != 0 {
			fmt.Fprintf(&b, "%g+%g ", float64(e.Off)/1024, float64(e.Len)/1024)
		}
	}
	return b.String()
}

// theirRanges returns what qemu-nbd shows of a bitmap.
func theirRanges(t testing.TB, path, name string) string {
	t.Helper()
	peers.Need(t, "qemu-nbd")
	out := peers.Run(t, "nbdinfo", "--json", "--map=qemu:dirty-bitmap:"+name, "--", "[", "qemu-nbd", "-r", "-f", Name, "-B", name, path, "]")
	var list []struct{ Offset, Length, Type int64 }
	ok(t, json.Unmarshal(out, &list))
	var all []block.Extent
	for _, e := range list {
		all = block.AppendExtent(all, 0, dirtyExtent(e.Offset, e.Length, e.Type != 0))
	}
	return rangesText(all)
}

// bitModel is what a bitmap should hold.
type bitModel struct {
	name        string
	granularity int64
	enabled     bool
	bits        []bool
}

func (m *bitModel) set(off, n int64) {
	for i := off / m.granularity; i <= (off+n-1)/m.granularity; i++ {
		m.bits[i] = true
	}
}

func (m *bitModel) resize(size int64) {
	n := int((size + m.granularity - 1) / m.granularity)
	m.bits = append(m.bits, make([]bool, max(0, n-len(m.bits)))...)[:n]
}

func (m *bitModel) ranges(size int64) string {
	var all []block.Extent
	for i, dirty := range m.bits {
		off := int64(i) * m.granularity
		all = block.AppendExtent(all, 0, dirtyExtent(off, min(m.granularity, size-off), dirty))
	}
	return rangesText(all)
}

// TestBitmapModel compares the bitmaps of images that change with a model, through our eyes and QEMU's.
func TestBitmapModel(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	for i, options := range []string{"cluster_size=512", "cluster_size=4k", "cluster_size=64k", "extended_l2=on,refcount_bits=1", "cluster_size=2M"} {
		t.Run(options, func(t *testing.T) {
			path := filepath.Join(memoryDir(t), "image")
			create(t, path, options, "20M")
			r := rand.New(rand.NewPCG(20, uint64(i)))
			var models []*bitModel
			d := openPath(t, path, true)
			keeper, _ := block.As[*Device](d)
			keeper.bitmaps.room = 10 << 10 // little memory
			for _, g := range []int64{512, 4096, 64 << 10, 1 << 20} {
				m := &bitModel{name: fmt.Sprint("g", g), granularity: g, enabled: g != 64<<10}
				m.resize(d.Size())
				models = append(models, m)
				ok(t, keeper.AddBitmap(ctx, m.name, g, m.enabled))
			}
			for round := range 6 {
				for range 30 {
					changeBitmapped(t, d, models, r)
				}
				for _, m := range models {
					if got, want := dirtyRanges(t, d, m.name), m.ranges(d.Size()); got != want {
						t.Fatalf("round %d: %s has %s\nwant %s", round, m.name, got, want)
					}
				}
				ok(t, d.Close())
				clean(t, path, "after us")
				m := models[round%len(models)]
				if got, want := theirRanges(t, path, m.name), m.ranges(d.Size()); got != want {
					t.Fatalf("round %d: QEMU sees in %s %s\nwant %s", round, m.name, got, want)
				}
				qemuWrites(t, path, models, d.Size(), r)
				d = openPath(t, path, true)
				keeper, _ = block.As[*Device](d)
				keeper.bitmaps.room = 10 << 10
				for _, m := range models {
					if got, want := dirtyRanges(t, d, m.name), m.ranges(d.Size()); got != want {
						t.Fatalf("after qemu-io %s has %s\nwant %s", m.name, got, want)
					}
				}
			}
		})
	}
}

// changeBitmapped changes an image and the models of its bitmaps.
func changeBitmapped(t *testing.T, d block.Device, models []*bitModel, r *rand.Rand) {
	t.Helper()
	keeper, _ := block.As[formats.BitmapKeeper](d)
	size := d.Size()
	off := r.Int64N(size)
	n := min(size-off, 1+r.Int64N(1<<uint(1+r.IntN(21))))
	m := models[r.IntN(len(models))]
	switch what := r.IntN(20); {
	case what < 8:
		n = min(n, 100<<10)
		ok(t, d.Write(ctx, noise(r, int(n)), off, 0))
	case what < 11:
		ok(t, d.Zero(ctx, off, n, 0))
	case what < 13:
		ok(t, d.Discard(ctx, off, n))
	case what == 13:
		size = block.RoundDown(max(1<<20, min(24<<20, size+r.Int64N(4<<20)-2<<20)), 512) // QEMU has whole sectors
		ok(t, d.Resize(ctx, size))
		for _, m := range models {
			m.resize(size)
		}
		return
	case what == 14:
		ok(t, keeper.ClearBitmap(ctx, m.name))
		clear(m.bits)
		return
	case what == 15:
		m.enabled = !m.enabled
		ok(t, keeper.EnableBitmap(ctx, m.name, m.enabled))
		return
	case what == 16:
		from := models[r.IntN(len(models))]
		ok(t, keeper.MergeBitmap(ctx, m.name, d, from.name))
		for i, dirty := range slices.Clone(from.bits) {
			if at := int64(i) * from.granularity; dirty {
				m.set(at, min(from.granularity, size-at))
			}
		}
		return
	case what == 17:
		ok(t, keeper.RemoveBitmap(ctx, m.name))
		if err := keeper.RemoveBitmap(ctx, m.name); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		m.enabled = true
		clear(m.bits)
		ok(t, keeper.AddBitmap(ctx, m.name, m.granularity, true))
		if err := keeper.AddBitmap(ctx, m.name, m.granularity, true); !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		return
	default:
		ok(t, d.Flush(ctx))
		return
	}
	for _, m := range models {
		if m.enabled {
			m.set(off, n)
		}
	}
}

// qemuWrites lets qemu-io write.
func qemuWrites(t *testing.T, path string, models []*bitModel, size int64, r *rand.Rand) {
	t.Helper()
	var commands []string
	for range 5 {
		off := r.Int64N(size)
		n := min(size-off, 1+r.Int64N(200<<10))
		commands = append(commands, fmt.Sprintf("write -P %d %d %d", r.IntN(256), off, n))
		for _, m := range models {
			if m.enabled {
				m.set(off, n)
			}
		}
	}
	qemuIO(t, path, commands...)
}

// TestBitmapVerbs changes bitmaps in turn with qemu-img, and compares what qemu-img then says.
func TestBitmapVerbs(t *testing.T) {
	dir := memoryDir(t)
	mine, theirs := filepath.Join(dir, "mine"), filepath.Join(dir, "theirs")
	for _, path := range []string{mine, theirs} {
		create(t, path, "", "64M")
		qemuImg(t, "bitmap", "--add", path, "first")
		qemuImg(t, "bitmap", "--add", "--disable", "-g", "512", path, "second")
		qemuIO(t, path, "write 1M 100k", "write -z 40M 3M")
	}
	steps := []struct {
		do   func(k formats.BitmapKeeper, d block.Device) error
		args string
	}{
		{func(k formats.BitmapKeeper, d block.Device) error { return k.AddBitmap(ctx, "third", 0, true) }, "--add third"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.MergeBitmap(ctx, "second", d, "first") }, "--merge first second"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.EnableBitmap(ctx, "second", true) }, "--enable second"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.EnableBitmap(ctx, "first", false) }, "--disable first"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.AddBitmap(ctx, "big", 1<<31, false) }, "--add --disable -g 2G big"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.AddBitmap(ctx, "odd", 1000, false) }, "--add -g 1000 odd"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.AddBitmap(ctx, "small", 256, false) }, "--add -g 256 small"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.AddBitmap(ctx, "big", 0, false) }, "--add big"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.MergeBitmap(ctx, "second", d, "none") }, "--merge none second"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.MergeBitmap(ctx, "none", d, "second") }, "--merge second none"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.ClearBitmap(ctx, "none") }, "--clear none"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.ClearBitmap(ctx, "first") }, "--clear first"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.RemoveBitmap(ctx, "first") }, "--remove first"},
		{func(k formats.BitmapKeeper, d block.Device) error { return k.RemoveBitmap(ctx, "third") }, "--remove third"},
	}
	for _, s := range steps {
		d := openPath(t, mine, true)
		k, _ := block.As[formats.BitmapKeeper](d)
		err := s.do(k, d)
		ok(t, d.Close())
		args := strings.Fields("bitmap -f qcow2 " + s.args)
		args = slices.Insert(args, len(args)-1, theirs)
		if cmd := peers.Command(t, "qemu-img", args...); (cmd.Run() == nil) != (err == nil) {
			t.Fatalf("%s: we say %v, and qemu-img not", s.args, err)
		}
		clean(t, mine, s.args)
		if a, b := bitmapsOf(t, mine), bitmapsOf(t, theirs); a != b {
			t.Fatalf("%s: %s\nwant %s", s.args, a, b)
		}
		if name := args[len(args)-1]; err == nil && !strings.Contains(s.args, "remove") && theirRanges(t, mine, name) != theirRanges(t, theirs, name) {
			t.Fatalf("%s: %s is not the same", s.args, name)
		}
	}
}

// bitmapsOf returns what qemu-img info has of bitmaps.
func bitmapsOf(t testing.TB, path string) string {
	t.Helper()
	var info struct {
		Specific struct {
			Data struct{ Bitmaps any }
		} `json:"format-specific"`
	}
	ok(t, json.Unmarshal(qemuImg(t, "info", "--output=json", path), &info))
	return fmt.Sprint(info.Specific.Data.Bitmaps)
}

// TestBitmapCrash lets the power fail at every moment while bitmaps are kept: one that says to be complete must have a bit for everything that
// is not what it was when the bitmap was empty.
func TestBitmapCrash(t *testing.T) {
	if testing.Short() {
		t.Skip("its work is done by one goroutine, and takes long under the race detector")
	}
	for i, options := range []string{"cluster_size=512", "cluster_size=4k,refcount_bits=64"} {
		t.Run(options, func(t *testing.T) {
			f := kindOfImage{options: options}.template(t, 400<<10)
			initial := []*block.Memory{f.image.Clone()}
			var log blocktest.Log
			file := log.Recorder(f.image)
			r := rand.New(rand.NewPCG(21, uint64(i)))
			for session := range 3 {
				d, err := Open(ctx, block.NoClose(file), formats.OpenOptions{Write: true, Memory: 1 << 20})
				ok(t, err)
				k, _ := block.As[*Device](d)
				k.bitmaps.room = 2 << 10
				if session == 0 {
					ok(t, k.AddBitmap(ctx, "kept", 512, true))
					ok(t, k.AddBitmap(ctx, "other", 4096, true))
				}
				for range 8 {
					off := r.Int64N(d.Size() - 60<<10)
					ok(t, d.Write(ctx, noise(r, 1+r.IntN(50<<10)), off, 0))
				}
				ok(t, d.Flush(ctx))
				ok(t, k.ClearBitmap(ctx, "other"))
				ok(t, k.MergeBitmap(ctx, "other", d, "kept"))
				ok(t, d.Resize(ctx, 400<<10+int64(session)*100<<10))
				ok(t, d.Write(ctx, noise(r, 1+r.IntN(50<<10)), r.Int64N(300<<10), 0))
				ok(t, d.Close())
			}
			states, complete := 0, 0
			for s := range log.Replay(blocktest.Crashes{Initial: initial, Torn: 1, Reordered: 2, Seed: uint64(i)}) {
				states++
				complete += survivingBitmaps(t, files{image: s.Devices[0]}, s)
				if states%100 == 0 {
					g := files{image: s.Devices[0]}
					g.checkWithQemu(t, s.What)
				}
			}
			t.Logf("%d states, %d complete bitmaps", states, complete)
			if states < 100 || complete < 50 {
				t.Fatalf("%d states, %d complete bitmaps", states, complete)
			}
		})
	}
}

// survivingBitmaps checks the bitmaps after a crash, and returns how many are complete.
func survivingBitmaps(t *testing.T, f files, s blocktest.State) (complete int) {
	t.Helper()
	if res, err := check.Check(ctx, f.image, formats.CheckOptions{}); err != nil || res.Corruptions > 0 || res.CheckErrors > 0 {
		t.Fatalf("%s: %+v, %v", s.What, res, err)
	}
	d := f.open(t, false)
	defer d.Close()
	k, _ := block.As[formats.BitmapKeeper](d)
	p := make([]byte, d.Size())
	ok(t, d.Read(ctx, p, 0))
	for _, b := range k.Bitmaps() {
		if b.InUse {
			if _, err := d.Extents(ctx, block.Map{Bitmap: b.Name}, 0, d.Size(), nil); err == nil {
				t.Fatalf("%s: bitmap %s is in use, and read", s.What, b.Name)
			}
			continue
		}
		complete++
		if b.Name != "kept" {
			continue
		}
		dirty := make([]bool, len(p)/int(b.Granularity)+1)
		for off := int64(0); off < d.Size(); {
			list, err := d.Extents(ctx, block.Map{Bitmap: b.Name}, off, d.Size()-off, nil)
			if err != nil {
				t.Fatalf("%s: %v", s.What, err)
			}
			for _, e := range list {
				for ; off < e.End(); off += b.Granularity {
					dirty[off/b.Granularity] = e.Flags&block.ExtDirty != 0
				}
			}
			off = min(off, d.Size())
		}
		for off, v := range p {
			if v != 0 && !dirty[off/int(b.Granularity)] {
				t.Fatalf("%s: byte %d has changed, and the bitmap does not say so", s.What, off)
			}
		}
	}
	return complete
}

// TestBitmapDamage writes to images of which bitmaps are damaged: the data is written, and the bitmap is lost.
func TestBitmapDamage(t *testing.T) {
	cases := []struct {
		name   string
		damage func(f files, e *ondisk.BitmapEntry) // of the only bitmap
	}{
		{"in use", func(f files, e *ondisk.BitmapEntry) { e.Flags |= ondisk.BitmapInUse }},
		{"table outside of the file", func(f files, e *ondisk.BitmapEntry) { e.BitmapTableOffset = 1 << 40 }},
		{"short table", func(f files, e *ondisk.BitmapEntry) { e.GranularityBits = 9 }},
		{"unknown type", func(f files, e *ondisk.BitmapEntry) { e.Type = 7 }},
		{"unknown flag", func(f files, e *ondisk.BitmapEntry) { e.Flags |= 8 }},
		{"reserved bit", func(f files, e *ondisk.BitmapEntry) {
			f.image.Write(ctx, []byte{0x80}, int64(e.BitmapTableOffset), 0)
		}},
		{"no bits", func(f files, e *ondisk.BitmapEntry) {
			f.image.Write(ctx, make([]byte, 8), int64(e.BitmapTableOffset), 0)
		}},
		{"bits outside of the file", func(f files, e *ondisk.BitmapEntry) {
			f.image.Write(ctx, []byte{0, 0x10}, int64(e.BitmapTableOffset), 0)
		}},
		{"bits of the refcount table", func(f files, e *ondisk.BitmapEntry) {
			f.image.Write(ctx, []byte{0, 0, 0, 0, 0, 0, 0x10, 0}, int64(e.BitmapTableOffset), 0)
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			create(t, path, "cluster_size=4k", "64M")
			qemuImg(t, "bitmap", "--add", "-g", "4k", path, "b")
			qemuIO(t, path, "write 3M 100k")
			f := files{image: memoryOf(t, path)}
			h, err := ondisk.ReadHeader(ctx, f.image)
			ok(t, err)
			x, err := h.Bitmaps()
			ok(t, err)
			p := make([]byte, x.BitmapDirectorySize)
			ok(t, f.image.Read(ctx, p, int64(x.BitmapDirectoryOffset)))
			list, err := ondisk.ParseBitmapDirectory(p, int64(x.BitmapDirectoryOffset), h)
			ok(t, err)
			c.damage(f, &list[0])
			ok(t, f.image.Write(ctx, list[0].Append(nil), int64(x.BitmapDirectoryOffset), 0))
			d := f.open(t, true)
			ok(t, d.Write(ctx, []byte("written"), 3<<20, 0))
			ok(t, d.Flush(ctx))
			ok(t, d.Close())
			d = f.open(t, true)
			k, _ := block.As[formats.BitmapKeeper](d)
			lost := c.name != "no bits"
			if b := k.Bitmaps(); len(b) != 1 || b[0].InUse != lost {
				t.Fatalf("%+v", b)
			}
			got := make([]byte, 7)
			ok(t, d.Read(ctx, got, 3<<20))
			same(t, got, []byte("written"))
			if _, err := d.Extents(ctx, block.Map{Bitmap: "b"}, 0, d.Size(), nil); (err != nil) != lost {
				t.Fatalf("%v", err)
			}
			ok(t, k.RemoveBitmap(ctx, "b"))
			if len(k.Bitmaps()) != 0 {
				t.Fatal("it is still there")
			}
			ok(t, d.Close())
			if res, err := check.Check(ctx, f.image, formats.CheckOptions{}); err != nil || res.Corruptions > 0 {
				t.Fatalf("%+v, %v", res, err)
			}
		})
	}
}

// TestBitmapHuge records all of a huge disk, in little memory.
func TestBitmapHuge(t *testing.T) {
	path := filepath.Join(memoryDir(t), "image")
	create(t, path, "", "1P")
	d := openPath(t, path, true)
	k, _ := block.As[*Device](d)
	if err := k.AddBitmap(ctx, "b", 512, true); err == nil {
		t.Fatal("a bitmap of 256 GiB was added")
	}
	ok(t, k.AddBitmap(ctx, "b", 1<<20, true))
	r := rand.New(rand.NewPCG(22, 0))
	most := int64(0)
	for range 3000 {
		ok(t, d.Write(ctx, []byte{1}, r.Int64N(d.Size())&^(16<<40-1)+r.Int64N(1<<30), 0))
		most = max(most, k.bitmaps.held)
	}
	ok(t, d.Zero(ctx, 0, 1<<20, 0))
	k.bitmaps.mu.Lock()
	ok(t, k.bitmaps.set(ctx, k.bitmaps.list[0], 0, d.Size()))
	most = max(most, k.bitmaps.held)
	k.bitmaps.mu.Unlock()
	if most > k.bitmaps.room+8<<10 {
		t.Fatalf("%d bytes of bits were held", most)
	}
	if got, want := dirtyRanges(t, d, "b"), fmt.Sprintf("0+%g ", float64(d.Size())/1024); got != want {
		t.Fatalf("%s, want %s", got, want)
	}
	ok(t, d.Close())
	clean(t, path, "after us")
}
