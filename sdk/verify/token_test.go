package verify_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

func TestVerifyReturnsTheGrant(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	now := time.Now().Truncate(time.Second).UTC()
	token := b.token(func(c map[string]any) { c["iat"], c["exp"] = now.Unix(), now.Unix()+60 })
	got, err := v.Verify(t.Context(), token, b.peer(), verify.Scope("orders:read"))
	if err != nil {
		t.Fatal(err)
	}
	want := &verify.Grant{
		ID: grantID, Workload: agentID, Client: agentID, Audience: audience, Scopes: []string{"orders:read", "orders:write"},
		Task:   verify.Task{ID: childTask, Root: rootTask, Path: []string{rootTask, childTask}, Name: "nightly"},
		Issued: now, Expires: now.Add(time.Minute), Bound: true,
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(verify.Grant{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if !got.Has("orders:write") || got.Has("orders") {
		t.Error("Has must compare whole scopes")
	}
	line := got.LogValue().String()
	if !strings.Contains(line, grantID) || strings.Contains(fmt.Sprintf("%+v %s", got, line), token[len(token)-20:]) {
		t.Errorf("the log value must name the grant and never the token: %s", line)
	}
}

func TestVerifyAlgorithms(t *testing.T) {
	b := newBroker(t, 1)
	for _, alg := range []string{"RS256", "EdDSA", "Ed25519"} {
		b.keys = append(b.keys, newSigningKey(t, alg).jwk(t))
	}
	keys := []*signingKey{b.key, newSigningKey(t, "RS256"), newSigningKey(t, "EdDSA"), newSigningKey(t, "Ed25519")}
	b.keys = nil
	for _, k := range keys {
		b.keys = append(b.keys, k.jwk(t))
	}
	v := b.verifier(nil)
	payload := marshal(t, b.claims(nil))
	for _, k := range keys {
		for _, typ := range []string{wire.TokenType, "application/" + wire.TokenType} {
			token := k.sign(t, typ, payload)
			if _, err := v.Verify(t.Context(), token, b.peer()); err != nil {
				t.Errorf("%s with typ %s: %v", k.alg, typ, err)
			}
			// The same signature under a key's name that it does not fit.
			if k != b.key {
				forged := k.forgeAs(t, b.key.kid, typ, payload)
				if _, err := v.Verify(t.Context(), forged, b.peer()); !errors.Is(err, verify.ErrSignature) {
					t.Errorf("%s under the kid of an ES256 key: %v", k.alg, err)
				}
			}
		}
	}
}

// forgeAs signs with k in the name of another key.
func (k *signingKey) forgeAs(tb testing.TB, kid, typ string, payload []byte) string {
	tb.Helper()
	other := *k
	other.kid = kid
	return other.sign(tb, typ, payload)
}

// TestVerifyRefusesClaims signs what an issuer that has gone wrong, or another one that shares the
// key, could sign.
func TestVerifyRefusesClaims(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	now := time.Now().Unix()
	set := func(name string, value any) func(map[string]any) {
		return func(c map[string]any) { c[name] = value }
	}
	without := func(name string) func(map[string]any) {
		return func(c map[string]any) { delete(c, name) }
	}
	task := func(id string, path ...string) func(map[string]any) {
		return set("task", map[string]any{"id": id, "path": path, "name": "nightly"})
	}
	deep := make([]string, 9)
	for i := range deep {
		deep[i] = fmt.Sprintf("tsk_00%026d", i)
	}
	cases := []struct {
		name string
		edit func(map[string]any)
		want error
	}{
		{"iss missing", without("iss"), verify.ErrMalformed},
		{"iss other", set("iss", "https://other.example.com"), verify.ErrIssuer},
		{"iss with a slash more", set("iss", b.public.URL+"/"), verify.ErrIssuer},
		{"iss in upper case", set("iss", strings.ToUpper(b.public.URL)), verify.ErrIssuer},
		{"iss array", set("iss", []string{b.public.URL}), verify.ErrMalformed},
		{"aud missing", without("aud"), verify.ErrMalformed},
		{"aud null", set("aud", nil), verify.ErrMalformed},
		{"aud empty", set("aud", ""), verify.ErrMalformed},
		{"aud other", set("aud", "invoices"), verify.ErrAudience},
		{"aud with our name in front", set("aud", audience+"2"), verify.ErrAudience},
		{"aud array with us", set("aud", []string{audience}), verify.ErrMalformed},
		{"aud number", set("aud", 5), verify.ErrMalformed},
		{"exp missing", without("exp"), verify.ErrMalformed},
		{"exp null", set("exp", nil), verify.ErrMalformed},
		{"exp text", set("exp", "9999999999"), verify.ErrMalformed},
		{"exp fraction", set("exp", json.RawMessage(fmt.Sprintf("%d.5", now+60))), verify.ErrMalformed},
		{"exp exponent", set("exp", json.RawMessage("1e30")), verify.ErrMalformed},
		{"exp negative", set("exp", -1), verify.ErrMalformed},
		{"exp past the leeway", func(c map[string]any) { c["iat"], c["exp"] = now-60, now-6 }, verify.ErrExpired},
		{"exp before iat", func(c map[string]any) { c["iat"], c["exp"] = now, now-1 }, verify.ErrMalformed},
		{"iat missing", without("iat"), verify.ErrMalformed},
		{"iat in the future", func(c map[string]any) { c["iat"], c["exp"] = now+10, now+60 }, verify.ErrMalformed},
		{"nbf in the future", set("nbf", now+30), verify.ErrMalformed},
		{"life too long", func(c map[string]any) { c["iat"], c["exp"] = now, now+901 }, verify.ErrMalformed},
		{"sub missing", without("sub"), verify.ErrMalformed},
		{"sub not a SPIFFE ID", func(c map[string]any) { c["sub"], c["client_id"] = "alice", "alice" }, verify.ErrMalformed},
		{"sub a trust domain", func(c map[string]any) { c["sub"], c["client_id"] = "spiffe://example.org", "spiffe://example.org" }, verify.ErrMalformed},
		{"sub with dots", func(c map[string]any) { c["sub"], c["client_id"] = agentID+"/../x", agentID+"/../x" }, verify.ErrMalformed},
		{"client_id other", set("client_id", serverID), verify.ErrMalformed},
		{"act is not the client", set("act", map[string]any{"sub": serverID}), verify.ErrMalformed},
		{"act text", set("act", agentID), verify.ErrMalformed},
		{"jti missing", without("jti"), verify.ErrMalformed},
		{"jti number", set("jti", 7), verify.ErrMalformed},
		{"jti of a task", set("jti", rootTask), verify.ErrMalformed},
		{"jti of another shard", set("jti", "gnt_01cccccccccccccccccccccccccc"), verify.ErrMalformed},
		{"txn is not the root", set("txn", childTask), verify.ErrMalformed},
		{"scope missing", without("scope"), verify.ErrMalformed},
		{"scope array", set("scope", []string{"orders:read"}), verify.ErrMalformed},
		{"scope with two spaces", set("scope", "orders:read  orders:write"), verify.ErrMalformed},
		{"65 scopes", set("scope", strings.TrimSpace(strings.Repeat("a ", 65))), verify.ErrMalformed},
		{"task missing", without("task"), verify.ErrMalformed},
		{"task path empty", task(childTask), verify.ErrMalformed},
		{"task path ends elsewhere", task(childTask, rootTask), verify.ErrMalformed},
		{"task path of two shards", task("tsk_01bbbbbbbbbbbbbbbbbbbbbbbbbb", rootTask, "tsk_01bbbbbbbbbbbbbbbbbbbbbbbbbb"), verify.ErrMalformed},
		{"task path too deep", func(c map[string]any) { task(deep[8], deep...)(c); c["txn"] = deep[0] }, verify.ErrMalformed},
		{"ep missing", without("ep"), verify.ErrMalformed},
		{"ep short", set("ep", []uint64{epoch}), verify.ErrMalformed},
		{"ep long", set("ep", []uint64{epoch, 0, 0}), verify.ErrMalformed},
		{"ep lower", set("ep", []uint64{epoch - 1, 99}), verify.ErrRevoked},
		{"ep higher", set("ep", []uint64{epoch + 1, 0}), verify.ErrStale},
		{"shard that is not there", func(c map[string]any) {
			c["jti"], c["txn"] = "gnt_01cccccccccccccccccccccccccc", "tsk_01bbbbbbbbbbbbbbbbbbbbbbbbbb"
			task("tsk_01bbbbbbbbbbbbbbbbbbbbbbbbbb", "tsk_01bbbbbbbbbbbbbbbbbbbbbbbbbb")(c)
		}, verify.ErrStale},
		{"cnf missing", without("cnf"), verify.ErrUnbound},
		{"cnf of another certificate", set("cnf", map[string]any{"x5t#S256": b64(make([]byte, 32))}), verify.ErrUnbound},
		{"cnf with a key besides", func(c map[string]any) { c["cnf"].(map[string]any)["jkt"] = "x" }, verify.ErrMalformed},
		{"cnf empty", set("cnf", map[string]any{}), verify.ErrMalformed},
		{"cnf array", set("cnf", []string{}), verify.ErrMalformed},
		{"cnf thumbprint short", set("cnf", map[string]any{"x5t#S256": "AA"}), verify.ErrMalformed},
		{"a scope is missing", set("scope", "orders:write orders:readonly"), verify.ErrScope},
		{"no scope", set("scope", ""), verify.ErrScope},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g, err := v.Verify(t.Context(), b.token(c.edit), b.peer(), verify.Scope("orders:read"))
			if !errors.Is(err, c.want) || g != nil {
				t.Errorf("got %v, %v; want %v and no grant", g, err, c.want)
			}
		})
	}
}

// TestVerifyAtTheLimits accepts what is just inside of each limit.
func TestVerifyAtTheLimits(t *testing.T) {
	b := newBroker(t, 1)
	start := time.Now().Truncate(time.Second)
	v := b.verifier(func(c *verify.Config) {
		// Within the one second that matters here, the clock stands still.
		c.Now = func() time.Time { return start }
	})
	now := start.Unix()
	path := make([]string, 8)
	for i := range path {
		path[i] = fmt.Sprintf("tsk_00%026d", i)
	}
	for name, edit := range map[string]func(map[string]any){
		"exp within the leeway": func(c map[string]any) { c["iat"], c["exp"] = now-60, now-4 },
		"iat within the leeway": func(c map[string]any) { c["iat"], c["exp"] = now+5, now+60 },
		"the longest life":      func(c map[string]any) { c["iat"], c["exp"] = now, now+900 },
		"nbf now":               func(c map[string]any) { c["iat"], c["exp"], c["nbf"] = now, now+60, now+5 },
		"64 scopes":             func(c map[string]any) { c["scope"] = strings.TrimSpace(strings.Repeat("a ", 64)) },
		"depth 8": func(c map[string]any) {
			c["txn"], c["task"] = path[0], map[string]any{"id": path[7], "path": path, "name": "n"}
		},
		"unknown claims": func(c map[string]any) { c["status"] = map[string]any{"status_list": map[string]any{"idx": 1}} },
	} {
		if _, err := v.Verify(t.Context(), b.token(edit), b.peer()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := v.Verify(t.Context(), b.token(func(c map[string]any) { c["iat"], c["exp"] = now-60, now-5 }), b.peer())
	if !errors.Is(err, verify.ErrExpired) {
		t.Errorf("exp at the end of the leeway: %v", err)
	}
}

// deep puts a token's task so far down.
func deep(depth int) func(map[string]any) {
	path := []string{rootTask}
	for i := 1; i < depth-1; i++ {
		path = append(path, fmt.Sprintf("tsk_00%026d", i))
	}
	if depth > 1 {
		path = append(path, childTask)
	}
	return func(c map[string]any) {
		c["task"] = map[string]any{"id": path[len(path)-1], "path": path, "name": "nightly"}
	}
}

// chain is an act claim, the presenter outermost; nil for nobody.
func chain(actors ...string) (act any) {
	for _, sub := range slices.Backward(actors) {
		next := map[string]any{"sub": sub}
		if act != nil {
			next["act"] = act
		}
		act = next
	}
	return act
}

func TestVerifyDelegation(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	const chief, desk = "spiffe://example.org/agents/chief", "spiffe://example.org/agents/desk"
	actors := func(n int) (ids []string) {
		for i := range n {
			ids = append(ids, fmt.Sprintf("spiffe://example.org/agents/%d", i))
		}
		return ids
	}
	delegated := func(depth int, sub string, act any) string {
		return b.token(func(c map[string]any) { deep(depth)(c); c["sub"], c["act"] = sub, act })
	}
	g, err := v.Verify(t.Context(), delegated(3, chief, chain(agentID, desk)), b.peer())
	if err != nil {
		t.Fatal(err)
	}
	if g.Workload != chief || g.Client != agentID || !cmp.Equal(g.Actors, []string{agentID, desk}) {
		t.Errorf("got %q, %q, %q", g.Workload, g.Client, g.Actors)
	}
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"one step down":                 {delegated(2, chief, chain(agentID)), nil},
		"as many as can have joined":    {delegated(8, chief, chain(append([]string{agentID}, actors(6)...)...)), nil},
		"one more than can have joined": {delegated(8, chief, chain(append([]string{agentID}, actors(7)...)...)), verify.ErrMalformed},
		"as deep as JSON goes":          {delegated(8, chief, chain(append([]string{agentID}, actors(50)...)...)), verify.ErrMalformed},
		"more than the path is long":    {delegated(2, chief, chain(agentID, desk)), verify.ErrMalformed},
		"of a root task":                {b.token(func(c map[string]any) { deep(1)(c); c["sub"], c["act"] = chief, chain(agentID) }), verify.ErrMalformed},
		"sub and no act":                {delegated(2, chief, nil), verify.ErrMalformed},
		"act and the same sub":          {delegated(2, agentID, chain(agentID)), verify.ErrMalformed},
		"somebody acts for itself":      {delegated(4, chief, chain(agentID, desk, desk)), verify.ErrMalformed},
		"the first acts for itself":     {delegated(3, chief, chain(agentID, chief)), verify.ErrMalformed},
		"there and back again":          {delegated(3, agentID, chain(agentID, desk)), nil},
		"client_id is the inner actor":  {delegated(3, chief, chain(desk, agentID)), verify.ErrMalformed},
		"client_id is the subject":      {delegated(2, chief, chain(chief)), verify.ErrMalformed},
		"client_id is nobody in it":     {delegated(3, chief, chain(desk, serverID)), verify.ErrMalformed},
		"an actor of no trust domain":   {delegated(3, chief, chain(agentID, "desk")), verify.ErrMalformed},
		"an actor that is a domain":     {delegated(3, chief, chain(agentID, "spiffe://example.org")), verify.ErrMalformed},
		"an actor with dots":            {delegated(3, chief, chain(agentID, desk+"/../chief")), verify.ErrMalformed},
		"an actor without a name":       {delegated(3, chief, chain(agentID, "")), verify.ErrMalformed},
		"an empty act":                  {delegated(2, chief, map[string]any{}), verify.ErrMalformed},
		"an empty act in it":            {delegated(3, chief, map[string]any{"sub": agentID, "act": map[string]any{}}), verify.ErrMalformed},
		"a list":                        {delegated(2, chief, []any{chain(agentID)}), verify.ErrMalformed},
		"a list of subs":                {delegated(2, chief, map[string]any{"sub": []string{agentID}}), verify.ErrMalformed},
		"an actor of another issuer": { // it says where the sub is from, and changes nothing
			delegated(2, chief, map[string]any{"sub": agentID, "iss": "https://elsewhere.example"}), nil},
	} {
		if g, err := v.Verify(t.Context(), c.token, b.peer()); !errors.Is(err, c.want) || (g == nil) != (err != nil) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// TestDelegatedTokensArePresentedByTheClient: whoever else is in the chain has nothing of it.
func TestDelegatedTokensArePresentedByTheClient(t *testing.T) {
	b := newBroker(t, 1)
	const chief, desk = "spiffe://example.org/agents/chief", "spiffe://example.org/agents/desk"
	identity := b.verifier(func(c *verify.Config) { c.Binding = verify.ByIdentity })
	certificate := b.verifier(nil)
	bound := b.token(func(c map[string]any) { deep(3)(c); c["sub"], c["act"] = chief, chain(agentID, desk) })
	unbound := b.token(func(c map[string]any) {
		deep(3)(c)
		c["sub"], c["act"] = chief, chain(agentID, desk)
		delete(c, "cnf")
	})
	for id, want := range map[string]error{agentID: nil, chief: verify.ErrUnbound, desk: verify.ErrUnbound, serverID: verify.ErrUnbound} {
		peer := &verify.Peer{Certificate: b.ca.svid(t, id, nil).Leaf, Verified: true}
		if _, err := identity.Verify(t.Context(), unbound, peer); !errors.Is(err, want) {
			t.Errorf("by identity, %s: %v; want %v", id, err, want)
		}
		if _, err := certificate.Verify(t.Context(), bound, peer); !errors.Is(err, verify.ErrUnbound) {
			t.Errorf("by certificate, another one of %s: %v", id, err)
		}
	}
	if _, err := certificate.Verify(t.Context(), bound, b.peer()); err != nil {
		t.Errorf("by certificate, its own: %v", err)
	}
}

func TestVerifySizeLimit(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	// The name of the task pads the token to the byte; base64 grows in steps, so the header helps.
	bytes := base64.RawURLEncoding.EncodedLen
	sized := func(size int) string {
		for pad := range 8 {
			header := fmt.Sprintf(`{"typ":"at+jwt","alg":"ES256","kid":%q,"x":%q}`, b.key.kid, strings.Repeat("x", pad))
			for name := (size - 1500) * 3 / 4; ; name++ {
				claims := b.claims(func(c map[string]any) { c["task"].(map[string]any)["name"] = strings.Repeat("n", name) })
				payload := string(marshal(t, claims))
				switch n := bytes(len(header)) + len(".") + bytes(len(payload)) + len(".") + bytes(64); {
				case n < size:
					continue
				case n == size:
					token := b.key.forge(t, header, payload)
					if len(token) != size {
						t.Fatalf("a token of %d bytes, and not of %d", len(token), size)
					}
					return token
				}
				break
			}
		}
		t.Fatalf("no token of %d bytes", size)
		return ""
	}
	if _, err := v.Verify(t.Context(), sized(wire.MaxTokenBytes), b.peer()); err != nil {
		t.Errorf("%d bytes: %v", wire.MaxTokenBytes, err)
	}
	if _, err := v.Verify(t.Context(), sized(wire.MaxTokenBytes+1), b.peer()); !errors.Is(err, verify.ErrMalformed) {
		t.Errorf("one byte more: %v", err)
	}
}

func TestVerifyRefusesSmallOrderKeys(t *testing.T) {
	b := newBroker(t, 1)
	small := map[string]any{
		"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "kid": "small", "use": "sig", "x": b64(append([]byte{1}, make([]byte, ed25519.PublicKeySize-1)...)),
	}
	b.handle(wire.PathJWKS, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]any{"keys": []any{b.key.jwk(t), small}})
	})
	err := b.start(wire.PathJWKS)
	if err == nil || !strings.Contains(err.Error(), "key 1") {
		t.Errorf("a key that everybody can sign for: %v", err)
	}
}

func TestVerifyBinding(t *testing.T) {
	b := newBroker(t, 1)
	other := b.ca.svid(t, serverID, nil)
	rotated := b.ca.svid(t, agentID, nil)
	unbound := func(c map[string]any) { delete(c, "cnf") }
	leaf := func(edit func(*x509.Certificate)) *verify.Peer {
		return &verify.Peer{Certificate: b.ca.svid(t, agentID, edit).Leaf, Verified: true}
	}
	ended := func(ago time.Duration) *verify.Peer {
		return leaf(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-ago) })
	}
	begins := func(in time.Duration) *verify.Peer {
		return leaf(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(in) })
	}
	over, early := ended(time.Minute), begins(time.Minute)
	boundTo := func(p *verify.Peer) func(map[string]any) {
		sum := sha256.Sum256(p.Certificate.Raw)
		return func(c map[string]any) { c["cnf"] = map[string]any{"x5t#S256": b64(sum[:])} }
	}
	cases := []struct {
		name    string
		binding verify.Binding
		edit    func(map[string]any)
		peer    *verify.Peer
		want    error
	}{
		{"certificate: its own", verify.ByCertificate, nil, b.peer(), nil},
		{"certificate: not verified, but its own", verify.ByCertificate, nil, &verify.Peer{Certificate: b.agent.Leaf}, nil},
		{"certificate: no peer", verify.ByCertificate, nil, nil, verify.ErrUnbound},
		{"certificate: no certificate", verify.ByCertificate, nil, &verify.Peer{}, verify.ErrUnbound},
		{"certificate: rotated", verify.ByCertificate, nil, &verify.Peer{Certificate: rotated.Leaf, Verified: true}, verify.ErrUnbound},
		{"certificate: token without", verify.ByCertificate, unbound, b.peer(), verify.ErrUnbound},
		{"identity: rotated", verify.ByIdentity, unbound, &verify.Peer{Certificate: rotated.Leaf, Verified: true}, nil},
		{"identity: not verified", verify.ByIdentity, unbound, &verify.Peer{Certificate: rotated.Leaf}, verify.ErrUnbound},
		{"identity: another", verify.ByIdentity, unbound, &verify.Peer{Certificate: other.Leaf, Verified: true}, verify.ErrUnbound},
		{"identity: no peer", verify.ByIdentity, unbound, nil, verify.ErrUnbound},
		{"identity: bound to another certificate", verify.ByIdentity, nil, &verify.Peer{Certificate: rotated.Leaf, Verified: true}, verify.ErrUnbound},
		{"identity: bound to this one", verify.ByIdentity, nil, b.peer(), nil},
		{"unbound: nobody", verify.Unbound, nil, nil, nil},
		// A connection outlives the certificate that it was made with.
		{"certificate: expired", verify.ByCertificate, boundTo(over), over, verify.ErrUnbound},
		{"certificate: not valid yet", verify.ByCertificate, boundTo(early), early, verify.ErrUnbound},
		{"identity: expired", verify.ByIdentity, unbound, over, verify.ErrUnbound},
		{"identity: not valid yet", verify.ByIdentity, unbound, early, verify.ErrUnbound},
		{"identity: valid within the leeway", verify.ByIdentity, unbound, begins(verify.DefaultLeeway - time.Second), nil},
		// An SVID's leaf signs, and is no authority (X509-SVID §4).
		{"identity: an authority", verify.ByIdentity, unbound, leaf(func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, x509.KeyUsageDigitalSignature|x509.KeyUsageCertSign
		}), verify.ErrUnbound},
		{"identity: a key that signs nothing", verify.ByIdentity, unbound, leaf(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), verify.ErrUnbound},
	}
	verifiers := map[verify.Binding]*verify.Verifier{}
	for _, binding := range []verify.Binding{verify.ByCertificate, verify.ByIdentity, verify.Unbound} {
		verifiers[binding] = b.verifier(func(c *verify.Config) { c.Binding = binding })
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g, err := verifiers[c.binding].Verify(t.Context(), b.token(c.edit), c.peer)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err == nil && g.Bound != (c.edit == nil && c.binding != verify.Unbound) {
				t.Errorf("Bound is %v", g.Bound)
			}
		})
	}
}

// TestRefusalsAreCounted checks what the hook is told, and that it learns of no grant before the
// signature is good.
func TestRefusalsAreCounted(t *testing.T) {
	b := newBroker(t, 1)
	type refusal struct {
		reason string
		grant  bool
	}
	var got []refusal
	v := b.verifier(func(c *verify.Config) {
		c.Hooks.OnRefuse = func(_ context.Context, reason string, g *verify.Grant) { got = append(got, refusal{reason, g != nil}) }
	})
	evil := *b.key
	evil.private = newSigningKey(t, "ES256").private
	for _, token := range []string{"", "x", evil.sign(t, wire.TokenType, marshal(t, b.claims(nil))), b.token(func(c map[string]any) { c["aud"] = "other" })} {
		if _, err := v.Verify(t.Context(), token, b.peer()); err == nil {
			t.Error("accepted")
		}
	}
	want := []refusal{{"no token", false}, {"malformed token", false}, {"bad signature or unknown key", false}, {"for another audience", true}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(refusal{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestAKeyThatCouldNotBeFetchedIsNoBadSignature: the caller is to try again, not to get another token.
func TestAKeyThatCouldNotBeFetchedIsNoBadSignature(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	v := b.verifier(nil)
	next := newSigningKey(t, "ES256")
	b.handle(wire.PathJWKS, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	token := next.sign(t, wire.TokenType, marshal(t, b.claims(nil)))
	if _, err := v.Verify(t.Context(), token, b.peer()); !errors.Is(err, verify.ErrStale) {
		t.Errorf("while the keys cannot be fetched: %v", err)
	}
	b.handle(wire.PathJWKS, nil)
	b.change(func() { b.keys = append(b.keys, next.jwk(t)) })
	eventually(t, "the key is there", func() bool {
		_, err := v.Verify(t.Context(), token, b.peer())
		return err == nil
	})
}
