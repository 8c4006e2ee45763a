package qcow2

import (
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
	"github.com/imgtool/imgtool/formats/qcow2/ondisk"
)

// TestHeaderCrash lets the power fail while headers of many lengths replace each other: the file always has one of them.
func TestHeaderCrash(t *testing.T) {
	f := kindOfImage{options: "cluster_size=4k", backing: 64 << 10}.template(t, 1<<20)
	plain, _ := block.As[*Device](f.open(t, true))
	h := *plain.h
	h.SetExtension(ondisk.ExtFeatureNames, ondisk.EncodeFeatureNames(ondisk.KnownFeatureNames()))
	ok(t, plain.setHeader(ctx, &h))
	ok(t, plain.Close())
	initial := []*block.Memory{f.image.Clone()}
	var log blocktest.Log
	dev, err := Open(ctx, block.NoClose(log.Recorder(f.image)), formats.OpenOptions{Write: true, Refer: f.refer})
	ok(t, err)
	d, _ := block.As[*Device](dev)
	names := []string{"backing"}
	for i, n := range []int{300, 5, 100, 340, 1, 200} {
		names = append(names, strings.Repeat(string(rune('a'+i)), n))
		ok(t, d.SetBacking(ctx, names[i+1], "raw"))
		log.Mark(i + 1)
		ok(t, d.AddBitmap(ctx, names[i+1][:1], 4096, false))
	}
	ok(t, d.Close())
	states, shortened := 0, 0
	for s := range log.Replay(blocktest.Crashes{Initial: initial, Torn: 4, Reordered: 4, Seed: 1}) {
		states++
		h, err := ondisk.ReadHeader(ctx, s.Devices[0])
		if err != nil {
			t.Fatalf("%s: %v", s.What, err)
		}
		if i := slices.Index(names, h.BackingFile); i != s.Mark && i != s.Mark+1 || h.BackingFormat() != "raw" {
			t.Fatalf("%s: the backing file is %q of format %q, and was %q", s.What, h.BackingFile, h.BackingFormat(), names[s.Mark])
		}
		g := files{image: s.Devices[0], backing: f.backing}
		r := g.open(t, false)
		k, _ := block.As[formats.BitmapKeeper](r)
		if len(h.FeatureNames()) == 0 {
			shortened++
		}
		if n := len(k.Bitmaps()); n < s.Mark-1 || n > s.Mark+1 {
			t.Fatalf("%s: %d bitmaps after %d names", s.What, n, s.Mark)
		}
		ok(t, r.Close())
	}
	if states < 100 || shortened == 0 {
		t.Fatalf("%d states, %d of them with a short header", states, shortened)
	}
}
