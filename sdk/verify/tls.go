package verify

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	maxFileBytes   = 1 << 20
	maxPeerChain   = 4 // certificates that the broker may present
	maxPeerChainKB = 16
)

// Files names PEM files with the verifier's own SVID and the trust bundle, as the SPIFFE helper, the
// SPIFFE CSI driver's users or cert-manager write them. They are read again when they change; while
// a change is not readable, the last good state is used.
type Files struct {
	Cert   string // the SVID, then intermediates
	Key    string // its private key
	Bundle string // the CA certificates of the broker's trust domain

	// BrokerID is the broker's SPIFFE ID, which its certificate must have as its only URI.
	BrokerID string
}

// clientTLS returns the TLS configurations for the feed and for the public listener.
func clientTLS(c Config) (private, public *tls.Config, err error) {
	private = c.TLS
	if c.Files != nil {
		if private, err = c.Files.config(c.Now); err != nil {
			return nil, nil, err
		}
	}
	if private, err = harden("TLS", private); err != nil {
		return nil, nil, err
	}
	if len(private.Certificates) == 0 && private.GetClientCertificate == nil {
		return nil, nil, errors.New("verify: Config.TLS has no client certificate; set GetClientCertificate, so that rotation works")
	}
	if c.Public == nil {
		return private, private, nil
	}
	public, err = harden("Public", c.Public)
	return private, public, err
}

// harden copies a configuration and takes from it what must not be: old protocols, and resumption,
// which skips VerifyPeerCertificate.
func harden(name string, c *tls.Config) (*tls.Config, error) {
	if c.InsecureSkipVerify && c.VerifyConnection == nil && c.VerifyPeerCertificate == nil {
		return nil, fmt.Errorf("verify: Config.%s trusts every server: InsecureSkipVerify is set, and neither VerifyConnection nor VerifyPeerCertificate", name)
	}
	c = c.Clone()
	c.MinVersion = tls.VersionTLS13
	c.MaxVersion = 0
	c.ClientSessionCache = nil
	c.SessionTicketsDisabled = true
	return c, nil
}

// trusted makes the verdict on a server's certificate again. A connection that is used every few
// seconds never ends by itself, and must not outlive the trust that it was made under.
func trusted(c *tls.Config, s *tls.ConnectionState, now time.Time) error {
	if s == nil || c == nil {
		return nil // plain HTTP, which is for loopback alone
	}
	if len(s.PeerCertificates) == 0 {
		return errors.New("verify: the server has no certificate")
	}
	if !c.InsecureSkipVerify {
		above := x509.NewCertPool()
		for _, cert := range s.PeerCertificates[1:] {
			above.AddCert(cert)
		}
		options := x509.VerifyOptions{Roots: c.RootCAs, Intermediates: above, DNSName: s.ServerName, CurrentTime: now}
		if _, err := s.PeerCertificates[0].Verify(options); err != nil {
			return err
		}
	}
	if c.VerifyPeerCertificate != nil {
		var raw [][]byte
		for _, cert := range s.PeerCertificates {
			raw = append(raw, cert.Raw)
		}
		if err := c.VerifyPeerCertificate(raw, s.VerifiedChains); err != nil {
			return err
		}
	}
	if c.VerifyConnection != nil {
		return c.VerifyConnection(*s)
	}
	return nil
}

func (f *Files) config(now func() time.Time) (*tls.Config, error) {
	if !isSPIFFEID(f.BrokerID) {
		return nil, fmt.Errorf("verify: Files.BrokerID %q is not the SPIFFE ID of a workload; set it to the broker's", f.BrokerID)
	}
	w := &watchedFiles{Files: *f}
	if _, err := w.current(); err != nil {
		return nil, err
	}
	return &tls.Config{
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			m, err := w.current()
			if err != nil {
				return nil, err
			}
			return m.own, nil
		},
		// The standard library would look for a DNS name; the broker's name is its SPIFFE ID.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			m, err := w.current()
			if err != nil {
				return err
			}
			return verifyBroker(s.PeerCertificates, m.roots, f.BrokerID, now())
		},
	}, nil
}

// verifyBroker checks the broker's chain and name (X509-SVID §5), each time a connection is made.
func verifyBroker(chain []*x509.Certificate, roots *x509.CertPool, id string, now time.Time) error {
	size := 0
	for _, c := range chain {
		size += len(c.Raw)
	}
	if len(chain) == 0 || len(chain) > maxPeerChain || size > maxPeerChainKB<<10 {
		return fmt.Errorf("verify: the broker showed %d certificates of %d bytes; 1 to %d, of at most %d KiB, are allowed", len(chain), size, maxPeerChain, maxPeerChainKB)
	}
	leaf, intermediates := chain[0], x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != id {
		return fmt.Errorf("verify: the server is not the broker %s: its certificate names %v", id, leaf.URIs)
	}
	const signs = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	if leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 || leaf.KeyUsage&signs != 0 {
		return errors.New("verify: the broker's certificate is not that of a workload: its key usage must be digitalSignature, and it must be no CA")
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("verify: the broker's certificate: %w", err)
	}
	return nil
}

// material is one good state of the files.
type material struct {
	own   *tls.Certificate
	roots *x509.CertPool
}

// watchedFiles reads Files again when one of them is another than before. It looks at each
// handshake, of which there are few.
type watchedFiles struct {
	Files

	mu     sync.Mutex // guards all below
	seen   [3]os.FileInfo
	last   *material
	failed error
}

// current returns the newest good state, and an error only if there was never one.
func (w *watchedFiles) current() (*material, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var seen [3]os.FileInfo
	changed := w.last == nil || w.failed != nil
	for i, path := range []string{w.Cert, w.Key, w.Bundle} {
		stat, err := os.Stat(path)
		if err != nil {
			return w.keep(err)
		}
		seen[i] = stat
		before := w.seen[i]
		changed = changed || before == nil || !os.SameFile(before, stat) || !before.ModTime().Equal(stat.ModTime()) || before.Size() != stat.Size()
	}
	if !changed {
		return w.last, nil
	}
	m, err := w.load()
	if err != nil {
		return w.keep(err)
	}
	w.seen, w.last, w.failed = seen, m, nil
	return m, nil
}

// keep goes on with the last good state, and will try again. It is called with mu held.
func (w *watchedFiles) keep(err error) (*material, error) {
	w.failed = err
	if w.last != nil {
		return w.last, nil
	}
	return nil, fmt.Errorf("verify: Config.Files: %w", err)
}

func (w *watchedFiles) load() (*material, error) {
	var pem [3][]byte
	for i, path := range []string{w.Cert, w.Key, w.Bundle} {
		text, err := readSmall(path)
		if err != nil {
			return nil, err
		}
		pem[i] = text
	}
	own, err := tls.X509KeyPair(pem[0], pem[1])
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", w.Cert, w.Key, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem[2]) {
		return nil, fmt.Errorf("%s has no CA certificate in PEM", w.Bundle)
	}
	return &material{own: &own, roots: roots}, nil
}

func readSmall(path string) ([]byte, error) {
	stat, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !stat.Mode().IsRegular() || stat.Size() > maxFileBytes {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, maxFileBytes)
	}
	return os.ReadFile(path)
}
