package plan

import (
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/formats"
)

// withBitmaps is a device that says it has bitmaps.
type withBitmaps struct {
	block.Device
	formats.BitmapKeeper // of which only Bitmaps is called
	list                 []formats.Bitmap
}

func (w withBitmaps) Bitmaps() []formats.Bitmap { return w.list }

// TestMeasureBitmaps has numbers of qemu-img 7.2.
func TestMeasureBitmaps(t *testing.T) {
	b := func(granularity int64, inUse bool) formats.Bitmap {
		return formats.Bitmap{Name: "b0", Granularity: granularity, InUse: inUse}
	}
	for _, c := range []struct {
		size int64
		list []formats.Bitmap
		want int64
	}{
		{4 << 20, []formats.Bitmap{b(64<<10, false), b(32<<10, false)}, 327680},
		{4 << 20, []formats.Bitmap{b(64<<10, true)}, 0},
		{4 << 20, nil, 0},
		{0, []formats.Bitmap{b(64<<10, false)}, 0},
		{1 << 40, []formats.Bitmap{b(512, false)}, 268435456 + 65536 + 65536},
	} {
		src := withBitmaps{Device: block.NewNull(c.size), list: c.list}
		m, err := Measure(t.Context(), src, formats.CreateOptions{}, *Defaults())
		if err != nil || m.Bitmaps != c.want {
			t.Errorf("%d bytes, %v: %d, %v, want %d", c.size, c.list, m.Bitmaps, err, c.want)
		}
		old := *Defaults()
		old.Compat = "0.10"
		if m, err := Measure(t.Context(), src, formats.CreateOptions{}, old); err != nil || m.Bitmaps != 0 {
			t.Errorf("version 2: %d, %v", m.Bitmaps, err)
		}
	}
}
