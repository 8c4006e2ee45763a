package convert_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/convert"
)

func ExampleCopy() {
	ctx := context.Background()
	src, dst := block.NewMemory(1<<30), block.NewMemory(0)
	if err := src.Write(ctx, []byte("hello"), 512<<20, 0); err != nil {
		log.Fatal(err)
	}
	stats, err := convert.Copy(ctx, src, dst, convert.Options{
		ZeroGranule:  convert.DefaultZeroGranule,
		TargetIsZero: true,
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("of %d bytes %d were read, and %d written\n", stats.Size, stats.Read, stats.Written)
	// Output: of 1073741824 bytes 4096 were read, and 4096 written
}

// A disk with a bad sector is copied as far as it can be read.
func ExampleNewSalvage() {
	ctx := context.Background()
	disk := blocktest.NewFaulty(block.NewPattern(1<<20), blocktest.Fault{Ops: blocktest.OpRead, Off: 70000, Len: 1, Err: errors.New("bad sector")})
	src := convert.NewSalvage(disk, func(l convert.Loss) { fmt.Printf("lost: %d bytes at byte %d: %v\n", l.Len, l.Off, l.Err) })
	if _, err := convert.Copy(ctx, src, block.NewMemory(0), convert.Options{}); err != nil {
		log.Fatal(err)
	}
	fmt.Println("all in all:", src.Lost())
	// Output:
	// lost: 512 bytes at byte 69632: bad sector
	// all in all: 512
}
