package psk

import (
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"slices"
)

// serverHandshake is the server's side of a handshake.
type serverHandshake struct {
	*config
	conn *Conn
	keys Lookup

	hello    *clientHello
	dhe      bool // with a key exchange, in group
	group    group
	identity string
	selected int // its index in hello
	schedule *schedule
}

func (h *serverHandshake) run() error {
	message, err := h.readHello()
	if err != nil {
		return err
	}
	h.conn.compatible = true
	if err := h.chooseKey(); err != nil {
		return err
	}
	if err := h.verify(message); err != nil {
		return err
	}
	share, ok := h.share()
	if !ok {
		if share, err = h.retry(); err != nil {
			return err
		}
	}
	return h.finish(share)
}

// readHello receives a ClientHello, and chooses all but the key.
func (h *serverHandshake) readHello() ([]byte, error) {
	message, err := h.conn.readLast(typeClientHello)
	if err != nil {
		return nil, err
	}
	if h.hello, err = parseClientHello(message); err != nil {
		return nil, err
	}
	return message, h.choose()
}

// choose finds a mode and a group that both sides know.
func (h *serverHandshake) choose() error {
	m := h.hello
	switch {
	case len(m.identities) == 0:
		return wrong(HandshakeFailure, "the client offers no pre-shared key")
	case len(m.modes) == 0:
		return wrong(MissingExtension, "the client offers a pre-shared key without the modes to use it")
	case m.hasShares && !m.hasGroups:
		return wrong(MissingExtension, "the client sends key shares without its groups")
	}
	for i, s := range m.shares {
		if !slices.Contains(m.groups, s.group) || slices.ContainsFunc(m.shares[:i], func(t keyShare) bool { return t.group == s.group }) {
			return wrong(IllegalParameter, "the client sends a key share of group %d twice, or without offering the group", s.group)
		}
	}
	for _, mode := range h.modes {
		if !slices.Contains(m.modes, mode) {
			continue
		}
		if h.dhe = mode == pskDHE; !h.dhe || h.chooseGroup() {
			return nil
		}
	}
	return wrong(HandshakeFailure, "client and server have no mode and no group for the key exchange in common")
}

// chooseGroup prefers a group that the client has sent a share of.
func (h *serverHandshake) chooseGroup() bool {
	if !h.hello.hasShares {
		return false
	}
	for _, g := range h.groups {
		if slices.ContainsFunc(h.hello.shares, func(s keyShare) bool { return s.group == g.id }) {
			h.group = g
			return true
		}
	}
	for _, g := range h.groups {
		if slices.Contains(h.hello.groups, g.id) {
			h.group = g
			return true
		}
	}
	return false
}

// share returns the client's share of the chosen group, and whether there is one where it is needed.
func (h *serverHandshake) share() ([]byte, bool) {
	if !h.dhe {
		return nil, true
	}
	i := slices.IndexFunc(h.hello.shares, func(s keyShare) bool { return s.group == h.group.id })
	if i < 0 {
		return nil, false
	}
	return h.hello.shares[i].data, true
}

// chooseKey finds the first identity that there is a key for, and a suite that goes with it. For a client that has none it takes a key that nobody has, and
// any suite: the answer is the same as to a client with a wrong key.
func (h *serverHandshake) chooseKey() error {
	if h.common(0) == nil {
		return wrong(HandshakeFailure, "client and server have no cipher suite in common")
	}
	for i, identity := range h.hello.identities {
		key, ok := h.keys(identity)
		if !ok {
			continue
		}
		key, err := key.check()
		if err != nil {
			return &AlertError{InternalError, err}
		}
		if s := h.common(key.Hash); s != nil {
			h.use(i, s, key.Secret)
			return nil
		}
	}
	nobodys := make([]byte, 32)
	rand.Read(nobodys) // never fails
	h.use(0, h.common(0), nobodys)
	return nil
}

func (h *serverHandshake) use(i int, s *suite, secret []byte) {
	h.selected, h.identity = i, h.hello.identities[i]
	h.conn.suite = s
	h.schedule = newSchedule(s.hash, secret)
}

// common returns the best suite that both sides know for a hash, or, with 0, for any; nil where there is none.
func (h *serverHandshake) common(hash crypto.Hash) *suite {
	for _, s := range h.suites {
		if slices.Contains(h.hello.suites, s.id) && (hash == 0 || hash == s.hash) {
			return s
		}
	}
	return nil
}

// verify checks the proof in hello, which is message, and puts it behind the transcript.
func (h *serverHandshake) verify(message []byte) error {
	cut := len(message) - h.hello.bindersLen
	h.schedule.add(message[:cut])
	if !hmac.Equal(h.hello.binders[h.selected], h.schedule.binder()) {
		return wrong(DecryptError, "the client has not the key of the identity it names, or the identity is unknown")
	}
	h.schedule.add(message[cut:])
	return nil
}

// retry asks for another ClientHello with a share of the chosen group, and returns that.
func (h *serverHandshake) retry() ([]byte, error) {
	reply := &serverHello{random: retryRandom[:], session: h.hello.session, suite: h.conn.suite.id, version: tls13, share: &keyShare{group: h.group.id}, selected: -1}
	message := reply.marshal()
	h.schedule.retry()
	h.schedule.add(message)
	if err := h.sendHello(message); err != nil {
		return nil, err
	}
	if err := h.conn.flush(); err != nil {
		return nil, err
	}
	wanted := h.group.id
	message, err := h.readHello()
	if err != nil {
		return nil, err
	}
	h.selected = slices.Index(h.hello.identities, h.identity)
	if h.selected < 0 || !slices.Contains(h.hello.suites, h.conn.suite.id) {
		return nil, wrong(IllegalParameter, "the second ClientHello leaves out what the first one offered")
	}
	share, ok := h.share()
	if !h.dhe || !ok || h.group.id != wanted || len(h.hello.shares) != 1 {
		return nil, wrong(IllegalParameter, "the second ClientHello has not the key share that was asked for")
	}
	return share, h.verify(message)
}

// sendHello queues a ServerHello, or a HelloRetryRequest.
func (h *serverHandshake) sendHello(message []byte) error {
	if err := h.conn.queue(recordHandshake, message...); err != nil {
		return err
	}
	if len(h.hello.session) == 0 || h.conn.disguised {
		return nil
	}
	h.conn.disguised = true
	return h.conn.queue(recordChangeCipherSpec, 1)
}

// finish goes from the ServerHello to the end. share is the client's, nil in psk_ke.
func (h *serverHandshake) finish(share []byte) error {
	reply := &serverHello{random: make([]byte, 32), session: h.hello.session, suite: h.conn.suite.id, version: tls13, selected: h.selected}
	rand.Read(reply.random) // never fails
	var shared []byte
	if h.dhe {
		private, err := h.group.curve.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		if shared, err = exchange(private, share); err != nil {
			return err
		}
		reply.share = &keyShare{h.group.id, private.PublicKey().Bytes()}
	}
	message := reply.marshal()
	h.schedule.add(message)
	if err := h.sendHello(message); err != nil {
		return err
	}
	h.schedule.advance(shared)
	clientSecret, serverSecret := h.schedule.traffic(clientHandshakeTraffic), h.schedule.traffic(serverHandshakeTraffic)
	c := h.conn
	c.in.use(c.suite, clientSecret)
	c.out.use(c.suite, serverSecret)
	extensions := []byte{typeEncryptedExtensions, 0, 0, 2, 0, 0} // none
	h.schedule.add(extensions)
	proof := finished(h.schedule, serverSecret)
	h.schedule.add(proof)
	if err := c.queue(recordHandshake, append(extensions, proof...)...); err != nil {
		return err
	}
	h.schedule.advance(nil)
	clientNext, serverNext := h.schedule.traffic(clientApplicationTraffic), h.schedule.traffic(serverApplicationTraffic)
	c.out.use(c.suite, serverNext)
	if err := c.flush(); err != nil {
		return err
	}
	message, err := c.readLast(typeFinished)
	if err != nil {
		return err
	}
	if err := verifyFinished(h.schedule, clientSecret, message); err != nil {
		return err
	}
	c.in.use(c.suite, clientNext)
	return nil
}
