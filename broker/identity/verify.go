package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// ErrIdentity: the peer has not proved who it is. The text says what is wrong with its certificate.
var ErrIdentity = errors.New("not a workload")

// Bounds of what a peer may present.
const (
	MaxChain      = 4        // certificates, the leaf counted
	MaxChainBytes = 16 << 10 // of all certificates' DER

	MinRSABits = 2048
	MaxRSABits = 8192

	// DefaultMaxSVIDLife is a day, and an hour for issuers that start the certificate before its
	// time.
	DefaultMaxSVIDLife = 25 * time.Hour
)

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrIdentity}, args...)...)
}

// Verify returns the workload that a certificate chain, leaf first, belongs to at the time now, by
// the bundles of this moment. Every error is ErrIdentity.
func (s *Source) Verify(certs []*x509.Certificate, now time.Time) (broker.Workload, error) {
	t, err := s.trust()
	if err != nil {
		return broker.Workload{}, refuse("%w", err)
	}
	v, err := s.judge(t, certs, now)
	return v.workload, err
}

// verdict is a workload, and until when nothing in its chain has expired.
type verdict struct {
	workload broker.Workload
	until    time.Time
}

// judge does the cheap checks first, so that a hostile chain costs no signatures.
func (s *Source) judge(t *trust, certs []*x509.Certificate, now time.Time) (verdict, error) {
	if err := checkChain(certs); err != nil {
		return verdict{}, err
	}
	leaf := certs[0]
	id, err := spiffeID(leaf)
	if err != nil {
		return verdict{}, err
	}
	if err := s.checkLeaf(leaf); err != nil {
		return verdict{}, err
	}
	verified, chains, err := x509svid.Verify(certs, t.bundles, x509svid.WithTime(now))
	if err != nil {
		return verdict{}, refuse("%w", err)
	}
	if verified != id {
		return verdict{}, refuse("the SPIFFE ID %q reads as %q", id, verified)
	}
	until, err := checkVerified(chains)
	if err != nil {
		return verdict{}, err
	}
	return verdict{until: until, workload: broker.Workload{ID: id, Thumbprint: thumbprint(leaf), NotAfter: leaf.NotAfter}}, nil
}

func checkChain(certs []*x509.Certificate) error {
	switch {
	case len(certs) == 0:
		return refuse("no client certificate; connect with an X509-SVID")
	case len(certs) > MaxChain:
		return refuse("the chain has %d certificates; at most %d are allowed", len(certs), MaxChain)
	}
	size := 0
	for _, c := range certs {
		size += len(c.Raw)
	}
	if size > MaxChainBytes {
		return refuse("the chain has %d bytes; at most %d are allowed", size, MaxChainBytes)
	}
	for i, c := range certs {
		if err := checkKey(c); err != nil {
			return refuse("certificate %d of the chain has %w", i, err)
		}
	}
	return nil
}

// checkKey is an allow-list.
func checkKey(c *x509.Certificate) error {
	switch key := c.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if slices.Contains([]elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()}, key.Curve) {
			return nil
		}
		return fmt.Errorf("a key on the curve %s; use P-256, P-384 or P-521", key.Params().Name)
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < MinRSABits || bits > MaxRSABits {
			return fmt.Errorf("an RSA key of %d bits; use %d to %d", bits, MinRSABits, MaxRSABits)
		}
		return nil
	}
	return fmt.Errorf("a key of an algorithm that is not allowed (%v); use ECDSA, Ed25519 or RSA", c.PublicKeyAlgorithm)
}

// checkLeaf has what go-spiffe does not look at (X509-SVID, §4.3 and §4.4). Whether the key usage is
// marked critical is left to issuers, who must mark it: §5.2 does not have validators look, and to one
// that heeds the extension in any case the mark says nothing.
func (s *Source) checkLeaf(leaf *x509.Certificate) error {
	longest := s.MaxSVIDLife
	if longest == 0 {
		longest = DefaultMaxSVIDLife
	}
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	switch {
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return refuse("the certificate's key usage lacks digitalSignature")
	case restricted(leaf) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return refuse("the certificate's extended key usage lacks clientAuth")
	case life > longest:
		return refuse("the certificate lives for %v; at most %v is allowed", life, longest)
	}
	return nil
}

// restricted reports whether the certificate says what it may be used for.
func restricted(c *x509.Certificate) bool {
	return len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0
}

// checkVerified returns when the last of the chains expires. A chain counts when an authority of
// the bundle signed it, a leaf that is itself in the bundle being none, and when none of its
// intermediates is for another use.
func checkVerified(chains [][]*x509.Certificate) (until time.Time, err error) {
	for _, chain := range chains {
		if len(chain) < 2 || slices.ContainsFunc(chain[1:len(chain)-1], notForClients) {
			continue
		}
		first := slices.MinFunc(chain, func(a, b *x509.Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
		if first.NotAfter.After(until) {
			until = first.NotAfter
		}
	}
	if until.IsZero() {
		return until, refuse("no authority of the trust domain has signed the certificate for use by a client")
	}
	return until, nil
}

func notForClients(c *x509.Certificate) bool {
	return restricted(c) &&
		!slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}
