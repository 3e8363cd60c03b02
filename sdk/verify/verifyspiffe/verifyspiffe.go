// Package verifyspiffe lets package verify take its certificate and trust from SPIFFE sources, such
// as go-spiffe's workloadapi.X509Source, instead of files. Use TLS for Config.TLS, and PeerOf for
// Config.Peer where tokens are bound by identity.
//
//	source, err := workloadapi.NewX509Source(ctx)
//	broker, err := verifyspiffe.TLS(source, "spiffe://example.com/errand")
//	v, err := verify.New(ctx, verify.Config{Issuer: issuer, Audience: "orders", TLS: broker})
//
// What it promises: the broker is the one with that SPIFFE ID, never any other workload of its
// trust domain; every handshake uses the source's current certificate and bundle; and the checks
// that go-spiffe leaves to its callers are made (key usage, extended key usage, chain length).
//
// The caller owns the source: close it after the verifier.
package verifyspiffe

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/errandhq/errand/sdk/verify"
)

// Limits of a peer's chain.
const (
	MaxChain      = 4        // certificates
	MaxChainBytes = 16 << 10 // of all of them, in DER
)

// Source is where the own SVID and the trust bundles come from. *workloadapi.X509Source is one.
type Source interface {
	x509svid.Source
	x509bundle.Source
}

// TLS returns a configuration for verify.Config.TLS: it shows the source's SVID, and accepts only a
// server whose SVID is the broker's.
func TLS(source Source, broker string) (*tls.Config, error) {
	id, err := spiffeid.FromString(broker)
	if err != nil {
		return nil, wrongID(broker, err)
	}
	if source == nil || id.Path() == "" {
		return nil, errors.New("verifyspiffe: a source, and a broker's SPIFFE ID with a path, are required")
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		GetClientCertificate:   tlsconfig.GetClientCertificate(source),
		// The standard library would look for a DNS name; VerifyConnection does all of it.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			got, err := check(s.PeerCertificates, source, x509.ExtKeyUsageServerAuth)
			if err == nil && got != id {
				err = fmt.Errorf("verifyspiffe: the server is %s, and not the broker %s", got, id)
			}
			return err
		},
	}, nil
}

// wrongID names the variable that this is read from as a rule: an empty one is how the mistake looks.
func wrongID(broker string, err error) error {
	return fmt.Errorf("verifyspiffe: the broker's SPIFFE ID is %q: %w; it is in ERRAND_BROKER_ID as a rule, as spiffe://example.com/errand", broker, err)
}

// TLSByBundle is TLS for a client that has no SVID, at a listener that asks for none: pem has the authorities
// of the broker's trust domain, and is read once.
func TLSByBundle(pem []byte, broker string) (*tls.Config, error) {
	id, err := spiffeid.FromString(broker)
	if err != nil {
		return nil, wrongID(broker, err)
	}
	bundle, err := x509bundle.Parse(id.TrustDomain(), pem)
	if err == nil && bundle.Empty() {
		err = errors.New("there is none in it")
	}
	if err != nil {
		return nil, fmt.Errorf("verifyspiffe: this is no PEM file with the certificates of authorities: %w", err)
	}
	return TLS(nobody{bundle}, broker)
}

// nobody has a bundle, and no SVID.
type nobody struct{ *x509bundle.Bundle }

func (nobody) GetX509SVID() (*x509svid.SVID, error) {
	return nil, errors.New("verifyspiffe: the server asks for a certificate, and there is none")
}

// PeerOf returns a function for verify.Config.Peer. It verifies the caller's certificate against
// the source's bundles anew for each request, at the cost of a few signature checks, so that a
// connection does not outlive the trust that it was made under. The server's TLS configuration must
// ask for a certificate.
func PeerOf(source x509bundle.Source) func(*http.Request) *verify.Peer {
	return func(r *http.Request) *verify.Peer {
		peer := verify.PeerOf(r)
		if peer == nil {
			return nil
		}
		_, err := check(r.TLS.PeerCertificates, source, x509.ExtKeyUsageClientAuth)
		peer.Verified = err == nil
		return peer
	}
}

// check verifies a peer's chain to the bundle of its own trust domain (X509-SVID §5).
func check(chain []*x509.Certificate, source x509bundle.Source, usage x509.ExtKeyUsage) (spiffeid.ID, error) {
	size := 0
	for _, c := range chain {
		size += len(c.Raw)
	}
	if len(chain) == 0 || len(chain) > MaxChain || size > MaxChainBytes {
		return spiffeid.ID{}, fmt.Errorf("verifyspiffe: the peer showed %d certificates of %d bytes; 1 to %d, of at most %d bytes, are allowed", len(chain), size, MaxChain, MaxChainBytes)
	}
	id, _, err := x509svid.Verify(chain, source)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("verifyspiffe: the peer's SVID: %w", err)
	}
	leaf := chain[0]
	if id.Path() == "" || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return spiffeid.ID{}, fmt.Errorf("verifyspiffe: the SVID of %s is not that of a workload: it needs a path, and the key usage digitalSignature", id)
	}
	named := leaf.ExtKeyUsage
	if len(named)+len(leaf.UnknownExtKeyUsage) > 0 && !slices.Contains(named, usage) && !slices.Contains(named, x509.ExtKeyUsageAny) {
		return spiffeid.ID{}, fmt.Errorf("verifyspiffe: the SVID of %s is not for this side of TLS", id)
	}
	return id, nil
}
