package identity

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// SetFetchTimeout changes FetchTimeout for a test that waits for it.
func (s *Source) SetFetchTimeout(d time.Duration) { s.fetch = d }

// ParseBundle is what reads every bundle from a file.
func ParseBundle(td spiffeid.TrustDomain, text []byte) (*x509bundle.Bundle, error) {
	d, err := parseBundle(td, text)
	return d.bundle, err
}
