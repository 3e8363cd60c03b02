package verify_test

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// explain judges a token with a configuration that trusts this broker.
func (b *broker) explain(q verify.Case) (*verify.Explanation, error) {
	b.tb.Helper()
	return verify.Explain(b.tb.Context(), verify.Config{
		Issuer: b.public.URL, Audience: audience, Files: &b.files, Logger: slog.New(slog.DiscardHandler),
	}, q)
}

// kind is the sentinel that an error matches.
func kind(err error) error {
	for _, s := range []error{
		verify.ErrMissing, verify.ErrMalformed, verify.ErrSignature, verify.ErrIssuer, verify.ErrExpired, verify.ErrAudience,
		verify.ErrRevoked, verify.ErrScope, verify.ErrUnbound, verify.ErrStale,
	} {
		if errors.Is(err, s) {
			return s
		}
	}
	return err
}

// failing names the steps that refuse.
func failing(e *verify.Explanation) (names []string) {
	for _, s := range e.Steps {
		if s.Err != nil {
			names = append(names, s.Name)
		}
	}
	return names
}

// TestExplainAgreesWithVerify: what Explain says first is what Verify says, and it goes on after that.
func TestExplainAgreesWithVerify(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	other := newSigningKey(t, "ES256")
	edited := func(member string, value any) string {
		return b.token(func(c map[string]any) { c[member] = value })
	}
	header := func(text string) string { return b.key.forge(t, text, string(marshal(t, b.claims(nil)))) }
	now := time.Now().Unix()
	for name, test := range map[string]struct {
		token, scope string
		want         string // the steps that refuse
	}{
		"good":              {b.token(nil), "orders:read", ""},
		"no scope":          {b.token(nil), "orders:drop", "requirements"},
		"nothing":           {"", "", "structure"},
		"no JWT":            {"gnt_1", "", "structure"},
		"cut off":           {b.token(nil)[:200], "", "structure"},
		"a JWK in it":       {header(`{"typ":"at+jwt","alg":"ES256","kid":"` + b.key.kid + `","jwk":{}}`), "", "structure signature"},
		"another type":      {header(`{"typ":"JWT","alg":"ES256","kid":"` + b.key.kid + `"}`), "", "type"},
		"no algorithm":      {header(`{"typ":"at+jwt","alg":"none","kid":"` + b.key.kid + `"}`), "", "algorithm signature"},
		"no kid":            {header(`{"typ":"at+jwt","alg":"ES256"}`), "", "key"},
		"an unknown key":    {other.sign(t, wire.TokenType, marshal(t, b.claims(nil))), "", "key"},
		"a bad signature":   {other.forgeAs(t, b.key.kid, wire.TokenType, marshal(t, b.claims(nil))), "", "signature"},
		"no claims":         {b.key.sign(t, wire.TokenType, []byte(`{"iss":"https://elsewhere"}`)), "", "claims"},
		"another issuer":    {edited("iss", "https://elsewhere"), "", "issuer"},
		"another audience":  {edited("aud", "files"), "", "audience"},
		"both, and expired": {b.token(func(c map[string]any) { c["iss"], c["aud"], c["iat"], c["exp"] = "https://a", "b", now-100, now-50 }), "", "issuer audience expiry"},
		"from the future":   {b.token(func(c map[string]any) { c["iat"], c["exp"] = now+100, now+150 }), "", "expiry"},
		"too long":          {b.token(func(c map[string]any) { c["iat"], c["exp"] = now-10, now+1000 }), "", "expiry"},
		"bound to none":     {b.token(func(c map[string]any) { delete(c, "cnf") }), "", "binding"},
		"a later data set":  {b.token(func(c map[string]any) { c["ep"] = []uint64{epoch + 1, 0} }), "", "denials"},
	} {
		t.Run(name, func(t *testing.T) {
			var reqs []verify.Requirement
			if test.scope != "" {
				reqs = append(reqs, verify.Scope(test.scope))
			}
			_, want := v.Verify(t.Context(), test.token, b.peer(), reqs...)
			got, err := b.explain(verify.Case{Token: test.token, Peer: b.peer(), Requirements: reqs})
			if err != nil {
				t.Fatal(err)
			}
			if kind(got.Err()) != kind(want) || got.Accepted() != (want == nil) {
				t.Errorf("Explain says %v, and Verify %v", got.Err(), want)
			}
			if s := strings.Join(failing(got), " "); s != test.want {
				t.Errorf("%q refuse, want %q: %+v", s, test.want, got.Steps)
			}
			for _, s := range got.Steps {
				if part := test.token[strings.LastIndexByte(test.token, '.')+1:]; len(part) > 20 && strings.Contains(s.Detail, part) {
					t.Errorf("%s shows the signature", s.Name)
				}
			}
		})
	}
}

// TestExplainSaysWhatDenies names the grant, task, key or selector that a token is dead by.
func TestExplainSaysWhatDenies(t *testing.T) {
	for name, test := range map[string]struct {
		entry wire.FeedEntry
		want  string
	}{
		"the grant":      {wire.FeedEntry{Kind: wire.KindGrant, ID: grantID}, "its grant " + grantID + " was revoked"},
		"the task":       {wire.FeedEntry{Kind: wire.KindTask, ID: childTask}, "its task " + childTask + " has ended"},
		"the root":       {wire.FeedEntry{Kind: wire.KindTask, ID: rootTask}, "the task " + rootTask + ", above its own, has ended"},
		"the workload":   {wire.FeedEntry{Kind: wire.KindSelector, Subject: agentID}, "it was revoked with " + agentID},
		"those below":    {wire.FeedEntry{Kind: wire.KindSelector, Subject: agentID[:strings.LastIndexByte(agentID, '/')] + "/*"}, "it was revoked with everything below " + agentID[:strings.LastIndexByte(agentID, '/')+1]},
		"a scope":        {wire.FeedEntry{Kind: wire.KindSelector, Scope: "orders:read"}, "it was revoked with all of its audience or scope"},
		"everything":     {wire.FeedEntry{Kind: wire.KindAll}, "or everything"},
		"another's task": {wire.FeedEntry{Kind: wire.KindTask, ID: "tsk_00other"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBroker(t, 1)
			token := b.token(nil)
			b.deny(test.entry)
			e, err := b.explain(verify.Case{Token: token, Peer: b.peer()})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range e.Steps {
				if s.Name == "denials" && (errors.Is(s.Err, verify.ErrRevoked) != (test.want != "") || !strings.Contains(s.Detail, test.want)) {
					t.Errorf("got %+v", s)
				}
			}
			if (e.Err() == nil) != (test.want == "") {
				t.Errorf("refused with %v", e.Err())
			}
		})
	}
}

// TestExplainLeavesOpen: what could not be checked is said to be open, and never accepted.
func TestExplainLeavesOpen(t *testing.T) {
	b := newBroker(t, 1)
	token := b.token(nil)
	open := func(e *verify.Explanation) (names string) {
		for _, s := range e.Steps {
			if s.Open {
				names += s.Name + " "
			}
		}
		return names
	}
	e, err := b.explain(verify.Case{Token: token})
	if err != nil || e.Accepted() || e.Err() != nil || open(e) != "binding " {
		t.Errorf("without a peer: %v, open: %s", err, open(e))
	}
	b.mu.Lock()
	b.override[wire.PathFeedSnapshot] = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", wire.TypeProblem)
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"title":"Denied by policy","detail":"not among its servers"}`)
	}
	b.mu.Unlock()
	e, err = b.explain(verify.Case{Token: token, Peer: b.peer()})
	if err != nil || e.Accepted() || e.Err() != nil || open(e) != "feed denials " {
		t.Errorf("without the feed: %v, open: %s", err, open(e))
	}

	keys := marshal(t, map[string]any{"keys": b.keys})
	offline := func(token string) (*verify.Explanation, error) {
		return verify.Explain(t.Context(), verify.Config{Issuer: b.public.URL, Audience: audience}, verify.Case{Token: token, Peer: b.peer(), Keys: keys})
	}
	b.cut()
	e, err = offline(token)
	if err != nil || e.Accepted() || e.Err() != nil || !e.Signed || open(e) != "feed denials " {
		t.Errorf("with keys of a file: %v, open: %s", err, open(e))
	}
	e, err = b.explain(verify.Case{Token: token, Peer: b.peer()})
	if err == nil || e == nil || e.Accepted() || e.Signed || e.Grant == nil || open(e) != "key signature feed denials " {
		t.Errorf("without the keys: %v, %+v", err, e)
	}
	if _, err := verify.Explain(t.Context(), verify.Config{}, verify.Case{}); err == nil {
		t.Error("a configuration without an issuer was taken")
	}
}

// TestExplainEveryMutation: a token with any one character changed is refused by both, with one reason.
func TestExplainEveryMutation(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	v := b.verifier(nil)
	token := b.token(nil)
	keys := marshal(t, map[string]any{"keys": b.keys})
	for i := range token {
		for _, c := range []string{"A", ".", "~"} {
			changed := token[:i] + c + token[i+1:]
			if changed == token {
				continue
			}
			_, want := v.Verify(t.Context(), changed, b.peer())
			e, err := verify.Explain(t.Context(), verify.Config{Issuer: b.public.URL, Audience: audience}, verify.Case{Token: changed, Peer: b.peer(), Keys: keys})
			if err != nil || e.Accepted() || e.Err() == nil || kind(e.Err()) != kind(want) {
				t.Fatalf("byte %d as %q: Explain says %v (%v), and Verify %v", i, c, e.Err(), err, want)
			}
		}
	}
}
