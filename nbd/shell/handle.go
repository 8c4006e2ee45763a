package shell

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"go.starlark.net/starlark"

	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/wire"
)

// How much a handle insists on TLS, as set_tls has it.
const (
	tlsDisable = iota
	tlsAllow
	tlsRequire
)

// Handle is a connection to a server, or will be one. It is a value of scripts.
type Handle struct {
	shell *Shell

	// Set before it is connected.
	export     string
	optMode    bool
	structured bool // ask for structured replies
	extended   bool // ask for extended headers
	contexts   []string
	tls        int
	secure     secure.ClientConfig
	handshake  wire.HandshakeFlags
	strict     uint

	dialer *nbd.Dialer
	conn   *client.Conn
	host   string             // that the server's certificate is for
	info   *client.ExportInfo // as the server told last; nil before
	uri    string
}

func (s *Shell) newHandle() *Handle {
	h := &Handle{shell: s, structured: true, extended: true, strict: strictDefault, handshake: wire.FixedNewstyle | wire.NoZeroes}
	s.handles = append(s.handles, h)
	return h
}

// SetOptMode leaves options to the script: connecting does not begin transmission.
func (h *Handle) SetOptMode(on bool) { h.optMode = on }

// AddContext asks for a meta context.
func (h *Handle) AddContext(name string) { h.contexts = append(h.contexts, name) }

// The methods that make it a value with attributes.

func (h *Handle) String() string        { return "<nbd handle>" }
func (h *Handle) Type() string          { return "nbd.handle" }
func (h *Handle) Freeze()               {}
func (h *Handle) Truth() starlark.Bool  { return true }
func (h *Handle) Hash() (uint32, error) { return 0, errors.New("an nbd.handle is no key") }

// Attr implements starlark.HasAttrs.
func (h *Handle) Attr(name string) (starlark.Value, error) {
	m, ok := methods[name]
	if !ok {
		return nil, nil
	}
	return starlark.NewBuiltin(name, func(thread *starlark.Thread, b *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
		v, err := m(h, &call{thread, b.Name(), args, kwargs})
		if v == nil {
			v = starlark.None
		}
		return v, err
	}), nil
}

// AttrNames implements starlark.HasAttrs.
func (h *Handle) AttrNames() []string {
	var names []string
	for name := range methods {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// call is what a script gives a method.
type call struct {
	thread *starlark.Thread
	name   string
	args   starlark.Tuple
	kwargs []starlark.Tuple
}

// unpack fills the parameters, which come in pairs of a name and a pointer; a name that ends in ? may be missing.
func (c *call) unpack(pairs ...any) error {
	return starlark.UnpackArgs(c.name, c.args, c.kwargs, pairs...)
}

// method is what a script calls on a handle. A nil value is None.
type method func(h *Handle, c *call) (starlark.Value, error)

var connectMethods = map[string]method{
	"connect_uri": func(h *Handle, c *call) (starlark.Value, error) {
		var uri string
		if err := c.unpack("uri", &uri); err != nil {
			return nil, err
		}
		return nil, h.connectURI(uri)
	},
	"connect_unix": func(h *Handle, c *call) (starlark.Value, error) {
		var path string
		if err := c.unpack("unixsocket", &path); err != nil {
			return nil, err
		}
		return nil, h.connect(nbd.URI{Network: "unix", Address: path})
	},
	"connect_tcp": func(h *Handle, c *call) (starlark.Value, error) {
		host, port := "", strconv.Itoa(wire.DefaultPort)
		if err := c.unpack("hostname", &host, "port?", &port); err != nil {
			return nil, err
		}
		return nil, h.connect(nbd.URI{Network: "tcp", Address: net.JoinHostPort(host, port)})
	},
	"connect_vsock": func(h *Handle, c *call) (starlark.Value, error) {
		cid, port := 0, wire.DefaultPort
		if err := c.unpack("cid", &cid, "port?", &port); err != nil {
			return nil, err
		}
		return nil, h.connect(nbd.URI{Network: "vsock", Address: fmt.Sprintf("%d:%d", cid, port)})
	},
	"connect_systemd_socket_activation": func(h *Handle, c *call) (starlark.Value, error) {
		var list *starlark.List
		if err := c.unpack("argv", &list); err != nil {
			return nil, err
		}
		argv, err := texts(list)
		if err != nil {
			return nil, err
		}
		return nil, h.connectProgram(argv)
	},
	"shutdown": func(h *Handle, c *call) (starlark.Value, error) {
		if err := c.unpack(); err != nil {
			return nil, err
		}
		conn, err := h.connection()
		if err != nil {
			return nil, err
		}
		if conn.Negotiating() {
			return nil, conn.Abort(h.shell.ctx)
		}
		return nil, conn.Disconnect(h.shell.ctx)
	},
	"close": func(h *Handle, c *call) (starlark.Value, error) {
		if err := c.unpack(); err != nil {
			return nil, err
		}
		h.close()
		return nil, nil
	},
}

func (h *Handle) connectURI(text string) error {
	u, err := nbd.ParseURI(text)
	if err != nil {
		return err
	}
	h.export, h.uri = u.Export, text
	if u.TLS {
		h.tls = tlsRequire
		h.secure = secure.ClientConfig{Certificates: u.Params["tls-certificates"], PSKFile: u.Params["tls-psk-file"], Hostname: u.Params["tls-hostname"],
			Identity: u.User, NoVerify: u.Params["tls-verify-peer"] == "0"}
	}
	u.TLS, u.Params = false, nil // the handle makes TLS itself, so that a script can do it step by step
	return h.connect(u)
}

func (h *Handle) connect(u nbd.URI) error {
	if h.conn != nil {
		return errors.New("the handle is connected already")
	}
	dialer, err := nbd.NewDialer(u, true)
	if err != nil {
		return err
	}
	if u.Network == "tcp" {
		h.host, _, _ = net.SplitHostPort(u.Address)
	}
	h.dialer = dialer
	return h.begin()
}

func (h *Handle) connectProgram(argv []string) error {
	if h.conn != nil {
		return errors.New("the handle is connected already")
	}
	dialer, err := nbd.StartDialer(argv)
	if err != nil {
		return err
	}
	h.dialer = dialer
	return h.begin()
}

// begin connects, and without opt mode goes on to transmission.
func (h *Handle) begin() error {
	conn, err := h.dialer.Conn(h.shell.ctx, client.Config{
		Unchecked:       true, // the script says how strict it is with itself
		NoFixedNewstyle: h.handshake&wire.FixedNewstyle == 0, NoZeroes: h.handshake&wire.NoZeroes == 0,
	})
	if err != nil {
		h.close()
		return err
	}
	h.conn = conn
	if h.tls == tlsRequire && !h.fixed() {
		h.close()
		return errors.New("TLS is required, and without fixed newstyle there is none")
	}
	if !conn.Negotiating() { // oldstyle
		info := conn.Export()
		h.info = &info
		return nil
	}
	if h.fixed() {
		if err := h.agree(); err != nil {
			h.close()
			return err
		}
	}
	if h.optMode {
		return nil
	}
	err = h.goOn()
	if err != nil {
		h.close()
	}
	return err
}

// fixed reports whether both sides speak fixed newstyle. Without it there is no option but EXPORT_NAME.
func (h *Handle) fixed() bool {
	return h.conn.Protocol() == "newstyle-fixed" && h.handshake&wire.FixedNewstyle != 0
}

// agree asks for all that the handle is set to.
func (h *Handle) agree() error {
	if h.tls != tlsDisable {
		if err := h.startTLS(); err != nil && (h.tls == tlsRequire || !refused(err)) {
			return err
		}
	}
	agreed := false
	for _, x := range []struct {
		wanted bool
		ask    func(context.Context) error
	}{{h.extended, h.conn.RequestExtendedHeaders}, {h.structured, h.conn.RequestStructuredReplies}} {
		if !x.wanted || agreed {
			continue
		}
		err := x.ask(h.shell.ctx)
		if err != nil && !refused(err) {
			return err
		}
		agreed = err == nil
	}
	return nil
}

func (h *Handle) startTLS() error {
	c, err := secure.NewClient(h.secure)
	if err != nil {
		return err
	}
	return h.conn.StartTLS(h.shell.ctx, c, h.host)
}

// goOn begins transmission, with the contexts that the handle is set to.
func (h *Handle) goOn() error {
	if len(h.contexts) > 0 && (h.conn.Structured() || h.conn.Extended()) && len(h.conn.Contexts()) == 0 {
		if _, err := h.conn.SetMetaContexts(h.shell.ctx, h.export, h.contexts...); err != nil && !refused(err) {
			return err
		}
	}
	begin := h.conn.Go
	if !h.fixed() {
		begin = h.conn.ExportName
	}
	info, err := begin(h.shell.ctx, h.export)
	if err == nil {
		h.info = &info
	}
	return err
}

func refused(err error) bool { return errors.As(err, new(*client.OptionError)) }

var errNotConnected = errors.New("the handle is not connected")

// connection returns the connection, whatever its state.
func (h *Handle) connection() (*client.Conn, error) {
	if h.conn == nil {
		return nil, errNotConnected
	}
	return h.conn, nil
}

// negotiating returns the connection where options can be sent.
func (h *Handle) negotiating() (*client.Conn, error) {
	if h.conn == nil {
		return nil, errNotConnected
	}
	if !h.conn.Negotiating() {
		return nil, errors.New("options cannot be sent in transmission: set_opt_mode(True) before connecting, or --opt-mode, keeps the handle in negotiation")
	}
	return h.conn, nil
}

// transmitting returns the connection where commands can be sent.
func (h *Handle) transmitting() (*client.Conn, error) {
	if h.conn == nil {
		return nil, errNotConnected
	}
	if h.conn.Negotiating() {
		return nil, errors.New("commands cannot be sent in negotiation: opt_go() ends it")
	}
	return h.conn, nil
}

// close hangs up, and ends the server where the handle has started it.
func (h *Handle) close() {
	if h.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if h.conn.Negotiating() {
			h.conn.Abort(ctx)
		} else {
			h.conn.Disconnect(ctx)
		}
		cancel()
		h.conn.Close()
	}
	if h.dialer != nil {
		h.dialer.Close()
	}
	h.conn, h.dialer, h.info = nil, nil, nil
}
