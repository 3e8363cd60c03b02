package sdk

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/errandhq/errand/sdk/wire"
)

// Token is a grant that can be presented. It formats as "grant gnt_…" in every way; only Secret and
// Header have the secret.
type Token struct {
	GrantID  string // the token's jti
	Audience string
	Scopes   []string
	Hosts    []string  // host or host:port that it may be sent to; the port is 443 where none is named
	Servers  []string  // the SPIFFE IDs of who may be there; HTTPClient accepts no other, if there are any
	Expires  time.Time // by the clock of this machine; compare with time.Now
	Bound    bool      // good only together with the certificate of the SVID that it was asked for with

	// A func, since a text could be printed by reflection where no method is called.
	secret func() string

	from   func() *generation // the SVID that it was asked for with; a func, since it has the key
	sent   instant            // when it was asked for
	life   time.Duration
	behind time.Duration // the age from which it is renewed behind its user's back
}

// Secret is the token itself.
func (t Token) Secret() string {
	if t.secret == nil {
		return ""
	}
	return t.secret()
}

// Header is the value of an Authorization header (RFC 6750 §2.1).
func (t Token) Header() string { return "Bearer " + t.Secret() }

// SVID is the one that the token was asked for with, and nil for a Token that did not come from a
// Task. A token that is Bound is good together with its certificate alone, so present that to the
// server; it may be older than the workload's newest, and is good for as long as the token is.
// HTTPClient and Transport do so by themselves.
func (t Token) SVID() *x509svid.SVID {
	if t.from == nil {
		return nil
	}
	return t.from().svid
}

// String names the grant.
func (t Token) String() string { return "grant " + t.GrantID }

// GoString names the grant.
func (t Token) GoString() string { return t.String() }

// Format names the grant, whatever the verb.
func (t Token) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, t.String()) }

// LogValue names the grant.
func (t Token) LogValue() slog.Value { return slog.StringValue(t.String()) }

// MarshalText names the grant.
func (t Token) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// MarshalJSON has everything but the secret.
func (t Token) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{
		"grant_id": t.GrantID, "audience": t.Audience, "scopes": t.Scopes, "expires": t.Expires.UTC(), "bound": t.Bound,
	})
}

// bindingCertificate is the Binding of a token that is good with one certificate only.
const bindingCertificate = "certificate"

// newToken checks what the broker answered. Its life counts from the moment that it was asked for.
func newToken(r wire.TokenResponse, from *generation, sent instant) (*Token, error) {
	switch {
	case !strings.EqualFold(r.TokenType, "Bearer"):
		return nil, fmt.Errorf("%w: its token is of the type %q; this client knows Bearer", ErrUnavailable, r.TokenType)
	case r.ExpiresIn <= 0 || r.ExpiresIn > maxTokenSeconds:
		return nil, fmt.Errorf("%w: its token %s is to live for %d s", ErrUnavailable, r.GrantID, r.ExpiresIn)
	case r.AccessToken == "" || len(r.AccessToken) > wire.MaxTokenBytes || strings.ContainsFunc(r.AccessToken, notTokenRune):
		return nil, fmt.Errorf("%w: its token %s cannot be sent in a header", ErrUnavailable, r.GrantID)
	}
	life := time.Duration(r.ExpiresIn) * time.Second
	return &Token{
		GrantID: r.GrantID, Audience: r.Audience, Scopes: strings.Fields(r.Scope), Hosts: r.Hosts, Servers: r.Servers,
		Expires: sent.steady.Add(life), Bound: r.Binding == bindingCertificate,
		secret: func() string { return r.AccessToken },
		from:   func() *generation { return from }, sent: sent, life: life, behind: jitter(life * 2 / 3),
	}, nil
}

// maxTokenSeconds bounds what is believed of a token's life: a day.
const maxTokenSeconds = 24 * 60 * 60

// notTokenRune is true outside b64token (RFC 6750 §2.1).
func notTokenRune(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._~+/=", r))
}

// age is how long ago the token was asked for. When the clocks disagree, as after a sleep of the
// machine, it is the greater.
func (t *Token) age(now instant) time.Duration {
	steady, wall := now.since(t.sent)
	return max(steady, wall)
}

// presentable reports whether the token can still be handed out. One that is bound to the certificate
// of an earlier SVID can, with that, so that a rotation stops nobody; but not across a change of the
// bundles, since its connections would trust what is not trusted any more.
func (t *Token) presentable(now instant, with *generation) bool {
	if from := t.from(); t.Bound && from.leaf != with.leaf && !equalBundles(from.bundles, with.bundles) {
		return false
	}
	return !t.old(now)
}

// due reports whether it is time for the next token.
func (t *Token) due(now instant, with *generation) bool {
	return t.age(now) >= t.behind || t.Bound && t.from().leaf != with.leaf
}

// old reports whether the token is in the last tenth of its life.
func (t *Token) old(now instant) bool { return t.age(now) >= t.life-t.life/10 }
