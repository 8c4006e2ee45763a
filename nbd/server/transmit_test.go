package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/block/blocktest"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

const (
	fua, noHole, df   = wire.FlagFUA, wire.FlagNoHole, wire.FlagDF
	reqOne, fast, pay = wire.FlagReqOne, wire.FlagFastZero, wire.FlagPayloadLen
)

// TestRules sends one request, and expects an error number. The export has 1 MiB.
func TestRules(t *testing.T) {
	const size = 1 << 20
	type rule struct {
		name   string
		cmd    wire.Command
		flags  wire.CommandFlags
		off, n uint64
		want   wire.Errno
	}
	rules := []rule{
		{"READ", wire.CmdRead, 0, 0, 512, 0},
		{"READ to the end", wire.CmdRead, 0, size - 1, 1, 0},
		{"READ past the end", wire.CmdRead, 0, size - 1, 2, wire.EINVAL},
		{"READ behind the end", wire.CmdRead, 0, size + 1, 0, wire.EINVAL},
		{"READ at 2^63", wire.CmdRead, 0, 1 << 63, 512, wire.EINVAL},
		{"READ that wraps", wire.CmdRead, 0, math.MaxUint64 - 511, 1024, wire.EINVAL},
		{"READ of nothing", wire.CmdRead, 0, 5, 0, 0},
		{"READ of nothing at the end", wire.CmdRead, 0, size, 0, 0},
		{"READ with FUA", wire.CmdRead, fua, 0, 512, 0},
		{"READ with NO_HOLE", wire.CmdRead, noHole, 0, 512, wire.EINVAL},
		{"READ with an unknown flag", wire.CmdRead, 1 << 14, 0, 512, wire.EINVAL},
		{"WRITE", wire.CmdWrite, 0, 0, 512, 0},
		{"WRITE with FUA", wire.CmdWrite, fua, 0, 512, 0},
		{"WRITE of nothing", wire.CmdWrite, 0, 0, 0, 0},
		{"WRITE past the end", wire.CmdWrite, 0, size - 511, 512, wire.ENOSPC},
		{"WRITE far behind the end", wire.CmdWrite, 0, math.MaxUint64, 512, wire.ENOSPC},
		{"big WRITE past the end", wire.CmdWrite, 0, 0, 2 << 20, wire.ENOSPC},
		{"WRITE with DF", wire.CmdWrite, df, 0, 512, wire.EINVAL},
		{"WRITE with FAST_ZERO", wire.CmdWrite, fast, 0, 512, wire.EINVAL},
		{"TRIM", wire.CmdTrim, 0, 4096, 4096, 0},
		{"TRIM with FUA", wire.CmdTrim, fua, 4096, 4096, 0},
		{"TRIM of nothing", wire.CmdTrim, 0, 4096, 0, 0},
		{"TRIM past the end", wire.CmdTrim, 0, size, 1, wire.EINVAL},
		{"TRIM with NO_HOLE", wire.CmdTrim, noHole, 0, 512, wire.EINVAL},
		{"CACHE", wire.CmdCache, 0, 0, size, 0},
		{"CACHE of nothing", wire.CmdCache, 0, 0, 0, 0},
		{"CACHE past the end", wire.CmdCache, 0, 1, size, wire.EINVAL},
		{"CACHE with REQ_ONE", wire.CmdCache, reqOne, 0, 512, wire.EINVAL},
		{"WRITE_ZEROES", wire.CmdWriteZeroes, 0, 0, size, 0},
		{"WRITE_ZEROES with flags", wire.CmdWriteZeroes, noHole | fua, 1, 4097, 0},
		{"WRITE_ZEROES, fast", wire.CmdWriteZeroes, fast, 0, 65536, 0},
		{"WRITE_ZEROES, fast but not possible", wire.CmdWriteZeroes, fast | noHole, 0, 65536, wire.ENOTSUP},
		{"WRITE_ZEROES of nothing", wire.CmdWriteZeroes, 0, 0, 0, 0},
		{"WRITE_ZEROES past the end", wire.CmdWriteZeroes, 0, 1, size, wire.ENOSPC},
		{"WRITE_ZEROES of 4 GiB", wire.CmdWriteZeroes, 0, 0, math.MaxUint32, wire.ENOSPC},
		{"WRITE_ZEROES with DF", wire.CmdWriteZeroes, df, 0, 512, wire.EINVAL},
		{"FLUSH", wire.CmdFlush, 0, 0, 0, 0},
		{"FLUSH with FUA", wire.CmdFlush, fua, 0, 0, 0},
		{"FLUSH with an offset", wire.CmdFlush, 0, 512, 0, wire.EINVAL},
		{"FLUSH with a length", wire.CmdFlush, 0, 0, 512, wire.EINVAL},
		{"BLOCK_STATUS without a context", wire.CmdBlockStatus, 0, 0, 512, wire.EINVAL},
		{"RESIZE", wire.CmdResize, 0, 0, 512, wire.EINVAL},
		{"unknown command", 77, 0, 0, 512, wire.EINVAL},
		{"unknown command with FUA", 0xffff, fua, math.MaxUint64, 512, wire.EINVAL},
	}
	for _, mode := range modes {
		_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(size))})
		p := dial().enter(mode, "")
		for i, r := range rules {
			cookie := uint64(i) | 0xfeed<<48
			if r.cmd == wire.CmdWrite {
				p.write(cookie, r.off, make([]byte, r.n), r.flags)
			} else {
				p.req(wire.Request{Type: r.cmd, Flags: r.flags, Cookie: cookie, Offset: r.off, Length: r.n})
			}
			a := p.reply(dataLen(wire.Request{Type: r.cmd, Length: r.n}))
			if a.cookie != cookie || a.errno != r.want {
				t.Errorf("%s, %s: cookie %#x, %v %q; want %#x, %v", mode, r.name, a.cookie, a.errno, a.text, cookie, r.want)
			}
			if mode != "simple" && (a.text == "") != (a.errno == 0) {
				t.Errorf("%s, %s: text %q with %v", mode, r.name, a.text, a.errno)
			}
			if r.cmd == wire.CmdRead && a.errno == 0 && uint64(len(a.data)) != r.n {
				t.Errorf("%s, %s: %d bytes", mode, r.name, len(a.data))
			}
			p.alive()
		}
	}
}

// TestReadOnly: every change is EPERM, and its payload is drained.
func TestReadOnly(t *testing.T) {
	for _, e := range []server.Export{{Device: block.NewMemory(1 << 20), ReadOnly: true}, {Device: block.Protect(block.NewMemory(1 << 20))}} {
		_, dial := serve(t, server.Config{Open: func(context.Context, server.Client) (*server.Export, error) { return &e, nil }})
		for _, mode := range modes {
			p := dial().enter(mode, "")
			p.write(1, 0, make([]byte, 3<<20), 0)
			if a := p.reply(0); a.errno != wire.EPERM {
				t.Errorf("WRITE: %+v", a)
			}
			for _, cmd := range []wire.Command{wire.CmdTrim, wire.CmdWriteZeroes} {
				if a := p.do(wire.Request{Type: cmd, Length: 512}); a.errno != wire.EPERM {
					t.Errorf("%v: %+v", cmd, a)
				}
			}
			if a := p.do(wire.Request{Type: wire.CmdFlush}); a.errno != 0 {
				t.Errorf("FLUSH: %+v", a)
			}
			p.alive()
		}
	}
}

// TestBlockSizes: a client that has asked for the block sizes must keep to them; one that has not may do as it likes.
func TestBlockSizes(t *testing.T) {
	d := constant{block.NewMemory(1 << 20), block.Info{MinBlock: 512, PreferredBlock: 4096, Caps: block.Caps{Write: true}}}
	_, dial := serve(t, server.Config{Open: fixed(d)})
	strict := dial().enter("structured", "")
	lax := dial().greet(bothFlags)
	infos(t, lax.option(wire.OptGo, infoData("")))
	for _, cmd := range []wire.Command{wire.CmdRead, wire.CmdWriteZeroes, wire.CmdTrim, wire.CmdCache} {
		for _, at := range [][2]uint64{{1, 512}, {512, 511}} {
			r := wire.Request{Type: cmd, Offset: at[0], Length: at[1]}
			if a := strict.do(r); a.errno != wire.EINVAL {
				t.Errorf("%+v: %+v", r, a)
			}
			if a := lax.do(r); a.errno != 0 {
				t.Errorf("without block sizes: %+v: %+v", r, a)
			}
		}
	}
	strict.write(1, 1, make([]byte, 512), 0)
	if a := strict.reply(0); a.errno != wire.EINVAL {
		t.Errorf("WRITE: %+v", a)
	}
}

// TestContent writes and reads in all sizes and forms, and compares.
func TestContent(t *testing.T) {
	const size = 5 << 20
	sizes := []int{1, 511, 4096, 32 << 10, 32<<10 + 1, 64 << 10, 256 << 10, 256<<10 + 1, 1<<20 + 7, 3 << 20}
	for _, mode := range modes {
		for _, maxBlock := range []int64{0, 4096} {
			t.Run(fmt.Sprint(mode, maxBlock), func(t *testing.T) {
				d := block.NewMemory(size)
				limited := constant{d, d.Info()}
				limited.info.MaxBlock = maxBlock
				s, dial := serve(t, server.Config{Open: fixed(limited)})
				p := dial().enter(mode, "")
				want := make([]byte, size)
				for i, n := range sizes {
					data := bytes.Repeat([]byte{byte(i + 1), 2, 3}, n/3+1)[:n]
					off := 12345 * i
					p.write(uint64(i), uint64(off), data, []wire.CommandFlags{0, fua}[i%2])
					if a := p.reply(0); a.errno != 0 || a.cookie != uint64(i) {
						t.Fatalf("WRITE of %d: %+v", n, a)
					}
					copy(want[off:], data)
				}
				for range 3 { // the first requests go another way than later ones
					for _, n := range sizes {
						for _, f := range []wire.CommandFlags{0, df} {
							if f != 0 && mode == "simple" {
								continue
							}
							off := 777
							a := p.do(wire.Request{Type: wire.CmdRead, Flags: f, Cookie: 9, Offset: uint64(off), Length: uint64(n)})
							if a.errno != 0 || !bytes.Equal(a.data, want[off:off+n]) {
								t.Fatalf("READ of %d: %v", n, a.errno)
							}
							if f != 0 && len(a.chunks) != 1 {
								t.Errorf("READ of %d with DF has chunks %v", n, a.chunks)
							}
						}
					}
				}
				p.write(7, 5<<19, []byte("zeros to come"), 0)
				p.reply(0)
				if a := p.do(wire.Request{Type: wire.CmdWriteZeroes, Flags: fua, Offset: 5 << 19, Length: 1 << 20}); a.errno != 0 {
					t.Fatalf("WRITE_ZEROES: %+v", a)
				}
				if a := p.do(wire.Request{Type: wire.CmdRead, Offset: 5 << 19, Length: 1 << 20}); !block.IsZero(a.data) || len(a.data) != 1<<20 {
					t.Error("what was zeroed is not zero")
				}
				if st := s.Stats(); st.Requests[wire.CmdWrite].Count != int64(len(sizes)+1) || st.Requests[wire.CmdWrite].Errors != 0 {
					t.Errorf("%+v", st)
				}
			})
		}
	}
}

// TestSparseRead: zeros go over the wire as holes, and data is not cut up.
func TestSparseRead(t *testing.T) {
	d := block.NewMemory(16 << 20)
	ctx := context.Background()
	check(t, d.Write(ctx, bytes.Repeat([]byte{1}, 64<<10), 4<<20, 0))
	s, dial := serve(t, server.Config{Open: fixed(d)})
	for _, mode := range modes[1:] {
		p := dial().enter(mode, "")
		for range 2 {
			a := p.do(wire.Request{Type: wire.CmdRead, Length: 16 << 20})
			if a.errno != 0 || len(a.data) != 16<<20 || a.data[4<<20-1] != 0 || a.data[4<<20] != 1 || a.data[4<<20+65535] != 1 || a.data[4<<20+65536] != 0 {
				t.Fatalf("wrong data, %v", a.errno)
			}
			if last := a.chunks[len(a.chunks)-1]; last != wire.ChunkOffsetHole {
				t.Errorf("chunks %v", a.chunks)
			}
		}
		if a := p.do(wire.Request{Type: wire.CmdRead, Length: 16 << 20}); !slices.Equal(a.chunks, []wire.ChunkType{wire.ChunkOffsetHole, wire.ChunkOffsetData, wire.ChunkOffsetHole}) {
			t.Errorf("chunks %v", a.chunks)
		}
		if a := p.do(wire.Request{Type: wire.CmdRead, Length: 4096}); !slices.Equal(a.chunks, []wire.ChunkType{wire.ChunkOffsetHole}) {
			t.Errorf("chunks of a small read %v", a.chunks)
		}
	}
	if out := s.Stats().BytesOut; out > 8<<20 {
		t.Errorf("%d bytes of data were sent", out)
	}
}

// TestDeviceErrors: what a device says reaches the client as a number and a text, and the connection lives on.
func TestDeviceErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want wire.Errno
	}{
		{errors.New("the motor is hot"), wire.EIO},
		{&block.CorruptError{Format: "x", Part: "y", Off: 7, Err: errors.New("z")}, wire.EIO},
		{syscall.ENOSPC, wire.ENOSPC},
		{block.ErrReadOnly, wire.EPERM},
		{syscall.ENOMEM, wire.ENOMEM},
		{wire.ESHUTDOWN, wire.EIO}, // of what is below; this server goes on
		{os.ErrClosed, wire.EIO},
		{errors.New(strings.Repeat("é", 5000)), wire.EIO},
		{errors.New("a\x00b\xff"), wire.EIO},
	} {
		_, dial := serve(t, server.Config{Open: fixed(blocktest.NewFaulty(block.NewMemory(1<<20), blocktest.Fault{Err: tt.err}))})
		for _, mode := range modes {
			p := dial().enter(mode, "")
			for range 20 {
				p.write(1, 0, []byte("x"), 0)
				if a := p.reply(0); a.errno != tt.want {
					t.Fatalf("WRITE: %+v, want %v", a, tt.want)
				}
				a := p.do(wire.Request{Type: wire.CmdRead, Length: 4096})
				if a.errno != tt.want || mode != "simple" && (a.text == "" || len(a.text) > wire.MaxString || strings.Contains(a.text, "\x00")) {
					t.Fatalf("READ: %v %q, want %v", a.errno, a.text, tt.want)
				}
			}
			whole := df
			if mode == "simple" {
				whole = 0
			}
			for _, r := range []wire.Request{
				{Type: wire.CmdRead, Length: 1 << 20}, {Type: wire.CmdRead, Flags: whole, Length: 1 << 20},
				{Type: wire.CmdFlush}, {Type: wire.CmdTrim, Length: 512}, {Type: wire.CmdCache, Length: 512}, {Type: wire.CmdWriteZeroes, Length: 512},
			} {
				if a := p.do(r); a.errno != tt.want {
					t.Errorf("%+v: %v, want %v", r, a.errno, tt.want)
				}
			}
			p.write(1, 0, make([]byte, 1<<20), fua)
			if a := p.reply(0); a.errno != tt.want {
				t.Errorf("big WRITE: %+v, want %v", a, tt.want)
			}
		}
	}
}

// lame is a device that supports nothing but reading and writing, and says so.
type lame struct{ block.Device }

func (lame) Zero(context.Context, int64, int64, block.Flags) error { return errors.ErrUnsupported }
func (lame) Discard(context.Context, int64, int64) error           { return errors.ErrUnsupported }
func (lame) Prefetch(context.Context, int64, int64) error          { return errors.ErrUnsupported }
func (lame) Extents(_ context.Context, _ block.Map, _, _ int64, buf []block.Extent) ([]block.Extent, error) {
	return buf, errors.ErrUnsupported
}

// TestUnsupported: ENOTSUP is for FAST_ZERO alone, hints succeed, and an unknown status is data.
func TestUnsupported(t *testing.T) {
	d := lame{block.NewMemory(1 << 20)}
	_, dial := serve(t, server.Config{Open: fixed(d)})
	p := dial().enter("structured", "", wire.BaseAllocation)
	p.write(1, 0, []byte("content"), 0)
	p.reply(0)
	for _, tt := range []struct {
		r    wire.Request
		want wire.Errno
	}{
		{wire.Request{Type: wire.CmdWriteZeroes, Flags: fast, Length: 7}, wire.ENOTSUP},
		{wire.Request{Type: wire.CmdWriteZeroes, Length: 7}, 0},
		{wire.Request{Type: wire.CmdTrim, Length: 7}, 0},
		{wire.Request{Type: wire.CmdCache, Length: 7}, 0},
	} {
		if a := p.do(tt.r); a.errno != tt.want {
			t.Errorf("%+v: %+v", tt.r, a)
		}
	}
	if a := p.do(wire.Request{Type: wire.CmdRead, Length: 7}); !block.IsZero(a.data) {
		t.Errorf("zeroed, it reads %q", a.data)
	}
	if a := p.do(wire.Request{Type: wire.CmdBlockStatus, Length: 4096}); fmt.Sprint(a.status[1]) != "[[4096 0]]" {
		t.Errorf("status %v", a.status)
	}
	plain := constant{d, block.Info{MinBlock: 1, PreferredBlock: 1, Caps: block.Caps{Write: true}}}
	_, dial = serve(t, server.Config{Open: fixed(plain)})
	if a := dial().enter("simple", "").do(wire.Request{Type: wire.CmdWriteZeroes, Flags: fast, Length: 7}); a.errno != wire.EINVAL {
		t.Errorf("FAST_ZERO that was not offered: %v", a.errno)
	}
}
