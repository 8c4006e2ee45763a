package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// ErrUnflushed: writes were acknowledged by the server and not flushed before all connections were lost. Whether they are durable is not known.
var ErrUnflushed = errors.New("nbd: the connection was lost, and whether writes before it are durable is not known")

// The longest range of one WRITE_ZEROES or TRIM in bytes: there are servers that cut longer ones short. Those that know extended headers do not.
const (
	maxEffect         = 64 << 20
	maxEffectExtended = 16 << 30
)

// export is what a server exports, for ranges that are multiples of its minimum block.
type export struct {
	links links
	calls block.Calls
	name  string
	child *server // that Start has started; else nil
	info  client.ExportInfo
	write bool
	wide  bool // headers are extended
	conns int  // at most

	// unflushed is 0, or how many connections had been made when a change was acknowledged that was not flushed since, and not made durable by FUA.
	unflushed atomic.Int64
	flushing  chan struct{} // holds a token
}

// open makes the first connection.
func open(ctx context.Context, d *Dialer, o Options) (*Device, error) {
	e := &export{name: d.name, child: d.child, flushing: make(chan struct{}, 1)}
	e.conns = o.Connections
	if e.conns <= 0 {
		e.conns = DefaultConnections
	}
	s := &e.links
	s.retries, s.pause, s.log, s.limit = o.Retries, firstPause, o.Log, 1
	if s.retries == 0 {
		s.retries = DefaultRetries
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.log = s.log.With("export", e.name)
	s.making = make(chan struct{}, 1)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.spare, s.drop = context.WithCancel(context.Background())
	s.parting = parting
	known := false
	s.dial = func(ctx context.Context) (*client.Conn, error) {
		conn, err := negotiate(ctx, d, o.Bitmaps)
		if err == nil && known && (!same(e.info, conn.Export()) || conn.Extended() != e.wide) {
			conn.Close()
			return nil, fmt.Errorf("%w: it had %d bytes and flags %#x, now it has %d bytes and flags %#x", errChanged,
				e.info.Size, uint16(e.info.Flags), conn.Export().Size, uint16(conn.Export().Flags))
		}
		return conn, err
	}
	l, err := s.add(ctx, 0)
	if err != nil {
		s.cancel()
		s.drop()
		return nil, err
	}
	e.info, e.wide, known = l.conn.Export(), l.conn.Extended(), true
	e.write = e.info.Flags&wire.ReadOnly == 0 && !o.ReadOnly
	if e.info.Flags&wire.CanMultiConn != 0 {
		s.limit = e.conns
	} else {
		e.conns = 1
	}
	return &Device{Device: block.Align(e, e.info.MinBlock), export: e}, nil
}

// same reports whether two connections have the same export before them.
func same(a, b client.ExportInfo) bool {
	return a.Size == b.Size && a.Flags == b.Flags && a.MinBlock == b.MinBlock && a.MaxPayload == b.MaxPayload
}

// negotiate makes a connection with all that the server can do.
func negotiate(ctx context.Context, d *Dialer, bitmaps []string) (*client.Conn, error) {
	conn, err := d.Conn(ctx, client.Config{})
	if err != nil {
		return nil, err
	}
	if err := begin(ctx, conn, d.uri.Export, bitmaps); err != nil {
		conn.Close()
		return nil, d.Advise(err)
	}
	return conn, nil
}

// begin agrees on what is good, and begins transmission.
func begin(ctx context.Context, conn *client.Conn, export string, bitmaps []string) error {
	if !conn.Negotiating() {
		if export != "" {
			return block.WithHint(fmt.Errorf("nbd: the server has one export without a name, not %q", export), "its protocol is "+conn.Protocol())
		}
		return nil // oldstyle
	}
	if conn.Protocol() == "newstyle-fixed" {
		if err := agree(ctx, conn, export, bitmaps); err != nil {
			return hint(err)
		}
	}
	_, err := conn.Go(ctx, export)
	return hint(err)
}

// hint says what a refusal asks for.
func hint(err error) error {
	var refused *client.OptionError
	if errors.As(err, &refused) && refused.Reply == wire.RepErrTLSReqd {
		return block.WithHint(err, "the server wants encryption: write nbds in place of nbd")
	}
	return err
}

// agree asks for structured replies and contexts. A server may refuse each.
func agree(ctx context.Context, conn *client.Conn, export string, bitmaps []string) error {
	err := optional(conn.RequestExtendedHeaders(ctx))
	if err == nil && !conn.Extended() {
		err = optional(conn.RequestStructuredReplies(ctx))
	}
	if err != nil || !conn.Structured() {
		return err
	}
	queries := []string{wire.BaseAllocation, wire.AllocationDepth}
	for _, b := range bitmaps {
		queries = append(queries, wire.DirtyBitmap+b)
	}
	_, err = conn.SetMetaContexts(ctx, export, queries...)
	return optional(err)
}

// optional forgives a refusal, other than one that asks for encryption or says goodbye.
func optional(err error) error {
	var refused *client.OptionError
	if errors.As(err, &refused) && refused.Reply != wire.RepErrTLSReqd && refused.Reply != wire.RepErrShutdown {
		return nil
	}
	return err
}

// Info implements block.Device.
func (e *export) Info() block.Info {
	has := func(f wire.TransmissionFlags) bool { return e.info.Flags&f != 0 }
	may := func(f wire.TransmissionFlags) bool { return e.write && has(f) }
	return block.Info{
		Name: e.name, Format: "nbd", MinBlock: e.info.MinBlock, PreferredBlock: max(e.info.PreferredBlock, e.info.MinBlock),
		InFlight: busyLoad * e.conns,
		Caps: block.Caps{
			Write: e.write, FUA: may(wire.SendFUA), Zero: may(wire.SendWriteZeroes), FastZero: may(wire.SendFastZero), Discard: may(wire.SendTrim),
			MultiConn: has(wire.CanMultiConn), Prefetch: has(wire.SendCache),
		},
	}
}

// Size implements block.Device.
func (e *export) Size() int64 { return e.info.Size }

// begin starts a call on a range.
func (e *export) begin(ctx context.Context, off, n int64) error {
	if err := e.calls.Begin(ctx); err != nil {
		return err
	}
	if err := block.CheckRange(off, n, e.info.Size); err != nil {
		e.calls.End()
		return err
	}
	return nil
}

// beginChange is begin for a call that changes something.
func (e *export) beginChange(ctx context.Context, off, n int64) error {
	err := e.begin(ctx, off, n)
	if err == nil && !e.write {
		e.calls.End()
		return block.ErrReadOnly
	}
	return err
}

// pieces calls request for pieces of a range that are at most limit long.
func (e *export) pieces(ctx context.Context, off, n, limit int64, request func(conn *client.Conn, off, n int64) error) error {
	for n > 0 {
		k := min(n, limit)
		err := e.links.do(ctx, loadOf(k), e.links.take, func(l *link) error { return request(l.conn, off, k) })
		if err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func (e *export) maxEffect() int64 {
	if e.wide {
		return maxEffectExtended
	}
	return maxEffect
}

func (e *export) maxPayload() int64 {
	return max(block.RoundDown(min(e.info.MaxPayload, wire.DefaultMaxPayload), e.info.MinBlock), e.info.MinBlock)
}

// Read implements block.Device.
func (e *export) Read(ctx context.Context, p []byte, off int64) error {
	if err := e.begin(ctx, off, int64(len(p))); err != nil {
		return err
	}
	defer e.calls.End()
	start := off
	return e.pieces(ctx, off, int64(len(p)), e.maxPayload(), func(conn *client.Conn, off, n int64) error {
		return conn.Read(ctx, p[off-start:][:n], off, 0)
	})
}

// Write implements block.Device.
func (e *export) Write(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := e.beginChange(ctx, off, int64(len(p))); err != nil {
		return err
	}
	defer e.calls.End()
	start, flags := off, e.fua(f)
	return e.change(ctx, off, int64(len(p)), e.maxPayload(), f, func(conn *client.Conn, off, n int64) error {
		return conn.Write(ctx, p[off-start:][:n], off, flags)
	})
}

// fua is the flag FUA, where it was asked for and the server has it.
func (e *export) fua(f block.Flags) wire.CommandFlags {
	if f&block.FUA != 0 && e.info.Flags&wire.SendFUA != 0 {
		return wire.FlagFUA
	}
	return 0
}

// change is pieces for requests that change something. What is not durable then is noted, or flushed where FUA was asked for and the server does not
// have it.
func (e *export) change(ctx context.Context, off, n, limit int64, f block.Flags, request func(conn *client.Conn, off, n int64) error) error {
	durable := e.fua(f) != 0
	err := e.pieces(ctx, off, n, limit, func(conn *client.Conn, off, n int64) error {
		made := e.links.births.Load() // before the server acknowledges
		err := request(conn, off, n)
		if err == nil && !durable {
			e.unflushed.CompareAndSwap(0, made)
		}
		return err
	})
	if err == nil && n > 0 && f&block.FUA != 0 && !durable {
		err = e.flush(ctx)
	}
	return err
}

// Zero implements block.Device.
func (e *export) Zero(ctx context.Context, off, n int64, f block.Flags) error {
	if err := e.beginChange(ctx, off, n); err != nil {
		return err
	}
	defer e.calls.End()
	has, flags := e.info.Flags, e.fua(f)
	if f&block.Fast != 0 && has&wire.SendFastZero == 0 {
		return errors.ErrUnsupported
	}
	if has&wire.SendWriteZeroes == 0 {
		return e.change(ctx, off, n, e.maxPayload(), f, func(conn *client.Conn, off, n int64) error {
			return block.WriteZeros(ctx, zeros{conn, flags}, off, n, 0)
		})
	}
	if f&block.NoHole != 0 {
		flags |= wire.FlagNoHole
	}
	if f&block.Fast != 0 {
		flags |= wire.FlagFastZero
	}
	start := off
	return e.change(ctx, off, n, e.maxEffect(), f, func(conn *client.Conn, off, n int64) error {
		err := conn.WriteZeroes(ctx, off, n, flags)
		if errors.Is(err, errors.ErrUnsupported) && off > start {
			err = conn.WriteZeroes(ctx, off, n, flags&^wire.FlagFastZero) // something has changed already: now all of it
		}
		return err
	})
}

// zeros writes what a server is given that does not know WRITE_ZEROES.
type zeros struct {
	conn  *client.Conn
	flags wire.CommandFlags
}

func (z zeros) Write(ctx context.Context, p []byte, off int64, _ block.Flags) error {
	for n := 0; len(p) > 0; p, off = p[n:], off+int64(n) {
		n = int(min(int64(len(p)), z.conn.MaxPayload()))
		if err := z.conn.Write(ctx, p[:n], off, z.flags); err != nil {
			return err
		}
	}
	return nil
}

// Discard implements block.Device.
func (e *export) Discard(ctx context.Context, off, n int64) error {
	if err := e.beginChange(ctx, off, n); err != nil {
		return err
	}
	defer e.calls.End()
	if e.info.Flags&wire.SendTrim == 0 {
		return nil
	}
	return e.change(ctx, off, n, e.maxEffect(), 0, func(conn *client.Conn, off, n int64) error { return conn.Trim(ctx, off, n, 0) })
}

// Prefetch implements block.Device. That a server refuses is no error: nothing was promised, and the read will tell.
func (e *export) Prefetch(ctx context.Context, off, n int64) error {
	if err := e.begin(ctx, off, n); err != nil {
		return err
	}
	defer e.calls.End()
	if e.info.Flags&wire.SendCache == 0 {
		return nil
	}
	err := e.pieces(ctx, off, n, e.maxPayload(), func(conn *client.Conn, off, n int64) error { return conn.Cache(ctx, off, n, 0) })
	var refused *client.CommandError
	if errors.As(err, &refused) {
		return nil
	}
	return err
}

// Resize implements block.Device: an export cannot be resized.
func (e *export) Resize(ctx context.Context, _ int64) error {
	if err := e.calls.Begin(ctx); err != nil {
		return err
	}
	defer e.calls.End()
	return errors.ErrUnsupported
}

// Flush implements block.Device.
func (e *export) Flush(ctx context.Context) error {
	if err := e.calls.Begin(ctx); err != nil {
		return err
	}
	defer e.calls.End()
	return e.flush(ctx)
}

// flush goes over the oldest connection: if that is from before what has to be flushed, the server that answers is the one that has it. One flush runs
// at a time, so that each knows what it is about.
func (e *export) flush(ctx context.Context) error {
	if !e.write || e.info.Flags&wire.SendFlush == 0 {
		return nil
	}
	select {
	case e.flushing <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-e.flushing }()
	before := e.unflushed.Swap(0)
	birth := int64(0)
	err := e.links.do(ctx, loadOf(0), e.links.takeOldest, func(l *link) error {
		birth = l.birth
		return l.conn.Flush(ctx, 0)
	})
	switch {
	case err != nil:
		e.stillUnflushed(before)
		return err
	case before != 0 && birth > before:
		return ErrUnflushed
	}
	return nil
}

// stillUnflushed notes again what a flush that failed did not flush.
func (e *export) stillUnflushed(before int64) {
	for before != 0 {
		now := e.unflushed.Load()
		if now != 0 && now <= before || e.unflushed.CompareAndSwap(now, before) {
			return
		}
	}
}

// Close implements block.Device.
func (e *export) Close() error {
	if err := e.calls.Close(); err != nil {
		return err
	}
	e.links.close()
	if e.child != nil {
		return e.child.stop()
	}
	return nil
}
