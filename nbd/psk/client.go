package psk

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"slices"

	"golang.org/x/crypto/cryptobyte"
)

// clientHandshake is the client's side of a handshake.
type clientHandshake struct {
	*config
	conn     *Conn
	identity string
	key      Key
	host     string

	schedule *schedule
	hello    *clientHello
	private  *ecdh.PrivateKey // for the group of hello's share
}

func (h *clientHandshake) run() error {
	h.conn.client, h.conn.compatible = true, true
	h.schedule = newSchedule(h.key.Hash, h.key.Secret)
	if err := h.makeHello(); err != nil {
		return err
	}
	if err := h.sendHello(); err != nil {
		return err
	}
	reply, message, err := h.readHello()
	if err != nil {
		return err
	}
	if err := h.conn.queue(recordChangeCipherSpec, 1); err != nil { // once, after the first ClientHello
		return err
	}
	var agreed *suite
	if agreed, err = h.judge(reply); err != nil {
		return err
	}
	if reply.retry() {
		if err := h.retry(reply, message); err != nil {
			return err
		}
		if reply, message, err = h.readHello(); err != nil {
			return err
		}
		if reply.retry() {
			return wrong(UnexpectedMessage, "the server asks for another ClientHello twice")
		}
		again, err := h.judge(reply)
		if err != nil {
			return err
		}
		if again != agreed {
			return wrong(IllegalParameter, "the server changes the suite")
		}
	}
	h.conn.suite = agreed
	return h.finish(reply, message)
}

// makeHello prepares the first ClientHello.
func (h *clientHandshake) makeHello() error {
	h.hello = &clientHello{
		random:     make([]byte, 32),
		session:    make([]byte, 32), // not empty, for the eyes of others (appendix D.4)
		serverName: hostName(h.host),
		versions:   []uint16{tls13},
		modes:      h.modes,
		identities: []string{h.identity},
		binders:    [][]byte{make([]byte, h.key.Hash.Size())},
	}
	rand.Read(h.hello.random) // never fails
	rand.Read(h.hello.session)
	for _, s := range h.suites {
		if s.hash == h.key.Hash {
			h.hello.suites = append(h.hello.suites, s.id)
		}
	}
	if !slices.Contains(h.modes, pskDHE) {
		return nil
	}
	h.hello.hasGroups = true
	for _, g := range h.groups {
		h.hello.groups = append(h.hello.groups, g.id)
	}
	return h.share(h.groups[0])
}

// share makes a key for a group, and puts it into hello.
func (h *clientHandshake) share(g group) error {
	private, err := g.curve.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	h.private = private
	h.hello.hasShares = true
	h.hello.shares = []keyShare{{g.id, private.PublicKey().Bytes()}}
	return nil
}

// sendHello signs hello with the binder, and sends it.
func (h *clientHandshake) sendHello() error {
	message := h.hello.marshal()
	binder := h.hello.binders[0]
	cut := len(message) - len(binder) - 3 // two lengths
	h.schedule.add(message[:cut])
	copy(binder, h.schedule.binder())
	copy(message[cut+3:], binder)
	h.schedule.add(message[cut:])
	if err := h.conn.queue(recordHandshake, message...); err != nil {
		return err
	}
	return h.conn.flush()
}

func (h *clientHandshake) readHello() (*serverHello, []byte, error) {
	message, err := h.conn.readLast(typeServerHello)
	if err != nil {
		return nil, nil, err
	}
	reply, err := parseServerHello(message)
	return reply, message, err
}

// judge returns the suite that the server has chosen.
func (h *clientHandshake) judge(reply *serverHello) (*suite, error) {
	if !bytes.Equal(reply.session, h.hello.session) {
		return nil, wrong(IllegalParameter, "the server returns another session id")
	}
	if !slices.Contains(h.hello.suites, reply.suite) {
		return nil, wrong(IllegalParameter, "the server chooses suite %#04x, which was not offered", reply.suite)
	}
	return h.suite(reply.suite), nil
}

// retry sends the second ClientHello, as a HelloRetryRequest asks for it.
func (h *clientHandshake) retry(reply *serverHello, message []byte) error {
	if reply.share == nil && reply.cookie == nil {
		return wrong(IllegalParameter, "the server asks for another ClientHello without a change")
	}
	if len(reply.cookie) > maxCookie {
		return wrong(IllegalParameter, "the server asks for the return of a cookie of %d bytes; %d are the most", len(reply.cookie), maxCookie)
	}
	if reply.share != nil {
		id := reply.share.group
		g, ok := h.group(id)
		if !ok || !slices.Contains(h.hello.groups, id) || h.hello.shares[0].group == id {
			return wrong(IllegalParameter, "the server asks for group %d, which was not offered or has been sent", id)
		}
		if err := h.share(g); err != nil {
			return err
		}
	}
	h.hello.cookie = bytes.Clone(reply.cookie)
	h.schedule.retry()
	h.schedule.add(message)
	return h.sendHello()
}

// finish goes from the ServerHello to the end.
func (h *clientHandshake) finish(reply *serverHello, message []byte) error {
	if reply.selected != 0 {
		if reply.selected < 0 {
			return wrong(HandshakeFailure, "the server does not take the pre-shared key")
		}
		return wrong(IllegalParameter, "the server chooses identity %d of one", reply.selected)
	}
	shared, err := h.agree(reply.share)
	if err != nil {
		return err
	}
	h.schedule.add(message)
	h.schedule.advance(shared)
	clientSecret, serverSecret := h.schedule.traffic(clientHandshakeTraffic), h.schedule.traffic(serverHandshakeTraffic)
	c := h.conn
	c.in.use(c.suite, serverSecret)
	c.out.use(c.suite, clientSecret)

	if message, err = c.readMessage(typeEncryptedExtensions); err != nil {
		return err
	}
	if err := h.checkExtensions(message); err != nil {
		return err
	}
	h.schedule.add(message)
	if message, err = c.readLast(typeFinished); err != nil {
		return err
	}
	if err := verifyFinished(h.schedule, serverSecret, message); err != nil {
		return err
	}
	h.schedule.add(message)
	if err := c.queue(recordHandshake, finished(h.schedule, clientSecret)...); err != nil {
		return err
	}
	h.schedule.advance(nil)
	c.in.use(c.suite, h.schedule.traffic(serverApplicationTraffic))
	c.out.use(c.suite, h.schedule.traffic(clientApplicationTraffic))
	return c.flush()
}

// agree returns the secret of the key exchange, nil where the server has chosen to do without.
func (h *clientHandshake) agree(share *keyShare) ([]byte, error) {
	if share == nil {
		if !slices.Contains(h.modes, pskOnly) {
			return nil, wrong(MissingExtension, "the server sends no key share")
		}
		return nil, nil
	}
	if h.private == nil || share.group != h.hello.shares[0].group {
		return nil, wrong(IllegalParameter, "the server sends a share of group %d, which was not asked for", share.group)
	}
	return exchange(h.private, share.data)
}

// checkExtensions refuses EncryptedExtensions with what was not asked for.
func (h *clientHandshake) checkExtensions(message []byte) error {
	s := cryptobyte.String(message[4:])
	var list cryptobyte.String
	if !s.ReadUint16LengthPrefixed(&list) || !s.Empty() {
		return garbled("EncryptedExtensions")
	}
	return eachExtension(list, func(typ uint16, _ cryptobyte.String, _ bool) error {
		if typ == extSupportedGroups && h.hello.hasGroups || typ == extServerName && h.hello.serverName != "" {
			return nil
		}
		return wrong(UnsupportedExtension, "EncryptedExtensions has extension %d, which was not asked for", typ)
	})
}
