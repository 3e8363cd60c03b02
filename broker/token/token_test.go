package token_test

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/token"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	report = spiffeid.RequireFromString("spiffe://prod/report")
	parent = broker.TaskID("tsk_00" + strings.Repeat("a", 26))
	task   = broker.Task{ID: broker.TaskID("tsk_00" + strings.Repeat("b", 26)), Path: []broker.TaskID{parent, broker.TaskID("tsk_00" + strings.Repeat("b", 26))}, Workload: report, Name: "export"}
	grant  = broker.Grant{
		ID: broker.GrantID("gnt_00" + strings.Repeat("c", 26)), Task: task.ID, Workload: report, Audience: "orders",
		Scopes: broker.Scopes{"orders:read", "orders:write"}, Thumbprint: "thumb",
		Issued: time.Unix(1795452000, 0), Expires: time.Unix(1795452060, 0), Epoch: 1795451000123, Number: 41,
	}
)

func minter(t *testing.T, a keys.Algorithm) (*token.Minter, *keys.Ring) {
	t.Helper()
	ring, err := keys.New(keys.Config{Algorithm: a, Type: wire.TokenType, Life: broker.MaxTokenLife})
	if err != nil {
		t.Fatal(err)
	}
	m, err := token.NewMinter("https://broker.test", ring)
	if err != nil {
		t.Fatal(err)
	}
	return m, ring
}

// TestProfile has the whole of a token, for each algorithm: what verifiers in other languages see.
func TestProfile(t *testing.T) {
	const payload = `{"iss":"https://broker.test","sub":"spiffe://prod/report","client_id":"spiffe://prod/report","aud":"orders",` +
		`"iat":1795452000,"exp":1795452060,"jti":"gnt_00cccccccccccccccccccccccccc","txn":"tsk_00aaaaaaaaaaaaaaaaaaaaaaaaaa",` +
		`"scope":"orders:read orders:write","task":{"id":"tsk_00bbbbbbbbbbbbbbbbbbbbbbbbbb",` +
		`"path":["tsk_00aaaaaaaaaaaaaaaaaaaaaaaaaa","tsk_00bbbbbbbbbbbbbbbbbbbbbbbbbb"],"name":"export"},"ep":[1795451000123,41],"cnf":{"x5t#S256":"thumb"}}`
	for _, name := range []string{"ES256", "Ed25519", "RS256"} {
		t.Run(name, func(t *testing.T) {
			algorithm, err := keys.ParseAlgorithm(name)
			if err != nil {
				t.Fatal(err)
			}
			m, ring := minter(t, algorithm)
			draft, err := m.Draft(context.Background(), task, grant)
			if err != nil {
				t.Fatal(err)
			}
			signed, err := draft.Sign(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			var set jose.JSONWebKeySet
			if err := json.Unmarshal(ring.Set().JSON, &set); err != nil {
				t.Fatal(err)
			}
			key := set.Key(draft.Key())[0]
			jws, err := jose.ParseSignedCompact(signed.Secret(), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(key.Algorithm)})
			if err != nil {
				t.Fatal(err)
			}
			got, err := jws.Verify(key)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(payload, string(got)); diff != "" {
				t.Error(diff)
			}
			header := jws.Signatures[0].Protected
			if header.KeyID != draft.Key() || header.Algorithm != key.Algorithm || header.ExtraHeaders[jose.HeaderType] != "at+jwt" {
				t.Errorf("header %+v", header)
			}
		})
	}
}

func TestUnboundTokensHaveNoConfirmation(t *testing.T) {
	m, _ := minter(t, "")
	for binding, want := range map[broker.Binding]bool{broker.BindCertificate: true, broker.BindIdentity: false, broker.BindNone: false} {
		g := grant
		g.Binding = binding
		draft, err := m.Draft(context.Background(), task, g)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := draft.Sign(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		jws, err := jose.ParseSignedCompact(signed.Secret(), []jose.SignatureAlgorithm{jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(jws.UnsafePayloadWithoutVerification()), "cnf"); got != want {
			t.Errorf("%s: cnf is there: %v", binding, got)
		}
	}
}

// TestDetails: they are in the token as they are, and what is too much for one is named.
func TestDetails(t *testing.T) {
	m, _ := minter(t, "")
	g := grant
	g.Details = broker.Details{`{"actions":["a<b"],"type":"customer"}`, `{"type":"payment"}`}
	draft, err := m.Draft(context.Background(), task, g)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := draft.Sign(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	jws, err := jose.ParseSignedCompact(signed.Secret(), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	const want = `,"authorization_details":[{"actions":["a<b"],"type":"customer"},{"type":"payment"}]}`
	if got := string(jws.UnsafePayloadWithoutVerification()); !strings.HasSuffix(got, want) {
		t.Errorf("got %s", got)
	}
	for range 7 {
		g.Details = append(g.Details, broker.Object(`{"type":"`+strings.Repeat("x", broker.MaxDetail)+`"}`))
	}
	var bad *broker.Invalid
	if _, err := m.Draft(context.Background(), task, g); !errors.As(err, &bad) || bad.Field != "authorization_details" {
		t.Errorf("too many details: %v", err)
	}
}

// TestActors: the first delegator is the subject, and the presenter the client and the outermost actor; the
// certificate is the presenter's. RFC 8693 §4.1 and §4.3.
func TestActors(t *testing.T) {
	m, _ := minter(t, "")
	for name, c := range map[string]struct {
		delegators []string
		want       string
	}{
		"one": {[]string{"chief"}, `"sub":"spiffe://prod/chief","client_id":"spiffe://prod/report",…,"act":{"sub":"spiffe://prod/report"}}`},
		"three": {[]string{"chief", "desk", "clerk"}, `"sub":"spiffe://prod/chief","client_id":"spiffe://prod/report",…,` +
			`"act":{"sub":"spiffe://prod/report","act":{"sub":"spiffe://prod/clerk","act":{"sub":"spiffe://prod/desk"}}}}`},
		"there and back": {[]string{"report", "desk"}, `"sub":"spiffe://prod/report","client_id":"spiffe://prod/report",…,` +
			`"act":{"sub":"spiffe://prod/report","act":{"sub":"spiffe://prod/desk"}}}`},
	} {
		t.Run(name, func(t *testing.T) {
			joined := task
			for _, id := range c.delegators {
				joined.Delegators = append(joined.Delegators, spiffeid.RequireFromString("spiffe://prod/"+id))
			}
			draft, err := m.Draft(context.Background(), joined, grant)
			if err != nil {
				t.Fatal(err)
			}
			signed, err := draft.Sign(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			jws, err := jose.ParseSignedCompact(signed.Secret(), []jose.SignatureAlgorithm{jose.ES256})
			if err != nil {
				t.Fatal(err)
			}
			got := string(jws.UnsafePayloadWithoutVerification())
			names, act, _ := strings.Cut(c.want, "…")
			if !strings.Contains(got, names) || !strings.HasSuffix(got, `"cnf":{"x5t#S256":"thumb"}`+act) {
				t.Errorf("got %s; want %s", got, c.want)
			}
		})
	}
	long := task
	for i := range broker.MaxDepth - 1 {
		long.Delegators = append(long.Delegators, spiffeid.RequireFromString("spiffe://prod/"+strings.Repeat(string(rune('a'+i)), 1500)))
	}
	var bad *broker.Invalid
	if _, err := m.Draft(context.Background(), long, grant); !errors.As(err, &bad) || bad.Field != "delegators" {
		t.Errorf("a chain that is too long: %v", err)
	}
}

func TestWhatIsNotSigned(t *testing.T) {
	m, _ := minter(t, "")
	foreign := grant
	foreign.Task = parent
	if _, err := m.Draft(context.Background(), task, foreign); !errors.Is(err, broker.ErrSigning) {
		t.Errorf("a grant of another task: %v", err)
	}
	others := grant
	others.Workload = spiffeid.RequireFromString("spiffe://prod/chief")
	if _, err := m.Draft(context.Background(), task, others); !errors.Is(err, broker.ErrSigning) {
		t.Errorf("a grant of another workload: %v", err)
	}
	huge := grant
	for range broker.MaxScopes {
		huge.Scopes = append(huge.Scopes, strings.Repeat("s", broker.MaxScopeBytes))
	}
	if _, err := m.Draft(context.Background(), task, huge); !errors.Is(err, broker.ErrInvalid) {
		t.Errorf("a token that no verifier would look at: %v", err)
	}
	if _, err := token.NewMinter("", nil); err == nil {
		t.Error("a minter of nobody")
	}
}
