package verify_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// orders is a resource server over TLS that a caller with the broker's agent SVID can reach.
func orders(tb testing.TB, b *broker, v *verify.Verifier, handler http.Handler) (url string, agent *http.Client) {
	tb.Helper()
	server := httptest.NewUnstartedServer(v.Require("orders:read", "orders:write")(handler))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{b.ca.svid(tb, serverID, nil)}, ClientAuth: tls.RequestClientCert}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	tb.Cleanup(server.Close)
	agent = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: b.ca.pool(), Certificates: []tls.Certificate{b.agent}}}}
	tb.Cleanup(agent.CloseIdleConnections)
	return server.URL, agent
}

func call(tb testing.TB, client *http.Client, url string, authorization ...string) *http.Response {
	tb.Helper()
	request := must(http.NewRequest(http.MethodGet, url, nil))(tb)
	request.Header["Authorization"] = authorization
	response := must(client.Do(request))(tb)
	tb.Cleanup(func() { _ = response.Body.Close() })
	return response
}

func TestRequire(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	url, agent := orders(t, b, v, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g, ok := verify.FromContext(r.Context())
		if !ok {
			t.Error("no grant in the context")
		}
		_, _ = io.WriteString(w, g.Workload)
	}))
	stranger := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: b.ca.pool()}}}
	t.Cleanup(stranger.CloseIdleConnections)
	token := b.token(nil)
	revoked := b.token(func(c map[string]any) { c["jti"] = "gnt_00dddddddddddddddddddddddddd" })
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: "gnt_00dddddddddddddddddddddddddd"})
	settled(t, v, b)

	const realm = `Bearer realm="orders"`
	cases := []struct {
		name          string
		client        *http.Client
		query         string
		authorization []string
		status        int
		challenge     string
	}{
		{"good", agent, "", []string{"Bearer " + token}, 200, ""},
		{"lower case", agent, "", []string{"bearer " + token}, 200, ""},
		{"nothing", agent, "", nil, 401, realm},
		{"empty", agent, "", []string{""}, 401, realm},
		{"no token", agent, "", []string{"Bearer "}, 401, realm},
		{"Basic", agent, "", []string{"Basic eDp5"}, 401, realm},
		{"in the query", agent, "?access_token=" + token, nil, 401, realm},
		{"two headers", agent, "", []string{"Bearer " + token, "Bearer " + token}, 401, realm + `, error="invalid_token", error_description="malformed token"`},
		{"Bearer twice", agent, "", []string{"Bearer Bearer " + token}, 401, realm + `, error="invalid_token", error_description="malformed token"`},
		{"a list", agent, "", []string{"Bearer " + token + ", Bearer " + token}, 401, realm + `, error="invalid_token", error_description="malformed token"`},
		{"two spaces", agent, "", []string{"Bearer  " + token}, 401, realm + `, error="invalid_token", error_description="malformed token"`},
		{"tab", agent, "", []string{"Bearer\t" + token}, 401, realm},
		{"revoked", agent, "", []string{"Bearer " + revoked}, 401, realm + `, error="invalid_token", error_description="revoked"`},
		{"stolen", stranger, "", []string{"Bearer " + token}, 401, realm + `, error="invalid_token", error_description="not presented by the workload that it was issued to"`},
		{"a scope too few", agent, "", []string{"Bearer " + b.token(func(c map[string]any) { c["scope"] = "orders:read" })}, 403, realm + `, error="insufficient_scope", error_description="insufficient scope", scope="orders:read orders:write"`},
		{"of the future", agent, "", []string{"Bearer " + b.token(func(c map[string]any) { c["ep"] = []uint64{epoch + 1, 0} })}, 503, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			response := call(t, c.client, url+c.query, c.authorization...)
			if kept := response.Header.Get("Cache-Control"); (c.status == 200) != (kept != "no-store") {
				t.Errorf("Cache-Control: %q", kept)
			}
			if response.StatusCode != c.status || response.Header.Get("WWW-Authenticate") != c.challenge {
				t.Fatalf("got %d, challenge %q\nwant %d, %q", response.StatusCode, response.Header.Get("WWW-Authenticate"), c.status, c.challenge)
			}
			body := must(io.ReadAll(response.Body))(t)
			if c.status == 200 {
				if string(body) != agentID {
					t.Errorf("body %q", body)
				}
				return
			}
			var problem wire.Problem
			if err := json.Unmarshal(body, &problem); err != nil || response.Header.Get("Content-Type") != wire.TypeProblem || problem.Status != c.status {
				t.Errorf("not a problem: %s", body)
			}
			stale := c.status == 503
			if stale != (problem.Type == b.public.URL+"/problems/verifier-stale") || stale != (response.Header.Get("Retry-After") == "1") {
				t.Errorf("type %q, Retry-After %q", problem.Type, response.Header.Get("Retry-After"))
			}
		})
	}
}

// TestRequireEndsARunningRequest ends a task while a handler works for it.
func TestRequireEndsARunningRequest(t *testing.T) {
	for name, entry := range map[string]wire.FeedEntry{
		"grant":    {Kind: wire.KindGrant, ID: grantID},
		"root":     {Kind: wire.KindTask, ID: rootTask},
		"selector": {Kind: wire.KindSelector, Subject: agentID},
		"key":      {Kind: wire.KindKey},
		"epoch":    {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			v := b.verifier(nil)
			started, ended := make(chan struct{}), make(chan error, 1)
			url, agent := orders(t, b, v, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				close(started)
				select {
				case <-r.Context().Done():
					ended <- context.Cause(r.Context())
				case <-time.After(20 * time.Second):
					ended <- nil
				}
			}))
			token := b.token(nil)
			go func() {
				<-started
				switch {
				case entry.Kind == "":
					b.change(b.newEpoch)
				case entry.Kind == wire.KindKey:
					entry.ID = b.key.kid
					b.deny(entry)
				default:
					b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: "gnt_00somebodyelse"})
					b.deny(entry)
				}
			}()
			call(t, agent, url, "Bearer "+token)
			if cause := <-ended; cause != verify.ErrRevoked {
				t.Errorf("the context ended with %v", cause)
			}
		})
	}
}

// TestWatch has its limit, and ends at once for a grant that has died in between, or was made up.
func TestWatch(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.MaxRunning = 1 })
	g := must(v.Verify(t.Context(), b.token(nil), b.peer()))(t)
	ctx, cancel, err := v.Watch(t.Context(), g)
	if err != nil || ctx.Err() != nil {
		t.Fatal(err, ctx.Err())
	}
	if _, _, err := v.Watch(t.Context(), g); err != verify.ErrBusy {
		t.Errorf("one more than MaxRunning: %v", err)
	}
	cancel()
	if cause := context.Cause(ctx); cause != context.Canceled {
		t.Errorf("after cancel: %v", cause)
	}
	b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: childTask})
	settled(t, v, b)
	for name, grant := range map[string]*verify.Grant{"dead": g, "made up": {ID: "gnt_00x"}} {
		ctx, cancel, err := v.Watch(t.Context(), grant)
		if err != nil || context.Cause(ctx) != verify.ErrRevoked {
			t.Errorf("%s: %v, %v", name, err, context.Cause(ctx))
		}
		cancel()
	}
}

// TestP2_WatchEndsWithTheToken: after exp and the leeway nobody is told of the task's end any more, so
// that nothing may go on.
func TestP2_WatchEndsWithTheToken(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	var ahead atomic.Int64
	v := b.verifier(func(c *verify.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	g := must(v.Verify(t.Context(), b.token(nil), b.peer()))(t)
	running, cancel, err := v.Watch(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	ahead.Store(int64(time.Until(g.Expires) + verify.DefaultLeeway - time.Second))
	select {
	case <-running.Done():
		t.Fatalf("it ended before its time: %v", context.Cause(running))
	case <-time.After(600 * time.Millisecond):
	}
	ahead.Add(int64(time.Second))
	<-running.Done()
	late, cancel, err := v.Watch(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	for _, ctx := range []context.Context{running, late} {
		if cause := context.Cause(ctx); cause != verify.ErrExpired {
			t.Errorf("ended with %v", cause)
		}
	}
}

// TestWatchEndsWithTheVerifier: nobody would end it later.
func TestWatchEndsWithTheVerifier(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	g := must(v.Verify(t.Context(), b.token(nil), b.peer()))(t)
	before, cancel, err := v.Watch(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	after, cancel, err := v.Watch(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	defer cancel()
	for _, ctx := range []context.Context{before, after} {
		if cause := context.Cause(ctx); cause != verify.ErrStale {
			t.Errorf("ended with %v", cause)
		}
	}
}

// TestKeepInFlight lets the handler finish although its task has ended.
func TestKeepInFlight(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.Binding = verify.Unbound })
	handler := v.Middleware(verify.Scope("orders:read"), verify.KeepInFlight())(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g, ok := verify.FromContext(r.Context())
		if !ok {
			t.Error("no grant in the context")
		}
		b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: rootTask})
		settled(t, v, b)
		if ctx, cancel, err := v.Watch(t.Context(), g); err != nil || ctx.Err() == nil {
			t.Error("the grant is not dead")
		} else {
			cancel()
		}
		if r.Context().Err() != nil {
			t.Errorf("the context ended: %v", context.Cause(r.Context()))
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	for _, want := range []int{http.StatusNoContent, http.StatusUnauthorized} {
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, must(withToken("https://orders/", b.token(nil)))(t))
		if w.Code != want {
			t.Errorf("got %d, want %d", w.Code, want)
		}
	}
}

func TestRequireBusy(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.MaxRunning = 1 })
	inside, leave := make(chan struct{}), make(chan struct{})
	url, agent := orders(t, b, v, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		inside <- struct{}{}
		<-leave
	}))
	first := make(chan int, 1)
	token := b.token(nil)
	go func() {
		response, err := agent.Do(must(withToken(url, token))(t))
		if err == nil {
			_ = response.Body.Close()
			first <- response.StatusCode
		}
	}()
	<-inside
	got := call(t, agent, url, "Bearer "+token)
	var problem wire.Problem
	if err := json.NewDecoder(got.Body).Decode(&problem); err != nil || got.StatusCode != 503 || got.Header.Get("Retry-After") != "1" ||
		problem.Type != b.public.URL+"/problems/verifier-busy" || problem.Status != 503 || problem.Detail != "too many requests are running" {
		t.Errorf("the second request: %s, Retry-After %q, %+v, %v", got.Status, got.Header.Get("Retry-After"), problem, err)
	}
	close(leave)
	if got := <-first; got != 200 {
		t.Errorf("the first request: %d", got)
	}
}

func withToken(url, token string) (*http.Request, error) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err == nil {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	return request, err
}

func TestRequirePanicsOnWhatIsNoScope(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	for _, scope := range []string{"", "a b", `a"`, "a\nb", "é"} {
		func() {
			defer func() {
				if text, _ := recover().(string); !strings.Contains(text, "scope") {
					t.Errorf("%q: recovered %q", scope, text)
				}
			}()
			v.Require(scope)
		}()
	}
}

// TestAServerThatAsksForNoCertificateIsTold: every token is refused there, and the token is not why.
func TestAServerThatAsksForNoCertificateIsTold(t *testing.T) {
	b := newBroker(t, 1)
	var said logs
	v := b.verifier(func(c *verify.Config) { c.Logger = slog.New(slog.NewTextHandler(&said, nil)) })
	settled(t, v, b)
	handler := v.Require("orders:read")(http.NotFoundHandler())
	request := httptest.NewRequest(http.MethodGet, "/", nil) // over plain HTTP
	for range 3 {
		request.Header.Set("Authorization", "Bearer no.good.token")
		handler.ServeHTTP(httptest.NewRecorder(), request)
	}
	if said.has("ClientAuth") {
		t.Error("the log speaks of the server, but it is the token that is bad")
	}
	for range 3 {
		request.Header.Set("Authorization", "Bearer "+b.token(nil))
		answer := httptest.NewRecorder()
		if handler.ServeHTTP(answer, request); answer.Code != http.StatusUnauthorized {
			t.Errorf("got %d", answer.Code)
		}
	}
	if n := said.count("ClientAuth"); n != 1 {
		t.Errorf("the log says it %d times", n)
	}
}

func TestPeerOf(t *testing.T) {
	b := newBroker(t, 1)
	plain := httptest.NewRequest(http.MethodGet, "/", nil)
	plain.Header.Set("X-Forwarded-Client-Cert", "Hash=abc")
	if verify.PeerOf(plain) != nil {
		t.Error("a header made a peer")
	}
	over := httptest.NewRequest(http.MethodGet, "https://x/", nil)
	if verify.PeerOf(over) != nil {
		t.Error("a connection without a certificate made a peer")
	}
	over.TLS.PeerCertificates = append(over.TLS.PeerCertificates, b.agent.Leaf)
	if p := verify.PeerOf(over); p == nil || p.Verified || p.Certificate != b.agent.Leaf {
		t.Errorf("got %+v", p)
	}
}
