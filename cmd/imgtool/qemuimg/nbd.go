package qemuimg

import (
	"cmp"
	"net"
	"strings"

	"github.com/imgtool/imgtool/chain"
)

const (
	nbdDriver = "nbd"
	nbdPort   = "10809" // where a URI names none

	noServer = "NBD server address missing"
)

// at returns the image that a URI names.
func at(uri string) image { return image{chain: chain.Spec{Source: uri}.String(), source: uri} }

// olderExport returns the image that a name which begins with nbd: and is no URI means.
func olderExport(name string) (image, error) {
	uri, ok := chain.NBDURI(name)
	if !ok {
		return image{}, cannotOpen(name, noServer)
	}
	return at(uri), nil
}

// exportNode returns what a node of the driver nbd means, of which take returns the options; missing says what they lack.
func exportNode(take func(key string) string) (img image, missing string) {
	kind := take("server.type")
	socket, host := cmp.Or(take("server.path"), take("path")), cmp.Or(take("server.host"), take("host"))
	address, export := net.JoinHostPort(host, cmp.Or(take("server.port"), take("port"), nbdPort)), take("export")
	switch {
	case socket != "" && host != "":
		return image{}, "path and host may not be used at the same time"
	case socket != "":
		address = "unix:" + socket
	case host == "" || kind == "unix":
		return image{}, noServer
	}
	name := nbdDriver + ":" + address
	if export != "" {
		name += ":exportname=" + export
	}
	uri, ok := chain.NBDURI(name)
	if !ok {
		return image{}, noServer
	}
	return at(uri), ""
}

// wholeURI returns the URI of an export with what qemu-img adds when it tells of it, and without what it leaves out: the port, and the slash before
// an empty name. Other URLs stay as they are.
func wholeURI(uri string) string {
	scheme, rest, _ := strings.Cut(uri, "://")
	if !strings.HasPrefix(scheme, nbdDriver) {
		return uri
	}
	i := strings.IndexAny(rest, "/?")
	if i < 0 {
		i = len(rest)
	}
	authority, tail := rest[:i], rest[i:]
	if tail == "/" || strings.HasPrefix(tail, "/?") {
		tail = tail[1:]
	}
	if port := authority[strings.LastIndex(authority, "]")+1:]; (scheme == "nbd" || scheme == "nbds") && !strings.Contains(port, ":") {
		authority += ":" + nbdPort
	}
	return scheme + "://" + authority + tail
}
