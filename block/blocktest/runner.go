package blocktest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/imgtool/imgtool/block"
)

// dice chooses: at random, or as a script says until it ends.
type dice struct {
	rnd    *rand.Rand
	script []byte
}

// n returns a number from 0 up to max, not including max.
func (d *dice) n(max int64) int64 {
	if max <= 1 {
		return 0
	}
	if d.rnd != nil {
		return d.rnd.Int64N(max)
	}
	var word [8]byte
	used := 1
	for x := max - 1; x > 0xff; x >>= 8 {
		used++
	}
	used = copy(word[:used], d.script)
	d.script = d.script[used:]
	return int64(binary.LittleEndian.Uint64(word[:]) % uint64(max))
}

func (d *dice) over() bool { return d.rnd == nil && len(d.script) == 0 }

// runner makes operations on a device and keeps the model in step.
type runner struct {
	*dice
	c     Config
	d     block.Device
	caps  block.Caps
	m     *model
	whole bool  // the model is the whole device: it may be resized and may grow
	last  int64 // where the last range ended
}

func newRunner(c Config, d block.Device, m *model, dice *dice) *runner {
	return &runner{dice: dice, c: c, d: d, caps: d.Info().Caps, m: m, last: m.base}
}

// step makes one operation.
func (r *runner) step(ctx context.Context) error {
	kind := r.n(16)
	if r.c.ReadOnly && kind < 8 {
		kind = 8 + kind%6
	}
	off, n := r.someRange()
	switch kind {
	case 0, 1, 2, 3:
		return r.write(ctx, r.bytes(n), off)
	case 4, 5:
		return r.zero(ctx, off, n)
	case 6:
		return r.discard(ctx, off, n)
	case 7:
		return r.resize(ctx)
	case 8, 9, 10, 11:
		return r.m.read(ctx, r.d, off, n)
	case 12, 13:
		_, err := mapped(ctx, r.d, off, n)
		return err
	case 14:
		return wrap(r.d.Prefetch(ctx, off, n), "prefetch", off, n)
	}
	return wrap(r.d.Flush(ctx), "flush", 0, 0)
}

// wrap says what failed.
func wrap(err error, what string, off, n int64) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s of %d bytes at %d: %w", what, n, off, err)
}

// someRange chooses a range: tiny, middling or large; anywhere, at a block, or beside the last one.
func (r *runner) someRange() (off, n int64) {
	size := int64(len(r.m.data))
	if size == 0 {
		return r.m.base, 0
	}
	limits := [...]int64{16, 600, 9000, size/4 + 1}
	n = min(size, 1+r.n(limits[r.n(int64(len(limits)))]))
	off = r.m.base + r.n(size-n+1)
	switch r.n(4) {
	case 0:
		units := [...]int64{512, 4096, 65536, r.d.Info().PreferredBlock}
		unit := units[r.n(int64(len(units)))]
		off = max(r.m.base, block.RoundDown(off, unit))
		if n > unit {
			n = block.RoundDown(n, unit)
		}
	case 1:
		off = min(r.last, r.m.end()-n)
	}
	r.last = off + n
	return off, n
}

// bytes makes content: random, zeros, one byte repeated, or zeros with a random middle.
func (r *runner) bytes(n int64) []byte {
	p := make([]byte, n)
	kind, seed := r.n(4), r.n(1<<16)
	part := p
	switch kind {
	case 0:
		return p
	case 1:
		return bytes.Repeat([]byte{byte(seed)}, int(n))
	case 2:
		part = p[n/3 : n-n/3]
	}
	rnd := rand.New(rand.NewPCG(uint64(seed), 0))
	for i := range part {
		part[i] = byte(rnd.Uint32())
	}
	return p
}

func (r *runner) flags(f block.Flags) block.Flags { return block.Flags(r.n(8)) & f }

// past may move a range beyond the end, where the device grows.
func (r *runner) past(off, n int64) int64 {
	if r.whole && r.caps.Grow && r.n(8) == 0 && r.m.end() < 2*r.c.Size {
		return r.m.end() - min(r.m.end(), r.n(n+1)) + r.n(5000)
	}
	return off
}

func (r *runner) write(ctx context.Context, p []byte, off int64) error {
	off = r.past(off, int64(len(p)))
	f := r.flags(block.FUA)
	before := bytes.Clone(p)
	err := r.d.Write(ctx, p, off, f)
	if !bytes.Equal(p, before) {
		return fmt.Errorf("write of %d bytes at %d changed the caller's buffer", len(p), off)
	}
	// The caller may do with its buffer what it likes: a device that kept it would show this.
	defer func() {
		for i := range p {
			p[i] ^= 0x55
		}
	}()
	return r.changed(ctx, err, fmt.Sprintf("write with flags %d", f), p, off, int64(len(p)))
}

func (r *runner) zero(ctx context.Context, off, n int64) error {
	off = r.past(off, n)
	f := r.flags(block.FUA | block.NoHole | block.Fast)
	err := r.d.Zero(ctx, off, n, f)
	if f&block.Fast != 0 && errors.Is(err, errors.ErrUnsupported) {
		if r.d.Size() != r.m.end() && r.whole {
			return fmt.Errorf("a fast zero of %d bytes at %d that is not supported changed the size", n, off)
		}
		end := min(off+n, r.m.end())
		return r.m.read(ctx, r.d, min(off, end), end-min(off, end))
	}
	if err == nil && f&block.Fast != 0 && !r.caps.FastZero {
		return fmt.Errorf("a fast zero of %d bytes at %d works and Caps.FastZero is not set", n, off)
	}
	return r.changed(ctx, err, fmt.Sprintf("zero with flags %d", f), nil, off, n)
}

// changed brings the model in step with a change that returned err, and reads it back.
func (r *runner) changed(ctx context.Context, err error, what string, p []byte, off, n int64) error {
	if err != nil {
		if refused(ctx, r.d, err, off, n) {
			return wrap(r.m.absorb(ctx, r.d, p, off, n), what, off, n)
		}
		return wrap(err, what, off, n)
	}
	r.m.write(p, off, n)
	if r.whole && r.d.Size() != r.m.end() {
		return fmt.Errorf("after %s of %d bytes at %d the size is %d, want %d", what, n, off, r.d.Size(), r.m.end())
	}
	if r.n(2) == 0 {
		return wrap(r.m.read(ctx, r.d, off, n), what, off, n)
	}
	return nil
}

func (r *runner) discard(ctx context.Context, off, n int64) error {
	err := r.d.Discard(ctx, off, n)
	if err != nil && !refused(ctx, r.d, err, off, n) {
		return wrap(err, "discard", off, n)
	}
	r.m.discard(off, n)
	return nil
}

func (r *runner) resize(ctx context.Context) error {
	if !r.whole {
		return nil
	}
	size := r.m.end()
	if r.n(2) == 0 {
		size = r.c.Size + r.n(r.c.Size)
	} else {
		size -= r.n(size/2 + 1)
	}
	size = block.RoundDown(size, r.c.ResizeUnit)
	err := r.d.Resize(ctx, size)
	if !r.caps.Resize {
		if errors.Is(err, errors.ErrUnsupported) {
			return nil
		}
		return fmt.Errorf("resize to %d without Caps.Resize: %v, want %v", size, err, errors.ErrUnsupported)
	}
	if err == nil {
		r.m.resize(size)
		r.last = min(r.last, size)
	}
	return wrap(err, "resize", size, 0)
}
