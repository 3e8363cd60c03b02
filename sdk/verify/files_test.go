package verify_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// shows waits until a connection to the feed shows the certificate.
func (b *broker) shows(want *big.Int) {
	b.tb.Helper()
	eventually(b.tb, "the certificate is shown", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Contains(b.shown, want.String())
	})
}

// TestFilesAreReadAgain rotates the SVID on disk, past a state that is broken.
func TestFilesAreReadAgain(t *testing.T) {
	b := newBroker(t, 1)
	first := b.svid.Leaf.SerialNumber
	v := b.verifier(nil)
	b.shows(first)
	next := b.ca.svid(t, serverID, nil)
	if err := os.WriteFile(b.files.Cert, []byte("half a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.change(func() { b.shown = nil })
	b.private.CloseClientConnections()
	b.shows(first)
	writePEM(t, b.files.Key, "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(next.PrivateKey))(t))
	writePEM(t, b.files.Cert, "CERTIFICATE", next.Certificate[0])
	b.private.CloseClientConnections()
	b.shows(next.Leaf.SerialNumber)
	goesTo(t, v, b, b.token(nil), nil)
	// A bundle that trusts somebody else ends the trust in this broker, at the next connection.
	writePEM(t, b.files.Bundle, "CERTIFICATE", newAuthority(t).cert.Raw)
	b.cut()
	b.mend()
	eventually(t, "the broker is not trusted any more", func() bool {
		return strings.Contains(v.Status().LastError, "the broker's certificate")
	})
}

// TestBrokerIsPinned shows the verifier servers that are not the broker.
func TestBrokerIsPinned(t *testing.T) {
	stranger := newAuthority(t)
	for name, c := range map[string]struct {
		make func(*broker) tls.Certificate
		says string
	}{
		"the broker": {func(b *broker) tls.Certificate { return b.ca.svid(t, brokerID, nil) }, ""},
		"the broker, by an intermediate": {func(b *broker) tls.Certificate {
			intermediate, raw := b.ca.intermediate(t)
			svid := intermediate.svid(t, brokerID, nil)
			svid.Certificate = append(svid.Certificate, raw)
			return svid
		}, ""},
		"another workload": {func(b *broker) tls.Certificate { return b.ca.svid(t, agentID, nil) }, "is not the broker"},
		"below the broker": {func(b *broker) tls.Certificate { return b.ca.svid(t, brokerID+"/x", nil) }, "is not the broker"},
		"two names": {func(b *broker) tls.Certificate {
			return b.ca.svid(t, brokerID, func(c *x509.Certificate) { c.URIs = append(c.URIs, must(url.Parse(agentID))(t)) })
		}, "is not the broker"},
		"no name": {func(b *broker) tls.Certificate {
			return b.ca.svid(t, brokerID, func(c *x509.Certificate) { c.URIs = nil; c.DNSNames = []string{brokerID} })
		}, "is not the broker"},
		"of another CA": {func(*broker) tls.Certificate { return stranger.svid(t, brokerID, nil) }, "unknown authority"},
		"expired": {func(b *broker) tls.Certificate {
			return b.ca.svid(t, brokerID, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
		}, "expired"},
		"a CA": {func(b *broker) tls.Certificate {
			return b.ca.svid(t, brokerID, func(c *x509.Certificate) { c.IsCA = true; c.KeyUsage |= x509.KeyUsageCertSign })
		}, "no CA"},
		"no digitalSignature": {func(b *broker) tls.Certificate {
			return b.ca.svid(t, brokerID, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })
		}, "digitalSignature"},
		"a client only": {func(b *broker) tls.Certificate {
			return b.ca.svid(t, brokerID, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
		}, "incompatible key usage"},
		"a long chain": {func(b *broker) tls.Certificate {
			svid := b.ca.svid(t, brokerID, nil)
			for range 4 {
				svid.Certificate = append(svid.Certificate, b.ca.cert.Raw)
			}
			return svid
		}, "5 certificates"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			// The feed's listener is the one that matters; keys come from the real one.
			cert := c.make(b)
			b.change(func() { b.privateCert = cert })
			b.handle(wire.PathJWKS, b.serveKeys)
			err := b.start(wire.PathJWKS)
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error must say %q: %v", c.says, err)
			}
		})
	}
}

// intermediate makes a CA below a.
func (a *authority) intermediate(tb testing.TB) (*authority, []byte) {
	tb.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: []byte("intermediate"),
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))(tb)
	return &authority{cert: must(x509.ParseCertificate(der))(tb), key: key}, der
}

// TestPublicListenerOfItsOwn has a certificate for a host name, as from the WebPKI.
func TestPublicListenerOfItsOwn(t *testing.T) {
	b := newBroker(t, 1)
	web := newAuthority(t)
	cert := web.svid(t, brokerID, func(c *x509.Certificate) { c.URIs = nil })
	b.change(func() { b.publicCert = cert })
	v := b.verifier(func(c *verify.Config) { c.Public = &tls.Config{RootCAs: web.pool()} })
	if err := refused(t, v, b, b.token(nil)); err != nil {
		t.Error(err)
	}
}

// TestTLSConfigOfTheUser is used as it is, but for what must not be.
func TestTLSConfigOfTheUser(t *testing.T) {
	b := newBroker(t, 1)
	own := b.ca.svid(t, serverID, nil)
	config := &tls.Config{RootCAs: b.ca.pool(), Certificates: []tls.Certificate{own}, MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	v := b.verifier(func(c *verify.Config) { c.Files, c.TLS = nil, config })
	if err := refused(t, v, b, b.token(nil)); err != nil {
		t.Error(err)
	}
	b.shows(own.Leaf.SerialNumber)
	if config.MaxVersion != tls.VersionTLS12 {
		t.Error("the user's configuration was changed")
	}
}

// TestRefusedConnectionsAreReplaced answers 401 on connections of a certificate that the broker
// does not take any more: the verifier must connect anew, not ask again on the same connection.
func TestRefusedConnectionsAreReplaced(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.MaxStale = verify.MinMaxStale })
	eventually(t, "the stream is open", func() bool { return v.Status().Connected })
	var refusals, answers atomic.Int64
	// At times the verifier has no connection to ask on, just then.
	for round := 0; refusals.Load() == 0; round++ {
		if round == 20 {
			t.Fatal("the old connection was never used: the test shows nothing")
		}
		asked := b.asked.Load()
		eventually(t, "a connection besides the stream's is open", func() bool { return b.asked.Load() > asked })
		next := b.ca.svid(t, serverID, nil)
		writePEM(t, b.files.Key, "PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(next.PrivateKey))(t))
		writePEM(t, b.files.Cert, "CERTIFICATE", next.Certificate[0])
		answers.Store(0)
		b.handle(wire.PathFeedPosition, func(w http.ResponseWriter, r *http.Request) {
			if r.TLS.PeerCertificates[0].SerialNumber.Cmp(next.Leaf.SerialNumber) != 0 {
				refusals.Add(1)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			b.servePosition(w, r)
			answers.Add(1)
		})
		eventually(t, "it connects anew", func() bool { return answers.Load() > 0 })
		// From now on this certificate is the old one.
	}
	goesTo(t, v, b, b.token(nil), nil)
}
