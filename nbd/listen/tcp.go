// Package listen makes the listeners of an NBD server, or of any other: TCP on every address of a host, Unix sockets that are gone afterwards, private ones,
// vsock, and what systemd hands over.
//
// A listener that this package returns is closed once; what belongs to it in the file system is removed then.
package listen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// attempts bounds how often a free port is looked for that is free at every address.
const attempts = 16

// TCP listens on a port, the number or the name of a service, at every address that host has; "" is every address of the machine. Port 0 is one that is
// free, the same at all of them. Addresses that the machine does not have are left out as long as one remains.
// Connections are kept alive, and what is written to them goes out without delay.
func TCP(ctx context.Context, host, port string) ([]net.Listener, error) {
	number, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
	if err != nil {
		return nil, err
	}
	addrs := []string{""}
	switch host {
	case "":
	case "localhost": // which is this machine, whatever a name server says (RFC 6761)
		addrs = []string{"127.0.0.1", "::1"}
	default:
		found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return nil, err
		}
		addrs = addrs[:0]
		for _, a := range found {
			addrs = append(addrs, a.Unmap().String())
		}
		slices.Sort(addrs)
		addrs = slices.Compact(addrs)
	}
	for range attempts {
		var list []net.Listener
		if list, err = tcpAll(ctx, addrs, number); err == nil {
			return list, nil
		}
		if number != 0 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return nil, err
}

// tcpAll listens on the same port of all addresses.
func tcpAll(ctx context.Context, addrs []string, port int) ([]net.Listener, error) {
	// Within minutes it is found out that a client has vanished.
	c := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 8}}
	var list []net.Listener
	var missing error
	for _, a := range addrs {
		l, err := c.Listen(ctx, "tcp", net.JoinHostPort(a, strconv.Itoa(port)))
		switch {
		case err == nil:
			list = append(list, l)
			if at, ok := l.Addr().(*net.TCPAddr); ok {
				port = at.Port
			}
		case errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT):
			missing = err
		default:
			return nil, errors.Join(err, CloseAll(list))
		}
	}
	if len(list) == 0 {
		return nil, missing
	}
	return list, nil
}

// CloseAll closes listeners.
func CloseAll(list []net.Listener) error {
	var errs []error
	for _, l := range list {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// failed says where listening failed.
func failed(where string, err error) error { return fmt.Errorf("listen on %s: %w", where, err) }
