package nbd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/wire"
)

// URI is an NBD URI, taken apart (doc/uri.md of the NBD project).
type URI struct {
	TLS     bool   // nbds
	Network string // tcp, unix or vsock
	Address string // host:port, a path, or cid:port
	Export  string
	User    string            // PSK identity
	Params  map[string]string // tls-certificates, tls-psk-file, tls-hostname, tls-verify-peer, tls-type
}

const (
	defaultHost = "localhost"
	defaultCID  = "2" // the host, seen from its guests
)

// tlsParams are the parameters that URI.Params may hold, in the order in which String writes them.
var tlsParams = [...]string{"tls-type", "tls-certificates", "tls-psk-file", "tls-hostname", "tls-verify-peer"}

// ParseURI takes a URI apart, and refuses what it does not know.
func ParseURI(text string) (URI, error) {
	u, err := parseURI(text)
	if err != nil {
		return URI{}, fmt.Errorf("nbd: the URI %q: %w", text, err)
	}
	return u, nil
}

func parseURI(text string) (URI, error) {
	p, err := url.Parse(text)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err // which does not repeat the text
		}
		return URI{}, err
	}
	var u URI
	if u.TLS, u.Network, err = scheme(p.Scheme); err != nil {
		return URI{}, err
	}
	if p.Opaque != "" {
		return URI{}, block.WithHint(errors.New("there is no // behind the scheme"), "an NBD URI looks like nbd://host:port/export or nbd+unix:///export?socket=path")
	}
	if p.Fragment != "" {
		return URI{}, errors.New("it has a fragment: a # in an export name is written %23")
	}
	u.User = p.User.Username()
	if _, has := p.User.Password(); has {
		return URI{}, errors.New("it has a password, of which NBD makes no use")
	}
	u.Export = strings.TrimPrefix(p.Path, "/")
	if len(u.Export) > wire.MaxString || strings.Contains(u.Export, "\x00") {
		return URI{}, fmt.Errorf("the export name is longer than %d bytes, or contains NUL", wire.MaxString)
	}
	params, err := parseParams(p.RawQuery)
	if err != nil {
		return URI{}, err
	}
	if err := u.setAddress(p, params); err != nil {
		return URI{}, err
	}
	return u, u.setParams(params)
}

// scheme takes a scheme apart.
func scheme(s string) (tls bool, network string, err error) {
	base, network, plus := strings.Cut(s, "+")
	if !plus {
		network = "tcp"
	}
	if base != "nbd" && base != "nbds" || network != "tcp" && network != "unix" && network != "vsock" || plus && network == "tcp" {
		return false, "", fmt.Errorf("the scheme %q is none of nbd, nbds, nbd+unix, nbds+unix, nbd+vsock and nbds+vsock", s)
	}
	return base == "nbds", network, nil
}

// parseParams takes a query apart. A plus is a plus, unlike in forms.
func parseParams(query string) (map[string]string, error) {
	params := map[string]string{}
	for _, field := range strings.Split(query, "&") {
		if field == "" {
			continue
		}
		key, value, _ := strings.Cut(field, "=")
		key, err1 := url.PathUnescape(key)
		value, err2 := url.PathUnescape(value)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("the parameter %q is not encoded well", field)
		}
		if _, twice := params[key]; twice {
			return nil, fmt.Errorf("the parameter %s occurs twice", key)
		}
		params[key] = value
	}
	return params, nil
}

// setAddress says where the server is, and takes what it used out of params.
func (u *URI) setAddress(p *url.URL, params map[string]string) error {
	host, port := p.Hostname(), p.Port()
	if port == "" {
		port = strconv.Itoa(wire.DefaultPort)
	}
	socket, hasSocket := params["socket"]
	if hasSocket != (u.Network == "unix") {
		if hasSocket {
			return block.WithHint(fmt.Errorf("the parameter socket does not go with %s", p.Scheme), "a Unix socket has the scheme nbd+unix or nbds+unix")
		}
		return block.WithHint(errors.New("the parameter socket is missing"), "write nbd+unix:///export?socket=path")
	}
	bits := 16
	switch u.Network {
	case "unix":
		if p.Host != "" {
			return block.WithHint(fmt.Errorf("a Unix socket has no host, and this URI has %q", p.Host), "write nbd+unix:/// with three slashes")
		}
		if socket == "" || strings.Contains(socket[1:], "\x00") {
			return errors.New("the parameter socket is empty, or contains NUL")
		}
		u.Address = socket
		delete(params, "socket")
		return nil
	case "vsock":
		if host == "" {
			host = defaultCID
		}
		bits = 32
		if _, err := strconv.ParseUint(host, 10, 32); err != nil {
			return fmt.Errorf("the vsock address %q is not a number", host)
		}
	default:
		if host == "" {
			host = defaultHost
		}
		if strings.ContainsAny(host, ":%") != strings.HasPrefix(p.Host, "[") || strings.ContainsAny(host, " /[]@?#\"<>\\^`{|}") {
			return block.WithHint(fmt.Errorf("the host %q is neither a name nor an address", host), "an IPv6 address stands in [brackets]")
		}
	}
	if n, err := strconv.ParseUint(port, 10, bits); err != nil || n == 0 {
		return fmt.Errorf("the port %q is not a number from 1 to %d", port, uint64(1)<<bits-1)
	}
	u.Address = net.JoinHostPort(host, port)
	return nil
}

// setParams checks and keeps the parameters about TLS.
func (u *URI) setParams(params map[string]string) error {
	for key, value := range params {
		switch {
		case !slices.Contains(tlsParams[:], key):
			return block.WithHint(fmt.Errorf("the parameter %s is unknown", key), "known are socket, "+strings.Join(tlsParams[:], ", "))
		case !u.TLS:
			return block.WithHint(fmt.Errorf("the parameter %s needs TLS", key), "TLS has the schemes nbds, nbds+unix and nbds+vsock")
		case key == "tls-verify-peer" && value != "0" && value != "1":
			return fmt.Errorf("the parameter tls-verify-peer is %q, neither 0 nor 1", value)
		case key == "tls-type" && value == "anon":
			return block.ErrorOf(errors.ErrUnsupported, "tls-type=anon is not supported: it protects from nobody who can change what is sent")
		case key == "tls-type" && value != "x509" && value != "psk":
			return fmt.Errorf("the parameter tls-type is %q, neither x509 nor psk", value)
		}
	}
	if params["tls-type"] == "psk" && params["tls-psk-file"] == "" {
		return errors.New("the parameter tls-psk-file is missing, which tls-type=psk needs")
	}
	if len(params) > 0 {
		u.Params = params
	}
	return nil
}

// secure says what the URI wants of encryption.
func (u URI) secure(localFiles bool) (secure.ClientConfig, error) {
	c := secure.ClientConfig{
		Certificates: u.Params["tls-certificates"], PSKFile: u.Params["tls-psk-file"], Hostname: u.Params["tls-hostname"],
		Identity: u.User, NoVerify: u.Params["tls-verify-peer"] == "0",
	}
	if (c.Certificates != "" || c.PSKFile != "") && !localFiles {
		return c, block.ErrorOf(block.ErrDenied, "nbd: the URI names local files (tls-certificates, tls-psk-file), which is not allowed here")
	}
	switch {
	case u.Params["tls-type"] == "x509":
		c.PSKFile = ""
	case c.PSKFile != "":
		c.Certificates = ""
	}
	return c, nil
}

// String returns the URI as text, which ParseURI reads.
func (u URI) String() string {
	var s strings.Builder
	s.WriteString("nbd")
	if u.TLS {
		s.WriteByte('s')
	}
	if u.Network != "tcp" {
		s.WriteString("+" + u.Network)
	}
	s.WriteString("://")
	if u.User != "" {
		s.WriteString(url.User(u.User).String() + "@")
	}
	query := make([]string, 0, 1+len(tlsParams))
	if u.Network == "unix" {
		query = append(query, "socket="+escape(u.Address))
	} else {
		s.WriteString(u.authority())
	}
	if u.Export != "" || u.Network == "unix" {
		s.WriteString("/" + escape(u.Export))
	}
	for _, key := range tlsParams {
		if value, has := u.Params[key]; has {
			query = append(query, key+"="+escape(value))
		}
	}
	if len(query) > 0 {
		s.WriteString("?" + strings.Join(query, "&"))
	}
	return s.String()
}

// authority writes host and port, the port only where it is not the usual one.
func (u URI) authority() string {
	host, port, err := net.SplitHostPort(u.Address)
	if err != nil {
		return escape(u.Address)
	}
	if strings.Contains(host, ":") {
		host = "[" + strings.ReplaceAll(escape(host), "%3A", ":") + "]"
	} else {
		host = escape(host)
	}
	if port == strconv.Itoa(wire.DefaultPort) {
		return host
	}
	return host + ":" + port
}

// escape encodes all but what every URI may hold, and slashes.
func escape(s string) string {
	const plain = "-._~/"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte(plain, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
