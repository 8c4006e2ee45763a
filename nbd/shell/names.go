package shell

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"

	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

var be = binary.BigEndian

// names are those that every script has.
func (s *Shell) names() starlark.StringDict {
	return starlark.StringDict{
		"nbd":    &starlarkstruct.Module{Name: "nbd", Members: s.module()},
		"catch":  starlark.NewBuiltin("catch", s.catch),
		"check":  starlark.NewBuiltin("check", check),
		"expect": starlark.NewBuiltin("expect", expect),
		"be16":   starlark.NewBuiltin("be16", number(2)),
		"be32":   starlark.NewBuiltin("be32", number(4)),
		"be64":   starlark.NewBuiltin("be64", number(8)),
		"concat": starlark.NewBuiltin("concat", concat),
		"sleep":  starlark.NewBuiltin("sleep", s.sleep),
	}
}

// module returns the constants, and the functions that make handles.
func (s *Shell) module() starlark.StringDict {
	m := starlark.StringDict{
		"handle": starlark.NewBuiltin("handle", func(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
			return s.newHandle(), starlark.UnpackArgs(b.Name(), args, kwargs)
		}),
		"connect": starlark.NewBuiltin("connect", func(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
			var uri string
			if err := starlark.UnpackArgs(b.Name(), args, kwargs, "uri", &uri); err != nil {
				return nil, err
			}
			h := s.newHandle()
			return h, h.connectURI(uri)
		}),
		"CONTEXT_BASE_ALLOCATION":       starlark.String(wire.BaseAllocation),
		"CONTEXT_QEMU_ALLOCATION_DEPTH": starlark.String(wire.AllocationDepth),
		"CONTEXT_QEMU_DIRTY_BITMAP":     starlark.String(wire.DirtyBitmap),
	}
	for name, n := range constants() {
		m[name] = starlark.MakeUint64(n)
	}
	return m
}

// constants are the numbers of the protocol, and those of handles.
func constants() map[string]uint64 {
	all := map[string]uint64{
		"CMD_FLAG_FUA": uint64(wire.FlagFUA), "CMD_FLAG_NO_HOLE": uint64(wire.FlagNoHole), "CMD_FLAG_DF": uint64(wire.FlagDF),
		"CMD_FLAG_REQ_ONE": uint64(wire.FlagReqOne), "CMD_FLAG_FAST_ZERO": uint64(wire.FlagFastZero), "CMD_FLAG_PAYLOAD_LEN": uint64(wire.FlagPayloadLen),
		"FLAG_HAS_FLAGS": uint64(wire.HasFlags), "FLAG_READ_ONLY": uint64(wire.ReadOnly), "FLAG_SEND_FLUSH": uint64(wire.SendFlush),
		"FLAG_SEND_FUA": uint64(wire.SendFUA), "FLAG_ROTATIONAL": uint64(wire.Rotational), "FLAG_SEND_TRIM": uint64(wire.SendTrim),
		"FLAG_SEND_WRITE_ZEROES": uint64(wire.SendWriteZeroes), "FLAG_SEND_DF": uint64(wire.SendDF), "FLAG_CAN_MULTI_CONN": uint64(wire.CanMultiConn),
		"FLAG_SEND_CACHE": uint64(wire.SendCache), "FLAG_SEND_FAST_ZERO": uint64(wire.SendFastZero), "FLAG_BLOCK_STATUS_PAYLOAD": uint64(wire.BlockStatusPayload),
		"HANDSHAKE_FLAG_FIXED_NEWSTYLE": uint64(wire.FixedNewstyle), "HANDSHAKE_FLAG_NO_ZEROES": uint64(wire.NoZeroes),
		"INFO_EXPORT": uint64(wire.InfoExport), "INFO_NAME": uint64(wire.InfoName), "INFO_DESCRIPTION": uint64(wire.InfoDescription),
		"INFO_BLOCK_SIZE": uint64(wire.InfoBlockSize), "REPLY_FLAG_DONE": uint64(wire.ChunkDone),
		"STATE_HOLE": uint64(wire.StateHole), "STATE_ZERO": uint64(wire.StateZero), "STATE_DIRTY": uint64(wire.StateDirty),
		"READ_DATA": readData, "READ_HOLE": readHole, "READ_ERROR": readError,
		"SIZE_MINIMUM": sizeMinimum, "SIZE_PREFERRED": sizePreferred, "SIZE_MAXIMUM": sizeMaximum, "SIZE_PAYLOAD": sizePayload,
		"STRICT_COMMANDS": strictCommands, "STRICT_FLAGS": strictFlags, "STRICT_BOUNDS": strictBounds, "STRICT_ZERO_SIZE": strictZeroSize,
		"STRICT_ALIGN": strictAlign, "STRICT_PAYLOAD": strictPayload,
		"TLS_DISABLE": tlsDisable, "TLS_ALLOW": tlsAllow, "TLS_REQUIRE": tlsRequire,
	}
	for c := wire.CmdRead; c <= wire.CmdResize; c++ {
		all["CMD_"+c.String()] = uint64(c)
	}
	for o := wire.OptExportName; o <= wire.OptExtendedHeaders; o++ {
		all["OPT_"+o.String()] = uint64(o)
	}
	for _, first := range []wire.Reply{wire.RepAck, wire.RepErrUnsup} {
		for r := first; r <= first+9 && (r <= wire.RepMetaContext || r >= wire.RepErrUnsup); r++ {
			all["REP_"+r.String()] = uint64(r)
		}
	}
	for _, t := range []wire.ChunkType{wire.ChunkNone, wire.ChunkOffsetData, wire.ChunkOffsetHole, wire.ChunkBlockStatus, wire.ChunkBlockStatusExt,
		wire.ChunkError, wire.ChunkErrorOffset} {
		all["REPLY_TYPE_"+t.String()] = uint64(t)
	}
	return all
}

// catch calls a function and returns what it returns, and None or a record of the error. The end of the program is not caught.
func (s *Shell) catch(thread *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	if len(args) == 0 {
		return nil, errors.New("catch: a function is missing")
	}
	v, err := starlark.Call(thread, args[0], args[1:], kwargs)
	if err == nil {
		return starlark.Tuple{v, starlark.None}, nil
	}
	if s.ctx.Err() != nil {
		return nil, err
	}
	return starlark.Tuple{starlark.None, errorRecord(err)}, nil
}

// errorRecord says what an error is: kind is command, option, protocol, connection or script.
func errorRecord(err error) starlark.Value {
	kind, errno, reply, text, offset := "script", "", "", "", int64(-1)
	var command *client.CommandError
	var option *client.OptionError
	var protocol *client.ProtocolError
	switch {
	case errors.As(err, &command):
		kind, errno, text, offset = "command", command.Errno.String(), command.Text, command.Offset
	case errors.As(err, &option):
		kind, reply, text = "option", option.Reply.String(), option.Text
	case errors.As(err, &protocol):
		kind = "protocol"
	case errors.Is(err, client.ErrDisconnected):
		kind = "connection"
	}
	var eval *starlark.EvalError
	message := err.Error()
	if errors.As(err, &eval) {
		message = eval.Msg
	}
	return record("error", "kind", starlark.String(kind), "errno", starlark.String(errno), "reply", starlark.String(reply), "text", starlark.String(text),
		"offset", starlark.MakeInt64(offset), "message", starlark.String(message))
}

// check fails where a condition does not hold.
func check(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var holds starlark.Value
	message := "the condition does not hold"
	if err := starlark.UnpackArgs(b.Name(), args, kwargs, "condition", &holds, "message?", &message); err != nil {
		return nil, err
	}
	if !holds.Truth() {
		return nil, fmt.Errorf("check: %s", message)
	}
	return starlark.None, nil
}

// expect fails where two values are not equal.
func expect(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var got, want starlark.Value
	message := ""
	if err := starlark.UnpackArgs(b.Name(), args, kwargs, "got", &got, "want", &want, "message?", &message); err != nil {
		return nil, err
	}
	same, err := starlark.Equal(got, want)
	switch {
	case err != nil:
		return nil, err
	case same:
		return starlark.None, nil
	case message != "":
		message += ": "
	}
	return nil, fmt.Errorf("expect: %s%s, not %s", message, short(got), short(want))
}

// short is a value as text, the beginning of it where that is long.
func short(v starlark.Value) string {
	const most = 200
	s := v.String()
	if len(s) > most {
		s = s[:most] + "..."
	}
	return s
}

// builtin is what package starlark calls.
type builtin = func(*starlark.Thread, *starlark.Builtin, starlark.Tuple, []starlark.Tuple) (starlark.Value, error)

// number returns the function that makes bytes of a number, the most significant first.
func number(size int) builtin {
	return func(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		var n uint64
		if err := starlark.UnpackArgs(b.Name(), args, kwargs, "n", &n); err != nil {
			return nil, err
		}
		if size < 8 && n>>(8*size) != 0 {
			return nil, fmt.Errorf("%s: %d does not fit %d bytes", b.Name(), n, size)
		}
		return starlark.Bytes(be.AppendUint64(nil, n)[8-size:]), nil
	}
}

// concat joins bytes and strings to bytes, which Starlark's + does not do.
func concat(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	if len(kwargs) > 0 {
		return nil, errors.New("concat: there are no named parameters")
	}
	var all []byte
	for _, v := range args {
		var p buffer
		if err := p.Unpack(v); err != nil {
			return nil, err
		}
		all = append(all, p...)
	}
	return starlark.Bytes(all), nil
}

func (s *Shell) sleep(_ *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
	var seconds starlark.Value
	if err := starlark.UnpackArgs(b.Name(), args, kwargs, "seconds", &seconds); err != nil {
		return nil, err
	}
	n, ok := starlark.AsFloat(seconds)
	if !ok {
		return nil, errors.New("sleep: that is no number")
	}
	select {
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	case <-time.After(time.Duration(n * float64(time.Second))):
		return starlark.None, nil
	}
}

// record is a struct of scripts: names and values in turn.
func record(kind string, pairs ...any) starlark.Value {
	d := starlark.StringDict{}
	for i := 0; i < len(pairs); i += 2 {
		d[pairs[i].(string)] = pairs[i+1].(starlark.Value)
	}
	return starlarkstruct.FromStringDict(starlark.String(kind), d)
}

// buffer is a parameter that takes bytes and strings.
type buffer []byte

// Unpack implements starlark.Unpacker.
func (b *buffer) Unpack(v starlark.Value) error {
	switch v := v.(type) {
	case starlark.Bytes:
		*b = []byte(v)
	case starlark.String:
		*b = []byte(v)
	case starlark.NoneType:
		*b = nil
	default:
		return fmt.Errorf("got %s, want bytes", v.Type())
	}
	return nil
}

// texts returns the strings of a list.
func texts(list *starlark.List) ([]string, error) {
	var all []string
	for i := range list.Len() {
		s, ok := starlark.AsString(list.Index(i))
		if !ok {
			return nil, fmt.Errorf("the list holds a %s among its strings", list.Index(i).Type())
		}
		all = append(all, s)
	}
	return all, nil
}
