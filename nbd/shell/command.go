package shell

import (
	"context"
	"errors"
	"fmt"

	"go.starlark.net/starlark"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// maxBuffer bounds what one call reads in bytes.
const maxBuffer = 1 << 30

var commandMethods = map[string]method{
	"pread":               pread,
	"pread_structured":    preadStructured,
	"pwrite":              pwrite,
	"zero":                ranged(wire.CmdWriteZeroes, (*client.Conn).WriteZeroes),
	"trim":                ranged(wire.CmdTrim, (*client.Conn).Trim),
	"cache":               ranged(wire.CmdCache, (*client.Conn).Cache),
	"flush":               flush,
	"block_status":        func(h *Handle, c *call) (starlark.Value, error) { return blockStatus(h, c, false) },
	"block_status_filter": func(h *Handle, c *call) (starlark.Value, error) { return blockStatus(h, c, true) },
	"command":             rawCommand,
}

// readArgs reads the parameters of the methods that read, and makes the buffer.
func readArgs(h *Handle, c *call, more ...any) (conn *client.Conn, p []byte, offset int64, flags wire.CommandFlags, err error) {
	var count int64
	var bits uint16
	if err = c.unpack(append([]any{"count", &count, "offset", &offset}, append(more, "flags?", &bits)...)...); err != nil {
		return
	}
	if conn, err = h.transmitting(); err != nil {
		return
	}
	if count < 0 || count > maxBuffer {
		return nil, nil, 0, 0, fmt.Errorf("%d bytes cannot be read at once", count)
	}
	flags = wire.CommandFlags(bits)
	return conn, make([]byte, count), offset, flags, h.check(wire.CmdRead, offset, count, flags)
}

func pread(h *Handle, c *call) (starlark.Value, error) {
	conn, p, offset, flags, err := readArgs(h, c)
	if err == nil {
		err = conn.Read(h.shell.ctx, p, offset, flags)
	}
	if err != nil {
		return nil, err
	}
	return starlark.Bytes(p), nil
}

// What the chunks of pread_structured are.
const (
	readData = iota + 1
	readHole
	readError
)

// preadStructured returns the bytes, and calls a function with each chunk (bytes, offset, what it is, name of the error); without a function it returns
// the bytes and a list of (offset, length, what it is). The offset of an error is -1 where the server does not tell it.
func preadStructured(h *Handle, c *call) (starlark.Value, error) {
	var each starlark.Callable
	conn, p, offset, flags, err := readArgs(h, c, "chunk?", &each)
	if err != nil {
		return nil, err
	}
	var pieces []client.Piece
	err = conn.ReadPieces(h.shell.ctx, p, offset, flags, func(x client.Piece) { pieces = append(pieces, x) })
	var list []starlark.Value
	for _, x := range pieces {
		kind, errno := readData, ""
		switch {
		case x.Err != nil:
			kind, errno = readError, x.Err.Errno.String()
		case x.Hole:
			kind = readHole
		}
		if each == nil {
			list = append(list, starlark.Tuple{starlark.MakeInt64(x.Offset), starlark.MakeInt64(x.Length), starlark.MakeInt(kind)})
			continue
		}
		var data starlark.Bytes
		if x.Err == nil { // an error may be about no place
			data = starlark.Bytes(p[x.Offset-offset:][:x.Length])
		}
		if _, err := starlark.Call(c.thread, each, starlark.Tuple{data, starlark.MakeInt64(x.Offset), starlark.MakeInt(kind), starlark.String(errno)}, nil); err != nil {
			return nil, err
		}
	}
	switch {
	case err != nil:
		return nil, err
	case each == nil:
		return starlark.Tuple{starlark.Bytes(p), starlark.NewList(list)}, nil
	}
	return starlark.Bytes(p), nil
}

func pwrite(h *Handle, c *call) (starlark.Value, error) {
	var data buffer
	var offset int64
	var flags uint16
	if err := c.unpack("buf", &data, "offset", &offset, "flags?", &flags); err != nil {
		return nil, err
	}
	conn, err := h.transmitting()
	if err != nil {
		return nil, err
	}
	f := wire.CommandFlags(flags)
	if err := h.check(wire.CmdWrite, offset, int64(len(data)), f); err != nil {
		return nil, err
	}
	return nil, conn.Write(h.shell.ctx, data, offset, f)
}

// ranged is a method over a range of bytes that carries none.
func ranged(cmd wire.Command, send func(*client.Conn, context.Context, int64, int64, wire.CommandFlags) error) method {
	return func(h *Handle, c *call) (starlark.Value, error) {
		var count, offset int64
		var flags uint16
		if err := c.unpack("count", &count, "offset", &offset, "flags?", &flags); err != nil {
			return nil, err
		}
		conn, err := h.transmitting()
		if err != nil {
			return nil, err
		}
		f := wire.CommandFlags(flags)
		if err := h.check(cmd, offset, count, f); err != nil {
			return nil, err
		}
		return nil, send(conn, h.shell.ctx, offset, count, f)
	}
}

func flush(h *Handle, c *call) (starlark.Value, error) {
	var flags uint16
	if err := c.unpack("flags?", &flags); err != nil {
		return nil, err
	}
	conn, err := h.transmitting()
	if err != nil {
		return nil, err
	}
	f := wire.CommandFlags(flags)
	if err := h.check(wire.CmdFlush, 0, 0, f); err != nil {
		return nil, err
	}
	return nil, conn.Flush(h.shell.ctx, f)
}

// blockStatus returns a dict from contexts to lists of (length, flags), or calls a function with each context, the offset, a list of lengths and flags in
// turn, and 0.
func blockStatus(h *Handle, c *call, filtered bool) (starlark.Value, error) {
	var count, offset int64
	var flags uint16
	var each starlark.Callable
	var list *starlark.List
	pairs := []any{"count", &count, "offset", &offset}
	if filtered {
		pairs = append(pairs, "contexts", &list)
	}
	if err := c.unpack(append(pairs, "extent?", &each, "flags?", &flags)...); err != nil {
		return nil, err
	}
	conn, err := h.transmitting()
	if err != nil {
		return nil, err
	}
	f := wire.CommandFlags(flags)
	if err := h.check(wire.CmdBlockStatus, offset, count, f); err != nil {
		return nil, err
	}
	var ids []uint32
	if filtered {
		if ids, err = contextIDs(conn, list); err != nil {
			return nil, err
		}
	}
	type status struct {
		name    string
		extents []client.Extent
	}
	var all []status
	err = conn.BlockStatus(h.shell.ctx, offset, count, f, ids, func(m client.MetaContext, e []client.Extent) { all = append(all, status{m.Name, e}) })
	if err != nil {
		return nil, err
	}
	if each != nil {
		for _, s := range all {
			args := starlark.Tuple{starlark.String(s.name), starlark.MakeInt64(offset), flat(s.extents), starlark.MakeInt(0)}
			if _, err := starlark.Call(c.thread, each, args, nil); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
	d := starlark.NewDict(len(all))
	for _, s := range all {
		var tuples []starlark.Value
		for _, e := range s.extents {
			tuples = append(tuples, starlark.Tuple{starlark.MakeInt64(e.Length), starlark.MakeUint64(e.Flags)})
		}
		if err := d.SetKey(starlark.String(s.name), starlark.NewList(tuples)); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// flat lists lengths and flags in turn.
func flat(extents []client.Extent) *starlark.List {
	var all []starlark.Value
	for _, e := range extents {
		all = append(all, starlark.MakeInt64(e.Length), starlark.MakeUint64(e.Flags))
	}
	return starlark.NewList(all)
}

func contextIDs(conn *client.Conn, list *starlark.List) ([]uint32, error) {
	names, err := texts(list)
	if err != nil {
		return nil, err
	}
	ids := []uint32{}
next:
	for _, name := range names {
		for _, m := range conn.Contexts() {
			if m.Name == name {
				ids = append(ids, m.ID)
				continue next
			}
		}
		return nil, fmt.Errorf("the context %q is not selected", name)
	}
	return ids, nil
}

// rawCommand sends any request, and returns all chunks of the reply.
func rawCommand(h *Handle, c *call) (starlark.Value, error) {
	var cmd, flags uint16
	var offset, length, cookie uint64
	var data buffer
	if err := c.unpack("type", &cmd, "flags?", &flags, "offset?", &offset, "length?", &length, "payload?", &data, "cookie?", &cookie); err != nil {
		return nil, err
	}
	conn, err := h.transmitting()
	if err != nil {
		return nil, err
	}
	if cookie == 0 {
		h.shell.cookie++
		cookie = h.shell.cookie
	}
	r := wire.Request{Flags: wire.CommandFlags(flags), Type: wire.Command(cmd), Cookie: cookie, Offset: offset, Length: length}
	chunks, err := conn.Command(h.shell.ctx, r, data)
	if err != nil {
		return nil, err
	}
	var all []starlark.Value
	for _, x := range chunks {
		all = append(all, chunkRecord(x))
	}
	return starlark.NewList(all), nil
}

// chunkRecord describes a chunk to a script.
func chunkRecord(x client.RawChunk) starlark.Value {
	errno, message := "", ""
	if x.Header.Type&wire.ChunkIsError != 0 && len(x.Payload) >= 6 {
		errno = wire.Errno(be.Uint32(x.Payload)).String()
		n := min(int(be.Uint16(x.Payload[4:])), len(x.Payload)-6)
		message = string(x.Payload[6 : 6+n])
	}
	return record("chunk", "type", starlark.MakeInt(int(x.Header.Type)), "name", starlark.String(x.Header.Type.String()), "flags", starlark.MakeInt(int(x.Header.Flags)),
		"cookie", starlark.MakeUint64(x.Header.Cookie), "offset", starlark.MakeUint64(x.Header.Offset), "data", starlark.Bytes(x.Payload),
		"errno", starlark.String(errno), "message", starlark.String(message))
}

// The bits of set_strict_mode say what a handle refuses by itself, rather than letting the server do it.
const (
	strictCommands = 1 << iota // commands that the export does not offer
	strictFlags                // flags that the command has not, or the export does not offer
	strictBounds               // what goes beyond the export
	strictZeroSize             // ranges of no bytes
	strictAlign                // what is not aligned to the minimum block size
	strictPayload              // payloads over the maximum

	strictDefault = strictCommands | strictFlags | strictBounds | strictZeroSize | strictPayload
)

// check refuses what the handle is strict about.
func (h *Handle) check(cmd wire.Command, off, n int64, f wire.CommandFlags) error {
	e, err := h.told()
	if err != nil {
		return nil // an old server tells at the end of negotiation, and commands come after it
	}
	strict := func(bit uint) bool { return h.strict&bit != 0 }
	switch offered, change := needs(cmd); {
	case strict(strictCommands) && change && e.Flags&wire.ReadOnly != 0:
		return fmt.Errorf("%s: %w", cmd, block.ErrReadOnly)
	case strict(strictCommands) && e.Flags&offered != offered:
		return block.ErrorOf(errors.ErrUnsupported, "the export does not offer %s", cmd)
	case strict(strictFlags) && f&^allowed(cmd, e.Flags) != 0:
		return fmt.Errorf("%s does not have the flags %#x, or the export does not offer them", cmd, uint16(f&^allowed(cmd, e.Flags)))
	case cmd == wire.CmdFlush:
		return nil
	case strict(strictBounds) && block.CheckRange(off, n, e.Size) != nil:
		return fmt.Errorf("%s: %w", cmd, block.CheckRange(off, n, e.Size))
	case strict(strictZeroSize) && n == 0:
		return fmt.Errorf("%s of no bytes", cmd)
	case strict(strictAlign) && (off%e.MinBlock != 0 || n%e.MinBlock != 0):
		return fmt.Errorf("%s of %d bytes at %d: the minimum block size is %d", cmd, n, off, e.MinBlock)
	case strict(strictPayload) && (cmd == wire.CmdRead || cmd == wire.CmdWrite) && n > e.MaxPayload:
		return fmt.Errorf("%s of %d bytes: the maximum payload is %d", cmd, n, e.MaxPayload)
	}
	return nil
}

// needs returns the flag with which an export offers a command, and whether the command changes it.
func needs(cmd wire.Command) (offered wire.TransmissionFlags, change bool) {
	switch cmd {
	case wire.CmdWrite:
		return 0, true
	case wire.CmdTrim:
		return wire.SendTrim, true
	case wire.CmdWriteZeroes:
		return wire.SendWriteZeroes, true
	case wire.CmdFlush:
		return wire.SendFlush, false
	case wire.CmdCache:
		return wire.SendCache, false
	}
	return 0, false
}

// allowed returns the flags that a command may have at an export.
func allowed(cmd wire.Command, e wire.TransmissionFlags) wire.CommandFlags {
	var f wire.CommandFlags
	if e&wire.SendFUA != 0 {
		f |= wire.FlagFUA
	}
	switch {
	case cmd == wire.CmdRead && e&wire.SendDF != 0:
		f |= wire.FlagDF
	case cmd == wire.CmdBlockStatus:
		f |= wire.FlagReqOne
	case cmd == wire.CmdWriteZeroes && e&wire.SendFastZero != 0:
		f |= wire.FlagNoHole | wire.FlagFastZero
	case cmd == wire.CmdWriteZeroes:
		f |= wire.FlagNoHole
	}
	return f
}
