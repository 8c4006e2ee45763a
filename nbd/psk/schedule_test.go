package psk

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"strings"
	"testing"
)

// Messages and secrets of the resumed handshake of RFC 8448, section 4. A key of resumption differs from an external one in the label of its binder alone.
const (
	zeroes87     = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
	resumedKey   = "4ecd0eb6ec3b4d87f5d6028f922ca4c5851a277fd41311c9e62d2c9492e1c4f3"
	resumedHello = "010001fc03031bc3ceb6bbe39cff938355b5a50adb6db21b7a6af649d7b4bc419d7876487d95000006130113031302010001cd0000000b0009000006736572766572ff01000100000a00140012001d00170018001901000101010201030104003300260024001d0020e4ffb68ac05f8d96c99da26698346c6be16482badddafe051a66b4f18d668f0b002a0000002b0003020304000d0020001e040305030603020308040805080604010501060102010402050206020202002d00020101001c0002400100150057" + zeroes87 +
		"002900dd00b800b22c035d829359ee5ff7af4ec900000000262a6494dc486d2c8a34cb33fa90bf1b0070ad3c498883c9367c09a2be785abc55cd226097a3a982117283f82a03a143efd3ff5dd36d64e861be7fd61d2827db279cce145077d454a3664d4e6da4d29ee03725a6a4dafcd0fc67d2aea70529513e3da2677fa5906c5b3f7d8f92f228bda40dda721470f9fbf297b5aea617646fac5c03272e970727c621a79141ef5f7de6505e5bfbc388e93343694093934ae4d357fad6aacb" +
		"0021203add4fb2d8fdf822a0ca3cf7678ef5e88dae990141c5924d57bb6fa31b9e5f9d"
	resumedServerHello = "0200005c03033ccfd2dec890222763472ae8136777c9d7358777bb66e91ea5122495f559ea2d00130100003400290002000000330024001d0020121761ee42c333e1b9e77b60dd57c2053cd94512ab47f115e86eff50942cea31002b00020304"
	resumedExtensions  = "080000280026000a00140012001d00170018001901000101010201030104001c0002400100000000002a0000"
	resumedFinished    = "1400002048d3e0e1b3d907c6acff145e16090388c77b05c050b634ab1a88bbd0dd1a34b2"
	resumedEndOfEarly  = "05000000"
	resumedServerKey   = "de5b4476e7b490b2652d338acbf2948066f255f9440e23b98fc69835298dc107"
)

// Messages of the handshake with a HelloRetryRequest of section 5.
const (
	retriedHello1 = "010000b00303b0b1c5a5aa37c5919f2ed1d5c6fff7fcb7849716945a2b8cee9258a346677b6f000006130113031302010000810000000b0009000006736572766572ff01000100000a00080006001d00170018003300260024001d0020e8e8e3f3b93a25ed97a14a7dcacb8a272c6288e585c6484d05262fcad062ad1f002b0003020304000d0020001e040305030603020308040805080604010501060102010402050206020202002d00020101001c00024001"
	retryRequest  = "020000ac0303cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c001301000084003300020017002c0074007271dcd04bb88bc3189119398a00000000eefafc76c146b823b096f8aacad365dd0030953f4edf625636e5f21bb2e23fcc654b1b5b40318d10d137abcbb87574e36e8a1f025f7dfa5d6e50781b5eda4aa15b0c8be778257d16aa3030e9e7841dd9e4c0342267e8ca0caf571fb2b7cff0f934b0002b00020304"
	retriedHello2 = "010001fc0303b0b1c5a5aa37c5919f2ed1d5c6fff7fcb7849716945a2b8cee9258a346677b6f000006130113031302010001cd0000000b0009000006736572766572ff01000100000a00080006001d00170018003300470045001700" +
		"4104a6da7392ec591e17abfd535964b99894d13befb221b3def2ebe3830eac8f0151812677c4d6d2237e85cf01d6910cfb83954e76ba7352830534159897e8065780002b0003020304000d0020001e040305030603020308040805080604010501060102010402050206020202002c0074007271dcd04bb88bc3189119398a00000000eefafc76c146b823b096f8aacad365dd0030953f4edf625636e5f21bb2e23fcc654b1b5b40318d10d137abcbb87574e36e8a1f025f7dfa5d6e50781b5eda4aa15b0c8be778257d16aa3030e9e7841dd9e4c0342267e8ca0caf571fb2b7cff0f934b0002d00020101001c00024001001500af"
	retriedServerHello = "020000770303bb341d847fd789c47c387172dc0c9bf147fccacb5043d86ca4c598d3ff571b9800130100004f003300450017004104583e054b7a66672ae020ad9d2686fcc85b5ad41a134a0f03ee72b893052bd85b4c8de6776f5b04ac07d83540eab3e3d9c547bc6528c4317d294686093a6cad7d002b00020304"
)

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// same compares bytes with their hexadecimal form.
func same(t *testing.T, what string, got []byte, want string) {
	t.Helper()
	if hex.EncodeToString(got) != want {
		t.Errorf("%s: got %x, want %s", what, got, want)
	}
}

// TestResumed follows the trace of RFC 8448, section 4, from the key to the traffic secrets of both sides, through the messages as this package parses them.
func TestResumed(t *testing.T) {
	const h = crypto.SHA256
	message := unhex(t, resumedHello)
	hello, err := parseClientHello(message)
	if err != nil {
		t.Fatal(err)
	}
	s := newSchedule(h, unhex(t, resumedKey))
	same(t, "early secret", s.secret, "9b2188e9b2fc6d64d71dc329900e20bb41915000f678aa839cbb797cb7d8332c")
	none := hasher(h)().Sum(nil)
	binderKey := deriveSecret(h, s.secret, "res binder", none)
	same(t, "binder key", binderKey, "69fe131a3bbad5d63c64eebcc30e395b9d8107726a13d074e389dbc8a4e47256")
	cut := len(message) - hello.bindersLen
	s.add(message[:cut])
	same(t, "hash of the truncated ClientHello", s.sum(), "63224b2e4573f2d3454ca84b9d009a04f6be9e05711a8396473aefa01e924a14")
	same(t, "binder", finishedMAC(h, binderKey, s.sum()), hex.EncodeToString(hello.binders[0]))
	s.add(message[cut:])
	early := s.traffic("c e traffic")
	same(t, "early traffic secret", early, "3fbbe6a60deb66c30a32795aba0eff7eaa10105586e7be5c09678d63b6caab62")

	message = unhex(t, resumedServerHello)
	reply, err := parseServerHello(message)
	if err != nil {
		t.Fatal(err)
	}
	if reply.selected != 0 || reply.suite != aes128.id || reply.share.group != x25519 || hello.shares[0].group != x25519 {
		t.Errorf("ServerHello is read as %+v", reply)
	}
	x, _ := defaults().group(x25519)
	private, err := x.curve.NewPrivateKey(unhex(t, resumedServerKey))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "server's share", private.PublicKey().Bytes(), hex.EncodeToString(reply.share.data))
	shared, err := exchange(private, hello.shares[0].data)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "shared secret", shared, "f44194756ff9ec9d25180635d66ea6824c6ab3bf179977be37f723570e7ccb2e")
	s.add(message)
	s.advance(shared)
	same(t, "handshake secret", s.secret, "005cb112fd8eb4ccc623bb88a07c64b3ede1605363fc7d0df8c7ce4ff0fb4ae6")
	client, server := s.traffic(clientHandshakeTraffic), s.traffic(serverHandshakeTraffic)
	same(t, "client's handshake traffic secret", client, "2faac08f851d35fea3604fcb4de82dc62c9b164a70974d0462e27f1ab278700f")
	same(t, "server's handshake traffic secret", server, "fe927ae271312e8bf0275b581c54eef020450dc4ecffaa05a1a35d27518e7803")
	s.add(unhex(t, resumedExtensions))
	same(t, "server's Finished", finished(s, server), resumedFinished)
	s.add(unhex(t, resumedFinished))
	s.advance(nil)
	same(t, "master secret", s.secret, "e2d32d4ed66dd37897a0e80c84107503ce58bf8aad4cb55a5002d77ecb890ece")
	same(t, "client's traffic secret", s.traffic(clientApplicationTraffic), "2abbf2b8e381d23dbebe1dd2a7d16a8bf484cb4950d23fb7fb7fa8547062d9a1")
	same(t, "server's traffic secret", s.traffic(serverApplicationTraffic), "cc21f1bf8feb7dd5fa505bd9c4b468a9984d554a993dc49e6d285598fb672691")
	s.add(unhex(t, resumedEndOfEarly))
	same(t, "client's Finished", finished(s, client), "140000207230a9c952c25cd6138fc5e6628308c41c5335dd81b9f96bcea50fd32bda416d")

	var p protection
	p.use(aes128, server)
	same(t, "iv", p.iv[:], "9569ecdd4d0536705e9ef725")
	same(t, "key", expandLabel(h, server, "key", nil, 16), "27c6bdc0a3dcea39a47326d79bc9e4ee")
	p.use(aes128, early)
	record, err := p.seal(nil, recordApplicationData, []byte("ABCDEF")...)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "record", record, "1703030017ab1df420e75c457a7cc5d2844f76d5aee4b4edbf049be0")
	p.use(aes128, early)
	if typ, data, err := p.open(nil, record); typ != recordApplicationData || string(data) != "ABCDEF" || err != nil {
		t.Errorf("the record opens as type %d, %q, %v", typ, data, err)
	}
}

// TestRetried compares the transcript of RFC 8448, section 5.
func TestRetried(t *testing.T) {
	const h = crypto.SHA256
	second := unhex(t, retriedHello2)
	second = append(second, make([]byte, 512-len(second))...) // padding
	request, err := parseServerHello(unhex(t, retryRequest))
	if err != nil {
		t.Fatal(err)
	}
	hello, err := parseClientHello(second)
	if err != nil {
		t.Fatal(err)
	}
	if !request.retry() || request.share.group != secp256r1 || !bytes.Equal(request.cookie, hello.cookie) || hello.shares[0].group != secp256r1 {
		t.Errorf("HelloRetryRequest is read as %+v", request)
	}
	s := newSchedule(h, make([]byte, h.Size())) // no key is a key of zeroes
	same(t, "early secret", s.secret, "33ad0a1c607ec03b09e6cd9893680ce210adf300aa1f2660e1b22e10f170f92a")
	s.add(unhex(t, retriedHello1))
	s.retry()
	s.add(unhex(t, retryRequest), second, unhex(t, retriedServerHello))
	same(t, "hash of the transcript", s.sum(), "8aa8e828ec2f8a884fec95a3139de01c15a3daa7ff5bfc3f4bfcc21b438d7bf8")
	s.advance(unhex(t, "c142ce13ca11b5c2233652e63ad3d97844f1621fbfb9de69d547dc8fedeabeb4"))
	same(t, "handshake secret", s.secret, "ce022e5e6e81e50736d773f2d3adfce8220d049bf510f0dbfac927ef4243b148")
}

// TestHashNames has every suite run with the hash that its name ends in.
func TestHashNames(t *testing.T) {
	for _, s := range defaults().suites {
		if want := strings.ReplaceAll(s.hash.String(), "-", ""); !strings.HasSuffix(s.name, want) {
			t.Errorf("%s uses %s", s.name, want)
		}
	}
}
