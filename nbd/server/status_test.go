package server_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/server"
	"github.com/imgtool/imgtool/nbd/wire"
)

// mapped is a device of which a test says what its extents are, for allocation ("") and for bitmaps.
type mapped struct {
	block.Device
	maps map[string][]block.Extent
	once int // how many extents one call tells of; 0 is all
}

func (m mapped) Extents(_ context.Context, mp block.Map, off, n int64, buf []block.Extent) ([]block.Extent, error) {
	base := len(buf)
	for _, e := range m.maps[mp.Bitmap] {
		if e, ok := e.Clip(off, n); ok && (m.once == 0 || len(buf)-base < m.once) {
			buf = append(buf, e)
		}
	}
	return buf, nil
}

const mib = 1 << 20

func mappedDevice() mapped {
	return mapped{block.NewMemory(8 * mib), map[string][]block.Extent{
		"": {
			{Off: 0, Len: mib, Flags: block.ExtAlloc},
			{Off: mib, Len: mib, Flags: block.ExtAlloc, Depth: 1},
			{Off: 2 * mib, Len: mib, Flags: block.ExtAlloc | block.ExtZero},
			{Off: 3 * mib, Len: mib, Flags: block.ExtZero},
			{Off: 4 * mib, Len: 4 * mib},
		},
		"b": {{Off: 0, Len: 3 * mib}, {Off: 3 * mib, Len: 5 * mib, Flags: block.ExtDirty}},
	}, 0}
}

func TestBlockStatus(t *testing.T) {
	const depth, bitmap = wire.AllocationDepth, wire.DirtyBitmap + "b"
	for _, once := range []int{0, 1} { // a device that tells of one extent at a time is asked on
		d := mappedDevice()
		d.once = once
		_, dial := serve(t, server.Config{Open: func(context.Context, server.Client) (*server.Export, error) {
			return &server.Export{Device: d, Depth: true, Bitmaps: []string{"b"}}, nil
		}})
		for _, mode := range modes[1:] {
			p := dial().enter(mode, "", wire.BaseAllocation, depth, bitmap)
			for _, tt := range []struct {
				off, n uint64
				flags  wire.CommandFlags
				want   string
			}{
				{0, 8 * mib, 0, "map[1:[[2097152 0] [1048576 2] [1048576 3] [4194304 1]] 2:[[1048576 1] [1048576 2] [1048576 1] [5242880 0]] 3:[[3145728 0] [5242880 1]]]"},
				{mib / 2, mib, 0, "map[1:[[1048576 0]] 2:[[524288 1] [524288 2]] 3:[[1048576 0]]]"},
				{mib / 2, 8*mib - mib/2, reqOne, "map[1:[[1572864 0]] 2:[[524288 1]] 3:[[2621440 0]]]"},
				{3 * mib, 512, reqOne, "map[1:[[512 3]] 2:[[512 0]] 3:[[512 1]]]"},
				{8*mib - 1, 1, fua, "map[1:[[1 1]] 2:[[1 0]] 3:[[1 1]]]"},
			} {
				a := p.do(wire.Request{Type: wire.CmdBlockStatus, Flags: tt.flags, Offset: tt.off, Length: tt.n})
				if got := fmt.Sprint(a.status); a.errno != 0 || got != tt.want {
					t.Errorf("%s: %d+%d: %v\n got %s\nwant %s", mode, tt.off, tt.n, a.errno, got, tt.want)
				}
				if len(a.chunks) != 3 {
					t.Errorf("chunks %v", a.chunks)
				}
			}
			for _, r := range [][2]uint64{{0, 0}, {0, 8*mib + 1}, {8 * mib, 1}, {1 << 63, 1 << 31}} {
				if a := p.do(wire.Request{Type: wire.CmdBlockStatus, Offset: r[0], Length: r[1]}); a.errno != wire.EINVAL {
					t.Errorf("%s: %v: %+v", mode, r, a)
				}
			}
			p.alive()
		}
	}
}

// TestManyExtents: a reply is cut off rather than too long, and a client that asks on gets everything.
func TestManyExtents(t *testing.T) {
	d := block.NewMemory(64 * mib)
	for off := int64(0); off < 64*mib; off += 8192 {
		check(t, d.Write(context.Background(), []byte{1}, off, 0))
	}
	_, dial := serve(t, server.Config{Open: fixed(d)})
	for _, mode := range modes[1:] {
		p := dial().enter(mode, "", wire.BaseAllocation)
		replies := 0
		for off := uint64(0); off < 64*mib; replies++ {
			a := p.do(wire.Request{Type: wire.CmdBlockStatus, Offset: off, Length: 64*mib - off})
			for i, e := range a.status[1] {
				if want := [2]uint64{4096, []uint64{0, 3}[i%2]}; e != want {
					t.Fatalf("at %d: %v, want %v", off, e, want)
				}
				off += e[0]
			}
		}
		if replies < 3 || replies > 10 {
			t.Errorf("%d replies", replies)
		}
	}
}

// TestStatusPayload: with extended headers, a payload chooses contexts.
func TestStatusPayload(t *testing.T) {
	d := mappedDevice()
	_, dial := serve(t, server.Config{Open: func(context.Context, server.Client) (*server.Export, error) {
		return &server.Export{Device: d, Depth: true, Bitmaps: []string{"b"}}, nil
	}})
	p := dial().enter("extended", "", wire.BaseAllocation, wire.AllocationDepth, wire.DirtyBitmap+"b")
	// Replies to what was asked before do not wait for the payload.
	for range 100 {
		p.alive()
	}
	p.send(p.reqBytes(wire.Request{Type: wire.CmdRead, Length: 512}), p.reqBytes(wire.Request{Type: wire.CmdBlockStatus, Flags: pay, Length: 12}))
	if a := p.reply(0); a.errno != 0 || a.status[1] != nil {
		t.Errorf("%+v", a)
	}
	p.send(be.AppendUint32(be.AppendUint64(nil, 2*mib), 1))
	if a := p.reply(0); len(a.status[1]) != 1 {
		t.Errorf("%+v", a)
	}
	ask := func(off uint64, payload []byte) answer {
		p.req(wire.Request{Type: wire.CmdBlockStatus, Flags: pay, Cookie: 5, Offset: off, Length: uint64(len(payload))}, payload)
		return p.reply(0)
	}
	payload := func(n uint64, ids ...uint32) []byte {
		b := be.AppendUint64(nil, n)
		for _, id := range ids {
			b = be.AppendUint32(b, id)
		}
		return b
	}
	for _, tt := range []struct {
		off  uint64
		data []byte
		want string // "" is EINVAL
	}{
		{0, payload(2*mib, 1), "map[1:[[2097152 0]]]"},
		{0, payload(2*mib, 3, 2), "map[2:[[1048576 1] [1048576 2]] 3:[[2097152 0]]]"},
		{0, payload(2 * mib), "map[]"},
		{0, payload(2*mib, 1, 1), ""},
		{0, payload(2*mib, 9), ""},
		{0, payload(8*mib+1, 1), ""},
		{1, payload(1<<64-1, 1), ""},
		{0, payload(0, 1), ""},
		{0, payload(2 * mib)[:7], ""},
		{0, append(payload(2*mib, 1), 0), ""},
		{0, bytes.Repeat([]byte{0, 0, 0, 1}, 1000), ""},
		{0, nil, ""},
	} {
		a := ask(tt.off, tt.data)
		if tt.want == "" && a.errno != wire.EINVAL || tt.want != "" && (a.errno != 0 || fmt.Sprint(a.status) != tt.want) {
			t.Errorf("%d, %x: %v, %v", tt.off, tt.data, a.errno, a.status)
		}
		p.alive()
	}
}

// TestPayloads: with extended headers the flag says whether there is a payload, whatever the command.
func TestPayloads(t *testing.T) {
	_, dial := serve(t, server.Config{Open: fixed(block.NewMemory(1 << 20))})
	p := dial().enter("extended", "")
	if a := p.do(wire.Request{Type: wire.CmdWrite, Length: 512}); a.errno != wire.EINVAL {
		t.Errorf("WRITE without PAYLOAD_LEN: %+v", a)
	}
	for _, cmd := range []wire.Command{wire.CmdRead, wire.CmdDisc, wire.CmdFlush, wire.CmdTrim, wire.CmdCache, wire.CmdWriteZeroes, wire.CmdBlockStatus, 99} {
		p.req(wire.Request{Type: cmd, Flags: pay, Cookie: 3, Length: 300 << 10}, make([]byte, 300<<10))
		if a := p.reply(0); a.errno != wire.EINVAL || a.cookie != 3 {
			t.Errorf("%v with a payload: %+v", cmd, a)
		}
		p.alive()
	}
	p.req(wire.Request{Type: wire.CmdWrite, Flags: pay, Length: 1 << 40})
	p.gone()
	// A length beyond 32 bits is one of effect.
	big := block.NewMemory(1 << 45)
	_, dial = serve(t, server.Config{Open: fixed(big)})
	p = dial().enter("extended", "", wire.BaseAllocation)
	if a := p.do(wire.Request{Type: wire.CmdWriteZeroes, Flags: fast, Length: 1 << 45}); a.errno != 0 {
		t.Errorf("WRITE_ZEROES of 2^45 bytes: %+v", a)
	}
	if a := p.do(wire.Request{Type: wire.CmdTrim, Offset: 1 << 44, Length: 1 << 44}); a.errno != 0 {
		t.Errorf("TRIM of 2^44 bytes: %+v", a)
	}
	if a := p.do(wire.Request{Type: wire.CmdBlockStatus, Length: 1 << 45}); fmt.Sprint(a.status[1]) != "[[35184372088832 3]]" {
		t.Errorf("BLOCK_STATUS of 2^45 bytes: %+v", a)
	}
	if a := p.do(wire.Request{Type: wire.CmdRead, Length: 1 << 45}); a.errno != wire.EOVERFLOW {
		t.Errorf("READ of 2^45 bytes: %+v", a)
	}
}

// TestStatusInBlocks: a client that keeps to the block size gets whole blocks. One that is partly data is data, one that is partly dirty is dirty.
func TestStatusInBlocks(t *testing.T) {
	d := mapped{constant{block.NewMemory(8 * 4096), block.Info{MinBlock: 4096, PreferredBlock: 4096}}, map[string][]block.Extent{
		"": {
			{Off: 0, Len: 5000, Flags: block.ExtZero}, {Off: 5000, Len: 100, Flags: block.ExtAlloc}, {Off: 5100, Len: 11284, Flags: block.ExtZero},
			{Off: 16384, Len: 1, Flags: block.ExtZero}, {Off: 16385, Len: 16383, Flags: block.ExtAlloc | block.ExtZero},
		},
		"b": {{Off: 0, Len: 20000}, {Off: 20000, Len: 1, Flags: block.ExtDirty}, {Off: 20001, Len: 12767}},
	}, 0}
	_, dial := serve(t, server.Config{Open: func(context.Context, server.Client) (*server.Export, error) {
		return &server.Export{Device: d, Bitmaps: []string{"b"}}, nil
	}})
	p := dial().enter("structured", "", wire.BaseAllocation, wire.DirtyBitmap+"b")
	for _, tt := range []struct {
		n     uint64
		flags wire.CommandFlags
		want  string
	}{
		{8 * 4096, 0, "map[1:[[4096 3] [4096 0] [8192 3] [16384 2]] 2:[[16384 0] [4096 1] [12288 0]]]"},
		{8 * 4096, reqOne, "map[1:[[4096 3]] 2:[[16384 0]]]"},
	} {
		a := p.do(wire.Request{Type: wire.CmdBlockStatus, Flags: tt.flags, Length: tt.n})
		if got := fmt.Sprint(a.status); a.errno != 0 || got != tt.want {
			t.Errorf("%v\n got %s\nwant %s", a.errno, got, tt.want)
		}
	}
}
