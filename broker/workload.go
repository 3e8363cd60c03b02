package broker

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Workload is software that has proved its SPIFFE ID on the connection that a request came in on.
// Only broker/identity makes one from a verified peer certificate.
type Workload struct {
	ID spiffeid.ID

	// Thumbprint is the x5t#S256 of the X.509-SVID (RFC 8705 §3.1): the unpadded base64url SHA-256
	// of the certificate's DER form.
	Thumbprint string

	// NotAfter is when that certificate expires. No token that is bound to it lives longer.
	NotAfter time.Time

	// Address is the peer's network address, for the audit log alone.
	Address string
}
