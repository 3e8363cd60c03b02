package verify_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// FuzzVerify never panics, and accepts nothing but what the issuer signed: every accepted text is
// the signed part of the one good token, with a signature that may be its twin.
func FuzzVerify(f *testing.F) {
	b := newBroker(f, 1)
	v := b.verifier(nil)
	token := b.token(nil)
	parts := strings.Split(token, ".")
	for _, seed := range []string{token, "", "..", token + ".", parts[0] + ".." + parts[2], parts[0] + "." + parts[1] + ".", "eyJhbGciOiJub25lIn0." + parts[1] + "."} {
		f.Add(seed)
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel() // unknown kids are not waited for
	f.Fuzz(func(t *testing.T, text string) {
		g, err := v.Verify(canceled, text, b.peer())
		if (g == nil) == (err == nil) {
			t.Fatalf("%v and %v", g, err)
		}
		if err == nil && !strings.HasPrefix(text, parts[0]+"."+parts[1]+".") {
			t.Fatalf("accepted %q", text)
		}
		if err != nil && errors.Is(err, verify.ErrRevoked) {
			t.Fatalf("%q got as far as the feed", text)
		}
	})
}

// BenchmarkVerify measures everything that is done for a request.
func BenchmarkVerify(b *testing.B) {
	fake := newBroker(b, 1)
	v := fake.verifier(nil)
	token := fake.token(func(c map[string]any) { c["exp"] = c["iat"].(int64) + 900 })
	peer := fake.peer()
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(ctx, token, peer, verify.Scope("orders:read")); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifySignatureAlone is what go-jose needs for the same token, without a look at what it
// says.
func BenchmarkVerifySignatureAlone(b *testing.B) {
	fake := newBroker(b, 1)
	token := fake.key.sign(b, wire.TokenType, marshal(b, fake.claims(nil)))
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(marshal(b, fake.key.jwk(b))); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := jws.Verify(key); err != nil {
			b.Fatal(err)
		}
	}
}
