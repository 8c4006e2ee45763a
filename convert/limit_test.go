package convert

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
)

func TestLimit(t *testing.T) {
	src := newSparse(bytes.Repeat([]byte{1}, 300<<10))
	src.holes = []block.Extent{{Len: 200 << 10, Flags: block.ExtData}, {Off: 200 << 10, Len: 100 << 10, Flags: block.ExtZero}}
	clear(src.data[200<<10:])
	dst := newSparse(nil)
	start := time.Now()
	st, err := Copy(t.Context(), Limit(src, 1<<20), dst, Options{Workers: 4, Request: 16 << 10, TargetIsZero: true})
	if err != nil || !bytes.Equal(dst.data, src.data) || st.Read != 200<<10 {
		t.Fatalf("%+v, %v, equal %v", st, err, bytes.Equal(dst.data, src.data))
	}
	if took := time.Since(start); took < 200*time.Second/1024 {
		t.Errorf("200 KiB at 1 MiB/s took %v", took)
	}
	start = time.Now()
	if _, err := WriteStreamTo(t.Context(), LimitStream(&runs{data: src.data, step: 10 << 10}, 1<<20), io.Discard, Options{}); err != nil {
		t.Error(err)
	}
	if took := time.Since(start); took < 200*time.Second/1024 {
		t.Errorf("a stream with 200 KiB of data at 1 MiB/s took %v", took)
	}
}

// TestLimitEndsWithTheContext reads at a byte in a second, which nobody waits for.
func TestLimitEndsWithTheContext(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	src := newSparse(bytes.Repeat([]byte{1}, 1<<20))
	if _, err := Copy(ctx, Limit(src, 1), newSparse(nil), Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if _, err := CopyStream(ctx, LimitStream(&runs{data: src.data, step: 1000}, 1), newSparse(nil), Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

func TestWrappersKeepTheContract(t *testing.T) {
	const size = 100_007
	for name, wrap := range map[string]func(block.Device) block.Device{
		"limit":   func(d block.Device) block.Device { return Limit(d, 1<<40) },
		"salvage": func(d block.Device) block.Device { return NewSalvage(d, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.Run(t, blocktest.Config{Size: size, Ops: 100, New: func(*testing.T) block.Device { return wrap(block.NewMemory(size)) }})
		})
	}
}
