package client

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/wire"
)

// needs says which flag of an export offers a command; READ, WRITE and BLOCK_STATUS need none.
func needs(cmd wire.Command) wire.TransmissionFlags {
	switch cmd {
	case wire.CmdFlush:
		return wire.SendFlush
	case wire.CmdTrim:
		return wire.SendTrim
	case wire.CmdCache:
		return wire.SendCache
	case wire.CmdWriteZeroes:
		return wire.SendWriteZeroes
	}
	return 0
}

// check looks whether the export offers a command, and whether the range lies in it. It reports true where there is nothing to do.
func (c *Conn) check(cmd wire.Command, off, n int64, f wire.CommandFlags) (done bool, err error) {
	if c.config.Unchecked {
		return false, nil
	}
	if err := c.Err(); err != nil {
		return true, err
	}
	e := &c.export
	changes := cmd == wire.CmdWrite || cmd == wire.CmdTrim || cmd == wire.CmdWriteZeroes
	switch need := needs(cmd); {
	case changes && e.Flags&wire.ReadOnly != 0:
		return true, block.ErrReadOnly
	case e.Flags&need != need:
		return true, block.ErrorOf(errors.ErrUnsupported, "nbd: the server does not offer %s", cmd)
	case cmd == wire.CmdBlockStatus && len(c.contexts) == 0:
		return true, block.ErrorOf(errors.ErrUnsupported, "nbd: no contexts were selected")
	}
	if err := checkFlags(cmd, f, e.Flags); err != nil {
		return true, err
	}
	if cmd == wire.CmdFlush {
		return false, nil
	}
	if err := block.CheckRange(off, n, e.Size); err != nil {
		return true, err
	}
	if (cmd == wire.CmdRead || cmd == wire.CmdWrite) && n > c.maxPayload {
		return true, fmt.Errorf("nbd: %s of %d bytes; %d is the most at once", cmd, n, c.maxPayload)
	}
	if n > math.MaxUint32 && !c.extended && cmd != wire.CmdBlockStatus {
		return true, fmt.Errorf("nbd: %s of %d bytes; without extended headers %d is the most at once", cmd, n, uint32(math.MaxUint32))
	}
	return n == 0, nil
}

// checkFlags refuses flags that a command does not have, or that the export does not offer.
func checkFlags(cmd wire.Command, f wire.CommandFlags, offered wire.TransmissionFlags) error {
	var may wire.CommandFlags
	switch cmd {
	case wire.CmdRead:
		if offered&wire.SendDF != 0 {
			may = wire.FlagDF
		}
	case wire.CmdWriteZeroes:
		may = wire.FlagNoHole
		if offered&wire.SendFastZero != 0 {
			may |= wire.FlagFastZero
		}
	case wire.CmdBlockStatus:
		may = wire.FlagReqOne
	}
	if offered&wire.SendFUA != 0 {
		may |= wire.FlagFUA
	}
	if f&^may != 0 {
		return block.ErrorOf(errors.ErrUnsupported, "nbd: the server does not offer %s with the flags %#x", cmd, uint16(f))
	}
	return nil
}

// Read fills p from off. Flags may hold FlagDF. When it returns, be it because ctx has ended, p is not written any more.
func (c *Conn) Read(ctx context.Context, p []byte, off int64, f wire.CommandFlags) error {
	if done, err := c.check(wire.CmdRead, off, int64(len(p)), f); done || err != nil {
		return err
	}
	k := newCall(wire.CmdRead, off, int64(len(p)), f)
	k.buf = p
	return c.run(ctx, k)
}

// ReadPieces is Read, and calls each for every chunk in the order in which they came, before it returns; errors that the server tells of pieces go
// there too.
func (c *Conn) ReadPieces(ctx context.Context, p []byte, off int64, f wire.CommandFlags, each func(Piece)) error {
	if done, err := c.check(wire.CmdRead, off, int64(len(p)), f); done || err != nil {
		return err
	}
	k := newCall(wire.CmdRead, off, int64(len(p)), f)
	k.buf, k.telling = p, true
	kept, err := c.do(ctx, k)
	if !kept {
		return err
	}
	for _, piece := range k.pieces {
		each(piece)
	}
	k.free()
	return err
}

// tell notes a piece, where somebody wants to know.
func (k *call) tell(p Piece) {
	if k.telling {
		k.pieces = append(k.pieces, p)
	}
}

// Write stores p at off. Flags may hold FlagFUA. p must not change before it returns.
func (c *Conn) Write(ctx context.Context, p []byte, off int64, f wire.CommandFlags) error {
	if done, err := c.check(wire.CmdWrite, off, int64(len(p)), f); done || err != nil {
		return err
	}
	k := newCall(wire.CmdWrite, off, int64(len(p)), f)
	k.payload = p
	if c.extended {
		k.request.Flags |= wire.FlagPayloadLen
	}
	return c.run(ctx, k)
}

// plain sends a command that has neither payload nor data in its reply.
func (c *Conn) plain(ctx context.Context, cmd wire.Command, off, n int64, f wire.CommandFlags) error {
	if done, err := c.check(cmd, off, n, f); done || err != nil {
		return err
	}
	return c.run(ctx, newCall(cmd, off, n, f))
}

// WriteZeroes makes a range zero. Flags may hold FlagFUA, FlagNoHole and FlagFastZero.
func (c *Conn) WriteZeroes(ctx context.Context, off, n int64, f wire.CommandFlags) error {
	return c.plain(ctx, wire.CmdWriteZeroes, off, n, f)
}

// Trim says that a range is not needed. Flags may hold FlagFUA.
func (c *Conn) Trim(ctx context.Context, off, n int64, f wire.CommandFlags) error {
	return c.plain(ctx, wire.CmdTrim, off, n, f)
}

// Cache says that a range will be read soon.
func (c *Conn) Cache(ctx context.Context, off, n int64, f wire.CommandFlags) error {
	return c.plain(ctx, wire.CmdCache, off, n, f)
}

// Flush makes durable what commands have changed that were answered before.
func (c *Conn) Flush(ctx context.Context, f wire.CommandFlags) error {
	return c.plain(ctx, wire.CmdFlush, 0, 0, f)
}
