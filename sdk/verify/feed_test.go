package verify_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// refused reports what Verify says of a token.
func refused(tb testing.TB, v *verify.Verifier, b *broker, token string) error {
	tb.Helper()
	_, err := v.Verify(tb.Context(), token, b.peer())
	return err
}

// goesTo waits until Verify says want of the token.
func goesTo(tb testing.TB, v *verify.Verifier, b *broker, token string, want error) {
	tb.Helper()
	eventually(tb, fmt.Sprintf("%v", want), func() bool { return errors.Is(refused(tb, v, b, token), want) })
}

// denyMany denies so many grants, which are gnt_00 and a number from 1 on. An event has a thousand at
// most, or it could be too long.
func denyMany(tb testing.TB, v *verify.Verifier, b *broker, n int) {
	tb.Helper()
	for begin := 1; begin <= n; begin += 1000 {
		b.change(func() {
			for i := begin; i < min(begin+1000, n+1); i++ {
				b.add(wire.FeedEntry{Kind: wire.KindGrant, ID: fmt.Sprintf("gnt_00%026d", i), Until: time.Now().Add(time.Hour)})
			}
		})
		settled(tb, v, b)
	}
}

// settled waits until the verifier is where the broker is.
func settled(tb testing.TB, v *verify.Verifier, b *broker) {
	tb.Helper()
	eventually(tb, "the verifier is up to date", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return v.Status().Position == b.position.String()
	})
}

func TestDenials(t *testing.T) {
	delegator := "spiffe://example.org/teams/a/chief"
	cases := []struct {
		name string
		deny wire.FeedEntry
		edit func(map[string]any)
		dead bool
	}{
		{"the grant", wire.FeedEntry{Kind: wire.KindGrant, ID: grantID}, nil, true},
		{"another grant", wire.FeedEntry{Kind: wire.KindGrant, ID: "gnt_00zzz"}, nil, false},
		{"the task", wire.FeedEntry{Kind: wire.KindTask, ID: childTask}, nil, true},
		{"the root task", wire.FeedEntry{Kind: wire.KindTask, ID: rootTask}, nil, true},
		{"all", wire.FeedEntry{Kind: wire.KindAll}, nil, true},
		{"a kind of the future", wire.FeedEntry{Kind: "label", ID: "x"}, nil, true},
		{"the subject", wire.FeedEntry{Kind: wire.KindSelector, Subject: agentID}, nil, true},
		{"the start of the subject", wire.FeedEntry{Kind: wire.KindSelector, Subject: agentID[:len(agentID)-1]}, nil, false},
		{"everything beside the subject", wire.FeedEntry{Kind: wire.KindSelector, Subject: "spiffe://example.org/agents/*"}, nil, true},
		{"the trust domain", wire.FeedEntry{Kind: wire.KindSelector, Subject: "spiffe://example.org/*"}, nil, true},
		{"half a segment", wire.FeedEntry{Kind: wire.KindSelector, Subject: "spiffe://example.org/agent/*"}, nil, false},
		{"everything below the subject", wire.FeedEntry{Kind: wire.KindSelector, Subject: agentID + "/*"}, nil, false},
		{"a pattern of the future", wire.FeedEntry{Kind: wire.KindSelector, Subject: "spiffe://*/x"}, nil, true},
		{"the scope", wire.FeedEntry{Kind: wire.KindSelector, Scope: "orders:write"}, nil, true},
		{"another scope", wire.FeedEntry{Kind: wire.KindSelector, Scope: "orders"}, nil, false},
		{"the audience", wire.FeedEntry{Kind: wire.KindSelector, Audience: audience}, nil, true},
		{"another audience", wire.FeedEntry{Kind: wire.KindSelector, Audience: "invoices"}, nil, false},
		{"subject and another scope", wire.FeedEntry{Kind: wire.KindSelector, Subject: agentID, Scope: "x"}, nil, false},
		{"the delegator", wire.FeedEntry{Kind: wire.KindSelector, Subject: delegator}, nil, true},
		{"an inner actor", wire.FeedEntry{Kind: wire.KindSelector, Subject: "spiffe://example.org/inner/*"}, nil, true},
		{"a selector of another shard", wire.FeedEntry{Shard: 1, Kind: wire.KindSelector, Subject: agentID}, nil, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 2)
			v := b.verifier(nil)
			edit := func(claims map[string]any) {
				claims["sub"] = delegator
				deep(3)(claims)
				claims["act"] = map[string]any{"sub": agentID, "act": map[string]any{"sub": "spiffe://example.org/inner/one"}}
			}
			before := b.token(edit)
			if err := refused(t, v, b, before); err != nil {
				t.Fatal(err)
			}
			b.deny(c.deny)
			settled(t, v, b)
			if err := refused(t, v, b, before); errors.Is(err, verify.ErrRevoked) != c.dead || !c.dead && err != nil {
				t.Errorf("a token from before: %v", err)
			}
			// What names nothing in particular kills only what was there.
			if c.deny.Kind == wire.KindGrant || c.deny.Kind == wire.KindTask {
				return
			}
			if err := refused(t, v, b, b.token(edit)); err != nil {
				t.Errorf("a token from after: %v", err)
			}
		})
	}
}

func TestDeniedBeforeTheStart(t *testing.T) {
	b := newBroker(t, 1)
	token := b.token(nil)
	b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: rootTask})
	if err := refused(t, b.verifier(nil), b, token); !errors.Is(err, verify.ErrRevoked) || err.Error() != "revoked" {
		t.Errorf("got %v", err)
	}
}

func TestDeniedKey(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	token := b.token(nil)
	fetched := b.fetches.Load()
	b.deny(wire.FeedEntry{Kind: wire.KindKey, ID: b.key.kid, Until: time.Now().Add(-time.Hour)})
	goesTo(t, v, b, token, verify.ErrRevoked)
	if err := refused(t, v, b, b.token(nil)); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("a token that the key signs afterwards: %v", err)
	}
	eventually(t, "the key set is fetched again", func() bool { return b.fetches.Load() > fetched })
	// A new data set does not make a stolen key good again: its holder can write any epoch.
	b.change(func() { b.newEpoch() })
	eventually(t, "the verifier is fresh in the next epoch", func() bool {
		err := refused(t, v, b, b.token(nil))
		if err == nil {
			t.Fatal("accepted in the next epoch")
		}
		return errors.Is(err, verify.ErrRevoked)
	})
}

// newEpoch is called by change.
func (b *broker) newEpoch() {
	b.position = wire.Position{Epoch: b.position.Epoch + 1, Numbers: make([]uint64, len(b.position.Numbers))}
	b.entries = nil
}

// TestP9_NewEpochKillsEverythingOlder: a data set that was lost and made again brings no old token back.
func TestP9_NewEpochKillsEverythingOlder(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: "tsk_00zzz"})
	settled(t, v, b)
	token := b.token(nil)
	b.change(b.newEpoch)
	goesTo(t, v, b, token, verify.ErrRevoked)
	settled(t, v, b)
	goesTo(t, v, b, b.token(nil), nil)
	if n := v.Status().Entries; n != 0 {
		t.Errorf("%d entries of the old epoch are held", n)
	}
}

func TestNewEpochByPositionAlone(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.MaxStale = verify.MinMaxStale })
	token := b.token(nil)
	b.handle(wire.PathFeedPosition, func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, wire.FeedPosition{Nonce: r.URL.Query().Get("nonce"), Position: fmt.Sprintf("%d.0", epoch+5)})
	})
	goesTo(t, v, b, token, verify.ErrStale)
	if v.Ready() == nil {
		t.Error("ready, although the new epoch's denials are not known")
	}
}

// TestStreamGone asks for a position that the broker does not know (410), and for one that a reset
// interrupts.
func TestStreamGone(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	v := b.verifier(nil)
	eventually(t, "the stream is open", func() bool { return v.Status().Connected })
	snaps, streams := b.snaps.Load(), b.streamed.Load()
	b.write("event: reset\ndata: {}\n\n")
	eventually(t, "the stream is opened again", func() bool { return b.streamed.Load() > streams })
	if got := b.snaps.Load(); got != snaps {
		t.Errorf("a reset within the epoch took %d snapshots", got-snaps)
	}
	gone := atomic.Int64{}
	b.handle(wire.PathFeed, func(w http.ResponseWriter, _ *http.Request) {
		gone.Add(1)
		w.WriteHeader(http.StatusGone)
	})
	b.write("event: reset\ndata: {}\n\n")
	eventually(t, "a snapshot is taken", func() bool { return b.snaps.Load() > snaps })
	b.handle(wire.PathFeed, nil)
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID})
	goesTo(t, v, b, b.token(nil), verify.ErrRevoked)
}

// TestResume loses the connection and misses a denial, which the next stream brings.
func TestResume(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	eventually(t, "the stream is open", func() bool { return v.Status().Connected })
	snaps, token := b.snaps.Load(), b.token(nil)
	b.cut()
	eventually(t, "the stream is lost", func() bool { return !v.Status().Connected })
	b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: rootTask})
	b.mend()
	goesTo(t, v, b, token, verify.ErrRevoked)
	if got := b.snaps.Load(); got != snaps {
		t.Errorf("it took %d snapshots", got-snaps)
	}
}

// TestSnapshotIsUnited takes a snapshot that lacks what is known already.
func TestSnapshotIsUnited(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	token := b.token(nil)
	b.deny(wire.FeedEntry{Kind: wire.KindTask, ID: rootTask})
	goesTo(t, v, b, token, verify.ErrRevoked)
	snaps := b.snaps.Load()
	b.change(func() { b.entries = nil })
	b.write("event: denials\nid: junk\ndata: {}\n\n")
	eventually(t, "a snapshot is taken", func() bool { return b.snaps.Load() > snaps })
	settled(t, v, b)
	if err := refused(t, v, b, token); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("a snapshot un-revoked a token: %v", err)
	}
}

// TestEarlyEntries come without an id: they count, and move nobody's position.
func TestEarlyEntries(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	eventually(t, "the stream is open", func() bool { return v.Status().Connected })
	token, at := b.token(nil), v.Status().Position
	data := marshal(t, wire.FeedEvent{Entries: []wire.FeedEntry{{Kind: wire.KindTask, ID: rootTask, Until: time.Now().Add(time.Minute)}}})
	b.write("event: denials\ndata: " + string(data) + "\n\n")
	goesTo(t, v, b, token, verify.ErrRevoked)
	if got := v.Status().Position; got != at {
		t.Errorf("the position went from %s to %s", at, got)
	}
}

// TestFeedFromThePast hears a replica that is behind, or of a restored data set.
func TestFeedFromThePast(t *testing.T) {
	for name, position := range map[string]string{
		"lower number": fmt.Sprintf("%d.1.3", uint64(epoch)), "lower epoch": fmt.Sprintf("%d.9.9", epoch-1), "other shards": fmt.Sprintf("%d.9", uint64(epoch)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 2)
			b.position.Numbers = []uint64{2, 2}
			v := b.verifier(nil)
			eventually(t, "the stream is open", func() bool { return v.Status().Connected })
			streams, ignored, at := b.streamed.Load(), v.Status().Ignored, v.Status().Position
			b.write(fmt.Sprintf("event: beat\nid: %s\ndata: {\"position\":%q}\n\n", position, position))
			eventually(t, "it is counted, and the stream opened again", func() bool {
				return b.streamed.Load() > streams && v.Status().Ignored > ignored
			})
			if got := v.Status().Position; got != at {
				t.Errorf("the position went from %s to %s", at, got)
			}
			goesTo(t, v, b, b.token(nil), nil)
		})
	}
}

// TestJunkInTheStream must not stop the verifier from hearing what comes next, nor be believed.
func TestJunkInTheStream(t *testing.T) {
	at := fmt.Sprintf("%d.0", uint64(epoch))
	until := time.Now().Add(time.Minute).UTC().Format(time.RFC3339)
	for name, junk := range map[string]string{
		"not JSON":           "event: denials\nid: " + at + "\ndata: <html>\n\n",
		"array":              "event: denials\nid: " + at + "\ndata: []\n\n",
		"position missing":   "event: denials\nid: " + at + "\ndata: {}\n\n",
		"position twice":     "event: beat\nid: " + at + "\ndata: {\"position\":\"" + at + "\",\"position\":\"" + at + "\"}\n\n",
		"id is not position": "event: beat\nid: " + at + "9\ndata: {\"position\":\"" + at + "\"}\n\n",
		"epoch 0":            "event: beat\nid: 0.0\ndata: {\"position\":\"0.0\"}\n\n",
		"shard -1":           "event: denials\ndata: {\"entries\":[{\"shard\":-1,\"number\":1,\"kind\":\"all\",\"until\":\"" + until + "\"}]}\n\n",
		"shard 1 of 1":       "event: denials\ndata: {\"entries\":[{\"shard\":1,\"number\":1,\"kind\":\"all\",\"until\":\"" + until + "\"}]}\n\n",
		"nobody's ID":        "event: denials\ndata: {\"entries\":[{\"shard\":0,\"number\":1,\"kind\":\"task\",\"until\":\"" + until + "\"}]}\n\n",
		"no until":           "event: denials\ndata: {\"entries\":[{\"shard\":0,\"number\":1,\"kind\":\"task\",\"id\":\"x\"}]}\n\n",
		"all of no number":   "event: denials\ndata: {\"entries\":[{\"shard\":0,\"kind\":\"all\",\"until\":\"" + until + "\"}]}\n\n",
		"line of 2 MiB":      "data: " + strings.Repeat("x", 2<<20) + "\n\n",
		"event of 2 MiB":     strings.Repeat("data: "+strings.Repeat("x", 1<<10)+"\n", 2<<10) + "\n",
		"binary":             "\x00\xff\xfe\x00\n\nevent: denials\nid: \x00\ndata: \x00\n\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			v := b.verifier(nil)
			eventually(t, "the stream is open", func() bool { return v.Status().Connected })
			snaps := b.snaps.Load()
			b.write(junk)
			eventually(t, "a snapshot is taken", func() bool { return b.snaps.Load() > snaps })
			token := b.token(nil)
			goesTo(t, v, b, token, nil)
			b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID})
			goesTo(t, v, b, token, verify.ErrRevoked)
		})
	}
}

func TestUnknownEventsAreCounted(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	eventually(t, "the stream is open", func() bool { return v.Status().Connected })
	streams := b.streamed.Load()
	b.write("event: news\nid: 7\ndata: anything\n\n: a comment\n\nretry: 1\n\n")
	eventually(t, "it is counted", func() bool { return v.Status().Ignored == 1 })
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID})
	goesTo(t, v, b, b.token(nil), verify.ErrRevoked)
	if b.streamed.Load() != streams {
		t.Error("the stream was given up")
	}
}

// TestStaleAndBack cuts the broker off, waits for 503s and mends it.
func TestStaleAndBack(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	var ages []time.Duration
	var mu sync.Mutex
	v := b.verifier(func(c *verify.Config) {
		c.MaxStale = verify.MinMaxStale
		c.Hooks.OnStale = func(age time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			ages = append(ages, age)
		}
	})
	if err := v.Ready(); err != nil {
		t.Fatal(err)
	}
	token := b.token(nil)
	b.cut()
	goesTo(t, v, b, token, verify.ErrStale)
	if err := v.Ready(); !errors.Is(err, verify.ErrStale) {
		t.Errorf("Ready: %v", err)
	}
	eventually(t, "the hook is called", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(ages) == 1 && ages[0] > verify.MinMaxStale
	})
	if v.Status().LastError == "" {
		t.Error("no error is told")
	}
	b.mend()
	goesTo(t, v, b, token, nil)
	if err := v.Ready(); err != nil {
		t.Error(err)
	}
}

// TestP2_NothingIsAcceptedWithoutTheBroker is the promise that a revocation reaches verifiers that
// hear nothing: after S + 1 s they accept nothing at all.
func TestP2_NothingIsAcceptedWithoutTheBroker(t *testing.T) {
	t.Parallel()
	const bound = verify.MinMaxStale + time.Second
	ways := map[string]func(*broker){
		"connections break": (*broker).cut,
		"answers stop": func(b *broker) {
			hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
			b.handle(wire.PathFeedPosition, hang)
			b.handle(wire.PathFeed, hang)
			b.handle(wire.PathFeedSnapshot, hang)
			b.private.CloseClientConnections()
		},
		"the stream is held back": func(b *broker) {
			b.change(func() {
				b.held = true
				b.add(wire.FeedEntry{Kind: wire.KindTask, ID: rootTask})
			})
		},
		"answers are old": func(b *broker) { b.change(func() { b.age = time.Hour }) },
		"answers are of another nonce": func(b *broker) {
			b.handle(wire.PathFeedPosition, func(w http.ResponseWriter, _ *http.Request) {
				writeJSON(w, wire.FeedPosition{Nonce: "x", Position: fmt.Sprintf("%d.0", uint64(epoch))})
			})
		},
		"answers are from the past": func(b *broker) {
			b.handle(wire.PathFeedPosition, func(w http.ResponseWriter, r *http.Request) {
				writeJSON(w, wire.FeedPosition{Nonce: r.URL.Query().Get("nonce"), Position: fmt.Sprintf("%d.0", epoch-1)})
			})
		},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBroker(t, 1)
			v := b.verifier(func(c *verify.Config) { c.MaxStale = verify.MinMaxStale })
			token := b.token(func(c map[string]any) { c["exp"] = c["iat"].(int64) + 900 })
			goesTo(t, v, b, token, nil)
			cut := time.Now()
			way(b)
			for {
				began := time.Now()
				err := refused(t, v, b, token)
				if err == nil && began.Sub(cut) > bound {
					t.Fatalf("accepted %s after the broker was cut off", began.Sub(cut))
				}
				if began.Sub(cut) > bound+500*time.Millisecond {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
}

// TestTimeJumps makes the view old from one moment to the next, with no timer in between.
func TestTimeJumps(t *testing.T) {
	b := newBroker(t, 1)
	var ahead atomic.Int64
	v := b.verifier(func(c *verify.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	token := b.token(nil)
	b.handle(wire.PathFeedPosition, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	ahead.Store(int64(verify.DefaultMaxStale + time.Second))
	if err := refused(t, v, b, token); !errors.Is(err, verify.ErrStale) {
		t.Errorf("got %v", err)
	}
}

// TestOnStaleAccept is the named relaxation: the feed's age alone does not refuse, and is counted.
func TestOnStaleAccept(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	var told atomic.Uint64
	v := b.verifier(func(c *verify.Config) {
		c.MaxStale, c.OnStale = verify.MinMaxStale, verify.Accept
		c.Hooks.OnAcceptStale = func(_ context.Context, g *verify.Grant) {
			if g.ID == grantID {
				told.Add(1)
			}
		}
	})
	token := b.token(nil)
	denied := b.token(func(c map[string]any) { c["jti"] = "gnt_00dddddddddddddddddddddddddd" })
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: "gnt_00dddddddddddddddddddddddddd"})
	goesTo(t, v, b, denied, verify.ErrRevoked)
	b.cut()
	eventually(t, "the view is too old", func() bool { return v.Ready() != nil })
	if err := refused(t, v, b, token); err != nil {
		t.Error(err)
	}
	if n := v.Status().AcceptedStale; n != 1 || told.Load() != 1 {
		t.Errorf("it was counted %d times, and told %d times", n, told.Load())
	}
	if _, err := v.Verify(t.Context(), token, nil); !errors.Is(err, verify.ErrUnbound) || v.Status().AcceptedStale != 1 {
		t.Errorf("of a thief: %v, and %d were counted", err, v.Status().AcceptedStale)
	}
	if err := refused(t, v, b, denied); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("what is known to be dead: %v", err)
	}
	next := b.token(func(c map[string]any) { c["ep"] = []uint64{epoch + 1, 0} })
	if err := refused(t, v, b, next); !errors.Is(err, verify.ErrStale) {
		t.Errorf("a token of an epoch that is not known: %v", err)
	}
}

// TestFull fills the view: it is stale, and forgets nothing, until there is room.
func TestFull(t *testing.T) {
	t.Parallel()
	b := newBroker(t, 1)
	v := b.verifier(func(c *verify.Config) { c.MaxEntries = 3 })
	token := b.token(nil)
	dead := b.token(func(c map[string]any) { c["jti"] = "gnt_00x0" })
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: "gnt_00x0"})
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: "gnt_00x1"})
	b.deny(wire.FeedEntry{Kind: wire.KindSelector, Subject: serverID})
	settled(t, v, b)
	if err := refused(t, v, b, token); err != nil {
		t.Fatalf("at the limit: %v", err)
	}
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: "gnt_00x3"})
	goesTo(t, v, b, token, verify.ErrStale)
	if err := refused(t, v, b, dead); !errors.Is(err, verify.ErrStale) {
		t.Errorf("a dead token: %v", err)
	}
	if v.Ready() == nil {
		t.Error("it is ready")
	}
	// Something else may have gone wrong last, on a busy machine.
	eventually(t, "the last error names MaxEntries", func() bool { return strings.Contains(v.Status().LastError, "MaxEntries") })
	b.change(b.newEpoch)
	goesTo(t, v, b, b.token(nil), nil)
}

// TestOnApply is told of each denial, when it already holds.
func TestOnApply(t *testing.T) {
	b := newBroker(t, 1)
	told := make(chan wire.FeedEntry, 4)
	v := b.verifier(func(c *verify.Config) { c.Hooks.OnApply = func(e wire.FeedEntry) { told <- e } })
	token := b.token(nil)
	b.deny(wire.FeedEntry{Kind: wire.KindGrant, ID: grantID})
	if e := <-told; e.ID != grantID {
		t.Errorf("told of %v", e)
	}
	if err := refused(t, v, b, token); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("when the hook was called: %v", err)
	}
}
