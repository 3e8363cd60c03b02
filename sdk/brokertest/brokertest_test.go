package brokertest_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/verify"
)

// TestServe is the whole way, over mutual TLS.
func TestServe(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	url := b.Serve("orders", orders(b.Verifier("orders")))
	client := b.Client("export")
	err := client.Do(t.Context(), export, func(_ context.Context, task *sdk.Task) error {
		if code := get(t, task.HTTPClient("orders", "orders:read"), url); code != http.StatusOK {
			t.Errorf("inside the task: %d", code)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	b.AssertIssued(t, "orders", "orders:read")
	b.AssertNoneLive(t)
	b.AssertLeastPrivilege(t)
	if g := b.Grants(); len(g) != 1 || g[0].Workload != "spiffe://test/export" || g[0].Task.Name != "export" || !g[0].Bound {
		t.Errorf("grants: %+v", g)
	}
}

// TestHost: a server of the test's own, without TLS, takes bound tokens.
func TestHost(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	srv := httptest.NewServer(orders(b.Verifier("orders")))
	defer srv.Close()
	client := b.Client("spiffe://test/export")
	task := begin(t, client)
	if _, err := task.HTTPClient("orders", "orders:read").Get(srv.URL); !errors.Is(err, sdk.ErrHost) {
		t.Errorf("a host that nobody has named: %v", err)
	}
	complete(t, task)
	b.Host("orders", srv.URL)
	task = begin(t, client)
	if code := get(t, task.HTTPClient("orders", "orders:read"), srv.URL); code != http.StatusOK {
		t.Errorf("status %d", code)
	}
	complete(t, task)
}

// TestThief: over TLS, a token is good for its workload alone.
func TestThief(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	url := b.Serve("orders", orders(b.Verifier("orders")))
	task := begin(t, b.Client("export"))
	stolen := token(t, task)
	thief := b.ServerTLS("thief") // it shows the SVID of somebody else
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: thief.Certificates}}
	defer transport.CloseIdleConnections()
	req, _ := http.NewRequest(http.MethodGet, url, nil)
	req.Header.Set("Authorization", stolen.Header())
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stolen token: %d", resp.StatusCode)
	}
	complete(t, task)
}

func TestRevoke(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	srv := httptest.NewServer(orders(b.Verifier("orders")))
	defer srv.Close()
	client := b.Client("export")
	task, other := begin(t, client), begin(t, client)
	first, second := token(t, task), token(t, other)
	b.Revoke(task.ID())
	if a, b := status(t, srv.URL, first), status(t, srv.URL, second); a != http.StatusUnauthorized || b != http.StatusOK {
		t.Errorf("the revoked one %d, the other %d", a, b)
	}
	b.Revoke(second.GrantID)
	if code := status(t, srv.URL, second); code != http.StatusUnauthorized {
		t.Errorf("a revoked grant: %d", code)
	}
	if task.State() != sdk.Active {
		t.Errorf("the client knows before anybody has told it: %s", task.State())
	}
	b.Advance(10 * time.Second)
	if task.State() != sdk.Revoked || !errors.Is(context.Cause(task.Context()), sdk.ErrRevoked) || other.State() != sdk.Active {
		t.Errorf("after a heartbeat: %s, %s", task.State(), other.State())
	}
	complete(t, other)
}

// TestAdvance: what is at work goes on, whatever the time, and what is not lapses.
func TestAdvance(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	v := b.Verifier("orders")
	srv := httptest.NewServer(orders(v))
	defer srv.Close()
	b.Host("orders", srv.URL)
	client := b.Client("export")
	alive, hung := begin(t, client), begin(t, client)
	before, doomed := token(t, alive), token(t, hung)
	b.DropHeartbeats(hung.ID())
	b.Advance(15 * time.Second)
	if hung.State() != sdk.Active || status(t, srv.URL, doomed) != http.StatusOK {
		t.Errorf("half a lease later: %s", hung.State())
	}
	b.Advance(16 * time.Second)
	if hung.State() != sdk.Lapsed || !errors.Is(context.Cause(hung.Context()), sdk.ErrLeaseLost) {
		t.Errorf("a lease later: %s", hung.State())
	}
	if a, b := status(t, srv.URL, doomed), status(t, srv.URL, before); a != http.StatusUnauthorized || b != http.StatusOK {
		t.Errorf("the lapsed one's token %d, the other's %d", a, b)
	}
	b.Advance(20 * time.Minute)
	if err := v.Ready(); err != nil || alive.State() != sdk.Active {
		t.Errorf("twenty minutes later: %s, %v", alive.State(), err)
	}
	if code := status(t, srv.URL, before); code != http.StatusUnauthorized {
		t.Errorf("an old token: %d", code)
	}
	if code := get(t, alive.HTTPClient("orders", "orders:read"), srv.URL); code != http.StatusOK {
		t.Errorf("a new one: %d", code)
	}
	b.Advance(time.Hour)
	if alive.State() != sdk.Expired {
		t.Errorf("past its deadline: %s", alive.State())
	}
	b.AssertNoneLive(t)
}

// TestTimeStandsStill, unless it is moved or real.
func TestTimeStandsStill(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	start := b.Now()
	b.Advance(90 * time.Second)
	if got := b.Now().Sub(start); got != 90*time.Second {
		t.Errorf("moved by %v", got)
	}
	real := brokertest.New(t, brokertest.RealTime())
	start = real.Now()
	if !real.Now().After(start) {
		t.Error("real time stands still")
	}
}

// TestPauseFeed: ends are not heard of, until the verifier refuses everything.
func TestPauseFeed(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	v := b.Verifier("orders")
	srv := httptest.NewServer(orders(v))
	defer srv.Close()
	task := begin(t, b.Client("export"))
	tok := token(t, task)
	resume := b.PauseFeed()
	b.Revoke(task.ID())
	if code := status(t, srv.URL, tok); code != http.StatusOK {
		t.Errorf("what it cannot know: %d", code)
	}
	b.Advance(11 * time.Second)
	if code := status(t, srv.URL, tok); code != http.StatusServiceUnavailable || v.Ready() == nil {
		t.Errorf("a stale view: %d", code)
	}
	resume()
	resume() // twice is once
	b.Settle(t.Context())
	if code := status(t, srv.URL, tok); code != http.StatusUnauthorized {
		t.Errorf("after all: %d", code)
	}
}

// TestOutage: nothing is issued, ends wait, and all is well afterwards.
func TestOutage(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	srv := httptest.NewServer(orders(b.Verifier("orders")))
	defer srv.Close()
	client := b.Client("export")
	task := begin(t, client)
	restore := b.Outage()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Begin(short, export); !errors.Is(err, sdk.ErrUnavailable) {
		t.Errorf("a begin: %v", err)
	}
	b.Advance(31 * time.Second)
	if task.State() != sdk.Lapsed {
		t.Errorf("its lease is over: %s", task.State())
	}
	restore()
	b.Settle(t.Context())
	next := begin(t, client)
	if code := status(t, srv.URL, token(t, next)); code != http.StatusOK {
		t.Errorf("after the outage: %d", code)
	}
	complete(t, next)
}

// TestUnconfirmedEndIsNoLeak: the client will have told the broker when the test is over.
func TestUnconfirmedEndIsNoLeak(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	task := begin(t, b.Client("export"))
	b.Outage()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := task.Complete(ended); !errors.Is(err, sdk.ErrEndUnconfirmed) {
		t.Errorf("Complete: %v", err)
	}
}

func TestDenyNextAndQuarantine(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	srv := httptest.NewServer(orders(b.Verifier("orders")))
	defer srv.Close()
	client := b.Client("export")
	b.DenyNext("not on a Friday")
	var refusal *sdk.Error
	if _, err := client.Begin(t.Context(), export); !errors.Is(err, sdk.ErrDenied) || !errors.As(err, &refusal) || refusal.Rule != "brokertest/deny-next" || !strings.Contains(err.Error(), "not on a Friday") {
		t.Errorf("DenyNext: %v", err)
	}
	task := begin(t, client)
	tok := token(t, task)
	lift := b.Quarantine("export")
	if code := status(t, srv.URL, tok); code != http.StatusUnauthorized {
		t.Errorf("a token in quarantine: %d", code)
	}
	if _, err := client.Begin(t.Context(), export); !errors.Is(err, sdk.ErrQuarantined) {
		t.Errorf("a begin in quarantine: %v", err)
	}
	lift()
	complete(t, begin(t, client))
	complete(t, task)
}

func TestRotateKeys(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	srv := httptest.NewServer(orders(b.Verifier("orders")))
	defer srv.Close()
	for range 3 {
		task := begin(t, b.Client("export"))
		before := token(t, task)
		b.RotateKeys()
		fresh, err := task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}, Fresh: true})
		if err != nil {
			t.Fatal(err)
		}
		if a, b := status(t, srv.URL, before), status(t, srv.URL, fresh); a != http.StatusOK || b != http.StatusOK {
			t.Errorf("before the rotation %d, after it %d", a, b)
		}
		complete(t, task)
		b.Advance(11 * time.Minute)
	}
	if failed := observe(func(tb *observed) {
		b := brokertest.New(tb)
		b.RotateKeys()
		b.RotateKeys()
	}); !strings.Contains(failed, "too early") {
		t.Errorf("twice at once: %q", failed)
	}
}

// TestTokenAndSign are for handlers.
func TestTokenAndSign(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	v := b.Verifier("orders")
	for name, edit := range map[string]func(*http.Request){
		"Sign": func(r *http.Request) { b.Sign(r, verify.Grant{Audience: "orders", Scopes: []string{"orders:read"}}) },
		"Token": func(r *http.Request) {
			r.Header.Set("Authorization", "Bearer "+b.Token(verify.Grant{Workload: "caller", Audience: "orders", Scopes: []string{"orders:read"}}))
		},
	} {
		r, w := httptest.NewRequest(http.MethodGet, "/orders", nil), httptest.NewRecorder()
		edit(r)
		orders(v).ServeHTTP(w, r)
		if w.Code != http.StatusOK || w.Body.String() != "two anvils for spiffe://test/caller" {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		b.Revoke(b.Grants()[len(b.Grants())-1].ID)
		w = httptest.NewRecorder()
		orders(v).ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized {
			t.Errorf("%s, revoked: %d", name, w.Code)
		}
	}
	r, w := httptest.NewRequest(http.MethodGet, "/orders", nil), httptest.NewRecorder()
	b.Sign(r, verify.Grant{Audience: "orders", Scopes: []string{"orders:write"}, Expires: b.Now().Add(5 * time.Minute), Task: verify.Task{Name: "write"}})
	orders(v).ServeHTTP(w, r)
	if w.Code != http.StatusForbidden {
		t.Errorf("another scope: %d", w.Code)
	}
	if g := b.Grants()[2]; g.Task.Name != "write" || g.Expires.Sub(b.Now()).Round(time.Minute) != 5*time.Minute {
		t.Errorf("the grant: %+v", g)
	}
	b.AssertNoneLive(t)
	b.AssertLeastPrivilege(t)
}

// TestEnv: code that makes its own client and verifier needs nothing of this package.
func TestEnv(t *testing.T) {
	b := brokertest.New(t)
	for name, value := range b.Env("export") {
		t.Setenv(name, value)
	}
	client, err := sdk.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close(context.WithoutCancel(t.Context()))
	srv := httptest.NewServer(orders(b.Verifier("orders")))
	defer srv.Close()
	task := begin(t, client)
	if code := status(t, srv.URL, token(t, task)); code != http.StatusOK {
		t.Errorf("status %d", code)
	}
	complete(t, task)
}

const inventory = `
audiences:
  - {name: orders, owner: team-shop, hosts: [orders.internal], scopes: ["orders:read", "orders:write"], servers: ["spiffe://example.org/shop/orders"]}
  - {name: files, owner: team-shop, scopes: ["files:write"]}
workloads:
  - {id: "spiffe://partner.org/agent", owner: team-partner, purpose: their agents, ceiling: {orders: ["orders:read"]}}
  - {id: "spiffe://example.org/night", owner: team-fin, purpose: batches, ceiling: {orders: ["orders:read"]}}
  - {id: "spiffe://example.org/export", owner: team-fin, purpose: exports, ceiling: {orders: ["orders:read"], files: ["files:write"]}}
`

func TestWithInventory(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "inventory.yaml")
	if err := os.WriteFile(file, []byte(inventory), 0o600); err != nil {
		t.Fatal(err)
	}
	b := brokertest.New(t, brokertest.WithInventory(file))
	url := b.Serve("orders", orders(b.Verifier("orders")))
	client := b.Client("spiffe://example.org/export")
	task, err := client.Begin(t.Context(), sdk.TaskSpec{Name: "export", Purpose: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	if code := get(t, task.HTTPClient("orders"), url); code != http.StatusOK {
		t.Errorf("status %d", code)
	}
	if _, err := task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:write"}}); !errors.Is(err, sdk.ErrScopeExceeded) && !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("beyond the ceiling: %v", err)
	}
	complete(t, task)
	b.Verifier("files")
	for name, f := range map[string]func(*brokertest.Broker){
		"is not in the inventory": func(b *brokertest.Broker) { b.Verifier("payroll") },
		"not in the trust domain": func(b *brokertest.Broker) { b.Client("spiffe://elsewhere/export") },
		"not registered":          func(b *brokertest.Broker) { b.Client("stranger") },
		"ceiling/scope": func(b *brokertest.Broker) {
			b.Token(verify.Grant{Workload: "export", Audience: "orders", Scopes: []string{"orders:write"}})
		},
		"no such file": func(b *brokertest.Broker) {},
	} {
		failed := observe(func(tb *observed) {
			use := file
			if name == "no such file" {
				use += "x"
			}
			f(brokertest.New(tb, brokertest.WithInventory(use)))
		})
		if !strings.Contains(failed, name) {
			t.Errorf("%s: %q", name, failed)
		}
	}
}

// TestLeaks: a test that leaves something alive fails, and is told what.
func TestLeaks(t *testing.T) {
	t.Parallel()
	leak := func(opts ...brokertest.Option) func(tb *observed) {
		return func(tb *observed) {
			b := brokertest.New(tb, opts...)
			task := begin(t, b.Client("export"))
			token(t, task)
		}
	}
	if failed := observe(leak()); !strings.Contains(failed, `"export" of spiffe://test/export, with 1 live tokens`) {
		t.Errorf("a task that was left open: %q", failed)
	}
	if failed := observe(leak(brokertest.AllowLeaks())); failed != "" {
		t.Errorf("allowed leaks: %q", failed)
	}
	if failed := observe(func(tb *observed) {
		b := brokertest.New(tb)
		b.DropHeartbeats(begin(t, b.Client("export")).ID())
		b.Token(verify.Grant{Audience: "orders", Scopes: []string{"orders:read"}})
	}); failed != "" {
		t.Errorf("what is meant to be open: %q", failed)
	}
}

func TestAssertions(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	url := b.Serve("orders", orders(b.Verifier("orders")))
	spec := export
	spec.Scopes = []string{"orders:read", "orders:write"}
	task, err := b.Client("export").Begin(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	get(t, task.HTTPClient("orders", "orders:read", "orders:write"), url)
	for name, c := range map[string]struct {
		assert func(tb *observed)
		want   string
	}{
		"issued":            {func(tb *observed) { b.AssertIssued(tb, "orders", "orders:write") }, ""},
		"not issued":        {func(tb *observed) { b.AssertIssued(tb, "orders", "orders:admin") }, `no token for orders with ["orders:admin"] was issued`},
		"another audience":  {func(tb *observed) { b.AssertIssued(tb, "files") }, "no token for files"},
		"alive":             {func(tb *observed) { b.AssertNoneLive(tb) }, "alive that should not be"},
		"too much":          {func(tb *observed) { b.AssertLeastPrivilege(tb) }, "orders:write at orders, got by spiffe://test/export"},
		"no ID":             {func(tb *observed) { brokertest.New(tb).Revoke("orders") }, "not the ID of a task or grant"},
		"back in time":      {func(tb *observed) { brokertest.New(tb).Advance(-1) }, "forward alone"},
		"too far":           {func(tb *observed) { brokertest.New(tb).Advance(brokertest.MaxAdvance + 1) }, "in all"},
		"as far as it goes": {func(tb *observed) { brokertest.New(tb).Advance(brokertest.MaxAdvance) }, ""},
	} {
		if failed := observe(c.assert); c.want == "" && failed != "" || !strings.Contains(failed, c.want) {
			t.Errorf("%s: %q", name, failed)
		}
	}
	complete(t, task)
	b.AssertNoneLive(t)
}

// TestAllowAllNeedsNames: what a task has not named when it began, it does not get.
func TestAllowAllNeedsNames(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	b.Host("orders", "127.0.0.1:1")
	task, err := b.Client("export").Begin(t.Context(), sdk.TaskSpec{Name: "export", Purpose: "a test"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := task.Token(t.Context(), ordersRead); !errors.Is(err, sdk.ErrDenied) || !strings.Contains(err.Error(), "TaskSpec") {
		t.Errorf("scopes that were not named: %v", err)
	}
	complete(t, task)
}

// TestStart is for where there is no test.
func TestStart(t *testing.T) {
	t.Parallel()
	b, stop := brokertest.Start()
	begin(t, b.Client("export"))
	defer func() {
		if p, _ := recover().(string); !strings.Contains(p, "left open") {
			t.Errorf("it ended with %q", p)
		}
	}()
	stop()
}

// TestClosedByItsUser: nobody waits for a verifier or client that the test has closed.
func TestClosedByItsUser(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	v, client := b.Verifier("orders"), b.Client("export")
	if err := errors.Join(v.Close(), client.Close(t.Context())); err != nil {
		t.Fatal(err)
	}
	b.Advance(time.Hour)
}

// TestARevokedTaskLearnsAtOnce: time stands still, so that no heartbeat can have brought the news.
func TestARevokedTaskLearnsAtOnce(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	var beats atomic.Int32
	client := b.Client("export", sdk.WithHooks(sdk.Hooks{
		OnHeartbeat: func(context.Context, int, time.Duration, error) { beats.Add(1) },
	}))
	for range 2 { // the stream is opened for the first one, and is there for the second
		task, other := begin(t, client), begin(t, client)
		b.Revoke(task.ID())
		select {
		case <-task.Context().Done():
		case <-time.After(20 * time.Second):
			t.Fatal("it goes on")
		}
		if cause := context.Cause(task.Context()); cause != sdk.ErrRevoked || beats.Load() != 0 {
			t.Errorf("the cause is %v, after %d heartbeats", cause, beats.Load())
		}
		if other.State() != sdk.Active {
			t.Errorf("the other task is %s", other.State())
		}
		complete(t, other)
	}
}
