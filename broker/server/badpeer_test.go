package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/sdk/wire"
)

// authority is a CA of the trust domain that signs whatever it is asked to.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	var der []byte
	a.key, der = sign(t, template, nil, nil)
	a.cert, _ = x509.ParseCertificate(der)
	return a
}

func sign(t testing.TB, template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

// issue makes an SVID; edit may spoil it.
func (a *authority) issue(id string, edit func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	name, err := url.Parse(id)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		URIs: []*url.URL{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if edit != nil {
		edit(template)
	}
	key, der := sign(a.t, template, a.cert, a.key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// files writes what a replica reads its identity from.
func (a *authority) files(dir string, own tls.Certificate) identity.Files {
	a.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	f := identity.Files{Cert: filepath.Join(dir, "svid.pem"), Key: filepath.Join(dir, "key.pem"), Bundle: filepath.Join(dir, "bundle.pem")}
	for path, block := range map[string]*pem.Block{
		f.Cert: {Type: "CERTIFICATE", Bytes: own.Certificate[0]}, f.Key: {Type: "PRIVATE KEY", Bytes: key},
		f.Bundle: {Type: "CERTIFICATE", Bytes: a.cert.Raw},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return f
}

// TestBadPeers has the certificates that must not get anything, against the workload listener of a
// replica whose identity comes from files. Each is tried with a request, and a good one follows.
func TestBadPeers(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	r := startWith(t, dir, identity.FromFiles(a.files(dir, a.issue(brokerID, nil)), nil))
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	try := func(config *tls.Config) (int, error) {
		config.RootCAs = roots
		transport := &http.Transport{TLSClientConfig: config}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Get(r.BrokerURL() + wire.PathWhoami)
		if err != nil {
			return 0, err
		}
		return resp.StatusCode, resp.Body.Close()
	}
	with := func(c tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{c}} }
	good := func() {
		t.Helper()
		if status, err := try(with(a.issue(reportID, nil))); status != http.StatusOK || err != nil {
			t.Errorf("a good request: %d, %v", status, err)
		}
	}
	good()
	second, _ := url.Parse("spiffe://prod/admin")
	for name, config := range map[string]*tls.Config{
		"no certificate":       {},
		"TLS 1.2":              {MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{a.issue(reportID, nil)}},
		"unknown CA":           with(other.issue(reportID, nil)),
		"expired":              with(a.issue(reportID, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) })),
		"not yet valid":        with(a.issue(reportID, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })),
		"lives for ten years":  with(a.issue(reportID, func(c *x509.Certificate) { c.NotAfter = time.Now().AddDate(10, 0, 0) })),
		"foreign trust domain": with(a.issue("spiffe://elsewhere/report", nil)),
		"a CA":                 with(a.issue(reportID, func(c *x509.Certificate) { c.IsCA = true })),
		"may sign":             with(a.issue(reportID, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign })),
		"no digitalSignature":  with(a.issue(reportID, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })),
		"no key usage":         with(a.issue(reportID, func(c *x509.Certificate) { c.KeyUsage = 0 })),
		"for servers only":     with(a.issue(reportID, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] })),
		"two names":            with(a.issue(reportID, func(c *x509.Certificate) { c.URIs = append(c.URIs, second) })),
		"no name":              with(a.issue(reportID, func(c *x509.Certificate) { c.URIs, c.Subject.CommonName = nil, reportID })),
		"no path":              with(a.issue("spiffe://prod", nil)),
		"not SPIFFE":           with(a.issue("https://prod/report", nil)),
		"with a port":          with(a.issue("spiffe://prod:443/report", nil)),
		"with a query":         with(a.issue("spiffe://prod/report?x=1", nil)),
		"dots in the path":     with(a.issue("spiffe://prod/x/../report", nil)),
		"percent-encoded":      with(a.issue("spiffe://prod/%72eport", nil)),
		"2049 bytes":           with(a.issue("spiffe://prod/"+strings.Repeat("a", 2049-len("spiffe://prod/")), nil)),
	} {
		t.Run(name, func(t *testing.T) {
			if status, err := try(config); err == nil {
				t.Errorf("answered with %d", status)
			}
		})
	}
	good()
	if text := r.logs.String(); strings.Contains(text, `"level":"ERROR"`) {
		t.Errorf("a bad peer is not the server's error: %s", text)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.BrokerURL(), "https://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /v1/whoami HTTP/1.1\r\nHost: x\r\n\r\n")
	answer := make([]byte, 64)
	if n, _ := conn.Read(answer); strings.Contains(string(answer[:n]), "200") {
		t.Errorf("plain HTTP was answered: %s", answer[:n])
	}
	good()
}
