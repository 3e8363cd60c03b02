package identity

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of a bundle that is read from a file or an endpoint.
const (
	MaxBundle      = MaxFile // bytes
	MaxAuthorities = 64      // X.509 authorities of one trust domain
)

// document is a bundle as it came.
type document struct {
	bundle   *x509bundle.Bundle
	sequence *uint64       // spiffe_sequence; nil when there is none
	refresh  time.Duration // spiffe_refresh_hint; 0 when there is none
}

// parseBundle reads the authorities of a trust domain, as PEM or as a SPIFFE bundle document.
func parseBundle(td spiffeid.TrustDomain, text []byte) (document, error) {
	if bytes.HasPrefix(bytes.TrimLeft(text, " \t\r\n"), []byte("{")) {
		return parseDocument(td, text)
	}
	b, err := parsePEM(td, text)
	return document{bundle: b}, err
}

// parseDocument reads a JWKS of X.509 authorities (SPIFFE Trust Domain and Bundle, §4). It never says
// whose it is: that is td, because we were told so. One without authorities is good, and means that
// nobody of the trust domain is to be trusted.
func parseDocument(td spiffeid.TrustDomain, text []byte) (document, error) {
	if len(text) > MaxBundle {
		return document{}, fmt.Errorf("it is larger than %d bytes", MaxBundle)
	}
	b, err := spiffebundle.Parse(td, text)
	if err != nil {
		return document{}, err
	}
	d := document{bundle: b.X509Bundle()}
	if n, ok := b.SequenceNumber(); ok {
		d.sequence = &n
	}
	d.refresh, _ = b.RefreshHint()
	return d, checkAuthorities(d.bundle)
}

// parsePEM wants certificates of authorities and nothing else. Empty is refused: a file is empty when
// somebody is about to write it.
func parsePEM(td spiffeid.TrustDomain, text []byte) (*x509bundle.Bundle, error) {
	if err := whole(text); err != nil {
		return nil, err
	}
	b, err := x509bundle.Parse(td, text)
	if err != nil {
		return nil, err
	}
	if b.Empty() {
		return nil, errors.New("it has no certificate")
	}
	return b, checkAuthorities(b)
}

func checkAuthorities(b *x509bundle.Bundle) error {
	authorities := b.X509Authorities()
	if len(authorities) > MaxAuthorities {
		return fmt.Errorf("it has %d authorities; at most %d are allowed", len(authorities), MaxAuthorities)
	}
	for _, authority := range authorities {
		if !authority.IsCA {
			return fmt.Errorf("it has a certificate that is not an authority's (serial number %x)", authority.SerialNumber)
		}
	}
	return nil
}

// whole refuses a text that was cut: decoders of PEM pass over a block without an end.
func whole(text []byte) error {
	blocks, rest := 0, text
	for {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		blocks, rest = blocks+1, after
	}
	if blocks == 0 || blocks != bytes.Count(text, []byte("-----BEGIN ")) || len(bytes.TrimSpace(rest)) > 0 {
		return errors.New("it is not whole: it must be PEM blocks, with nothing after the last one")
	}
	return nil
}
