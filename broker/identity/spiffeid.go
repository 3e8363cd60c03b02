package identity

import (
	"crypto/x509"
	"encoding/asn1"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of a SPIFFE ID, in bytes (SPIFFE-ID, §2.1 and §2.3).
const (
	MaxID          = 2048
	MaxTrustDomain = 255
)

// spiffeID returns the ID in the certificate's one URI name. It reads the bytes that were signed:
// crypto/x509 has parsed them as a URL, which turns "SPIFFE://td/x" and "spiffe://td/x#" into the
// same as "spiffe://td/x", and two names for one workload are one too many.
func spiffeID(leaf *x509.Certificate) (spiffeid.ID, error) {
	names, err := uriNames(leaf)
	if err != nil {
		return spiffeid.ID{}, refuse("the certificate's subject alternative names: %w", err)
	}
	if len(names) != 1 {
		return spiffeid.ID{}, refuse("the certificate has %d URI names; an X509-SVID has one", len(names))
	}
	if len(names[0]) > MaxID {
		return spiffeid.ID{}, refuse("the SPIFFE ID has %d bytes; at most %d are allowed", len(names[0]), MaxID)
	}
	id, err := spiffeid.FromString(names[0])
	switch {
	case err != nil:
		return spiffeid.ID{}, refuse("the SPIFFE ID %q: %w", names[0], err)
	case len(id.TrustDomain().Name()) > MaxTrustDomain:
		return spiffeid.ID{}, refuse("the trust domain has %d bytes; at most %d are allowed", len(id.TrustDomain().Name()), MaxTrustDomain)
	case id.Path() == "":
		return spiffeid.ID{}, refuse("the SPIFFE ID %q has no path, so it names no workload", names[0])
	}
	return id, nil
}

// uriNames returns the uniformResourceIdentifiers among the subject alternative names, as they are
// written (RFC 5280 §4.2.1.6).
func uriNames(leaf *x509.Certificate) ([]string, error) {
	const tagURI = 6
	var uris []string
	for _, extension := range leaf.Extensions {
		if !extension.Id.Equal(asn1.ObjectIdentifier{2, 5, 29, 17}) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(extension.Value, &names); err != nil {
			return nil, err
		} else if len(rest) > 0 {
			return nil, asn1.SyntaxError{Msg: "something follows them"}
		}
		for _, name := range names {
			if name.Class == asn1.ClassContextSpecific && name.Tag == tagURI {
				uris = append(uris, string(name.Bytes))
			}
		}
	}
	return uris, nil
}
