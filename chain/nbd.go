package chain

import (
	"context"
	"errors"
	"net"
	"net/url"
	"strings"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd"
	"github.com/imgtool/imgtool/nbd/client"
	"github.com/imgtool/imgtool/nbd/wire"
)

// NBDOptions say how servers are connected to. The zero value is right for most; see nbd.Options.
type NBDOptions struct {
	Connections int // how many there are at most to one export; 0: nbd.DefaultConnections
	Retries     int // how often a lost connection is made again for one call; 0: nbd.DefaultRetries, negative: never
}

// exports lists the kinds of NBD URIs.
func exports() []source {
	list := []source{
		{prefix: "nbd://", doc: "nbd://HOST[:PORT]/EXPORT, nbds://...   an export of an NBD server; nbds: by TLS"},
		{prefix: "nbds://"},
		{prefix: "nbd+unix://", doc: "nbd+unix:///EXPORT?socket=PATH   the same by a socket of this machine; nbds+unix: by TLS"},
		{prefix: "nbds+unix://"},
		{prefix: "nbd+vsock://", doc: "nbd+vsock://CID[:PORT]/EXPORT   the same between a virtual machine and its host; nbds+vsock: by TLS"},
		{prefix: "nbds+vsock://"},
	}
	for i, s := range list {
		list[i].target = true
		list[i].open = func(ctx context.Context, arg string, o Options) (input, error) {
			return openExport(ctx, s.prefix+arg, o)
		}
	}
	return list
}

// openExport opens the NBD export at a URI. What two exports of a server are to each other nobody knows: they are never taken for the same device.
func openExport(ctx context.Context, uri string, o Options) (input, error) {
	if _, err := nbd.ParseURI(uri); err != nil {
		return input{}, &UsageError{err}
	}
	return exported(nbd.Dial(ctx, uri, o.nbd()))
}

// openProgram starts the NBD server in the brackets of text, and opens its default export. Closing the device ends it.
func openProgram(ctx context.Context, text string, o Options) (input, error) {
	argv, err := ProgramWords(text)
	if err != nil {
		return input{}, err
	}
	return exported(nbd.Start(ctx, argv, "", o.nbd()))
}

// nbd returns the options of a connection. Only a URI that the user has typed names files that are read for it.
func (o Options) nbd() nbd.Options {
	return nbd.Options{
		Connections: o.NBD.Connections, Retries: o.NBD.Retries, ReadOnly: !o.Write, AllowLocalFiles: !o.referred, Log: o.Log,
	}
}

// exported is the input that an open export is.
func exported(d *nbd.Device, err error) (input, error) {
	if refused := (*client.OptionError)(nil); errors.As(err, &refused) && refused.Reply == wire.RepErrUnknown {
		err = block.WithHint(err, "imgtool nbd list shows the exports of a server")
	}
	if err != nil {
		return input{}, err
	}
	return input{dev: block.Align(d, 0)}, nil
}

// NBDURI returns the URI of the export that a name of QEMU's older kind means: nbd:HOST:PORT[:exportname=NAME] or nbd:unix:PATH[:exportname=NAME].
// ok is false where name is none.
func NBDURI(name string) (uri string, ok bool) {
	rest, ok := strings.CutPrefix(name, "nbd:")
	if !ok || strings.HasPrefix(rest, "//") {
		return "", false
	}
	rest, export, _ := strings.Cut(rest, ":exportname=")
	if export != "" {
		export = (&url.URL{Path: "/" + export}).EscapedPath()
	}
	if path, unix := strings.CutPrefix(rest, "unix:"); unix {
		return "nbd+unix://" + export + "?socket=" + strings.NewReplacer("%2F", "/", "+", "%20").Replace(url.QueryEscape(path)), path != ""
	}
	host, port, err := net.SplitHostPort(rest)
	return "nbd://" + net.JoinHostPort(host, port) + export, err == nil && host != "" && port != ""
}
