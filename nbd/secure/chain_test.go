package secure_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/imgtool/imgtool/block"
	"github.com/imgtool/imgtool/nbd/secure"
	"github.com/imgtool/imgtool/nbd/secure/securetest"
)

// signer is an authority, or who has a certificate of one.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// sign makes a key and a certificate, of its own where by is nil.
func sign(t *testing.T, serial int64, name string, by *signer, template x509.Certificate) *signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(serial)
	template.Subject.CommonName = name
	template.NotAfter = time.Now().Add(time.Hour)
	if template.IsCA {
		template.BasicConstraintsValid, template.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	}
	if by == nil {
		by = &signer{&template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, by.cert, &key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &signer{cert, key}
}

// revoke makes a list under the name of an authority, signed by key.
func revoke(t *testing.T, by *signer, key *ecdsa.PrivateKey, serials ...int64) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	for _, s := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, &x509.Certificate{RawSubject: by.cert.RawSubject, SubjectKeyId: by.cert.SubjectKeyId, KeyUsage: x509.KeyUsageCRLSign}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// TestChains has a server whose certificate comes from an authority below the one that clients trust, and lists of both.
func TestChains(t *testing.T) {
	root := sign(t, 1, "root", nil, x509.Certificate{IsCA: true})
	below := sign(t, 2, "below", root, x509.Certificate{IsCA: true})
	server := sign(t, 3, "localhost", below, x509.Certificate{DNSNames: []string{"localhost"}})
	stranger := sign(t, 4, "stranger", nil, x509.Certificate{IsCA: true})
	pemOf := func(s *signer) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw})
	}
	key, err := x509.MarshalPKCS8PrivateKey(server.key)
	if err != nil {
		t.Fatal(err)
	}
	folder := func(files map[string][]byte) string {
		dir := t.TempDir()
		for name, data := range files {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	own := newServer(t, secure.ServerConfig{Certificates: folder(map[string][]byte{
		"server-cert.pem": append(pemOf(server), pemOf(below)...),
		"server-key.pem":  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}),
	})})
	for _, test := range []struct {
		name  string
		lists [][]byte
		wrong string
	}{
		{"no list", nil, ""},
		{"empty lists", [][]byte{revoke(t, root, root.key), revoke(t, below, below.key)}, ""},
		{"the same number elsewhere", [][]byte{revoke(t, root, root.key, 3), revoke(t, stranger, stranger.key, 2, 3)}, ""},
		{"server revoked", [][]byte{revoke(t, root, root.key), revoke(t, below, below.key, 3)}, `of "localhost" was revoked`},
		{"authority revoked", [][]byte{revoke(t, root, root.key, 2)}, `of "below" was revoked`},
		{"list of the authority below by a stranger", [][]byte{revoke(t, below, stranger.key)}, `list of "below"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := map[string][]byte{"ca-cert.pem": append(pemOf(stranger), pemOf(root)...)}
			if test.lists != nil {
				files["ca-crl.pem"] = bytes.Join(test.lists, nil)
			}
			client, _ := meet(t, own, newClient(t, secure.ClientConfig{Certificates: folder(files)}), "localhost")
			expect(t, "client", client.err, test.wrong)
		})
	}
}

// hint returns what an error advises.
func hint(err error) string {
	var h *block.Hint
	if errors.As(err, &h) {
		return h.Text
	}
	return ""
}

// TestAdvice looks at hints, and at what a client without settings does.
func TestAdvice(t *testing.T) {
	a := securetest.New(t)
	keys, otherKeys := securetest.PSK(t, "alice"), securetest.PSK(t, "alice")
	refused := func(s secure.ServerConfig, c secure.ClientConfig, host string) string {
		client, _ := meet(t, newServer(t, s), newClient(t, c), host)
		return hint(client.err)
	}
	without := func(c secure.ClientConfig) string {
		_, err := secure.NewClient(c)
		return hint(err)
	}
	_, noServer := secure.NewServer(secure.ServerConfig{Certificates: a.Copy(t, "server-cert.pem", "server-key.pem"), VerifyClient: true})
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	for what, test := range map[string]struct{ got, want string }{
		"another name":      {refused(secure.ServerConfig{Certificates: a.Dir}, secure.ClientConfig{Certificates: a.Dir}, "elsewhere"), "tls-hostname"},
		"another authority": {refused(secure.ServerConfig{Certificates: a.Dir}, secure.ClientConfig{Certificates: t.TempDir()}, "localhost"), "ca-cert.pem"},
		"another key":       {refused(secure.ServerConfig{PSKFile: keys}, secure.ClientConfig{PSKFile: otherKeys, Identity: "alice"}, ""), `identity "alice"`},
		"no such identity":  {without(secure.ClientConfig{PSKFile: keys, Identity: "bob"}), "nbds://IDENTITY@HOST"},
		"no identity":       {without(secure.ClientConfig{PSKFile: securetest.PSK(t, "not-"+me.Username)}), "nbds://IDENTITY@HOST"},
		"no authority":      {hint(noServer), "clients' authority"},
	} {
		if !strings.Contains(test.got, test.want) {
			t.Errorf("%s: the advice is %q, want %q in it", what, test.got, test.want)
		}
	}
	a.Server(t)
	if got := refused(secure.ServerConfig{Certificates: a.Dir}, secure.ClientConfig{Certificates: a.Dir}, "localhost"); !strings.Contains(got, "dns_name") {
		t.Errorf("certificate without names: the advice is %q", got)
	}
	// The name of the user is the identity where none is given.
	mine := securetest.PSK(t, me.Username[strings.LastIndexByte(me.Username, '\\')+1:])
	client, server := meet(t, newServer(t, secure.ServerConfig{PSKFile: mine}), newClient(t, secure.ClientConfig{PSKFile: mine}), "")
	expect(t, "client", client.err, "")
	expect(t, "server", server.err, "")
}
