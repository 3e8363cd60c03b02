package verify_test

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// TestOrderOfChecks: of a token with every fault from one on, the first is what is said. So nobody
// without a token of the issuer's learns anything but that it has none, and nobody learns what another
// audience's tokens are worth.
func TestOrderOfChecks(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	const dead = "gnt_00dddddddddddddddddddddddddd"
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: dead, Until: time.Now().Add(time.Hour)})
	var ahead atomic.Int64
	v := b.verifier(func(c *verify.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	set := func(name string, value any) func(map[string]any) {
		return func(c map[string]any) { c[name] = value }
	}
	stranger, now := newSigningKey(t, "ES256"), time.Now().Unix()
	type fault struct {
		name string
		want error
		edit func(map[string]any)
	}
	// What is wrong with the header comes first, as the cases below have it.
	claims := []fault{
		{"issuer", verify.ErrIssuer, set("iss", "https://elsewhere")},
		{"audience", verify.ErrAudience, set("aud", "billing")},
		{"expired", verify.ErrExpired, func(c map[string]any) { c["iat"], c["exp"] = now-120, now-60 }},
		{"revoked", verify.ErrRevoked, set("jti", dead)},
		{"unbound", verify.ErrUnbound, func(c map[string]any) { delete(c, "cnf") }},
		{"scope", verify.ErrScope, set("scope", "other")},
	}
	token := func(key *signingKey, typ string, from int) string {
		return key.sign(t, typ, marshal(t, b.claims(func(c map[string]any) {
			c["exp"] = now + 600
			for _, f := range claims[from:] {
				f.edit(c)
			}
		})))
	}
	check := func(name, token string, want error) {
		t.Helper()
		g, err := v.Verify(t.Context(), token, b.peer(), verify.Scope("orders:read"))
		if !errors.Is(err, want) || (g == nil) == (want == nil) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
	check("size", strings.Repeat("x", wire.MaxTokenBytes+1), verify.ErrMalformed)
	check("type", token(stranger, "JWT", 0), verify.ErrMalformed)
	check("key", token(stranger, wire.TokenType, 0), verify.ErrSignature)
	all := token(b.key, wire.TokenType, 0)
	parts := strings.Split(all, ".")
	parts[1] = strings.Split(token(b.key, wire.TokenType, 1), ".")[1]
	check("signature", strings.Join(parts, "."), verify.ErrSignature)
	for i, f := range claims {
		check(f.name, token(b.key, wire.TokenType, i), f.want)
	}
	check("nothing", token(b.key, wire.TokenType, len(claims)), nil)

	// Staleness stands between the token's own faults and what the feed and the route have to say.
	b.cut()
	ahead.Store(int64(verify.DefaultMaxStale + time.Second))
	check("signature, stale", strings.Join(parts, "."), verify.ErrSignature)
	for i, f := range claims {
		if want := f.want; i < 3 {
			check(f.name+", stale", token(b.key, wire.TokenType, i), want)
		} else {
			check(f.name+", stale", token(b.key, wire.TokenType, i), verify.ErrStale)
		}
	}
}
