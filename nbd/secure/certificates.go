package secure

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/imgtool/imgtool/block"
)

// Names of the files in a folder of certificates.
const (
	authorityFile   = "ca-cert.pem"
	revocationsFile = "ca-crl.pem"
	serverFile      = "server-cert.pem"
	serverKeyFile   = "server-key.pem"
	clientFile      = "client-cert.pem"
	clientKeyFile   = "client-key.pem"
)

// maxFile bounds what is read of one file, in bytes: revocation lists of large authorities are a few MiB.
const maxFile = 64 << 20

// defaultFolder returns the first folder that has a file, of those where a program of the GnuTLS world looks for its certificates.
func defaultFolder(program, file string) (string, bool) {
	var folders []string
	if runtime.GOOS != "windows" && os.Geteuid() == 0 {
		folders = []string{filepath.Join("/etc/pki", program)}
	} else if home, err := os.UserHomeDir(); err == nil {
		folders = []string{filepath.Join(home, ".pki", program), filepath.Join(home, ".config", "pki", program)}
	}
	for _, dir := range folders {
		if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
			return dir, true
		}
	}
	return "", false
}

// serverConfig returns how a server with certificates speaks TLS.
func serverConfig(c ServerConfig) (*tls.Config, error) {
	dir := c.Certificates
	if dir == "" {
		var ok bool
		if dir, ok = defaultFolder("nbdkit", serverFile); !ok {
			return nil, block.WithHint(block.ErrorOf(fs.ErrNotExist, "tls: no folder of certificates is given, and no default folder has any"),
				"name a folder that has "+serverFile+" and "+serverKeyFile)
		}
	}
	own, err := readPair(dir, serverFile, serverKeyFile)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{own},
		// Connections last long. A resumed one would skip what is checked of the certificate.
		SessionTicketsDisabled: true,
	}
	if !c.VerifyClient {
		return config, nil
	}
	authorities, revoked, err := readAuthorities(dir)
	if err != nil {
		return nil, err
	}
	if authorities == nil {
		return nil, block.WithHint(fmt.Errorf("tls: clients cannot be verified: there is no %s", filepath.Join(dir, authorityFile)),
			"put the certificate of the clients' authority there")
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.ClientCAs = authorities
	config.VerifyConnection = revoked.verify
	return config, nil
}

// clientConfig returns how a client with certificates speaks TLS, but for the server's name.
func clientConfig(c ClientConfig) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.NoVerify}
	dir := c.Certificates
	if dir == "" {
		var ok bool
		if dir, ok = defaultFolder("libnbd", authorityFile); !ok {
			return config, nil
		}
	}
	if info, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	} else if !info.IsDir() {
		return nil, fmt.Errorf("tls: %s is not a folder", dir)
	}
	own, err := readPair(dir, clientFile, clientKeyFile)
	switch {
	case err == nil:
		// Chosen whatever authorities the server names: where they do not fit, the server shall say so.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &own, nil }
	case !missing(filepath.Join(dir, clientFile)):
		return nil, err
	}
	authorities, revoked, err := readAuthorities(dir)
	if err != nil {
		return nil, err
	}
	config.RootCAs = authorities // nil: the system's
	if !c.NoVerify {
		config.VerifyConnection = revoked.verify
	}
	return config, nil
}

// missing reports whether there is no such file.
func missing(name string) bool {
	_, err := os.Stat(name)
	return errors.Is(err, fs.ErrNotExist)
}

// readFile returns what is in a file.
func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("tls: %s is longer than %d bytes", name, maxFile)
	}
	return data, nil
}

// readPair returns a certificate, with what leads from it to its authority, and its key.
func readPair(dir, certFile, keyFile string) (tls.Certificate, error) {
	certName, keyName := filepath.Join(dir, certFile), filepath.Join(dir, keyFile)
	cert, err := readFile(certName)
	if err != nil {
		return tls.Certificate{}, err
	}
	key, err := readFile(keyName)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("tls: %s and %s: %w", certName, keyName, err)
	}
	return pair, nil
}

// readAuthorities returns the authorities of a folder, nil where it has none, and what they have revoked.
func readAuthorities(dir string) (*x509.CertPool, revocations, error) {
	name := filepath.Join(dir, authorityFile)
	if missing(name) {
		if list := filepath.Join(dir, revocationsFile); !missing(list) {
			return nil, nil, fmt.Errorf("tls: %s revokes certificates of an authority, but there is no %s", list, name)
		}
		return nil, nil, nil
	}
	var authorities []*x509.Certificate
	pool := x509.NewCertPool()
	err := readPEM(name, []string{"CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"}, func(der []byte) error {
		cert, err := x509.ParseCertificate(der)
		if err == nil {
			authorities = append(authorities, cert)
			pool.AddCert(cert)
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	revoked, err := readRevocations(filepath.Join(dir, revocationsFile), authorities)
	return pool, revoked, err
}

// readPEM calls each with every block of one of the types in a file, of which there must be one.
func readPEM(name string, types []string, each func(der []byte) error) error {
	data, err := readFile(name)
	if err != nil {
		return err
	}
	n := 0
	for {
		var b *pem.Block
		if b, data = pem.Decode(data); b == nil {
			break
		}
		for _, typ := range types {
			if b.Type != typ {
				continue
			}
			n++
			if err := each(b.Bytes); err != nil {
				return fmt.Errorf("tls: %s: block %d: %w", name, n, err)
			}
		}
	}
	if n == 0 {
		return fmt.Errorf("tls: %s has no PEM block of type %s", name, types[0])
	}
	return nil
}

// revocations are the lists of ca-crl.pem.
type revocations []revocationList

// revocationList is a list of one authority.
type revocationList struct {
	*x509.RevocationList
	revoked map[string]time.Time // by the serial number's text
}

// readRevocations returns the lists in a file, which may be missing. A list that pretends to be of one of the authorities must be signed by it.
func readRevocations(name string, authorities []*x509.Certificate) (revocations, error) {
	if missing(name) {
		return nil, nil
	}
	var lists revocations
	err := readPEM(name, []string{"X509 CRL"}, func(der []byte) error {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return err
		}
		if err := signedByOne(list, authorities); err != nil {
			return err
		}
		revoked := make(map[string]time.Time, len(list.RevokedCertificateEntries))
		for _, entry := range list.RevokedCertificateEntries {
			revoked[entry.SerialNumber.String()] = entry.RevocationTime
		}
		lists = append(lists, revocationList{list, revoked})
		return nil
	})
	return lists, err
}

// signedByOne checks a list's signature where its issuer has the name of an authority. The list of another, that of an authority below, is checked when
// it counts.
func signedByOne(list *x509.RevocationList, authorities []*x509.Certificate) error {
	var err error
	for _, a := range authorities {
		if !bytes.Equal(a.RawSubject, list.RawIssuer) {
			continue
		}
		if err = list.CheckSignatureFrom(a); err == nil {
			return nil
		}
	}
	return err
}

// verify refuses a connection whose peer has no chain of certificates that is free of revoked ones.
func (r revocations) verify(state tls.ConnectionState) error {
	var err error
	for _, chain := range state.VerifiedChains {
		if err = r.check(chain); err == nil {
			return nil
		}
	}
	return err
}

// check looks up every certificate of a chain in the lists of the authority that follows it.
func (r revocations) check(chain []*x509.Certificate) error {
	for i, cert := range chain[:len(chain)-1] {
		issuer := chain[i+1]
		for _, list := range r {
			if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
				continue
			}
			if at, ok := list.revoked[cert.SerialNumber.String()]; ok {
				return fmt.Errorf("the certificate of %q was revoked on %s", cert.Subject.CommonName, at.UTC().Format(time.DateOnly))
			}
			if err := list.CheckSignatureFrom(issuer); err != nil {
				return fmt.Errorf("%s: list of %q: %w", revocationsFile, issuer.Subject.CommonName, err)
			}
			if end := list.NextUpdate; !end.IsZero() && time.Now().After(end) {
				return block.WithHint(fmt.Errorf("%s: list of %q is out of date since %s", revocationsFile, issuer.Subject.CommonName, end.UTC().Format(time.DateOnly)),
					"get the authority's present list")
			}
		}
	}
	return nil
}
