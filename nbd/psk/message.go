package psk

import (
	"bytes"
	"crypto/ecdh"
	"crypto/sha256"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/crypto/cryptobyte"
)

// Versions, and the only method of compression.
const (
	tls12 = 0x0303 // what TLS 1.3 says where older versions look
	tls13 = 0x0304

	noCompression = 0
)

// Types of handshake messages (section 4).
const (
	typeClientHello         = 1
	typeServerHello         = 2
	typeNewSessionTicket    = 4
	typeEncryptedExtensions = 8
	typeFinished            = 20
	typeKeyUpdate           = 24
	typeMessageHash         = 254
)

// Types of extensions (section 4.2).
const (
	extServerName        = 0
	extSupportedGroups   = 10
	extPreSharedKey      = 41
	extSupportedVersions = 43
	extCookie            = 44
	extPSKModes          = 45
	extKeyShare          = 51
)

// mode is a way to use a pre-shared key (section 4.2.9).
type mode uint8

const (
	pskOnly mode = 0 // psk_ke
	pskDHE  mode = 1 // psk_dhe_ke
)

// groupID names a group for the key exchange (section 4.2.7).
type groupID uint16

const (
	secp256r1 groupID = 23
	x25519    groupID = 29
)

// group is one that this side can compute with.
type group struct {
	id    groupID
	curve ecdh.Curve
}

// keyShare is one side's part of a key exchange.
type keyShare struct {
	group groupID
	data  []byte
}

// maxIdentity is the length of an identity in bytes that fits into a message of which more is not taken.
const maxIdentity = 1 << 15

// maxCookie is the length of a cookie in bytes that is returned: the second ClientHello must have room for it.
const maxCookie = 1 << 14

// retryRandom is the random of a ServerHello that is a HelloRetryRequest (section 4.1.3).
var retryRandom = sha256.Sum256([]byte("HelloRetryRequest"))

// clientHello is what is of interest in a ClientHello. Slices of a parsed one are parts of the message.
type clientHello struct {
	random     []byte // 32
	session    []byte // at most 32
	suites     []uint16
	serverName string
	versions   []uint16
	groups     []groupID
	shares     []keyShare
	modes      []mode
	cookie     []byte
	identities []string
	binders    [][]byte
	hasGroups  bool // the extension is there
	hasShares  bool
	bindersLen int // bytes at the end of the message that the binders do not cover
}

// hostName returns a host as it stands in server_name, "" for what is not a DNS name.
func hostName(host string) string {
	host = strings.TrimSuffix(host, ".")
	if _, err := netip.ParseAddr(host); err == nil || len(host) > 255 {
		return ""
	}
	for _, c := range []byte(host) {
		if c <= ' ' || c > '~' || strings.IndexByte(":%[]/", c) >= 0 {
			return ""
		}
	}
	return host
}

// marshal returns the message, with binders as they are.
func (m *clientHello) marshal() []byte {
	var b cryptobyte.Builder
	b.AddUint8(typeClientHello)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(tls12)
		b.AddBytes(m.random)
		b.AddUint8LengthPrefixed(addBytes(m.session))
		b.AddUint16LengthPrefixed(addNumbers(m.suites))
		b.AddUint8LengthPrefixed(addBytes([]byte{noCompression}))
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			if m.serverName != "" {
				addExtension(b, extServerName, func(b *cryptobyte.Builder) {
					b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
						b.AddUint8(0) // host_name
						b.AddUint16LengthPrefixed(addBytes([]byte(m.serverName)))
					})
				})
			}
			addExtension(b, extSupportedVersions, func(b *cryptobyte.Builder) { b.AddUint8LengthPrefixed(addNumbers(m.versions)) })
			if m.hasGroups {
				addExtension(b, extSupportedGroups, func(b *cryptobyte.Builder) { b.AddUint16LengthPrefixed(addNumbers(m.groups)) })
			}
			if m.hasShares {
				addExtension(b, extKeyShare, func(b *cryptobyte.Builder) {
					b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
						for _, s := range m.shares {
							b.AddUint16(uint16(s.group))
							b.AddUint16LengthPrefixed(addBytes(s.data))
						}
					})
				})
			}
			if m.cookie != nil {
				addExtension(b, extCookie, func(b *cryptobyte.Builder) { b.AddUint16LengthPrefixed(addBytes(m.cookie)) })
			}
			addExtension(b, extPSKModes, func(b *cryptobyte.Builder) {
				b.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) {
					for _, mode := range m.modes {
						b.AddUint8(uint8(mode))
					}
				})
			})
			addExtension(b, extPreSharedKey, m.addKeys) // must be the last
		})
	})
	return b.BytesOrPanic()
}

// addKeys adds what pre_shared_key holds.
func (m *clientHello) addKeys(b *cryptobyte.Builder) {
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, identity := range m.identities {
			b.AddUint16LengthPrefixed(addBytes([]byte(identity)))
			b.AddUint32(0) // the age of an external key
		}
	})
	b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
		for _, binder := range m.binders {
			b.AddUint8LengthPrefixed(addBytes(binder))
		}
	})
}

func addBytes(data []byte) cryptobyte.BuilderContinuation {
	return func(b *cryptobyte.Builder) { b.AddBytes(data) }
}

func addNumbers[T ~uint16](numbers []T) cryptobyte.BuilderContinuation {
	return func(b *cryptobyte.Builder) {
		for _, n := range numbers {
			b.AddUint16(uint16(n))
		}
	}
}

func addExtension(b *cryptobyte.Builder, typ uint16, f cryptobyte.BuilderContinuation) {
	b.AddUint16(typ)
	b.AddUint16LengthPrefixed(f)
}

// garbled is the error of a message that does not follow its syntax.
func garbled(what string) error { return wrong(DecodeError, "%s is garbled", what) }

// parseClientHello reads a message, with its header.
func parseClientHello(message []byte) (*clientHello, error) {
	m := &clientHello{}
	s := cryptobyte.String(message[4:])
	var version uint16
	var suites, compression, extensions cryptobyte.String
	if !s.ReadUint16(&version) || !s.ReadBytes(&m.random, 32) || !readBytes8(&s, &m.session) || len(m.session) > 32 ||
		!s.ReadUint16LengthPrefixed(&suites) || !readNumbers(&suites, &m.suites) || !s.ReadUint8LengthPrefixed(&compression) {
		return nil, garbled("ClientHello")
	}
	if s.Empty() {
		return nil, wrong(ProtocolVersion, "the client does not speak TLS 1.3")
	}
	if !s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return nil, garbled("ClientHello")
	}
	err := eachExtension(extensions, func(typ uint16, data cryptobyte.String, last bool) error {
		if !m.parseExtension(typ, &data) || !data.Empty() {
			return garbled("an extension of ClientHello")
		}
		if typ == extPreSharedKey && !last {
			return wrong(IllegalParameter, "pre_shared_key is not the last extension of ClientHello")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// Before what only TLS 1.3 forbids: an older client gets the reason that helps.
	if !slices.Contains(m.versions, tls13) {
		return nil, wrong(ProtocolVersion, "the client does not speak TLS 1.3")
	}
	if !bytes.Equal(compression, []byte{noCompression}) {
		return nil, wrong(IllegalParameter, "ClientHello offers compression")
	}
	return m, nil
}

// parseExtension reads what is in an extension that is of interest, and skips others.
func (m *clientHello) parseExtension(typ uint16, s *cryptobyte.String) bool {
	var list cryptobyte.String
	switch typ {
	case extSupportedVersions:
		return s.ReadUint8LengthPrefixed(&list) && readNumbers(&list, &m.versions)
	case extSupportedGroups:
		m.hasGroups = true
		return s.ReadUint16LengthPrefixed(&list) && readNumbers(&list, &m.groups)
	case extKeyShare:
		m.hasShares = true
		if !s.ReadUint16LengthPrefixed(&list) {
			return false
		}
		for !list.Empty() {
			var share keyShare
			if !readShare(&list, &share) {
				return false
			}
			m.shares = append(m.shares, share)
		}
		return true
	case extCookie:
		return readBytes16(s, &m.cookie) && len(m.cookie) > 0
	case extPSKModes:
		var modes []byte
		if !readBytes8(s, &modes) || len(modes) == 0 {
			return false
		}
		for _, b := range modes {
			m.modes = append(m.modes, mode(b))
		}
		return true
	case extPreSharedKey:
		return m.parseKeys(s)
	}
	return s.Skip(len(*s))
}

// parseKeys reads pre_shared_key (section 4.2.11).
func (m *clientHello) parseKeys(s *cryptobyte.String) bool {
	var identities, binders cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&identities) {
		return false
	}
	m.bindersLen = len(*s)
	if !s.ReadUint16LengthPrefixed(&binders) {
		return false
	}
	for !identities.Empty() {
		var identity []byte
		if !readBytes16(&identities, &identity) || len(identity) == 0 || !identities.Skip(4) {
			return false
		}
		m.identities = append(m.identities, string(identity))
	}
	for !binders.Empty() {
		var binder []byte
		if !readBytes8(&binders, &binder) || len(binder) < 32 {
			return false
		}
		m.binders = append(m.binders, binder)
	}
	return len(m.identities) > 0 && len(m.identities) == len(m.binders)
}

// serverHello is a ServerHello, or a HelloRetryRequest.
type serverHello struct {
	random   []byte // 32
	session  []byte
	suite    uint16
	version  uint16
	share    *keyShare // nil in psk_ke; without data in a HelloRetryRequest
	selected int       // index of the identity; -1 for none
	cookie   []byte    // of a HelloRetryRequest
}

// retry reports whether it is a HelloRetryRequest.
func (m *serverHello) retry() bool { return bytes.Equal(m.random, retryRandom[:]) }

func (m *serverHello) marshal() []byte {
	var b cryptobyte.Builder
	b.AddUint8(typeServerHello)
	b.AddUint24LengthPrefixed(func(b *cryptobyte.Builder) {
		b.AddUint16(tls12)
		b.AddBytes(m.random)
		b.AddUint8LengthPrefixed(addBytes(m.session))
		b.AddUint16(m.suite)
		b.AddUint8(noCompression)
		b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) {
			addExtension(b, extSupportedVersions, func(b *cryptobyte.Builder) { b.AddUint16(m.version) })
			if m.share != nil {
				addExtension(b, extKeyShare, func(b *cryptobyte.Builder) {
					b.AddUint16(uint16(m.share.group))
					if !m.retry() {
						b.AddUint16LengthPrefixed(addBytes(m.share.data))
					}
				})
			}
			if m.cookie != nil {
				addExtension(b, extCookie, func(b *cryptobyte.Builder) { b.AddUint16LengthPrefixed(addBytes(m.cookie)) })
			}
			if m.selected >= 0 {
				addExtension(b, extPreSharedKey, func(b *cryptobyte.Builder) { b.AddUint16(uint16(m.selected)) })
			}
		})
	})
	return b.BytesOrPanic()
}

// parseServerHello reads a message, with its header.
func parseServerHello(message []byte) (*serverHello, error) {
	m := &serverHello{selected: -1}
	s := cryptobyte.String(message[4:])
	var version uint16
	var compression uint8
	var extensions cryptobyte.String
	if !s.ReadUint16(&version) || !s.ReadBytes(&m.random, 32) || !readBytes8(&s, &m.session) || !s.ReadUint16(&m.suite) || !s.ReadUint8(&compression) {
		return nil, garbled("ServerHello")
	}
	if s.Empty() {
		return nil, wrong(ProtocolVersion, "the server does not speak TLS 1.3")
	}
	if !s.ReadUint16LengthPrefixed(&extensions) || !s.Empty() {
		return nil, garbled("ServerHello")
	}
	err := eachExtension(extensions, func(typ uint16, data cryptobyte.String, _ bool) error {
		ok, known := m.parseExtension(typ, &data)
		if !known {
			return wrong(UnsupportedExtension, "ServerHello has extension %d, which is not for it", typ)
		}
		if !ok || !data.Empty() {
			return garbled("an extension of ServerHello")
		}
		return nil
	})
	if err != nil {
		// An older server answers with extensions of its time.
		if m.version == 0 && !m.retry() {
			return nil, wrong(ProtocolVersion, "the server does not speak TLS 1.3")
		}
		return nil, err
	}
	switch {
	case m.version != tls13:
		return nil, wrong(ProtocolVersion, "the server does not speak TLS 1.3")
	case version != tls12 || compression != noCompression:
		return nil, wrong(IllegalParameter, "ServerHello chooses what was not offered")
	}
	return m, nil
}

// parseExtension reads what is in an extension. It reports whether the syntax is right, and whether such an extension can be there.
func (m *serverHello) parseExtension(typ uint16, s *cryptobyte.String) (ok, known bool) {
	switch typ {
	case extSupportedVersions:
		return s.ReadUint16(&m.version), true
	case extKeyShare:
		m.share = &keyShare{}
		if m.retry() {
			return s.ReadUint16((*uint16)(&m.share.group)), true
		}
		return readShare(s, m.share), true
	case extCookie:
		return readBytes16(s, &m.cookie) && len(m.cookie) > 0, m.retry()
	case extPreSharedKey:
		var n uint16
		ok := s.ReadUint16(&n)
		m.selected = int(n)
		return ok, !m.retry()
	}
	return false, false
}

// eachExtension calls f for the extensions of a message, which must all differ.
func eachExtension(s cryptobyte.String, f func(typ uint16, data cryptobyte.String, last bool) error) error {
	seen := map[uint16]bool{}
	for !s.Empty() {
		var typ uint16
		var data cryptobyte.String
		if !s.ReadUint16(&typ) || !s.ReadUint16LengthPrefixed(&data) {
			return garbled("the list of extensions")
		}
		if seen[typ] {
			return wrong(IllegalParameter, "extension %d is there twice", typ)
		}
		seen[typ] = true
		if err := f(typ, data, s.Empty()); err != nil {
			return err
		}
	}
	return nil
}

func readBytes8(s *cryptobyte.String, out *[]byte) bool {
	return s.ReadUint8LengthPrefixed((*cryptobyte.String)(out))
}

func readBytes16(s *cryptobyte.String, out *[]byte) bool {
	return s.ReadUint16LengthPrefixed((*cryptobyte.String)(out))
}

func readShare(s *cryptobyte.String, share *keyShare) bool {
	return s.ReadUint16((*uint16)(&share.group)) && readBytes16(s, &share.data) && len(share.data) > 0
}

// readNumbers reads what is left of s, one number at least.
func readNumbers[T ~uint16](s *cryptobyte.String, out *[]T) bool {
	for !s.Empty() {
		var n uint16
		if !s.ReadUint16(&n) {
			return false
		}
		*out = append(*out, T(n))
	}
	return len(*out) > 0
}
