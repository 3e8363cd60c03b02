package verifyspiffe_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	brokerID = "spiffe://example.org/errand"
	serverID = "spiffe://example.org/orders"
)

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(tb testing.TB) *authority {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	return &authority{cert: sign(tb, template, template, key.Public(), key), key: key}
}

func sign(tb testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

func (a *authority) svid(tb testing.TB, id string, edit func(*x509.Certificate)) *x509svid.SVID {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{uri}, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if edit != nil {
		edit(template)
	}
	cert := sign(tb, template, a.cert, key.Public(), a.key)
	svid := &x509svid.SVID{Certificates: []*x509.Certificate{cert}, PrivateKey: key}
	if parsed, err := spiffeid.FromURI(uri); err == nil {
		svid.ID = parsed
	}
	return svid
}

// source is a Workload API that the test rotates.
type source struct {
	mu     sync.Mutex // guards all below
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

func newSource(svid *x509svid.SVID, roots ...*authority) *source {
	s := &source{svid: svid}
	s.trust(roots...)
	return s
}

func (s *source) trust(roots ...*authority) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bundle = x509bundle.New(spiffeid.RequireTrustDomainFromString("example.org"))
	for _, root := range roots {
		s.bundle.AddX509Authority(root.cert)
	}
}

func (s *source) GetX509SVID() (*x509svid.SVID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.svid, nil
}

func (s *source) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bundle.GetX509BundleForTrustDomain(domain)
}

// serve shows the SVID and answers with the SPIFFE ID of the caller.
func serve(tb testing.TB, svid *x509svid.SVID) string {
	tb.Helper()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.TLS.PeerCertificates[0].URIs[0].String())
	}))
	var chain [][]byte
	for _, cert := range svid.Certificates {
		chain = append(chain, cert.Raw)
	}
	server.TLS = &tls.Config{
		Certificates: []tls.Certificate{{Certificate: chain, PrivateKey: svid.PrivateKey}}, ClientAuth: tls.RequireAnyClientCert,
	}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	tb.Cleanup(server.Close)
	return server.URL
}

func get(tb testing.TB, config *tls.Config, url string) (string, error) {
	tb.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	defer client.CloseIdleConnections()
	response, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return string(body), err
}

func TestTLS(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	long := ca.svid(t, brokerID, nil)
	for range verifyspiffe.MaxChain {
		long.Certificates = append(long.Certificates, ca.cert)
	}
	for name, c := range map[string]struct {
		svid *x509svid.SVID
		says string
	}{
		"the broker":       {ca.svid(t, brokerID, nil), ""},
		"no extended use":  {ca.svid(t, brokerID, func(c *x509.Certificate) { c.ExtKeyUsage = nil }), ""},
		"another workload": {ca.svid(t, "spiffe://example.org/agents/recon", nil), "not the broker"},
		"another domain":   {ca.svid(t, "spiffe://example.com/errand", nil), "example.com"},
		"of another CA":    {stranger.svid(t, brokerID, nil), "unknown authority"},
		"expired": {ca.svid(t, brokerID, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(-time.Minute)
		}), "expired"},
		"key agreement": {ca.svid(t, brokerID, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), "digitalSignature"},
		"no key usage":  {ca.svid(t, brokerID, func(c *x509.Certificate) { c.KeyUsage = 0 }), "digitalSignature"},
		"a client only": {ca.svid(t, brokerID, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "not for this side"},
		"no path":       {ca.svid(t, "spiffe://example.org", nil), "SVID"},
		"a long chain":  {long, "certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := verifyspiffe.TLS(newSource(ca.svid(t, serverID, nil), ca), brokerID)
			if err != nil {
				t.Fatal(err)
			}
			caller, err := get(t, config, serve(t, c.svid))
			if c.says == "" && (err != nil || caller != serverID) {
				t.Errorf("got %q, %v", caller, err)
			}
			if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("the error must say %q: %v", c.says, err)
			}
		})
	}
}

// TestTLSFollowsTheSource rotates everything under one configuration.
func TestTLSFollowsTheSource(t *testing.T) {
	ca, next := newAuthority(t), newAuthority(t)
	s := newSource(ca.svid(t, serverID, nil), ca)
	config, err := verifyspiffe.TLS(s, brokerID)
	if err != nil {
		t.Fatal(err)
	}
	old := serve(t, ca.svid(t, brokerID, nil))
	if _, err := get(t, config, old); err != nil {
		t.Fatal(err)
	}
	s.trust(next)
	s.mu.Lock()
	s.svid = next.svid(t, serverID+"2", nil)
	s.mu.Unlock()
	if _, err := get(t, config, old); err == nil {
		t.Error("a broker that is not trusted any more was accepted")
	}
	if caller, err := get(t, config, serve(t, next.svid(t, brokerID, nil))); err != nil || caller != serverID+"2" {
		t.Errorf("got %q, %v", caller, err)
	}
}

func TestTLSErrors(t *testing.T) {
	s := newSource(nil)
	for _, id := range []string{"", "errand", "spiffe://example.org", "spiffe://example.org/", "spiffe://Example.org/errand", "https://example.org/errand"} {
		if _, err := verifyspiffe.TLS(s, id); err == nil {
			t.Errorf("%q was accepted", id)
		}
	}
	if _, err := verifyspiffe.TLS(s, ""); !strings.Contains(err.Error(), "ERRAND_BROKER_ID") {
		t.Errorf("a variable that is not set: %v", err)
	}
	if _, err := verifyspiffe.TLS(nil, brokerID); err == nil {
		t.Error("no source was accepted")
	}
}

// TestPeerOf judges the same connection again when the trust has changed.
func TestPeerOf(t *testing.T) {
	ca, next := newAuthority(t), newAuthority(t)
	s := newSource(nil, ca)
	peerOf := verifyspiffe.PeerOf(s)
	request := func(svid *x509svid.SVID) *http.Request {
		r := httptest.NewRequest(http.MethodGet, "https://orders/", nil)
		r.TLS.PeerCertificates = svid.Certificates
		// What the standard library verified, against whatever pool, does not count here.
		r.TLS.VerifiedChains = [][]*x509.Certificate{svid.Certificates}
		return r
	}
	agent := request(ca.svid(t, "spiffe://example.org/agents/recon", nil))
	if p := peerOf(agent); p == nil || !p.Verified {
		t.Errorf("got %+v", p)
	}
	serverOnly := ca.svid(t, "spiffe://example.org/agents/recon", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })
	if p := peerOf(request(serverOnly)); p == nil || p.Verified {
		t.Errorf("for servers only: got %+v", p)
	}
	s.trust(next)
	if p := peerOf(agent); p == nil || p.Verified {
		t.Errorf("after its CA was removed: got %+v", p)
	}
	if p := peerOf(httptest.NewRequest(http.MethodGet, "/", nil)); p != nil {
		t.Errorf("without TLS: got %+v", p)
	}
}
