package listen

import (
	"fmt"
	"net"

	"github.com/mdlayher/vsock"
)

// AnyCID listens on every context id that the machine has.
const AnyCID = 0xFFFFFFFF

// Vsock listens on a port of the sockets between virtual machines and their host. Port 0xFFFFFFFF is one that is free.
func Vsock(cid, port uint32) (net.Listener, error) {
	l, err := vsock.ListenContextID(cid, port, nil)
	if err != nil {
		return nil, failed(fmt.Sprintf("vsock port %d", port), err)
	}
	return l, nil
}
