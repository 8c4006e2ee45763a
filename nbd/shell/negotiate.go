package shell

import (
	"errors"

	"go.starlark.net/starlark"

	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

var optionMethods = map[string]method{
	"opt_go":               option(func(h *Handle) (starlark.Value, error) { return nil, h.goOn() }),
	"opt_info":             option(optInfo),
	"opt_abort":            option(func(h *Handle) (starlark.Value, error) { return nil, h.conn.Abort(h.shell.ctx) }),
	"opt_export_name":      option(optExportName),
	"opt_starttls":         option(func(h *Handle) (starlark.Value, error) { return agreed(h.startTLS()) }),
	"opt_structured_reply": option(func(h *Handle) (starlark.Value, error) { return agreed(h.conn.RequestStructuredReplies(h.shell.ctx)) }),
	"opt_extended_headers": option(func(h *Handle) (starlark.Value, error) { return agreed(h.conn.RequestExtendedHeaders(h.shell.ctx)) }),
	"opt_list":             optList,
	"opt_list_meta_context": func(h *Handle, c *call) (starlark.Value, error) {
		return metaContexts(h, c, wire.OptListMetaContext, false)
	},
	"opt_list_meta_context_queries": func(h *Handle, c *call) (starlark.Value, error) {
		return metaContexts(h, c, wire.OptListMetaContext, true)
	},
	"opt_set_meta_context": func(h *Handle, c *call) (starlark.Value, error) {
		return metaContexts(h, c, wire.OptSetMetaContext, false)
	},
	"opt_set_meta_context_queries": func(h *Handle, c *call) (starlark.Value, error) {
		return metaContexts(h, c, wire.OptSetMetaContext, true)
	},
	"option": rawOption,
}

// option is a method without parameters for the time of negotiation.
func option(f func(h *Handle) (starlark.Value, error)) method {
	return func(h *Handle, c *call) (starlark.Value, error) {
		if err := c.unpack(); err != nil {
			return nil, err
		}
		if _, err := h.negotiating(); err != nil {
			return nil, err
		}
		return f(h)
	}
}

// agreed is True for an option that was taken and False for one that was refused.
func agreed(err error) (starlark.Value, error) {
	if refused(err) {
		return starlark.False, nil
	}
	return starlark.True, err
}

func optInfo(h *Handle) (starlark.Value, error) {
	info, err := h.conn.Info(h.shell.ctx, h.export)
	if err == nil {
		h.info = &info
	}
	return nil, err
}

func optExportName(h *Handle) (starlark.Value, error) {
	info, err := h.conn.ExportName(h.shell.ctx, h.export)
	if err == nil {
		h.info = &info
	}
	return nil, err
}

// optList returns a list of names and descriptions, or calls a function with each and returns how many there are.
func optList(h *Handle, c *call) (starlark.Value, error) {
	var each starlark.Callable
	if err := c.unpack("list?", &each); err != nil {
		return nil, err
	}
	conn, err := h.negotiating()
	if err != nil {
		return nil, err
	}
	all, err := conn.List(h.shell.ctx)
	if err != nil {
		return nil, err
	}
	var tuples []starlark.Value
	for _, l := range all {
		tuples = append(tuples, starlark.Tuple{starlark.String(l.Name), starlark.String(l.Description)})
	}
	return listed(c, tuples, each)
}

// listed returns a list, or calls a function with each element and returns how many there are.
func listed(c *call, all []starlark.Value, each starlark.Callable) (starlark.Value, error) {
	if each == nil {
		return starlark.NewList(all), nil
	}
	for _, v := range all {
		args, ok := v.(starlark.Tuple)
		if !ok {
			args = starlark.Tuple{v}
		}
		if _, err := starlark.Call(c.thread, each, args, nil); err != nil {
			return nil, err
		}
	}
	return starlark.MakeInt(len(all)), nil
}

// metaContexts lists or selects the contexts that fit queries: those given, or those of add_meta_context.
func metaContexts(h *Handle, c *call, o wire.Option, given bool) (starlark.Value, error) {
	var each starlark.Callable
	var list *starlark.List
	pairs := []any{"context?", &each}
	if given {
		pairs = append([]any{"queries", &list}, pairs...)
	}
	if err := c.unpack(pairs...); err != nil {
		return nil, err
	}
	conn, err := h.negotiating()
	if err != nil {
		return nil, err
	}
	queries := h.contexts
	if given {
		if queries, err = texts(list); err != nil {
			return nil, err
		}
	}
	ask := conn.ListMetaContexts
	if o == wire.OptSetMetaContext {
		ask = conn.SetMetaContexts
	}
	all, err := ask(h.shell.ctx, h.export, queries...)
	if err != nil {
		return nil, err
	}
	var names []starlark.Value
	for _, m := range all {
		names = append(names, starlark.String(m.Name))
	}
	return listed(c, names, each)
}

// rawOption sends any option, and returns all replies.
func rawOption(h *Handle, c *call) (starlark.Value, error) {
	var n uint32
	var data buffer
	if err := c.unpack("option", &n, "data?", &data); err != nil {
		return nil, err
	}
	conn, err := h.negotiating()
	if err != nil {
		return nil, err
	}
	replies, err := conn.Option(h.shell.ctx, wire.Option(n), data)
	if err != nil {
		return nil, err
	}
	var all []starlark.Value
	for _, r := range replies {
		all = append(all, record("reply", "type", starlark.MakeUint64(uint64(r.Type)), "name", starlark.String(r.Type.String()), "data", starlark.Bytes(r.Data)))
	}
	return starlark.NewList(all), nil
}

var settings = map[string]method{
	"set_opt_mode":                   setFlag(func(h *Handle) *bool { return &h.optMode }),
	"get_opt_mode":                   getFlag(func(h *Handle) *bool { return &h.optMode }),
	"set_request_structured_replies": setFlag(func(h *Handle) *bool { return &h.structured }),
	"get_request_structured_replies": getFlag(func(h *Handle) *bool { return &h.structured }),
	"set_request_extended_headers":   setFlag(func(h *Handle) *bool { return &h.extended }),
	"get_request_extended_headers":   getFlag(func(h *Handle) *bool { return &h.extended }),
	"set_export_name":                setText(func(h *Handle) *string { return &h.export }),
	"get_export_name":                func(h *Handle, c *call) (starlark.Value, error) { return starlark.String(h.export), c.unpack() },
	"set_tls_certificates":           setText(func(h *Handle) *string { return &h.secure.Certificates }),
	"set_tls_psk_file":               setText(func(h *Handle) *string { return &h.secure.PSKFile }),
	"set_tls_username":               setText(func(h *Handle) *string { return &h.secure.Identity }),
	"set_tls_hostname":               setText(func(h *Handle) *string { return &h.secure.Hostname }),
	"set_tls_verify_peer": func(h *Handle, c *call) (starlark.Value, error) {
		var verify bool
		err := c.unpack("verify", &verify)
		h.secure.NoVerify = !verify
		return nil, err
	},
	"set_tls":             setNumber(func(h *Handle) *int { return &h.tls }, tlsRequire),
	"get_tls":             func(h *Handle, c *call) (starlark.Value, error) { return starlark.MakeInt(h.tls), c.unpack() },
	"get_strict_mode":     func(h *Handle, c *call) (starlark.Value, error) { return starlark.MakeUint(h.strict), c.unpack() },
	"set_strict_mode":     setStrict,
	"set_handshake_flags": setHandshake,
	"get_handshake_flags": func(h *Handle, c *call) (starlark.Value, error) {
		return starlark.MakeInt(int(h.handshake)), c.unpack()
	},
	"add_meta_context": func(h *Handle, c *call) (starlark.Value, error) {
		var name string
		err := c.unpack("name", &name)
		if err == nil {
			h.AddContext(name)
		}
		return nil, err
	},
	"clear_meta_contexts": func(h *Handle, c *call) (starlark.Value, error) {
		h.contexts = nil
		return nil, c.unpack()
	},
	"get_nr_meta_contexts": func(h *Handle, c *call) (starlark.Value, error) { return starlark.MakeInt(len(h.contexts)), c.unpack() },
	"get_meta_context": func(h *Handle, c *call) (starlark.Value, error) {
		var i int
		if err := c.unpack("i", &i); err != nil {
			return nil, err
		}
		if i < 0 || i >= len(h.contexts) {
			return nil, errors.New("there is no such context")
		}
		return starlark.String(h.contexts[i]), nil
	},
}

func setFlag(field func(*Handle) *bool) method {
	return func(h *Handle, c *call) (starlark.Value, error) {
		return nil, c.unpack("on", field(h))
	}
}

func getFlag(field func(*Handle) *bool) method {
	return func(h *Handle, c *call) (starlark.Value, error) {
		return starlark.Bool(*field(h)), c.unpack()
	}
}

func setText(field func(*Handle) *string) method {
	return func(h *Handle, c *call) (starlark.Value, error) {
		return nil, c.unpack("value", field(h))
	}
}

func setNumber(field func(*Handle) *int, most int) method {
	return func(h *Handle, c *call) (starlark.Value, error) {
		var n int
		if err := c.unpack("value", &n); err != nil {
			return nil, err
		}
		if n < 0 || n > most {
			return nil, errors.New("there is no such value")
		}
		*field(h) = n
		return nil, nil
	}
}

func setStrict(h *Handle, c *call) (starlark.Value, error) {
	var bits uint
	if err := c.unpack("flags", &bits); err != nil {
		return nil, err
	}
	h.strict = bits
	return nil, nil
}

func setHandshake(h *Handle, c *call) (starlark.Value, error) {
	var bits uint16
	if err := c.unpack("flags", &bits); err != nil {
		return nil, err
	}
	h.handshake = wire.HandshakeFlags(bits)
	return nil, nil
}

// told returns what the server has told of the export.
func (h *Handle) told() (*client.ExportInfo, error) {
	if h.info == nil {
		return nil, errors.New("the server has not told of the export yet")
	}
	return h.info, nil
}
