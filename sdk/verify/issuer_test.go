package verify_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// TestKeySetIsReplaced removes a key: what it signed is dead (CVE-2025-22149).
func TestKeySetIsReplaced(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	old, next := b.token(nil), newSigningKey(t, "ES256")
	token := next.sign(t, wire.TokenType, marshal(t, b.claims(nil)))
	b.change(func() { b.keys = []map[string]any{next.jwk(t)} })
	// The new key is unknown, so that the set is fetched.
	if err := refused(t, v, b, token); err != nil {
		t.Errorf("a token of the new key: %v", err)
	}
	if err := refused(t, v, b, old); !errors.Is(err, verify.ErrSignature) {
		t.Errorf("a token of the removed key: %v", err)
	}
	if got := v.Status().Keys; len(got) != 1 || got[0] != next.kid {
		t.Errorf("keys %v", got)
	}
}

// TestP11_RotationCostsNoRequest signs with a new key as soon as the issuer has it, and not before,
// while requests come all the time; each way to ask for the key set tells caches to stay out.
func TestP11_RotationCostsNoRequest(t *testing.T) {
	b := newBroker(t, 1)
	b.handle(wire.PathJWKS, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Cache-Control") != "no-cache" {
			t.Errorf("the key set is asked for with Cache-Control %q", r.Header.Get("Cache-Control"))
		}
		b.serveKeys(w, r)
	})
	v := b.verifier(nil)
	before := b.fetches.Load()
	next := newSigningKey(t, "ES256")
	payload := marshal(t, b.claims(nil))
	var current atomic.Pointer[signingKey]
	current.Store(b.key)
	stop := make(chan struct{})
	var requests sync.WaitGroup
	for range 4 {
		requests.Go(func() {
			for range 100 {
				if err := refused(t, v, b, current.Load().sign(t, wire.TokenType, payload)); err != nil {
					t.Errorf("a good token was refused: %v", err)
				}
			}
			<-stop
			for range 100 {
				if err := refused(t, v, b, current.Load().sign(t, wire.TokenType, payload)); err != nil {
					t.Errorf("a good token was refused: %v", err)
				}
			}
		})
	}
	b.change(func() { b.keys = append(b.keys, next.jwk(t)) })
	current.Store(next)
	close(stop)
	requests.Wait()
	if got := b.fetches.Load() - before; got < 1 || got > 2 {
		t.Errorf("%d fetches", got)
	}
}

// TestUnknownKeysCauseOneFetch floods the verifier with kids.
func TestUnknownKeysCauseOneFetch(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	before, began := b.fetches.Load(), time.Now()
	payload := marshal(t, b.claims(nil))
	var tasks sync.WaitGroup
	for range 8 {
		tasks.Go(func() {
			for range 100 {
				token := b.key.forgeAs(t, rand.Text(), wire.TokenType, payload)
				if err := refused(t, v, b, token); !errors.Is(err, verify.ErrSignature) {
					t.Errorf("got %v", err)
				}
			}
		})
	}
	tasks.Wait()
	// One each five seconds, and one on schedule in between.
	if got, limit := b.fetches.Load()-before, 2+2*int64(time.Since(began)/(5*time.Second)); got > limit {
		t.Errorf("%d fetches; at most %d are allowed", got, limit)
	}
}

// start makes a verifier and closes it. What New says it gives up with is returned, when it asks for
// the path for the second time.
func (b *broker) start(path string, edits ...func(*verify.Config)) error {
	b.tb.Helper()
	ctx, cancel := context.WithCancel(within(b.tb, 20*time.Second))
	defer cancel()
	var asked atomic.Int64
	b.change(func() {
		handler := b.override[path]
		b.override[path] = func(w http.ResponseWriter, r *http.Request) {
			if r.Referer() == "" && asked.Add(1) == 2 {
				cancel()
			}
			handler(w, r)
		}
	})
	c := b.config()
	for _, edit := range edits {
		edit(&c)
	}
	v, err := verify.New(ctx, c)
	if err == nil {
		err = v.Close()
	}
	return err
}

// TestBadKeySets are refused whole; the verifier does not start with one.
func TestBadKeySets(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	good := string(marshal(t, b.key.jwk(t)))
	with := func(members string) string { return `{"keys":[` + good + `,` + members + `]}` }
	many := func(n int) string {
		var keys []string
		for i := range n - 1 {
			keys = append(keys, fmt.Sprintf(`{"kty":"OKP","crv":"X25519","kid":"k%d","use":"enc","x":"AA"}`, i))
		}
		return with(strings.Join(keys, ","))
	}
	small := must(rsa.GenerateKey(rand.Reader, 1024))(t)
	rsaKey := func(n *big.Int, e string) string {
		return fmt.Sprintf(`{"kty":"RSA","alg":"RS256","use":"sig","kid":"r","n":%q,"e":%q}`, b64(n.Bytes()), e)
	}
	n2048 := newSigningKey(t, "RS256").private.(*rsa.PrivateKey).N
	cases := map[string]struct {
		body string
		good bool
	}{
		"good":                     {`{"keys":[` + good + `]}`, true},
		"unknown members and keys": {with(`{"kty":"AKP","alg":"ML-DSA-44","kid":"pq","pub":"AA"},{"kty":"EC"},{}`), true},
		"a key for encryption":     {with(`{"kty":"OKP","crv":"X25519","alg":"ECDH-ES","use":"enc","kid":"e","x":"AA"}`), true},
		"100 keys":                 {many(100), true},
		"101 keys":                 {many(101), false},
		"no key":                   {`{"keys":[]}`, false},
		"only keys of no use":      {`{"keys":[{"kty":"EC","kid":"x"}]}`, false},
		"empty":                    {``, false},
		"null":                     {`null`, false},
		"no member keys":           {`{}`, false},
		"keys null":                {`{"keys":null}`, false},
		"keys twice":               {`{"keys":[],"keys":[` + good + `]}`, false},
		"HTML":                     {`<html>`, false},
		"trailing garbage":         {`{"keys":[` + good + `]}x`, false},
		"the kid twice":            {with(good), false},
		"the kid twice, other use": {with(fmt.Sprintf(`{"kty":"EC","use":"enc","kid":%q}`, b.key.kid)), false},
		"a symmetric key":          {with(`{"kty":"oct","kid":"s","k":"AAAA"}`), false},
		"a symmetric key without k": {
			with(`{"kty":"oct","kid":"s"}`), false,
		},
		"a private key":            {`{"keys":[` + strings.Replace(good, "{", `{"d":"AAAA",`, 1) + `]}`, false},
		"not on the curve":         {with(`{"kty":"EC","crv":"P-256","alg":"ES256","kid":"x","x":"` + b64(make([]byte, 32)) + `","y":"` + b64(make([]byte, 32)) + `"}`), false},
		"short coordinate":         {with(`{"kty":"EC","crv":"P-256","alg":"ES256","kid":"x","x":"AA","y":"AA"}`), false},
		"EC key that says RS256":   {`{"keys":[` + strings.Replace(good, "ES256", "RS256", 1) + `]}`, false},
		"RSA of 1024 bits":         {with(rsaKey(small.N, "AQAB")), false},
		"RSA with e 1":             {with(rsaKey(n2048, "AQ")), false},
		"RSA with e 2":             {with(rsaKey(n2048, "Ag")), false},
		"RSA with an even modulus": {with(rsaKey(new(big.Int).Sub(n2048, big.NewInt(1)), "AQAB")), false},
		"RSA of 16384 bits":        {with(rsaKey(new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 16384), big.NewInt(1)), "AQAB")), false},
		"use enc":                  {`{"keys":[` + strings.Replace(good, `"sig"`, `"enc"`, 1) + `]}`, false},
		"key_ops without verify":   {`{"keys":[` + strings.Replace(good, "{", `{"key_ops":["encrypt"],`, 1) + `]}`, false},
		"no alg":                   {`{"keys":[` + strings.Replace(good, `"alg":"ES256",`, ``, 1) + `]}`, false},
		"over 1 MiB":               {`{"keys":[` + good + `]}` + strings.Repeat(" ", 1<<20), false},
		"deep":                     {strings.Repeat("[", 1<<19), false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b.handle(wire.PathJWKS, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(c.body)) })
			if err := b.start(wire.PathJWKS); (err == nil) != c.good {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestBadKeySetLeavesTheOldOne serves one in the middle of a verifier's life.
func TestBadKeySetLeavesTheOldOne(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	token := b.token(nil)
	fetched := atomic.Int64{}
	b.handle(wire.PathJWKS, func(w http.ResponseWriter, _ *http.Request) {
		fetched.Add(1)
		_, _ = w.Write([]byte(`{"keys":[{"kty":"oct","k":"AAAA"}]}`))
	})
	// A denial of some key has the set fetched.
	b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: "some"})
	eventually(t, "the set is fetched, and complained about", func() bool {
		return fetched.Load() > 0 && strings.Contains(v.Status().LastError, "stolen")
	})
	if err := refused(t, v, b, token); err != nil {
		t.Error(err)
	}
}

// TestOldKeysAreNotUsed lets the key set grow too old: that is staleness, not a bad signature.
func TestOldKeysAreNotUsed(t *testing.T) {
	b := newBroker(t, 1)
	var ahead atomic.Int64
	start := time.Now()
	v := b.verifier(func(c *verify.Config) {
		c.MaxStale, c.OnStale = verify.MaxMaxStale, verify.Accept
		c.Now = func() time.Time { return start.Add(time.Duration(ahead.Load())) }
	})
	token := b.token(func(c map[string]any) { c["exp"] = c["iat"].(int64) + 900 })
	b.handle(wire.PathJWKS, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	ahead.Store(int64(10 * time.Minute))
	if err := refused(t, v, b, token); err != nil {
		t.Errorf("after 10 minutes: %v", err)
	}
	ahead.Store(int64(10*time.Minute + 1))
	if err := refused(t, v, b, token); !errors.Is(err, verify.ErrStale) {
		t.Errorf("after more than that: %v", err)
	}
	if err := v.Ready(); !errors.Is(err, verify.ErrStale) || !strings.Contains(err.Error(), "keys") {
		t.Errorf("Ready: %v", err)
	}
}

// TestClockSetBack must not bring a token back whose denial was dropped in the meantime.
func TestClockSetBack(t *testing.T) {
	b := newBroker(t, 1)
	var ahead atomic.Int64
	v := b.verifier(func(c *verify.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	token := b.token(nil)
	b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: rootTask})
	goesTo(t, v, b, token, verify.ErrRevoked)
	ahead.Store(int64(10 * time.Minute))
	eventually(t, "the entry is dropped", func() bool { return v.Status().Entries == 0 })
	ahead.Store(0)
	eventually(t, "the view is fresh by the clock that was set back", func() bool { return v.Ready() == nil })
	if err := refused(t, v, b, token); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("got %v", err)
	}
	if err := refused(t, v, b, b.token(func(c map[string]any) { retask(c) })); err != nil {
		t.Errorf("a token of another task, after the clock was set right: %v", err)
	}
}

// retask makes the token one of another task.
func retask(c map[string]any) {
	const id = "tsk_00yyyyyyyyyyyyyyyyyyyyyyyyyy"
	c["txn"], c["task"] = id, map[string]any{"id": id, "path": []string{id}, "name": "other"}
}

// TestConnectionsDoNotOutliveTheirTrust: a broker whose authority was removed is not believed any
// more, on whatever connections it holds.
func TestConnectionsDoNotOutliveTheirTrust(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	var removed atomic.Bool
	v := b.verifier(func(c *verify.Config) {
		c.MaxStale = 2 * time.Second
		c.Files, c.TLS = nil, &tls.Config{
			RootCAs: b.ca.pool(), Certificates: []tls.Certificate{b.ca.svid(t, serverID, nil)},
			VerifyConnection: func(tls.ConnectionState) error {
				if removed.Load() {
					return errors.New("its authority was removed")
				}
				return nil
			},
		}
	})
	goesTo(t, v, b, b.token(nil), nil)
	removed.Store(true)
	eventually(t, "the verifier believes it no more", func() bool { return errors.Is(v.Ready(), verify.ErrStale) && !v.Status().Connected })
	if err := refused(t, v, b, b.token(nil)); !errors.Is(err, verify.ErrStale) {
		t.Errorf("got %v", err)
	}
	if last := v.Status().LastError; !strings.Contains(last, "its authority was removed") {
		t.Errorf("the last error is %q", last)
	}
	removed.Store(false)
	goesTo(t, v, b, b.token(nil), nil)
}

// TestMetadata that is not the issuer's, or leads astray, keeps the verifier from starting, and the
// error says what was wrong.
func TestMetadata(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed to elsewhere") }))
	t.Cleanup(elsewhere.Close)
	good := wire.Metadata{Issuer: b.public.URL, JWKSURI: b.public.URL + wire.PathJWKS, Feed: b.private.URL + wire.PathFeed}
	edit := func(f func(*wire.Metadata)) http.HandlerFunc {
		m := good
		f(&m)
		return func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, m) }
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		says   string
	}{
		"another issuer": {edit(func(m *wire.Metadata) { m.Issuer += "/" }), "byte for byte"},
		"http keys":      {edit(func(m *wire.Metadata) { m.JWKSURI = "http://127.0.0.1/keys" }), "jwks_uri"},
		"no keys":        {edit(func(m *wire.Metadata) { m.JWKSURI = "" }), "jwks_uri"},
		"http feed":      {edit(func(m *wire.Metadata) { m.Feed = "http://example.com/v1/feed" }), "errand_feed"},
		"file feed":      {edit(func(m *wire.Metadata) { m.Feed = "file:///etc/passwd" }), "errand_feed"},
		"not JSON":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, "RFC 8414"},
		"500":            {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, "500"},
		"304":            {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotModified) }, "304"},
		"too long":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<17)) }, "more than 65536 bytes"},
		"redirect away":  {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, "redirect"},
		"redirect to http": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, strings.Replace(b.public.URL, "https", "http", 1), http.StatusFound)
		}, "redirect"},
		"redirect for ever": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }, "redirect"},
	} {
		t.Run(name, func(t *testing.T) {
			b.handle(wire.PathMetadata, c.answer)
			err := b.start(wire.PathMetadata)
			if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error must say %q: %v", c.says, err)
			}
		})
	}
}

// TestIssuerOnLoopback may speak plain HTTP, as on a developer's machine; the feed never may.
func TestIssuerOnLoopback(t *testing.T) {
	b := newBroker(t, 1)
	plain := httptest.NewServer(b.public.Config.Handler)
	t.Cleanup(plain.Close)
	b.handle(wire.PathMetadata, func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, wire.Metadata{Issuer: plain.URL, JWKSURI: plain.URL + wire.PathJWKS, Feed: b.private.URL + wire.PathFeed})
	})
	v := b.verifier(func(c *verify.Config) { c.Issuer = plain.URL })
	if err := refused(t, v, b, b.token(func(c map[string]any) { c["iss"] = plain.URL })); err != nil {
		t.Error(err)
	}
	ctx, asked := twice(t)
	b.handle(wire.PathMetadata, func(w http.ResponseWriter, _ *http.Request) {
		asked()
		writeJSON(w, wire.Metadata{Issuer: plain.URL, JWKSURI: plain.URL + wire.PathJWKS, Feed: "http://127.0.0.1:1/v1/feed"})
	})
	_, err := verify.New(ctx, func() verify.Config { c := b.config(); c.Issuer = plain.URL; return c }())
	if err == nil || !strings.Contains(err.Error(), "errand_feed") {
		t.Errorf("a feed without TLS: %v", err)
	}
}

// TestIssuerWithPath finds the metadata between host and path (RFC 8414 §3.1).
func TestIssuerWithPath(t *testing.T) {
	b := newBroker(t, 1)
	issuer := b.public.URL + "/tenant/a"
	b.handle(wire.PathMetadata+"/tenant/a", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, wire.Metadata{Issuer: issuer, JWKSURI: b.public.URL + wire.PathJWKS, Feed: b.private.URL + wire.PathFeed})
	})
	v := b.verifier(func(c *verify.Config) { c.Issuer = issuer })
	if err := refused(t, v, b, b.token(func(c map[string]any) { c["iss"] = issuer })); err != nil {
		t.Error(err)
	}
}

// TestProblemsAreTold passes on what the broker says is wrong.
func TestProblemsAreTold(t *testing.T) {
	b := newBroker(t, 1)
	b.handle(wire.PathFeedSnapshot, func(w http.ResponseWriter, r *http.Request) {
		if got := r.URL.Query().Get("aud"); got != audience {
			t.Errorf("aud is %q", got)
		}
		w.Header().Set("Content-Type", wire.TypeProblem)
		w.WriteHeader(http.StatusForbidden)
		_ = json.NewEncoder(w).Encode(wire.Problem{Title: "Denied", Detail: "this workload is no server of orders"})
	})
	err := b.start(wire.PathFeedSnapshot)
	if err == nil || !strings.Contains(err.Error(), "this workload is no server of orders") {
		t.Errorf("got %v", err)
	}
}

func TestConfigErrors(t *testing.T) {
	b := newBroker(t, 1)
	for name, c := range map[string]struct {
		edit func(*verify.Config)
		says string
	}{
		"no issuer":           {func(c *verify.Config) { c.Issuer = "" }, "Issuer"},
		"http issuer":         {func(c *verify.Config) { c.Issuer = "http://broker.example.com" }, "https://"},
		"issuer with query":   {func(c *verify.Config) { c.Issuer += "?x" }, "query"},
		"issuer with #":       {func(c *verify.Config) { c.Issuer += "#" }, "fragment"},
		"issuer with user":    {func(c *verify.Config) { c.Issuer = "https://a:b@example.com" }, "user"},
		"issuer without host": {func(c *verify.Config) { c.Issuer = "https:///x" }, "host"},
		"no audience":         {func(c *verify.Config) { c.Audience = "" }, "Audience"},
		"audience with quote": {func(c *verify.Config) { c.Audience = `a"b` }, "Audience"},
		"audience of 257":     {func(c *verify.Config) { c.Audience = strings.Repeat("a", 257) }, "Audience"},
		"plain resource":      {func(c *verify.Config) { c.Resource = "http://orders.example.com" }, "Resource"},
		"resource with #":     {func(c *verify.Config) { c.Resource = "https://orders.example.com/#a" }, "Resource"},
		"resource with quote": {func(c *verify.Config) { c.Resource = `https://orders.example.com/"` }, "Resource"},
		"resource with query": {func(c *verify.Config) { c.Resource = "https://orders.example.com/?a=b" }, "Resource"},
		"scope with space":    {func(c *verify.Config) { c.Scopes = []string{"a b"} }, "Scopes"},
		"no folder for cache": {func(c *verify.Config) { c.CacheFile = "/nowhere/at/all/cache" }, "CacheFile"},
		"negative usage":      {func(c *verify.Config) { c.MaxUsage = -1 }, "MaxUsage"},
		"S of 1.9 s":          {func(c *verify.Config) { c.MaxStale = 1900 * time.Millisecond }, "MaxStale"},
		"S of 61 s":           {func(c *verify.Config) { c.MaxStale = 61 * time.Second }, "MaxStale"},
		"unknown OnStale":     {func(c *verify.Config) { c.OnStale = 2 }, "OnStale"},
		"unknown binding":     {func(c *verify.Config) { c.Binding = 3 }, "Binding"},
		"leeway of 31 s":      {func(c *verify.Config) { c.Leeway = 31 * time.Second }, "Leeway"},
		"leeway of -1 s":      {func(c *verify.Config) { c.Leeway = -time.Second }, "Leeway"},
		"life of 16 min":      {func(c *verify.Config) { c.MaxLife = 16 * time.Minute }, "MaxLife"},
		"negative entries":    {func(c *verify.Config) { c.MaxEntries = -1 }, "MaxEntries"},
		"no TLS, no files":    {func(c *verify.Config) { c.Files = nil }, "TLS"},
		"TLS and files":       {func(c *verify.Config) { c.TLS = &tls.Config{} }, "exactly one"},
		"no certificate":      {func(c *verify.Config) { c.Files, c.TLS = nil, &tls.Config{} }, "client certificate"},
		"trusts everybody": {func(c *verify.Config) {
			c.Files, c.TLS = nil, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{b.agent}}
		}, "trusts every server"},
		"public trusts everybody": {func(c *verify.Config) { c.Public = &tls.Config{InsecureSkipVerify: true} }, "Public"},
		"no broker ID":            {func(c *verify.Config) { c.Files.BrokerID = "" }, "BrokerID"},
		"broker ID is a domain":   {func(c *verify.Config) { c.Files.BrokerID = "spiffe://example.org" }, "BrokerID"},
		"no file":                 {func(c *verify.Config) { c.Files.Cert += "x" }, "no such file"},
		"a folder":                {func(c *verify.Config) { c.Files.Bundle = t.TempDir() }, "regular file"},
		"key for certificate":     {func(c *verify.Config) { c.Files.Cert = c.Files.Key }, "key.pem"},
		"key for bundle":          {func(c *verify.Config) { c.Files.Bundle = c.Files.Key }, "CA certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			config := b.config()
			c.edit(&config)
			// Without a deadline: what is wrong with a configuration is said at once.
			v, err := verify.New(context.Background(), config)
			if err == nil {
				_ = v.Close()
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error must say %q: %v", c.says, err)
			}
		})
	}
}
