package verify_test

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// Each of these is what went wrong in another project, named by the first of the reports of its
// kind. The numbers are those of the catalogue of attacks.

// Confusion of algorithms: also CVE-2016-5431, CVE-2022-23540, CVE-2023-48223, CVE-2023-48238,
// CVE-2026-22817, and CVE-2026-34950, where a space before the PEM beat the patch.
func TestCVE_2015_9235(t *testing.T) { numbered(t, 184, 185, 186, 187, 188) }

// A key that comes in the header, or an address of one: also CVE-2026-24117.
func TestCVE_2018_0114(t *testing.T) { numbered(t, 195, 196, 197, 198) }

// A kid that is a path, a query or a command.
func TestCVE_KidTraversal(t *testing.T) { numbered(t, 203, 204) }

// Signatures of zeros.
func TestCVE_2022_21449(t *testing.T) { numbered(t, 189, 190, 194) }

// Two forms of one token, of which one is verified and the other one read.
func TestCVE_2022_39227(t *testing.T) { numbered(t, 213, 214, 217, 218, 219) }

// An array where one issuer belongs.
func TestCVE_2025_30144(t *testing.T) { numbered(t, 226) }

// An audience that was an array, or not looked at: also CVE-2024-5798 and CVE-2026-55669.
func TestCVE_2020_26160(t *testing.T) { numbered(t, 227) }

// Claims that were missing, and not missed: also GO-2026-5732.
func TestCVE_2026_55669(t *testing.T) { numbered(t, 221, 223, 226, 227, 229, 231, 232) }

// Dots that cost memory: also CVE-2025-27144 and CVE-2025-66506. Nothing is split or decoded before
// size and dots are right.
func TestCVE_2025_30204(t *testing.T) {
	numbered(t, 215, 220)
	b := newBroker(t, 1)
	v := b.verifier(nil)
	for _, token := range []string{strings.Repeat(".", 64<<20), strings.Repeat("a", 64<<20)} {
		allocated := testing.AllocsPerRun(3, func() {
			if err := refused(t, v, b, token); !errors.Is(err, verify.ErrMalformed) {
				t.Errorf("got %v", err)
			}
		})
		if allocated > 100 {
			t.Errorf("%v allocations", allocated)
		}
	}
}

// Panics of libraries on JWS that lack a part: also CVE-2024-21664. FuzzVerify looks for more.
func TestCVE_2026_34986(t *testing.T) { numbered(t, 212, 214, 215, 219) }

// Bombs of JWE: also CVE-2024-28122, CVE-2023-50658, CVE-2023-49290, CVE-2025-63811 and
// GO-2023-2334. There is no JWE, and nothing is decompressed.
func TestCVE_2024_28180(t *testing.T) { numbered(t, 202, 213) }

// Several errors of which the caller looked at one: a refusal is one error, comes without a grant, and
// is the same whatever else is wrong behind it.
func TestCVE_2024_51744(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	evil := *b.key
	evil.private = newSigningKey(t, "ES256").private
	expired := b.claims(func(c map[string]any) { c["iat"], c["exp"] = 1, 2 })
	g, err := v.Verify(t.Context(), evil.sign(t, wire.TokenType, marshal(t, expired)), b.peer())
	if g != nil || !errors.Is(err, verify.ErrSignature) || errors.Is(err, verify.ErrExpired) {
		t.Errorf("expired, and signed by a thief: %v and %v", g, err)
	}
}

// A cache of verdicts that forgot what was asked for: also CVE-2026-33496 and GHSA-qvp4-rpmr-xwrr. There
// is no cache: each call decides by all that it was given.
func TestCVE_2021_32701(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	other := b.verifier(func(c *verify.Config) { c.Audience = "invoices" })
	token := b.token(func(c map[string]any) { c["scope"] = "orders:read" })
	for range 2 {
		if _, err := v.Verify(t.Context(), token, b.peer(), verify.Scope("orders:read")); err != nil {
			t.Error(err)
		}
		if _, err := v.Verify(t.Context(), token, b.peer(), verify.Scope("orders:write")); !errors.Is(err, verify.ErrScope) {
			t.Errorf("with another scope: %v", err)
		}
		if _, err := v.Verify(t.Context(), token, nil); !errors.Is(err, verify.ErrUnbound) {
			t.Errorf("by nobody: %v", err)
		}
		if _, err := other.Verify(t.Context(), token, b.peer()); !errors.Is(err, verify.ErrAudience) {
			t.Errorf("at another audience: %v", err)
		}
	}
}

// A redirect that leads to a key set of somebody else, or into the network behind: CVE-2026-49478 too.
func TestCVE_2026_22772(t *testing.T) {
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	t.Cleanup(elsewhere.Close)
	for _, path := range []string{wire.PathMetadata, wire.PathJWKS, wire.PathFeedSnapshot, wire.PathFeedPosition} {
		for name, to := range redirects(elsewhere.URL) {
			t.Run(path[strings.LastIndex(path, "/"):]+" to "+name, func(t *testing.T) {
				t.Parallel()
				b := newBroker(t, 1)
				b.handle(path, func(w http.ResponseWriter, r *http.Request) {
					http.Redirect(w, r, to(b, r), http.StatusTemporaryRedirect)
				})
				if err := b.start(path); err == nil || !strings.Contains(err.Error(), "redirect") {
					t.Errorf("got %v", err)
				}
			})
		}
	}
}

// redirects are the ways to lead a client astray.
func redirects(elsewhere string) map[string]func(*broker, *http.Request) string {
	to := func(address string) func(*broker, *http.Request) string {
		return func(*broker, *http.Request) string { return address }
	}
	return map[string]func(*broker, *http.Request) string{
		"another host":       to(elsewhere),
		"cloud metadata":     to("http://169.254.169.254/latest/meta-data/"),
		"cloud over TLS":     to("https://169.254.169.254/latest/meta-data/"),
		"a file":             to("file:///etc/passwd"),
		"another port":       func(b *broker, _ *http.Request) string { return "https://127.0.0.1:1/" },
		"the same by a user": func(b *broker, _ *http.Request) string { return strings.Replace(elsewhere, "//", "//a@", 1) },
		"plain HTTP": func(b *broker, r *http.Request) string {
			return "http://" + r.Host + r.URL.Path
		},
		"itself": func(_ *broker, r *http.Request) string { return r.URL.Path },
	}
}

// Bodies without an end: also CVE-2023-30551 and CVE-2024-45395. What is read is bounded in size, and
// in time.
func TestCVE_2026_48702(t *testing.T) {
	for _, path := range []string{wire.PathMetadata, wire.PathJWKS, wire.PathFeedSnapshot} {
		t.Run(path[strings.LastIndex(path, "/"):], func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			var sent atomic.Int64
			b.handle(path, func(w http.ResponseWriter, _ *http.Request) {
				chunk := []byte(strings.Repeat(" ", 64<<10))
				for range 1 << 16 { // 4 GiB
					n, err := w.Write(chunk)
					sent.Add(int64(n))
					if err != nil {
						return
					}
				}
			})
			err := b.start(path, func(c *verify.Config) { c.MaxEntries = 1000 })
			if err == nil || !strings.Contains(err.Error(), "the body has more than") {
				t.Errorf("got %v", err)
			}
			// Some tries of at most a MiB each, and what was on its way.
			if sent.Load() > 64<<20 {
				t.Errorf("%d bytes were taken", sent.Load())
			}
		})
	}
}

// An unknown kid for each token, and a fetch of the key set for each kid: go-oidc 482, and others.
func TestCVE_GoOIDC482(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	before, began := b.fetches.Load(), time.Now()
	for i := range 300 {
		token := b.key.forge(t, fmt.Sprintf(`{"typ":"at+jwt","alg":"ES256","kid":"unknown-%d"}`, i), "{}")
		if err := refused(t, v, b, token); !errors.Is(err, verify.ErrSignature) {
			t.Fatal(err)
		}
	}
	if got, most := b.fetches.Load()-before, 2+2*int64(time.Since(began)/(5*time.Second)); got > most {
		t.Errorf("%d fetches; at most %d are allowed", got, most)
	}
}

// A key that was kept beyond its time, and of which nobody asked whose it was: Storm-0558, and
// CVE-2026-54787.
func TestCVE_Storm0558(t *testing.T) {
	b, consumer := newBroker(t, 1), newBroker(t, 1)
	v := b.verifier(nil)
	stolen := consumer.key.sign(t, wire.TokenType, marshal(t, b.claims(nil)))
	if err := refused(t, v, b, stolen); !errors.Is(err, verify.ErrSignature) {
		t.Errorf("signed with the key of another issuer, in our issuer's name: %v", err)
	}
	old := b.token(nil)
	next := newSigningKey(t, "ES256")
	b.change(func() { b.keys = []map[string]any{next.jwk(t)} })
	b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: "any"}) // has the set fetched
	goesTo(t, v, b, old, verify.ErrSignature)
}

// A list of what is revoked that was not loaded before the first refresh: without one there is no
// verifier, and without a fresh one it accepts nothing.
func TestCVE_2022_41316(t *testing.T) {
	t.Parallel()
	for _, path := range []string{wire.PathFeedSnapshot, wire.PathFeedPosition} {
		b := newBroker(t, 1)
		ctx, asked := twice(t)
		b.handle(path, func(w http.ResponseWriter, _ *http.Request) { asked(); w.WriteHeader(http.StatusServiceUnavailable) })
		v, err := verify.New(ctx, b.config())
		if v != nil || err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("without %s: %v", path, err)
		}
	}
	b := newBroker(t, 1)
	token := b.token(nil)
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID})
	if err := refused(t, b.verifier(nil), b, token); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("the first token that a verifier sees, revoked before it started: %v", err)
	}
}

// A refresh of the key set that added keys and removed none: TestKeySetIsReplaced has the rest.
func TestCVE_2025_22149(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	for range 3 {
		old := b.token(nil)
		if err := refused(t, v, b, old); err != nil {
			t.Fatal(err)
		}
		next := newSigningKey(t, "ES256")
		b.change(func() { b.key, b.keys = next, []map[string]any{next.jwk(t)} })
		b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: "any"}) // has the set fetched
		goesTo(t, v, b, old, verify.ErrSignature)
		if got := v.Status().Keys; len(got) != 1 || got[0] != next.kid {
			t.Errorf("keys %v", got)
		}
	}
}

// The end of one session that left its token alive, since another one had the same ID (Keycloak 35813):
// what is denied is one ID, and neither a part of it, nor its letters in another case, nor a kind.
func TestCVE_Keycloak35813(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	token := b.token(nil)
	for _, near := range []string{grantID[:len(grantID)-1], grantID + "c", strings.ToUpper(grantID), " " + grantID} {
		b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: near})
		b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: near})
	}
	settled(t, v, b)
	if err := refused(t, v, b, token); err != nil {
		t.Errorf("after its neighbours were revoked: %v", err)
	}
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID})
	goesTo(t, v, b, token, verify.ErrRevoked)
	other := b.token(func(c map[string]any) { c["jti"] = "gnt_00dddddddddddddddddddddddddd" })
	if err := refused(t, v, b, other); err != nil {
		t.Errorf("another grant of the same task: %v", err)
	}
}

// Tokens that were cut and still good: TestAttackMutations is all of it, and this the part that was
// reported.
func TestCVE_2026_27840(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	token := b.token(nil)
	for i := range len(token) {
		if err := refused(t, v, b, token[:i]); err == nil {
			t.Errorf("accepted when cut to %d bytes", i)
		}
	}
}
