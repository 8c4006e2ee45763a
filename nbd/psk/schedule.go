package psk

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"hash"
	"math"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/cryptobyte"
)

// suite is a cipher suite (RFC 8446, appendix B.4).
type suite struct {
	id     uint16
	name   string
	keyLen int // in bytes
	hash   crypto.Hash
	aead   func(key []byte) (cipher.AEAD, error)
	// limit is how many records one key encrypts at most before it is replaced (section 5.5).
	limit uint64
}

var (
	aes128   = &suite{0x1301, "TLS_AES_128_GCM_SHA256", 16, crypto.SHA256, newGCM, 1 << 24}
	aes256   = &suite{0x1302, "TLS_AES_256_GCM_SHA384", 32, crypto.SHA384, newGCM, 1 << 24}
	chacha20 = &suite{0x1303, "TLS_CHACHA20_POLY1305_SHA256", 32, crypto.SHA256, chacha20poly1305.New, math.MaxUint64}
)

// hasher returns what makes a hash, which crypto.SHA256 or crypto.SHA384 names.
func hasher(h crypto.Hash) func() hash.Hash {
	if h == crypto.SHA384 {
		return sha512.New384
	}
	return sha256.New
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// expandLabel is HKDF-Expand-Label (section 7.1).
func expandLabel(h crypto.Hash, secret []byte, label string, context []byte, length int) []byte {
	var info cryptobyte.Builder
	info.AddUint16(uint16(length))
	info.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes([]byte("tls13 " + label)) })
	info.AddUint8LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(context) })
	out, err := hkdf.Expand(hasher(h), secret, string(info.BytesOrPanic()), length)
	if err != nil {
		panic("psk: " + err.Error()) // lengths are ours
	}
	return out
}

// deriveSecret is Derive-Secret, of the hash of a transcript.
func deriveSecret(h crypto.Hash, secret []byte, label string, transcript []byte) []byte {
	return expandLabel(h, secret, label, transcript, h.Size())
}

// extract is HKDF-Extract; a nil salt or secret is as many zeroes as the hash has bytes.
func extract(h crypto.Hash, salt, secret []byte) []byte {
	zeroes := make([]byte, h.Size())
	if salt == nil {
		salt = zeroes
	}
	if secret == nil {
		secret = zeroes
	}
	mac := hmac.New(hasher(h), salt)
	mac.Write(secret)
	return mac.Sum(nil)
}

// finishedMAC is what Finished and a binder hold, by the base key of section 4.4 and the hash of a transcript.
func finishedMAC(h crypto.Hash, base, transcript []byte) []byte {
	mac := hmac.New(hasher(h), expandLabel(h, base, "finished", nil, h.Size()))
	mac.Write(transcript)
	return mac.Sum(nil)
}

// schedule is the key schedule of a connection (section 7.1) with the transcript that feeds it.
type schedule struct {
	hash       crypto.Hash
	secret     []byte // early, handshake or master secret
	transcript hash.Hash
}

// newSchedule begins with the early secret.
func newSchedule(h crypto.Hash, psk []byte) *schedule {
	return &schedule{hash: h, secret: extract(h, nil, psk), transcript: hasher(h)()}
}

// add puts handshake messages, or parts of them, behind the transcript.
func (s *schedule) add(messages ...[]byte) {
	for _, m := range messages {
		s.transcript.Write(m)
	}
}

// sum returns the hash of the transcript so far.
func (s *schedule) sum() []byte { return s.transcript.Sum(nil) }

// binder proves the key under the early secret. The transcript ends before the list of binders.
func (s *schedule) binder() []byte {
	none := hasher(s.hash)().Sum(nil)
	return finishedMAC(s.hash, deriveSecret(s.hash, s.secret, "ext binder", none), s.sum())
}

// retry replaces the first ClientHello in the transcript by its hash (section 4.4.1).
func (s *schedule) retry() {
	first := s.sum()
	s.transcript.Reset()
	s.add([]byte{typeMessageHash, 0, 0, byte(len(first))}, first)
}

// advance goes from the early to the handshake secret with what the key exchange gave, nil in psk_ke, and from there to the master secret with nil.
func (s *schedule) advance(shared []byte) {
	none := hasher(s.hash)().Sum(nil)
	s.secret = extract(s.hash, deriveSecret(s.hash, s.secret, "derived", none), shared)
}

// traffic returns a traffic secret at this point of the transcript.
func (s *schedule) traffic(label string) []byte {
	return deriveSecret(s.hash, s.secret, label, s.sum())
}

// Labels of traffic secrets.
const (
	clientHandshakeTraffic   = "c hs traffic"
	serverHandshakeTraffic   = "s hs traffic"
	clientApplicationTraffic = "c ap traffic"
	serverApplicationTraffic = "s ap traffic"
)
