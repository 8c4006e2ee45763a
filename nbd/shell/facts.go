package shell

import (
	"errors"

	"go.starlark.net/starlark"

	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

var factMethods = map[string]method{
	"is_read_only":             offers(wire.ReadOnly),
	"is_rotational":            offers(wire.Rotational),
	"can_flush":                offers(wire.SendFlush),
	"can_fua":                  offers(wire.SendFUA),
	"can_trim":                 offers(wire.SendTrim),
	"can_zero":                 offers(wire.SendWriteZeroes),
	"can_fast_zero":            offers(wire.SendFastZero),
	"can_df":                   offers(wire.SendDF),
	"can_multi_conn":           offers(wire.CanMultiConn),
	"can_cache":                offers(wire.SendCache),
	"can_block_status_payload": offers(wire.BlockStatusPayload),
	"can_meta_context":         canMetaContext,

	"get_size":               told(func(e *client.ExportInfo) starlark.Value { return starlark.MakeInt64(e.Size) }),
	"get_export_flags":       told(func(e *client.ExportInfo) starlark.Value { return starlark.MakeInt(int(e.Flags)) }),
	"get_export_description": told(func(e *client.ExportInfo) starlark.Value { return starlark.String(e.Description) }),
	"get_canonical_export_name": func(h *Handle, c *call) (starlark.Value, error) {
		e, err := h.told()
		if err = errors.Join(err, c.unpack()); err != nil {
			return nil, err
		}
		if e.Name != "" {
			return starlark.String(e.Name), nil
		}
		return starlark.String(h.export), nil
	},
	"get_block_size": blockSize,

	"get_protocol":                      of(func(c *client.Conn) starlark.Value { return starlark.String(c.Protocol()) }),
	"get_tls_negotiated":                of(func(c *client.Conn) starlark.Value { return starlark.Bool(c.Secure()) }),
	"get_structured_replies_negotiated": of(func(c *client.Conn) starlark.Value { return starlark.Bool(c.Structured() || c.Extended()) }),
	"get_extended_headers_negotiated":   of(func(c *client.Conn) starlark.Value { return starlark.Bool(c.Extended()) }),
	"aio_is_negotiating":                of(func(c *client.Conn) starlark.Value { return starlark.Bool(c.Negotiating()) }),
	"get_meta_contexts":                 of(selectedContexts),
	"get_uri": func(h *Handle, c *call) (starlark.Value, error) {
		if h.uri == "" {
			return nil, errors.New("the handle was not connected by a URI")
		}
		return starlark.String(h.uri), c.unpack()
	},
}

// methods are all that a handle has.
var methods = merge(connectMethods, settings, optionMethods, factMethods, commandMethods)

func merge(tables ...map[string]method) map[string]method {
	all := map[string]method{}
	for _, t := range tables {
		for name, m := range t {
			all[name] = m
		}
	}
	return all
}

// told is a method that says what the server has told of the export.
func told(f func(*client.ExportInfo) starlark.Value) method {
	return func(h *Handle, c *call) (starlark.Value, error) {
		if err := c.unpack(); err != nil {
			return nil, err
		}
		e, err := h.told()
		if err != nil {
			return nil, err
		}
		return f(e), nil
	}
}

func offers(flag wire.TransmissionFlags) method {
	return told(func(e *client.ExportInfo) starlark.Value { return starlark.Bool(e.Flags&flag != 0) })
}

// of is a method that says how the connection is.
func of(f func(*client.Conn) starlark.Value) method {
	return func(h *Handle, c *call) (starlark.Value, error) {
		if err := c.unpack(); err != nil {
			return nil, err
		}
		conn, err := h.connection()
		if err != nil {
			return nil, err
		}
		return f(conn), nil
	}
}

func selectedContexts(c *client.Conn) starlark.Value {
	var all []starlark.Value
	for _, m := range c.Contexts() {
		all = append(all, starlark.Tuple{starlark.MakeUint64(uint64(m.ID)), starlark.String(m.Name)})
	}
	return starlark.NewList(all)
}

func canMetaContext(h *Handle, c *call) (starlark.Value, error) {
	var name string
	if err := c.unpack("metacontext", &name); err != nil {
		return nil, err
	}
	conn, err := h.connection()
	if err != nil {
		return nil, err
	}
	for _, m := range conn.Contexts() {
		if m.Name == name {
			return starlark.True, nil
		}
	}
	return starlark.False, nil
}

// What get_block_size is asked for.
const (
	sizeMinimum = iota
	sizePreferred
	sizeMaximum
	sizePayload
)

// blockSize returns a block size in bytes; 0 where the server has told none, but for the payload.
func blockSize(h *Handle, c *call) (starlark.Value, error) {
	var which int
	if err := c.unpack("size_type", &which); err != nil {
		return nil, err
	}
	e, err := h.told()
	if err != nil {
		return nil, err
	}
	n := int64(0)
	switch {
	case which < sizeMinimum || which > sizePayload:
		return nil, errors.New("there is no such block size")
	case which == sizePayload:
		n = e.MaxPayload
	case e.BlockSizes:
		n = [...]int64{e.MinBlock, e.PreferredBlock, e.MaxPayload}[which]
	}
	return starlark.MakeInt64(n), nil
}
