package blocktest_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
)

const brokenSize = 100_001

// broken is a Memory with a flaw: each field that is set replaces a method.
type broken struct {
	block.Device
	info    func(block.Info) block.Info
	read    func(p []byte, off int64) error
	write   func(ctx context.Context, p []byte, off int64, f block.Flags) error
	zero    func(ctx context.Context, off, n int64, f block.Flags) error
	discard func(ctx context.Context, off, n int64) error
	extents func(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error)
	close   func() error
}

func (b *broken) Info() block.Info {
	i := b.Device.Info()
	if b.info != nil {
		i = b.info(i)
	}
	return i
}

func (b *broken) Read(ctx context.Context, p []byte, off int64) error {
	if err := b.Device.Read(ctx, p, off); err != nil || b.read == nil {
		return err
	}
	return b.read(p, off)
}

func (b *broken) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if b.write != nil {
		return b.write(ctx, p, off, f)
	}
	return b.Device.Write(ctx, p, off, f)
}

func (b *broken) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	if b.zero != nil {
		return b.zero(ctx, off, n, f)
	}
	return b.Device.Zero(ctx, off, n, f)
}

func (b *broken) Discard(ctx context.Context, off, n int64) error {
	if b.discard != nil {
		return b.discard(ctx, off, n)
	}
	return b.Device.Discard(ctx, off, n)
}

func (b *broken) Extents(ctx context.Context, m block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	if b.extents != nil {
		return b.extents(ctx, m, off, n, buf)
	}
	return b.Device.Extents(ctx, m, off, n, buf)
}

func (b *broken) Close() error {
	if b.close != nil {
		return b.close()
	}
	return b.Device.Close()
}

// flaws lists devices that must fail, and the part of the suite that must find out, with what is wrong in it.
func flaws() map[string]func(m *block.Memory) *broken {
	return map[string]func(m *block.Memory) *broken{
		"Info: preferred block below the smallest": func(m *block.Memory) *broken {
			return &broken{info: func(i block.Info) block.Info { i.MinBlock = 8192; return i }}
		},
		"Content: the last byte is wrong": func(m *block.Memory) *broken {
			return &broken{read: func(p []byte, off int64) error {
				if off+int64(len(p)) == brokenSize && len(p) > 0 {
					p[len(p)-1] = 1
				}
				return nil
			}}
		},
		"Random: a write is lost": func(m *block.Memory) *broken {
			writes := 0
			return &broken{write: func(ctx context.Context, p []byte, off int64, f block.Flags) error {
				if writes++; writes%20 == 0 {
					return nil
				}
				return m.Write(ctx, p, off, f)
			}}
		},
		"Random: the caller's buffer changes": func(m *block.Memory) *broken {
			return &broken{write: func(ctx context.Context, p []byte, off int64, f block.Flags) error {
				err := m.Write(ctx, p, off, f)
				if len(p) > 100 {
					p[50] ^= 1
				}
				return err
			}}
		},
		"Random: zero rounds down to a sector": func(m *block.Memory) *broken {
			return &broken{zero: func(ctx context.Context, off, n int64, f block.Flags) error {
				if n > 512 {
					n = block.RoundDown(n, 512)
				}
				return m.Zero(ctx, off, n, f)
			}}
		},
		"Random: discard takes neighbours along": func(m *block.Memory) *broken {
			return &broken{discard: func(ctx context.Context, off, n int64) error {
				if err := block.CheckRange(off, n, m.Size()); err != nil || n == 0 {
					return err
				}
				start := block.RoundDown(off, 4096)
				return m.Discard(ctx, start, min(off+n+4096, m.Size())-start)
			}}
		},
		"ZeroFlags: fast without the capability": func(m *block.Memory) *broken {
			return &broken{info: func(i block.Info) block.Info { i.Caps.FastZero = false; return i }}
		},
		"ZeroFlags: NoHole is ignored": func(m *block.Memory) *broken {
			return &broken{zero: func(ctx context.Context, off, n int64, f block.Flags) error {
				return m.Zero(ctx, off, n, f&^block.NoHole)
			}}
		},
		"Range: errors of another kind": func(m *block.Memory) *broken {
			return &broken{discard: func(ctx context.Context, off, n int64) error {
				if m.Discard(ctx, off, n) != nil {
					return errors.New("no")
				}
				return nil
			}}
		},
		"Range: an error after the change": func(m *block.Memory) *broken {
			return &broken{zero: func(ctx context.Context, off, n int64, f block.Flags) error {
				if off < 0 && n > 0 && n < 1<<20 {
					m.Write(ctx, []byte("x"), 0, 0)
				}
				return m.Zero(ctx, off, n, f)
			}}
		},
		"Size: growth without the capability": func(m *block.Memory) *broken {
			return &broken{info: func(i block.Info) block.Info { i.Caps.Resize = false; return i }}
		},
		"Extents: the caller's are merged": func(m *block.Memory) *broken {
			return &broken{extents: func(ctx context.Context, mp block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
				got, err := m.Extents(ctx, mp, off, n, nil)
				for _, e := range got {
					buf = block.AppendExtent(buf, 0, e)
				}
				return buf, err
			}}
		},
		"Extents: not clipped": func(m *block.Memory) *broken {
			return &broken{extents: func(ctx context.Context, mp block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
				if block.CheckRange(off, n, m.Size()) != nil || n == 0 {
					return m.Extents(ctx, mp, off, n, buf)
				}
				return m.Extents(ctx, mp, off, m.Size()-off, buf)
			}}
		},
		"Extents: data called zero": func(m *block.Memory) *broken {
			return &broken{extents: func(ctx context.Context, mp block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
				base := len(buf)
				buf, err := m.Extents(ctx, mp, off, n, buf)
				for i := base; i < len(buf); i++ {
					buf[i].Flags |= block.ExtZero
				}
				return buf, err
			}}
		},
		"Extents: every bitmap is known": func(m *block.Memory) *broken {
			return &broken{extents: func(ctx context.Context, _ block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
				return m.Extents(ctx, block.Map{}, off, n, buf)
			}}
		},
		"Extents: no progress": func(m *block.Memory) *broken {
			return &broken{extents: func(ctx context.Context, mp block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
				if off > 0 {
					return buf, nil
				}
				return m.Extents(ctx, mp, off, min(n, 4096), buf)
			}}
		},
		"Close: twice": func(m *block.Memory) *broken {
			return &broken{close: func() error { m.Close(); return nil }}
		},
		"Concurrent: neighbours in a sector lose writes": func(m *block.Memory) *broken {
			return &broken{write: func(ctx context.Context, p []byte, off int64, f block.Flags) error {
				start := block.RoundDown(max(off, 0), 65536)
				if block.CheckRange(off, int64(len(p)), m.Size()) != nil {
					return m.Write(ctx, p, off, f)
				}
				buf := make([]byte, min(off+int64(len(p))+4096, m.Size())-start)
				if err := m.Read(ctx, buf, start); err != nil {
					return err
				}
				runtime.Gosched()
				copy(buf[off-start:], p)
				return m.Write(ctx, buf, start, f)
			}}
		},
	}
}

const flawVariable = "BLOCKTEST_FLAW"

// TestFlaws runs the suite over each device with a flaw, in a process of its own, and wants it to fail where the flaw is.
func TestFlaws(t *testing.T) {
	for name := range flaws() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			part, _, _ := strings.Cut(name, ":")
			child := exec.Command(os.Args[0], "-test.run=^TestFlawed$/^suite$/^"+part+"$")
			child.Env = append(os.Environ(), flawVariable+"="+name)
			out, err := child.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || !bytes.Contains(out, []byte("--- FAIL: TestFlawed/suite/"+part)) {
				t.Errorf("the suite finds nothing wrong: %v\n%s", err, out)
			}
		})
	}
}

// TestFlawed is the other process of TestFlaws; without one it runs the suite over the device without a flaw.
func TestFlawed(t *testing.T) {
	flaw := flaws()[os.Getenv(flawVariable)]
	t.Run("suite", func(t *testing.T) {
		blocktest.Run(t, blocktest.Config{
			Size: brokenSize,
			New: func(*testing.T) block.Device {
				m := block.NewMemory(brokenSize)
				if flaw == nil {
					return &broken{Device: m}
				}
				b := flaw(m)
				b.Device = m
				return b
			},
		})
	})
}
