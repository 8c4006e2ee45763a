package psk

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
)

// Types of records (section 5.1).
const (
	recordChangeCipherSpec = 20
	recordAlert            = 21
	recordHandshake        = 22
	recordApplicationData  = 23
)

// Lengths in bytes.
const (
	headerLen     = 5
	maxPlaintext  = 1 << 14
	maxCiphertext = maxPlaintext + 256
	maxRecord     = headerLen + maxCiphertext
	tagLen        = 16

	// maxInput and maxOutput bound the buffers of a connection that carries much: that many records are received, or sent, by one system call.
	minInput  = 4 << 10
	maxInput  = 4 * maxRecord
	maxOutput = 4 * (headerLen + maxPlaintext + 1 + tagLen)
)

var errSequence = errors.New("all sequence numbers of the connection are used up")

// protection encrypts or decrypts the records of one direction under one traffic secret.
type protection struct {
	suite  *suite
	secret []byte
	aead   cipher.AEAD // nil before there are keys
	iv     [12]byte
	nonce  [12]byte // here, and not allocated for every record
	seq    uint64
}

// use takes keys from a traffic secret (section 7.3).
func (p *protection) use(s *suite, secret []byte) {
	aead, err := s.aead(expandLabel(s.hash, secret, "key", nil, s.keyLen))
	if err != nil {
		panic("psk: " + err.Error()) // the length of the key is ours
	}
	p.suite, p.secret, p.aead, p.seq = s, secret, aead, 0
	copy(p.iv[:], expandLabel(s.hash, secret, "iv", nil, len(p.iv)))
}

// update goes on to the next generation of keys (section 7.2).
func (p *protection) update() {
	p.use(p.suite, expandLabel(p.suite.hash, p.secret, "traffic upd", nil, p.suite.hash.Size()))
}

// next prepares the nonce for a record, and counts it.
func (p *protection) next() error {
	if p.seq == math.MaxUint64 {
		return errSequence
	}
	p.nonce = p.iv
	binary.BigEndian.PutUint64(p.nonce[4:], binary.BigEndian.Uint64(p.iv[4:])^p.seq)
	p.seq++
	return nil
}

// putHeader writes the header of a record of n bytes.
func putHeader(header []byte, typ byte, n int) {
	header[0] = typ
	binary.BigEndian.PutUint16(header[1:], tls12)
	binary.BigEndian.PutUint16(header[3:], uint16(n))
}

// seal appends a record with data, at most maxPlaintext bytes, to out.
func (p *protection) seal(out []byte, typ byte, data ...byte) ([]byte, error) {
	start := len(out)
	out = append(out, 0, 0, 0, 0, 0)
	out = append(out, data...)
	inner := start + headerLen
	if p.aead == nil || typ == recordChangeCipherSpec {
		putHeader(out[start:], typ, len(data))
		return out, nil
	}
	if err := p.next(); err != nil {
		return out, err
	}
	putHeader(out[start:], recordApplicationData, len(data)+1+tagLen)
	out = append(out, typ)
	return p.aead.Seal(out[:inner], p.nonce[:], out[inner:], out[start:inner]), nil
}

// open decrypts a record, into dst where that has room, else in place, and returns the type and the data that were inside.
func (p *protection) open(dst, record []byte) (typ byte, data []byte, err error) {
	sealed := record[headerLen:]
	if len(sealed) < 1+tagLen {
		return 0, nil, wrong(DecodeError, "an encrypted record of %d bytes is too short", len(sealed))
	}
	if err := p.next(); err != nil {
		return 0, nil, err
	}
	if len(dst) < len(sealed)-tagLen {
		dst = sealed
	}
	// What lies behind its length is not ours: Open may use all of the capacity for what it likes.
	inner, err := p.aead.Open(dst[:0:len(dst)], p.nonce[:], sealed, record[:headerLen])
	if err != nil {
		return 0, nil, wrong(BadRecordMAC, "a record cannot be decrypted: it was changed on the way, or the keys differ")
	}
	if len(inner) > maxPlaintext+1 {
		return 0, nil, wrong(RecordOverflow, "a record holds more than %d bytes", maxPlaintext)
	}
	n := len(inner)
	for n > 0 && inner[n-1] == 0 {
		n--
	}
	if n == 0 {
		return 0, nil, wrong(UnexpectedMessage, "a record consists of padding alone")
	}
	if typ = inner[n-1]; typ < recordAlert || typ > recordApplicationData {
		return 0, nil, wrong(UnexpectedMessage, "a record is of type %d inside", typ)
	}
	return typ, inner[:n-1], nil
}

// input reads records. What has been received and not yet opened is buf[start:end].
type input struct {
	protection
	conn       net.Conn
	buf        []byte
	start, end int
	eager      bool // the last read filled buf: more may be waiting
	done       bool // the handshake is: every record is encrypted
}

// buffered returns the length of the record at start with its header where all of it has been received, else 0.
func (in *input) buffered() int {
	have := in.end - in.start
	if have < headerLen {
		return 0
	}
	if n := headerLen + int(binary.BigEndian.Uint16(in.buf[in.start+3:])); n <= have {
		return n
	}
	return 0
}

// fill receives until there are n bytes, at most maxRecord. An error leaves what has come for the next call.
func (in *input) fill(n int) error {
	if in.start+n > len(in.buf) {
		in.makeRoom(n)
	}
	for empty := 0; in.end-in.start < n; {
		got, err := in.conn.Read(in.buf[in.end:])
		in.end += got
		in.eager = in.end == len(in.buf)
		switch {
		case in.end-in.start >= n:
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case got > 0:
			empty = 0
		default:
			if empty++; empty > 100 {
				return io.ErrNoProgress
			}
		}
	}
	return nil
}

// makeRoom moves what is left to the beginning, in a larger buffer where n bytes, or what comes, need one.
func (in *input) makeRoom(n int) {
	size := len(in.buf)
	if in.eager {
		size = min(2*size, maxInput)
	}
	size = max(size, n, minInput)
	if size > len(in.buf) {
		buf := make([]byte, size)
		in.end = copy(buf, in.buf[in.start:in.end])
		in.buf = buf
	} else {
		in.end = copy(in.buf, in.buf[in.start:in.end])
	}
	in.start, in.eager = 0, false
}

// record receives a record and opens it. data lies in dst where that has room for all that was encrypted, else in the buffer until the next call.
// After an error of the connection, such as a deadline, it may be called again.
func (in *input) record(dst []byte) (typ byte, data []byte, err error) {
	if in.start == in.end {
		in.start, in.end = 0, 0
	}
	if err := in.fill(headerLen); err != nil {
		return 0, nil, err
	}
	header := in.buf[in.start:]
	n := int(binary.BigEndian.Uint16(header[3:]))
	typ = header[0]
	if err := in.checkHeader(typ, header[1], n); err != nil {
		return 0, nil, err
	}
	if err := in.fill(headerLen + n); err != nil {
		return 0, nil, err
	}
	record := in.buf[in.start:][:headerLen+n]
	in.start += headerLen + n
	if typ != recordApplicationData {
		return typ, record[headerLen:], nil
	}
	return in.open(dst, record)
}

// checkHeader judges what a record is said to be before the rest of it is waited for.
func (in *input) checkHeader(typ, version byte, n int) error {
	if typ < recordChangeCipherSpec || typ > recordApplicationData || version != tls12>>8 {
		return wrong(UnexpectedMessage, "what the peer sends is not TLS")
	}
	limit := maxPlaintext
	if in.aead != nil && typ == recordApplicationData {
		limit = maxCiphertext
	}
	if n > limit {
		return wrong(RecordOverflow, "a record of %d bytes is longer than %d", n, limit)
	}
	plain := in.aead == nil
	switch typ {
	case recordApplicationData:
		plain = !plain
	case recordChangeCipherSpec: // it means nothing, and stands between handshake messages for the eyes of others
		plain = !in.done
	case recordAlert: // of a peer that could not make the keys
		plain = plain || !in.done && in.seq == 0
	}
	if !plain {
		return wrong(UnexpectedMessage, "a record of type %d is not expected here", typ)
	}
	return nil
}
