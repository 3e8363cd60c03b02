package broker

import (
	"log/slog"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of a token's life.
const (
	DefaultTokenLife = time.Minute
	MaxTokenLife     = 15 * time.Minute
	MinTokenLife     = 2 * time.Second // less is refused: it would be dead on arrival

	// Margin is how much longer than its tokens a denial is kept, so that no clock within the
	// allowed skew can outlive it.
	Margin = 30 * time.Second

	// MaxSkew is how far apart any two clocks may be.
	MaxSkew = 5 * time.Second
)

// Grant is the broker's record that a workload may act in a task, at one audience, with some
// scopes, until its expiry. The token is the same fact in signed form; the broker keeps the grant
// and never the token.
type Grant struct {
	ID         GrantID
	Task       TaskID
	Workload   spiffeid.ID
	Audience   string
	Scopes     Scopes
	Details    Details
	Binding    Binding
	Thumbprint string // of the SVID it is bound to; empty unless Binding is BindCertificate
	Decision   DecisionID

	Issued  time.Time // the store's time of the commit, whole seconds, rounded down
	Expires time.Time // whole seconds, rounded down

	// Epoch and Number say what the shard's feed had reached at the commit. A selector denial
	// with a higher number kills the grant, one with a lower or equal number came before it.
	Epoch  uint64
	Number uint64

	Revoked bool // by itself, not through its task
}

// Live reports whether the grant is good at now, given its task as of now. Selector denials are
// not in it; see Control.Denies.
func (g Grant) Live(now time.Time, task Task) bool {
	return !g.Revoked && task.State == Active && now.Before(g.Expires)
}

// Clone returns a copy that shares no memory with g.
func (g Grant) Clone() Grant {
	g.Scopes, g.Details = slices.Clone(g.Scopes), slices.Clone(g.Details)
	return g
}

// Token is a grant written as a signed JWT. It prints itself redacted everywhere; the secret comes
// out of Secret alone, and goes nowhere but into the answer to the workload.
type Token struct{ secret string }

// NewToken wraps a compact JWS. Only broker/token and tests call it.
func NewToken(compact string) Token { return Token{secret: compact} }

const redacted = "[token redacted]"

// Secret is the compact JWS.
func (t Token) Secret() string { return t.secret }

// String hides the secret, as do GoString, LogValue, MarshalJSON and MarshalText.
func (t Token) String() string { return redacted }

// GoString hides the secret from %#v.
func (t Token) GoString() string { return redacted }

// LogValue hides the secret from slog.
func (t Token) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the secret from JSON, YAML and the like.
func (t Token) MarshalText() ([]byte, error) { return []byte(redacted), nil }
