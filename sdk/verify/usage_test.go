package verify_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
	"pgregory.net/rapid"
)

// grant is a good token of the grant with that number, for longer than a test takes.
func (b *broker) grant(n int) (id, token string) {
	id = fmt.Sprintf("gnt_00%026d", n)
	return id, b.token(func(c map[string]any) { c["jti"], c["scope"], c["exp"] = id, "orders:read", c["iat"].(int64)+900 })
}

// TestUsage sums up what was checked: of tokens that the issuer signed for this audience, and of
// nothing else.
func TestUsage(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	began := time.Now().Add(-time.Second)
	id, token := b.grant(1)
	check := func(token string, want error, reqs ...verify.Requirement) {
		t.Helper()
		if _, err := v.Verify(t.Context(), token, b.peer(), reqs...); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	check(token, nil)
	check(token, nil, verify.Scope("orders:read"))
	check(token, nil, verify.AnyScope("orders:admin", "orders:read"), verify.Scope("orders:read"))
	check(token, verify.ErrScope, verify.Scope("orders:read", "orders:write"))
	check(token[:len(token)-4]+"AAAA", verify.ErrSignature, verify.Scope("orders:read"))
	check("", verify.ErrMissing)
	check(b.token(func(c map[string]any) { c["aud"] = "billing" }), verify.ErrAudience)
	check(b.token(func(c map[string]any) { c["iss"] = "https://elsewhere" }), verify.ErrIssuer)
	late, expired := "gnt_00llllllllllllllllllllllllll", time.Now().Add(-time.Minute).Unix()
	check(b.token(func(c map[string]any) { c["jti"], c["iat"], c["exp"] = late, expired-60, expired }), verify.ErrExpired)

	if err := v.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	reports := b.reported()
	if len(reports) != 1 || len(reports[0].Grants) != 2 || reports[0].Batch == "" || reports[0].Lost != 0 {
		t.Fatalf("got %+v", reports)
	}
	for _, got := range reports[0].Grants {
		if got.First.Before(began) || got.Last.Before(got.First) || got.Last.After(time.Now()) {
			t.Errorf("used from %s to %s", got.First, got.Last)
		}
		got.First, got.Last = time.Time{}, time.Time{}
		want := wire.GrantUsage{Grant: late, Refused: 1}
		if got.Grant == id {
			want = wire.GrantUsage{Grant: id, Allowed: 3, Refused: 1, Scopes: []wire.ScopeUsage{
				{Scope: "orders:read", Allowed: 2, Refused: 1}, {Scope: "orders:write", Refused: 1},
			}}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	// There is nothing new to say.
	if err := v.Flush(t.Context()); err != nil || len(b.reported()) != 1 {
		t.Errorf("%v, %d reports", err, len(b.reported()))
	}
}

// TestUsageIsSentBySchedule needs nobody to ask for it.
func TestUsageIsSentBySchedule(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	v := b.verifier(nil)
	if _, err := v.Verify(t.Context(), b.token(nil), b.peer()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); len(b.reported()) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no report comes")
		}
	}
}

// TestUsageIsSentByClose, which does not hang when nobody takes it.
func TestUsageIsSentByClose(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	for _, down := range []bool{false, true} {
		v := must(verify.New(within(t, 20*time.Second), b.config()))(t)
		if _, err := v.Verify(t.Context(), b.token(nil), b.peer()); err != nil {
			t.Fatal(err)
		}
		if down {
			block := make(chan struct{})
			defer close(block)
			b.handle(wire.PathFeedUsage, func(http.ResponseWriter, *http.Request) { <-block })
		}
		began := time.Now()
		if err := v.Close(); (err != nil) != down {
			t.Errorf("Close: %v", err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("Close took %s", took)
		}
	}
	if got := len(b.reported()); got != 1 {
		t.Errorf("%d reports", got)
	}
}

// TestUsageOfALostAnswer sends the same report again, and does not add to it.
func TestUsageOfALostAnswer(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	_, token := b.grant(1)
	use := func() {
		t.Helper()
		if _, err := v.Verify(t.Context(), token, b.peer(), verify.Scope("orders:read")); err != nil {
			t.Fatal(err)
		}
	}
	use()
	var bodies []string
	b.handle(wire.PathFeedUsage, func(w http.ResponseWriter, r *http.Request) {
		body := must(io.ReadAll(r.Body))(t)
		b.change(func() { bodies = append(bodies, string(body)) })
		if len(bodies) < 3 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	if err := v.Flush(t.Context()); err == nil {
		t.Error("a lost answer is no error")
	}
	use() // in the next report
	for try := 0; v.Flush(t.Context()) != nil; try++ {
		if try == 10 {
			t.Fatal("no report arrives")
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(bodies)
	if bodies[0] != bodies[n-2] || bodies[n-1] == bodies[0] || strings.Count(strings.Join(bodies[n-2:], ""), `"allowed":1,"refused":0,"scopes"`) != 2 {
		t.Errorf("got %q", bodies)
	}
}

// TestUsageIsBounded counts what finds no room, here and at the broker.
func TestUsageIsBounded(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.MaxUsage = 3 })
	b.handle(wire.PathFeedUsage, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	use := func(n int) {
		t.Helper()
		_, token := b.grant(n)
		if _, err := v.Verify(t.Context(), token, b.peer()); err != nil {
			t.Fatal(err)
		}
	}
	use(1)
	_ = v.Flush(t.Context()) // what waits for the broker takes room, too
	use(2)
	use(3)
	if got := v.Status().Unreported; got != 0 {
		t.Errorf("at the limit: %d were not counted", got)
	}
	use(4)
	use(5)
	if got := v.Status().Unreported; got != 2 {
		t.Errorf("beyond the limit: %d were not counted", got)
	}
	if err := v.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), "503") {
		t.Errorf("Flush: %v", err)
	}
	b.change(func() { delete(b.override, wire.PathFeedUsage) })
	if err := v.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	allowed, lost := total(b.reported())
	if allowed != 3 || lost != 2 {
		t.Errorf("%d were counted, %d lost: %+v", allowed, lost, b.reported())
	}
	use(4) // there is room again
	if got := v.Status().Unreported; got != 2 {
		t.Errorf("with room: %d were not counted", got)
	}
}

func total(reports []wire.UsageReport) (allowed, lost int64) {
	for _, r := range reports {
		lost += r.Lost
		for _, g := range r.Grants {
			allowed += g.Allowed
		}
	}
	return allowed, lost
}

// TestUsageThatIsRefused is not sent again, and counted as lost.
func TestUsageThatIsRefused(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	b.handle(wire.PathFeedUsage, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnprocessableEntity) })
	_, token := b.grant(1)
	if _, err := v.Verify(t.Context(), token, b.peer()); err != nil {
		t.Fatal(err)
	}
	if err := v.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), "422") {
		t.Errorf("Flush: %v", err)
	}
	if got := v.Status().Unreported; got != 1 {
		t.Errorf("%d were not counted", got)
	}
	b.change(func() { delete(b.override, wire.PathFeedUsage) })
	if err := v.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if allowed, lost := total(b.reported()); allowed != 0 || lost != 1 {
		t.Errorf("%d were counted, %d lost", allowed, lost)
	}
}

// TestUsageIsEarlyWhenThereIsMuch keeps the room from running out before its time.
func TestUsageIsEarlyWhenThereIsMuch(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.MaxUsage = 4 })
	for n := range 3 {
		_, token := b.grant(n)
		if _, err := v.Verify(t.Context(), token, b.peer()); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	eventually(t, "a report comes", func() bool { return len(b.reported()) > 0 })
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestNoUsage(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.NoUsage = true })
	if _, err := v.Verify(t.Context(), b.token(nil), b.peer()); err != nil {
		t.Fatal(err)
	}
	if err := v.Flush(t.Context()); err != nil || len(b.reported()) != 0 {
		t.Errorf("%v; %d reports", err, len(b.reported()))
	}
}

// TestUsageAddsUp: whatever is checked, sent, answered and lost in whatever order, each check is in
// exactly one report, or counted as lost.
func TestUsageAddsUp(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	tokens := make([]string, 6)
	for i := range tokens {
		_, tokens[i] = b.grant(i)
	}
	rapid.Check(t, func(rt *rapid.T) {
		b.change(func() { b.reports = nil; clear(b.override) })
		limit := rapid.IntRange(1, 8).Draw(rt, "room")
		c := b.config()
		c.MaxUsage = limit
		v := must(verify.New(within(t, 20*time.Second), c))(t)
		used := int64(0)
		for _, step := range rapid.SliceOfN(rapid.IntRange(0, 9), 1, 40).Draw(rt, "steps") {
			switch {
			case step < len(tokens):
				if _, err := v.Verify(t.Context(), tokens[step], b.peer()); err != nil {
					rt.Fatal(err)
				}
				used++
			case step == 6:
				b.handle(wire.PathFeedUsage, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
			case step == 7: // it arrives, and the answer does not
				b.handle(wire.PathFeedUsage, func(w http.ResponseWriter, r *http.Request) {
					b.serveUsage(discard{}, r)
					panic(http.ErrAbortHandler)
				})
			case step == 8:
				b.change(func() { clear(b.override) })
			default:
				_ = v.Flush(t.Context())
			}
		}
		b.change(func() { clear(b.override) })
		if err := v.Close(); err != nil {
			rt.Fatal(err)
		}
		seen := map[string]bool{} // as the broker's event IDs do it
		reports := slices.DeleteFunc(b.reported(), func(r wire.UsageReport) bool {
			again := seen[r.Batch]
			seen[r.Batch] = true
			return again
		})
		if allowed, lost := total(reports); allowed+lost != used || uint64(lost) != v.Status().Unreported {
			rt.Fatalf("%d checks: %d reported, %d lost, and %d by the status", used, allowed, lost, v.Status().Unreported)
		}
	})
}

// discard is an answer that goes nowhere.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

// TestUsageHoldsNobodyUp checks tokens while reports get no answer.
func TestUsageHoldsNobodyUp(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.MaxUsage = 2 })
	block, entered := make(chan struct{}), make(chan struct{}, 100)
	b.handle(wire.PathFeedUsage, func(w http.ResponseWriter, _ *http.Request) {
		entered <- struct{}{}
		<-block
		w.WriteHeader(http.StatusNoContent)
	})
	_, token := b.grant(1)
	if _, err := v.Verify(t.Context(), token, b.peer()); err != nil {
		t.Fatal(err)
	}
	var flush sync.WaitGroup
	flush.Go(func() { _ = v.Flush(t.Context()) })
	<-entered
	for n := range 10 {
		_, token := b.grant(n)
		if _, err := v.Verify(t.Context(), token, b.peer()); err != nil {
			t.Error(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a second Flush: %v", err)
	}
	close(block)
	flush.Wait()
}
