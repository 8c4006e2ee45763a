package gz

import (
	"bytes"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats"
)

func TestForeignConformance(t *testing.T) {
	want := text(8, 100777)
	file := append(member(t, want[:70000], 0), member(t, want[70000:], 0)...)
	blocktest.Run(t, blocktest.Config{
		Size: int64(len(want)), Content: bytes.NewReader(want), ReadOnly: true,
		New: func(t *testing.T) block.Device {
			d, err := open(ctx, device(t, file), formats.OpenOptions{})
			check(t, err)
			return d
		},
	})
}
