package api

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Environment variables of an operator who has a certificate and no SPIFFE ID.
const (
	EnvOperatorCert = "ERRAND_OPERATOR_CERT" // PEM: the certificate
	EnvOperatorKey  = "ERRAND_OPERATOR_KEY"  // PEM: its private key
)

// maxPEM is the most that is read of a certificate or a key, in bytes.
const maxPEM = 64 << 10

// HasCertificate reports whether an operator's certificate is named. It goes before a SPIFFE identity at the
// operator listener, since nobody names it for anything else.
func (e Environment) HasCertificate() bool {
	return e.get(EnvOperatorCert) != "" || e.get(EnvOperatorKey) != ""
}

// openCertificate makes a client of the operator listener for whoever has the certificate. Like OpenPublic it
// believes the one broker that the authorities in ERRAND_BUNDLE_FILE vouch for. Errors: ErrConfig, ErrNoIdentity.
func openCertificate(e Environment, at []string, id spiffeid.ID) (*Client, error) {
	pair, err := e.certificate()
	if err != nil {
		return nil, err
	}
	config, err := e.trustBundle(id, "there is an operator's certificate")
	if err != nil {
		return nil, err
	}
	// It is sent whatever authorities the broker names: the broker looks for the certificate, not for its issuer.
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	digest := sha256.Sum256(pair.Leaf.Raw)
	c := byBundle(config, at, EnvOperatorCert)
	c.listed = base64.RawURLEncoding.EncodeToString(digest[:])
	return c, nil
}

// certificate reads the certificate and its key.
func (e Environment) certificate() (*tls.Certificate, error) {
	cert, key := e.get(EnvOperatorCert), e.get(EnvOperatorKey)
	if cert == "" || key == "" {
		return nil, fmt.Errorf("%w: an operator's certificate needs both %s and %s; set both to PEM files, or neither for a SPIFFE identity", ErrConfig, EnvOperatorCert, EnvOperatorKey)
	}
	certPEM, err := readPEM(cert, false)
	if err != nil {
		return nil, fmt.Errorf("%w in %s: %w", ErrNoIdentity, EnvOperatorCert, err)
	}
	keyPEM, err := readPEM(key, true)
	if err != nil {
		return nil, fmt.Errorf("%w in %s: %w", ErrNoIdentity, EnvOperatorKey, err)
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	clear(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("%w: %s and %s are not a certificate and its unencrypted key, in PEM: %w", ErrNoIdentity, cert, key, err)
	}
	if leaf := pair.Leaf; time.Now().After(leaf.NotAfter) {
		return nil, fmt.Errorf("%w: the certificate in %s has expired at %s; have the broker's configuration list a new one", ErrNoIdentity, cert, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	return &pair, nil
}

// readPEM reads a small file, which nobody else may read or change when it is secret. Its group may read it: that
// is how services get their secrets.
func readPEM(path string, secret bool) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stat, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !stat.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a file", path)
	case secret && stat.Mode().Perm()&0o027 != 0 && runtime.GOOS != "windows":
		return nil, fmt.Errorf("the key file %s is open to others (mode %04o); close it with: chmod 600 %s, and make a new key if somebody may have read it", path, stat.Mode().Perm(), path)
	}
	return readAll(f, maxPEM)
}

// trustBundle is TLS to the broker by the authorities in ERRAND_BUNDLE_FILE. why is what there is without a bundle.
func (e Environment) trustBundle(id spiffeid.ID, why string) (*tls.Config, error) {
	file := e.get(EnvBundleFile)
	if file == "" {
		return nil, fmt.Errorf("%w: %s, and nothing to know the broker by; set %s to a PEM file with the trust bundle of %s", ErrConfig, why, EnvBundleFile, id.TrustDomain())
	}
	pem, err := ReadFile(file, maxBundle)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrConfig, EnvBundleFile, err)
	}
	config, err := verifyspiffe.TLSByBundle(pem, id.String())
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %s: %w", ErrConfig, EnvBundleFile, file, err)
	}
	return config, nil
}

// byBundle makes a client that has no SPIFFE identity.
func byBundle(config *tls.Config, at []string, from string) *Client {
	nobody := &Identity{From: from, Release: func() error { return nil }}
	return &Client{Identity: nobody, bases: at, http: overTLS(config)}
}

// unreachable is ErrUnreachable for a request that got no answer. A broker that does not take a certificate hangs
// up, and cannot say why.
func (c *Client) unreachable(err error) error {
	var dial *net.OpError
	if c.listed == "" || errors.As(err, &dial) && dial.Op == "dial" {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return fmt.Errorf("%w: %w. If the broker has hung up: it takes this certificate, whose SHA-256 is %s, only while that is listed under operators.certificates and has not expired", ErrUnreachable, err, c.listed)
}
