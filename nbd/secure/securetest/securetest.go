// Package securetest makes certificates and pre-shared keys for tests, in files named as package secure and GnuTLS programs expect them.
package securetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Authority signs certificates into a folder.
type Authority struct {
	// Dir has ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and client-key.pem.
	Dir string

	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial int64
	issued map[string]*big.Int // the last serial number by the stem of the file: server, client
}

// New returns an authority in a folder of its own that the end of the test removes, with a server's certificate for localhost, 127.0.0.1 and ::1, and a
// client's named client.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{Dir: t.TempDir(), issued: map[string]*big.Int{}}
	a.key = newKey(t)
	a.cert = a.sign(t, "ca", &a.key.PublicKey, &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Authority of a test"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	})
	a.Server(t, "localhost", "127.0.0.1", "::1")
	a.Client(t, "client")
	return a
}

// Server signs a new server-cert.pem for names and addresses. The common name is server.
func (a *Authority) Server(t testing.TB, names ...string) {
	t.Helper()
	cert := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "server"},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			cert.IPAddresses = append(cert.IPAddresses, ip)
		} else {
			cert.DNSNames = append(cert.DNSNames, name)
		}
	}
	a.issue(t, "server", cert)
}

// Client signs a new client-cert.pem with a name, as the common name and as a host's.
func (a *Authority) Client(t testing.TB, name string) {
	t.Helper()
	a.issue(t, "client", &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		DNSNames:    []string{name},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
}

// Revoke writes a ca-crl.pem that revokes the present certificates of server, client or neither, and that is good until a time.
func (a *Authority) Revoke(t testing.TB, until time.Time, who ...string) {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-48 * time.Hour), NextUpdate: until}
	for _, stem := range who {
		serial := a.issued[stem]
		if serial == nil {
			t.Fatalf("securetest: no certificate of %q was issued", stem)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: time.Now().Add(-time.Hour)})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, "ca-crl.pem", "X509 CRL", der)
}

// Copy returns a new folder with some of the files of Dir.
func (a *Authority) Copy(t testing.TB, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range files {
		data, err := os.ReadFile(filepath.Join(a.Dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// issue makes a key, and signs a certificate for it.
func (a *Authority) issue(t testing.TB, stem string, cert *x509.Certificate) {
	t.Helper()
	key := newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, stem+"-key.pem", "PRIVATE KEY", der)
	a.sign(t, stem, &key.PublicKey, cert)
}

// sign signs a certificate, writes it, and returns it as it was signed. The first one is the authority's own.
func (a *Authority) sign(t testing.TB, stem string, public *ecdsa.PublicKey, cert *x509.Certificate) *x509.Certificate {
	t.Helper()
	a.serial++
	cert.SerialNumber = big.NewInt(a.serial)
	cert.NotBefore = time.Now().Add(-72 * time.Hour)
	cert.NotAfter = time.Now().Add(72 * time.Hour)
	issuer := a.cert
	if issuer == nil {
		issuer = cert
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, issuer, public, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.issued[stem] = cert.SerialNumber
	a.write(t, stem+"-cert.pem", "CERTIFICATE", der)
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// write writes a PEM file into Dir.
func (a *Authority) write(t testing.TB, name, typ string, der []byte) {
	t.Helper()
	data := pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der})
	if err := os.WriteFile(filepath.Join(a.Dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// PSK returns the name of a file with a random key for every identity. It is called keys.psk, as QEMU wants it, and is alone in its folder.
func PSK(t testing.TB, identities ...string) string {
	t.Helper()
	var text strings.Builder
	for _, identity := range identities {
		key := make([]byte, 32)
		rand.Read(key) // never fails
		text.WriteString(identity + ":" + hex.EncodeToString(key) + "\n")
	}
	name := filepath.Join(t.TempDir(), "keys.psk")
	if err := os.WriteFile(name, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
