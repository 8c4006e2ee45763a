package file

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
)

func TestConformance(t *testing.T) {
	const size = 1<<20 + 777
	dirs := folders(t)
	for i, dir := range dirs {
		ops := 60 // where each flush waits for a disk
		if i == len(dirs)-1 {
			ops = 0 // as many as the suite likes, in memory where that can be had
		}
		reopen := func(t *testing.T, d block.Device) block.Device {
			path := d.Info().Name
			ok(t, d.Close())
			return open(t, path, Options{Write: true})
		}
		fresh := func(t *testing.T) *Device {
			d := open(t, newFile(t, dir, nil), Options{Write: true})
			ok(t, d.Resize(t.Context(), size))
			// Space that is reserved and not written is a hole to lseek, so that the suite would not see that Zero with NoHole keeps
			// it: zeros are written here, and TestHoles looks at the space that reserving takes up.
			d.ways.keeps = nil
			return d
		}
		t.Run("sparse", func(t *testing.T) {
			blocktest.Run(t, blocktest.Config{
				New:    func(t *testing.T) block.Device { return fresh(t) },
				Size:   size,
				Reopen: reopen,
				Ops:    ops,
				Pins:   true,
			})
		})
		if ops > 0 {
			continue // what the file system can do does not matter to the rest
		}
		t.Run("emulated", func(t *testing.T) {
			blocktest.Run(t, blocktest.Config{
				New: func(t *testing.T) block.Device {
					d := fresh(t)
					d.ways = ways{}
					d.oneRun.Store(true)
					return d
				},
				Size:   size,
				Reopen: reopen,
				Ops:    ops,
				Pins:   true,
			})
		})
	}
	t.Run("read-only", func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		content := noise(random, size)
		clear(content[100<<10 : 700<<10])
		path := newFile(t, t.TempDir(), content)
		blocktest.Run(t, blocktest.Config{
			New:      func(t *testing.T) block.Device { return open(t, path, Options{}) },
			Size:     size,
			Content:  bytes.NewReader(content),
			ReadOnly: true,
			Ops:      100,
			Pins:     true,
		})
	})
}
