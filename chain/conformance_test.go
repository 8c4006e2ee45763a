package chain

import (
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/formats/all"
)

// TestConformance runs the conformance suite over whole chains, with raw on top of the source and with views of it.
func TestConformance(t *testing.T) {
	for _, text := range []string{
		"memory:100001",
		"memory:300003::window,offset=1000,size=100001",
		"memory:300003::raw::part=range=7+100001::raw",
	} {
		t.Run(text, func(t *testing.T) {
			blocktest.Run(t, blocktest.Config{
				Size: 100_001,
				New: func(t *testing.T) block.Device {
					img, err := Open(t.Context(), text, Options{Registry: all.Drivers(), Write: true})
					if err != nil {
						t.Fatal(err)
					}
					return img.Device
				},
			})
		})
	}
}
