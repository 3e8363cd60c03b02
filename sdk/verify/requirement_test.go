package verify_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/errandhq/errand/sdk/verify"
)

// TestRequirements lets one token meet, or not meet, each kind. It has the scope orders:read alone,
// and its task's workload is agentID.
func TestRequirements(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	token := b.token(func(c map[string]any) { c["scope"] = "orders:read" })
	no := errors.New("the order is another customer's")
	check := func(err error) verify.Requirement {
		return verify.Check("owner", func(_ context.Context, g *verify.Grant) error {
			if g.ID != grantID {
				t.Errorf("the check got %+v", g)
			}
			return err
		})
	}
	cases := []struct {
		name      string
		reqs      []verify.Requirement
		want      error
		status    int
		challenge string
	}{
		{"nothing", nil, nil, 0, ""},
		{"no scope", []verify.Requirement{verify.Scope()}, nil, 0, ""},
		{"its scope", []verify.Requirement{verify.Scope("orders:read")}, nil, 0, ""},
		{"one more", []verify.Requirement{verify.Scope("orders:read", "orders:write")}, verify.ErrScope, 403, `scope="orders:read orders:write"`},
		{"two requirements", []verify.Requirement{verify.Scope("orders:read"), verify.Scope("orders:write")}, verify.ErrScope, 403, `scope="orders:write"`},
		{"any", []verify.Requirement{verify.AnyScope("orders:admin", "orders:read")}, nil, 0, ""},
		{"none of any", []verify.Requirement{verify.AnyScope("orders:write", "orders:admin")}, verify.ErrScope, 403, `scope="orders:write"`},
		{"its workload", []verify.Requirement{verify.Workload("spiffe://example.org/x", agentID)}, nil, 0, ""},
		{"below", []verify.Requirement{verify.Workload("spiffe://example.org/agents/*")}, nil, 0, ""},
		{"its domain", []verify.Requirement{verify.Workload("spiffe://example.org/*")}, nil, 0, ""},
		{"not below itself", []verify.Requirement{verify.Workload(agentID + "/*")}, verify.ErrForbidden, 403, ""},
		{"part of a segment", []verify.Requirement{verify.Workload("spiffe://example.org/agent/*")}, verify.ErrForbidden, 403, ""},
		{"another domain", []verify.Requirement{verify.Workload("spiffe://example.or/*")}, verify.ErrForbidden, 403, ""},
		{"a check", []verify.Requirement{check(nil)}, nil, 0, ""},
		{"a check that says no", []verify.Requirement{check(no)}, verify.ErrForbidden, 403, ""},
		{"a check that cannot say", []verify.Requirement{check(fmt.Errorf("the database: %w", verify.ErrStale))}, verify.ErrStale, 503, ""},
		{"the first says no", []verify.Requirement{check(no), verify.Scope("orders:write")}, verify.ErrForbidden, 403, ""},
		{"kept in flight", []verify.Requirement{verify.KeepInFlight()}, nil, 0, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g, err := v.Verify(t.Context(), token, b.peer(), c.reqs...)
			if !errors.Is(err, c.want) || (g == nil) == (c.want == nil) {
				t.Errorf("got %v, %v; want %v", g, err, c.want)
			}
			request := must(withToken("https://orders/", token))(t)
			request.TLS = httptest.NewRequest(http.MethodGet, "https://x/", nil).TLS
			request.TLS.PeerCertificates = append(request.TLS.PeerCertificates, b.agent.Leaf)
			g, refusal := v.Authorize(request, c.reqs...)
			if (g == nil) == (refusal == nil) || (refusal == nil) != (c.want == nil) {
				t.Fatalf("got %v and %v", g, refusal)
			}
			if refusal == nil {
				return
			}
			if challenge := refusal.Header.Get("WWW-Authenticate"); refusal.Status != c.status || !errors.Is(refusal.Err, c.want) ||
				(challenge == "") != (c.challenge == "") || !strings.HasSuffix(challenge, c.challenge) {
				t.Errorf("got %+v", refusal)
			}
			if strings.Contains(string(refusal.Body), "customer") || strings.Contains(string(refusal.Body), "database") {
				t.Errorf("the client is told %s", refusal.Body)
			}
			if !strings.Contains(string(refusal.Body), c.want.Error()) {
				t.Errorf("the client is not told why: %s", refusal.Body)
			}
		})
	}
}

// TestWorkloadLooksAtBoth does not let a stranger act for a workload that may come in.
func TestWorkloadLooksAtBoth(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.Binding = verify.Unbound })
	const sub = "spiffe://example.org/people/ann"
	token := b.token(func(c map[string]any) { c["sub"], c["act"] = sub, map[string]any{"sub": agentID} })
	for _, patterns := range [][]string{{sub}, {agentID}} {
		if _, err := v.Verify(t.Context(), token, nil, verify.Workload(patterns...)); !errors.Is(err, verify.ErrForbidden) {
			t.Errorf("%v: %v", patterns, err)
		}
	}
	if _, err := v.Verify(t.Context(), token, nil, verify.Workload(sub, agentID)); err != nil {
		t.Error(err)
	}
}

func TestRequirementsThatNoTokenCanMeet(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	for name, make := range map[string]func(){
		"no scope to choose from":       func() { verify.AnyScope() },
		"no name":                       func() { verify.AnyScope("orders:read", "") },
		"a space":                       func() { verify.Scope("orders:read orders:write") },
		"no workload":                   func() { verify.Workload() },
		"not a SPIFFE ID":               func() { verify.Workload("https://example.org/x") },
		"a trust domain":                func() { verify.Workload("spiffe://example.org") },
		"everybody":                     func() { verify.Workload("*") },
		"every domain":                  func() { verify.Workload("spiffe://*") },
		"an asterisk within":            func() { verify.Workload("spiffe://example.org/*/x") },
		"an asterisk within a segment":  func() { verify.Workload("spiffe://example.org/a*") },
		"no function":                   func() { verify.Check("nothing", nil) },
		"a requirement that is nothing": func() { v.Middleware(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if text, _ := recover().(string); !strings.HasPrefix(text, "verify: ") {
					t.Errorf("recovered %q", text)
				}
			}()
			make()
		})
	}
}

// TestOnCheck tells of every token whose signature was good, and of no other.
func TestOnCheck(t *testing.T) {
	b := newBroker(t, 1)
	type told struct {
		grant  string
		scopes []string
		err    error
	}
	var got []told
	v := b.verifier(func(c *verify.Config) {
		c.Hooks.OnCheck = func(_ context.Context, g *verify.Grant, scopes []string, err error) {
			got = append(got, told{g.ID, scopes, err})
		}
	})
	good := b.token(nil)
	reqs := []verify.Requirement{verify.Scope("orders:read"), verify.AnyScope("orders:read", "orders:write"), verify.Workload(agentID)}
	for _, token := range []string{good, good[:len(good)-4] + "AAAA", "", b.token(func(c map[string]any) { c["aud"] = "billing" })} {
		_, _ = v.Verify(t.Context(), token, b.peer(), reqs...)
	}
	_, _ = v.Verify(t.Context(), good, nil, verify.Scope("orders:admin"))
	want := []told{
		{grantID, []string{"orders:read", "orders:write"}, nil},
		{grantID, []string{"orders:read", "orders:write"}, verify.ErrAudience},
		{grantID, []string{"orders:admin"}, verify.ErrUnbound},
	}
	if !slices.EqualFunc(got, want, func(a, b told) bool {
		return a.grant == b.grant && slices.Equal(a.scopes, b.scopes) && errors.Is(a.err, b.err)
	}) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestNewContext(t *testing.T) {
	if g, ok := verify.FromContext(t.Context()); ok || g != nil {
		t.Errorf("an empty context has %v", g)
	}
	want := &verify.Grant{ID: grantID}
	if g, ok := verify.FromContext(verify.NewContext(t.Context(), want)); !ok || g != want {
		t.Errorf("got %v", g)
	}
}
