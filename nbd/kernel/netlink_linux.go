package kernel

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Netlink messages are a header of 16 bytes, in generic netlink one of 4 more, and attributes: their length and type in 2 bytes each, then
// the content, filled up to 4. Numbers are as the processor has them. See linux/netlink.h and linux/genetlink.h.
const (
	headerSize  = unix.NLMSG_HDRLEN
	genericSize = unix.GENL_HDRLEN
	attrSize    = unix.SizeofNlAttr
	nested      = unix.NLA_F_NESTED
	attrType    = 0x3fff   // without the flags of the type
	maxReply    = 64 << 10 // bytes of replies that are read at once; the kernel's are a page
)

var ne = binary.NativeEndian

// attr appends an attribute.
func attr(b []byte, kind uint16, content []byte) []byte {
	b = ne.AppendUint16(b, uint16(attrSize+len(content)))
	b = ne.AppendUint16(b, kind)
	b = append(b, content...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func attr32(b []byte, kind uint16, n uint32) []byte { return attr(b, kind, ne.AppendUint32(nil, n)) }
func attr64(b []byte, kind uint16, n uint64) []byte { return attr(b, kind, ne.AppendUint64(nil, n)) }

// request returns a message that asks for an answer and, as all do, for an acknowledgement.
func request(family uint16, command, version uint8, sequence uint32, attrs []byte) []byte {
	b := ne.AppendUint32(nil, uint32(headerSize+genericSize+len(attrs)))
	b = ne.AppendUint16(b, family)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = ne.AppendUint32(b, sequence)
	b = ne.AppendUint32(b, 0) // the port: the kernel fills it in
	b = append(b, command, version, 0, 0)
	return append(b, attrs...)
}

var errReply = errors.New("netlink: a broken reply of the kernel")

// reply takes what the kernel has sent apart: the attributes of the answer to a request where there is one among the messages, whether the
// acknowledgement is, and its error.
func reply(b []byte, family uint16, sequence uint32) (attrs []byte, done bool, err error) {
	for len(b) > 0 {
		if len(b) < headerSize {
			return nil, false, errReply
		}
		n, kind := int64(ne.Uint32(b)), ne.Uint16(b[4:])
		if n < headerSize || n > int64(len(b)) {
			return nil, false, errReply
		}
		m := b[headerSize:n]
		ours := ne.Uint32(b[8:]) == sequence
		b = b[min((n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), int64(len(b))):]
		switch {
		case !ours:
		case kind == unix.NLMSG_ERROR:
			if len(m) < 4 {
				return nil, false, errReply
			}
			if e := int32(ne.Uint32(m)); e != 0 {
				return nil, true, unix.Errno(-e)
			}
			return attrs, true, nil
		case kind == family:
			if len(m) < genericSize {
				return nil, false, errReply
			}
			attrs = m[genericSize:]
		}
	}
	return attrs, false, nil
}

// each calls f for the attributes in b.
func each(b []byte, f func(kind uint16, content []byte)) error {
	for len(b) > 0 {
		if len(b) < attrSize {
			return errReply
		}
		n := int(ne.Uint16(b))
		if n < attrSize || n > len(b) {
			return errReply
		}
		f(ne.Uint16(b[2:])&attrType, b[attrSize:n])
		b = b[min((n+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b)):]
	}
	return nil
}

// find returns the content of the attributes of a kind.
func find(b []byte, kind uint16) (list [][]byte, err error) {
	err = each(b, func(k uint16, content []byte) {
		if k == kind {
			list = append(list, content)
		}
	})
	return list, err
}

// uint32At returns the number in the attribute of a kind.
func uint32At(b []byte, kind uint16) (uint32, error) {
	list, err := find(b, kind)
	if err != nil {
		return 0, err
	}
	if len(list) != 1 || len(list[0]) != 4 {
		return 0, errReply
	}
	return ne.Uint32(list[0]), nil
}

// link is a socket to the family of netlink messages that NBD devices have.
type link struct {
	fd       int
	family   uint16
	sequence uint32
}

// dial opens a link. Where the kernel has no NBD devices the error says so.
func dial() (*link, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	l := &link{fd: fd}
	name := attr(nil, unix.CTRL_ATTR_FAMILY_NAME, append([]byte(familyName), 0))
	attrs, err := l.ask(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, 1, name)
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	id, err := find(attrs, unix.CTRL_ATTR_FAMILY_ID)
	if err == nil && (len(id) != 1 || len(id[0]) != 2) {
		err = errReply
	}
	if err != nil {
		return nil, errors.Join(err, l.close())
	}
	l.family = ne.Uint16(id[0])
	return l, nil
}

func (l *link) close() error { return unix.Close(l.fd) }

// call sends a command of NBD devices and returns the attributes of the answer, which may be none.
func (l *link) call(command uint8, attrs []byte) ([]byte, error) {
	return l.ask(l.family, command, familyVersion, attrs)
}

func (l *link) ask(family uint16, command, version uint8, attrs []byte) ([]byte, error) {
	l.sequence++
	if err := unix.Sendto(l.fd, request(family, command, version, l.sequence, attrs), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	var answer []byte
	buf := make([]byte, maxReply)
	for {
		n, from, err := unix.Recvfrom(l.fd, buf, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, os.NewSyscallError("recvfrom", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue // another process may send to the socket as well
		}
		attrs, done, err := reply(buf[:n], family, l.sequence)
		if err != nil {
			return nil, err
		}
		if attrs != nil {
			answer = append([]byte{}, attrs...)
		}
		if done {
			return answer, nil
		}
	}
}
