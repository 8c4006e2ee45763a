package gzipmod

import (
	"bytes"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
)

func TestConformance(t *testing.T) {
	t.Run("read-only", func(t *testing.T) {
		p := append(image(40, 150345), make([]byte, 100000)...)
		file := content(t, mod(t, device(t, p), Options{Keep: []Range{span(20000, 70000)}}, 2))
		blocktest.Run(t, blocktest.Config{
			Size: int64(len(p)), Content: bytes.NewReader(p), ReadOnly: true,
			New: func(t *testing.T) block.Device {
				d, err := Open(ctx, device(t, file), OpenOptions{Cache: 1})
				check(t, err)
				return d
			},
		})
	})
	t.Run("kept", func(t *testing.T) {
		const size = 130000
		var file *block.Memory
		var mark *memoryMark
		open := func(t *testing.T) block.Device {
			d, err := Open(ctx, block.NoClose(file), OpenOptions{Write: true, Mark: mark})
			check(t, err)
			return d
		}
		blocktest.Run(t, blocktest.Config{
			Size: size,
			New: func(t *testing.T) block.Device {
				file, mark = mod(t, block.NewMemory(size), Options{Keep: []Range{span(0, size)}}, 1), &memoryMark{}
				return open(t)
			},
			Reopen: func(t *testing.T, d block.Device) block.Device {
				check(t, d.Close())
				verify(t, file)
				return open(t)
			},
		})
	})
}
