package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/broker"
)

// Certificates are those of operators who have no SVID: the name of each, by the certificate's x5t#S256
// (RFC 8705 §3.1). ParseThumbprint and CheckName say what may be there.
type Certificates map[string]string

// MaxName is how many characters the name of a listed certificate may have.
const MaxName = 64

var listedName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]*$`)

// CheckName says what is wrong with the name of a listed certificate.
func CheckName(name string) error {
	if len(name) > MaxName || !listedName.MatchString(name) {
		return errors.New("must be 1 to 64 letters, digits and ._@+-, with a letter or a digit first")
	}
	return nil
}

// ParseThumbprint returns the x5t#S256 that a text stands for: unpadded base64url, or hex in either case,
// with a colon between all bytes as openssl x509 -fingerprint -sha256 prints it, or none.
func ParseThumbprint(text string) (string, error) {
	digits := text
	if len(text) == 3*sha256.Size-1 {
		pairs := strings.Split(text, ":")
		if len(pairs) == sha256.Size && !slices.ContainsFunc(pairs, func(p string) bool { return len(p) != 2 }) {
			digits = strings.Join(pairs, "")
		}
	}
	if digest, err := hex.DecodeString(digits); err == nil && len(digest) == sha256.Size {
		return base64.RawURLEncoding.EncodeToString(digest), nil
	}
	// The decoder would pass over line breaks.
	digest, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(digest) != sha256.Size || strings.ContainsAny(text, "\r\n") {
		return "", errors.New("is not the SHA-256 of a certificate, in hex with or without colons, or in base64url; openssl x509 -noout -fingerprint -sha256 prints it")
	}
	return text, nil
}

func thumbprint(c *x509.Certificate) string {
	digest := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(digest[:])
}

// OperatorTLS is ServerTLS for the operator listener, which also takes certificates that are listed.
func OperatorTLS(s *Source, listed Certificates) *tls.Config {
	config := ServerTLS(s)
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if leaf := outsider(state.PeerCertificates); leaf != nil {
			_, err := listed.judge(leaf, s.now())
			return err
		}
		_, err := s.Verify(state.PeerCertificates, s.now())
		return err
	}
	return config
}

// Operator is Workload for the operator listener: it returns who sent the request, without the role. A
// listed certificate is believed as it is, since the list is the trust: whoever signed it has no say. One
// that names a SPIFFE ID must be a good SVID, whether it is listed or not. Every error is ErrIdentity.
func (s *Source) Operator(r *http.Request, listed Certificates) (broker.Operator, error) {
	if r.TLS != nil && r.TLS.HandshakeComplete {
		if leaf := outsider(r.TLS.PeerCertificates); leaf != nil {
			o, err := listed.judge(leaf, s.now())
			o.Address = r.RemoteAddr
			return o, err
		}
	}
	w, err := s.Workload(r)
	if err != nil {
		return broker.Operator{}, err
	}
	return broker.Operator{Name: w.ID.String(), Thumbprint: w.Thumbprint, Address: w.Address}, nil
}

// outsider is the leaf of a chain that claims no SPIFFE ID, and nil for any other. What is wrong with
// those is for judge to say.
func outsider(certs []*x509.Certificate) *x509.Certificate {
	if len(certs) == 0 || slices.ContainsFunc(certs[0].URIs, isSPIFFE) {
		return nil
	}
	return certs[0]
}

func isSPIFFE(u *url.URL) bool { return strings.EqualFold(u.Scheme, "spiffe") }

// judge returns the operator whose certificate this is at the time now.
func (l Certificates) judge(leaf *x509.Certificate, now time.Time) (broker.Operator, error) {
	digest := thumbprint(leaf)
	name := l[digest]
	if name == "" {
		return broker.Operator{}, refuse("the certificate has no SPIFFE ID, and the SHA-256 %s is not listed under operators", digest)
	}
	if err := checkKey(leaf); err != nil {
		return broker.Operator{}, refuse("the certificate of %s has %w", name, err)
	}
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return broker.Operator{}, refuse("the certificate of %s is good from %s to %s, and not now", name,
			leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return broker.Operator{Name: broker.CertificateOperator + name, Thumbprint: digest}, nil
}
