package broker

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// WorkloadRegistration is the inventory's record of a workload: that it exists, who answers for it,
// what it is for, and the most that it may ever ask for. Without one there is no task and no token.
type WorkloadRegistration struct {
	ID       spiffeid.ID
	Owner    string // the accountable team or person
	Contact  string // how to reach the owner in an incident
	Purpose  string // why the workload exists
	Boundary string // its trust boundary, for example "prod"
	Risk     string // its risk class, for example "low"
	ReviewBy time.Time

	// Ceiling has the scopes it may ask for, by audience.
	Ceiling map[string]Scopes

	// MaxLife bounds the life of its tokens, and of those in its name; never over MaxTokenLife.
	MaxLife time.Duration

	// MaxTasks and MaxGrants bound what may be live at once.
	MaxTasks, MaxGrants int
}

// AudienceRegistration is the inventory's record of a resource server that tokens are for.
type AudienceRegistration struct {
	Name    string // the aud claim
	Owner   string
	Purpose string
	Risk    string

	// Hosts are the host names, with a port when it is not 443, that the SDK may send a token to.
	Hosts []string

	// Scopes are all that the server knows.
	Scopes Scopes

	// DetailTypes are the types of authorization details that the server knows.
	DetailTypes []string

	// Servers are the SPIFFE IDs of the resource server's instances. Only they read its part of
	// the revocation feed.
	Servers []spiffeid.ID

	// MaxLife bounds the life of tokens for this audience; never over MaxTokenLife.
	MaxLife time.Duration

	// Binding says what ties a token to the workload that it was issued to.
	Binding Binding
}

// Binding says what a verifier compares to be sure that a token is presented by the workload that
// it was issued to. The zero value is the strictest.
type Binding int

const (
	// BindCertificate binds to the X.509-SVID itself (RFC 8705 §3): the token has a cnf claim.
	BindCertificate Binding = iota
	// BindIdentity binds to the SPIFFE ID: the peer's must be the token's client_id. It survives
	// the rotation of an SVID.
	BindIdentity
	// BindNone is a plain bearer token, a named relaxation for servers that end no mutual TLS.
	BindNone
)

var bindingNames = map[Binding]string{BindCertificate: "certificate", BindIdentity: "identity", BindNone: "none"}

// String is the name that the registry file and the API use.
func (b Binding) String() string { return bindingNames[b] }

// ParseBinding reads a binding's name; the empty one is "certificate".
func ParseBinding(s string) (Binding, error) {
	if s == "" {
		return BindCertificate, nil
	}
	for b, name := range bindingNames {
		if s == name {
			return b, nil
		}
	}
	return 0, invalid("binding", "is %q; it must be certificate, identity or none", s)
}
