package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/mdlayher/vsock"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/listen"
)

// fileMode is a flag that holds permission bits.
type fileMode fs.FileMode

func (m *fileMode) String() string {
	if *m == 0 {
		return ""
	}
	return fmt.Sprintf("%#o", uint32(*m))
}
func (m *fileMode) Type() string { return "mode" }
func (m *fileMode) Set(text string) error {
	n, err := strconv.ParseUint(text, 8, 32)
	if err != nil || n == 0 || fs.FileMode(n)&^fs.ModePerm != 0 {
		return errors.New("permission bits are an octal number, as in 0660")
	}
	*m = fileMode(n)
	return nil
}

// choice is a flag that is on, off or not given.
type choice struct{ set, on bool }

func (c *choice) String() string {
	if !c.set {
		return ""
	}
	return strconv.FormatBool(c.on)
}
func (c *choice) Type() string { return "bool" }
func (c *choice) Set(text string) (err error) {
	c.set = true
	c.on, err = strconv.ParseBool(text)
	return err
}

// everywhere is the value of -i for every address of the machine.
const everywhere = "*"

// private is the value of -U for a socket of which nobody else knows.
const private = "-"

// checkPlaces refuses flags about sockets and life that do not fit each other.
func (s *serving) checkPlaces(given func(string) bool) error {
	tcp := given("port") || given("interface")
	switch {
	case s.stdio && (tcp || len(s.sockets) > 0 || s.vsock != ""):
		return errors.New("-s serves one client on standard input and output, and listens nowhere")
	case s.stdio && (s.fork || s.command != "" || s.printURI || s.exitLast):
		return errors.New("--fork, --run, --print-uri and --exit-last are not for -s")
	case s.exitLast && s.command != "":
		return errors.New("--exit-last is not for --run, with whose command the server ends")
	case s.fork && (s.command != "" || s.exitWithParent):
		return errors.New("--run and --exit-with-parent are not for --fork")
	case s.socketMode != 0 && len(s.sockets) == 0:
		return errors.New("--socket-mode is for -U")
	case s.socketMode != 0 && slices.Contains(s.sockets, private):
		return errors.New("--socket-mode is not for -U -, which is private")
	}
	if !tcp && (s.stdio || len(s.sockets) > 0 || s.vsock != "" || s.command != "") {
		s.port = ""
	} else if len(s.hosts) == 0 {
		s.hosts = []string{"localhost"}
	}
	if s.command != "" && s.port == "" && len(s.sockets) == 0 && s.vsock == "" {
		s.sockets = []string{private}
	}
	s.placed = tcp || s.stdio || len(s.sockets) > 0 || s.vsock != ""
	if _, err := net.LookupPort("tcp", s.port); s.port != "" && err != nil {
		return fmt.Errorf("-p %s: neither a number up to 65535 nor the name of a service", s.port)
	}
	if _, _, err := net.SplitHostPort(s.metrics); s.metrics != "" && err != nil {
		return fmt.Errorf("--metrics %s: say HOST:PORT", s.metrics)
	}
	_, _, err := parseVsock(s.vsock)
	return err
}

// parseVsock reads [CID:]PORT.
func parseVsock(text string) (cid, port uint32, err error) {
	if text == "" {
		return 0, 0, nil
	}
	left, right, both := strings.Cut(text, ":")
	c := uint64(listen.AnyCID)
	if both {
		c, err = strconv.ParseUint(left, 10, 32)
	} else {
		right = left
	}
	p, e := strconv.ParseUint(right, 10, 32)
	if err != nil || e != nil {
		return 0, 0, fmt.Errorf("--vsock %s: say PORT or CID:PORT, both numbers", text)
	}
	return uint32(c), uint32(p), nil
}

// listen makes the sockets that are asked for. Those that are handed over take their place.
func (s *serving) listen(ctx context.Context) ([]net.Listener, error) {
	list, err := s.inherited()
	if err != nil || len(list) > 0 {
		return list, err
	}
	if err = s.listenAll(ctx, &list); err != nil {
		return nil, errors.Join(err, listen.CloseAll(list))
	}
	return list, nil
}

// inherited returns the sockets that are handed over, if that fits what flags say.
func (s *serving) inherited() ([]net.Listener, error) {
	list, err := listen.Inherited()
	if len(list) > 0 && (s.placed || s.fork || s.command != "") {
		err = usagef("the sockets to listen on are handed over (LISTEN_FDS): -i, -p, -U, --vsock, --fork and --run do not go with that")
		return nil, errors.Join(err, listen.CloseAll(list))
	}
	return list, err
}

// listenAll appends the sockets that flags ask for to list.
func (s *serving) listenAll(ctx context.Context, list *[]net.Listener) error {
	port := s.port
	for _, host := range s.hosts {
		if port == "" {
			break
		}
		if host == everywhere {
			host = ""
		}
		found, err := listen.TCP(ctx, host, port)
		if errors.Is(err, syscall.EADDRINUSE) {
			return block.WithHint(err, "somebody listens there; -p 0 takes a port that is free")
		}
		if err != nil {
			return err
		}
		*list = append(*list, found...)
		if at, ok := found[0].Addr().(*net.TCPAddr); ok {
			port = strconv.Itoa(at.Port) // one port for all
		}
	}
	for _, path := range s.sockets {
		l, err := s.listenUnix(path)
		if err != nil {
			return err
		}
		*list = append(*list, l)
	}
	if s.vsock != "" {
		cid, port, err := parseVsock(s.vsock)
		if err != nil {
			return err
		}
		l, err := listen.Vsock(cid, port)
		if err != nil {
			return err
		}
		*list = append(*list, l)
	}
	return nil
}

func (s *serving) listenUnix(path string) (net.Listener, error) {
	if path == private {
		return listen.Private()
	}
	l, err := listen.Unix(path, fs.FileMode(s.socketMode))
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, block.WithHint(err, "somebody listens there; -U - makes a socket of its own")
	}
	return l, err
}

// uri returns where clients find an export.
func (s *serving) uri(l net.Listener, export string) string {
	u := nbd.URI{TLS: s.tls == tlsRequire, Network: l.Addr().Network(), Address: l.Addr().String(), Export: export, Params: map[string]string{}}
	switch at := l.Addr().(type) {
	case *net.TCPAddr:
		if at.IP.IsUnspecified() {
			u.Address = net.JoinHostPort("localhost", strconv.Itoa(at.Port))
		}
	case *net.UnixAddr:
		if path, err := filepath.Abs(at.Name); err == nil {
			u.Address = path
		}
	case *vsock.Addr:
		u.Address = fmt.Sprintf("%d:%d", vsock.Local, at.Port)
	}
	if u.TLS && s.pskFile != "" {
		u.Params["tls-psk-file"] = absolute(s.pskFile)
	}
	if u.TLS && s.certificates != "" {
		u.Params["tls-certificates"] = absolute(s.certificates)
	}
	return u.String()
}

// absolute returns path such that it means the same in every folder.
func absolute(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// variables returns what --run tells its command.
func (s *serving) variables(l net.Listener, export string) []string {
	uri := s.uri(l, export)
	v := map[string]string{"uri": uri, "nbd": uri, "exportname": export, "tls": strconv.Itoa(slices.Index(tlsModes(), s.tls)), "port": "", "unixsocket": ""}
	switch at := l.Addr().(type) {
	case *net.TCPAddr:
		v["port"] = strconv.Itoa(at.Port)
	case *net.UnixAddr:
		v["unixsocket"] = absolute(at.Name)
	case *vsock.Addr:
		v["port"] = strconv.FormatUint(uint64(at.Port), 10)
	}
	var list []string
	for _, name := range []string{"uri", "nbd", "unixsocket", "port", "exportname", "tls"} {
		list = append(list, name+"="+v[name])
	}
	return list
}
