package devmode

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Lives of certificates.
const (
	DefaultLife   = time.Hour            // of an X509-SVID
	DefaultCALife = 365 * 24 * time.Hour // of the CA's certificate

	// MinLife is the shortest: X.509 counts whole seconds, and what is left of one is cut off.
	MinLife = 2 * time.Second

	// backdate is how long before its issue a certificate begins, for a peer whose clock is behind.
	backdate = 10 * time.Second
)

// Options of a CA. The zero value is ready for use.
type Options struct {
	Life time.Duration    // of the CA's certificate; DefaultCALife when zero
	Now  func() time.Time // nil is time.Now
}

// CA issues X509-SVIDs for one trust domain. Its key is in memory only, so a restart is a new CA.
// Its methods may be called from any goroutine.
type CA struct {
	trustDomain spiffeid.TrustDomain
	cert        *x509.Certificate
	key         *ecdsa.PrivateKey
	now         func() time.Time
}

// NewCA makes a CA with a new P-256 key. The trust domain is a name as "dev.errand".
func NewCA(trustDomain string, opts Options) (*CA, error) {
	td, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("devmode: the trust domain %q: %w; use lower-case letters, digits, '.', '-' and '_'", trustDomain, err)
	}
	if opts.Life == 0 {
		opts.Life = DefaultCALife
	}
	if opts.Life < MinLife {
		return nil, fmt.Errorf("devmode: the CA's life is %v; it must be %v at least, or zero for %v", opts.Life, MinLife, DefaultCALife)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("devmode: making the CA's key: %w", err)
	}
	now := opts.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Errand development"}, CommonName: td.Name()},
		URIs:                  []*url.URL{td.ID().URL()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(opts.Life),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &CA{trustDomain: td, cert: cert, key: key, now: opts.Now}, nil
}

// TrustDomain is the one that the CA speaks for.
func (ca *CA) TrustDomain() spiffeid.TrustDomain { return ca.trustDomain }

// Bundle is what a verifier of the CA's SVIDs trusts.
func (ca *CA) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(ca.trustDomain, []*x509.Certificate{ca.cert})
}

// Issue makes an X509-SVID with a new P-256 key; life zero means DefaultLife. It is good for both
// sides of a connection, and names localhost beside the SPIFFE ID so that tools that know nothing of
// SPIFFE can call a server that has it.
func (ca *CA) Issue(id spiffeid.ID, life time.Duration) (*x509svid.SVID, error) {
	if life == 0 {
		life = DefaultLife
	}
	now := ca.now()
	switch {
	case !id.MemberOf(ca.trustDomain):
		return nil, fmt.Errorf("devmode: %q is not in the trust domain %s", id, ca.trustDomain)
	case id.Path() == "":
		return nil, fmt.Errorf("devmode: %q names a trust domain; a workload's ID has a path, as %s/report", id, id)
	case life < MinLife:
		return nil, fmt.Errorf("devmode: the SVID's life is %v; it must be %v at least, or zero for %v", life, MinLife, DefaultLife)
	case now.Add(life).After(ca.cert.NotAfter):
		return nil, fmt.Errorf("devmode: an SVID with a life of %v would outlive the CA, which expires at %s; ask for less, or start again with a new CA",
			life, ca.cert.NotAfter.Format(time.RFC3339))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("devmode: making a key for %s: %w", id, err)
	}
	cert, err := sign(&x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Errand development"}},
		URIs:                  []*url.URL{id.URL()},
		DNSNames:              []string{"localhost"},
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(life),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}, nil
}

func sign(template, parent *x509.Certificate, public any, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("devmode: signing a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}
