package server_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/feed"
	"github.com/errandhq/errand/broker/policy"
	"github.com/errandhq/errand/broker/token"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// breakingLog is an audit log in memory that takes nothing once it is broken.
type breakingLog struct {
	mu     sync.Mutex
	broken bool
	events []broker.Event
}

func (l *breakingLog) Record(_ context.Context, events ...broker.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken {
		return errors.New("no space left on device")
	}
	l.events = append(l.events, events...)
	return nil
}

func (l *breakingLog) break_() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = true
}

func (l *breakingLog) reconciled() map[broker.EventID]broker.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[broker.EventID]broker.Event{}
	for _, e := range l.events {
		if e.Reconciled {
			out[e.ID] = e
		}
	}
	return out
}

// lone starts a broker on the site's Redis, with nothing around it. kill cuts it off from that, and stops it.
func (s *site) lone(log *breakingLog) (b *broker.Broker, kill func()) {
	s.t.Helper()
	proxy := redistest.Between(s.t, s.redis.Addr())
	store, err := redis.New(s.t.Context(), redis.Config{URL: proxy.URL(), Shards: s.shards})
	if err != nil {
		s.t.Fatal(err)
	}
	ring, err := keys.New(keys.Config{Type: wire.TokenType, Life: broker.MaxTokenLife})
	if err != nil {
		s.t.Fatal(err)
	}
	minter, err := token.NewMinter("https://issuer.test", ring)
	if err != nil {
		s.t.Fatal(err)
	}
	if b, err = broker.New(broker.Config{
		Store: store, Board: store, Registry: s.known, Policy: policy.Ceiling{Revision: s.known.Revision}, Minter: minter, Auditor: log,
		Announcer: feed.New(feed.Config{}), EndKeySecret: make([]byte, broker.EndKeySecretSize),
	}); err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = b.Run(ctx) }()
	kill = sync.OnceFunc(func() {
		proxy.Set(redistest.Fault{Refuse: true})
		proxy.Reset()
		cancel()
		<-done
		store.Close()
	})
	s.t.Cleanup(kill)
	for deadline := time.Now().Add(30 * time.Second); b.Ready() != nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatal(b.Ready())
		}
	}
	return b, kill
}

// TestP12_AnEndIsRecordedForAKilledReplica on a real Redis: of tasks in all shards, with tokens and without, below others, and
// of grants that were revoked by themselves.
func TestP12_AnEndIsRecordedForAKilledReplica(t *testing.T) {
	for _, shards := range []int{1, 4} {
		t.Run(fmt.Sprint(shards, " shards"), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, shards)
			first, second := &breakingLog{}, &breakingLog{}
			one, kill := s.lone(first)
			want := endUnrecorded(t, one, first)
			kill()
			killed := time.Now()
			s.lone(second)
			var got map[broker.EventID]broker.Event
			for len(got) < len(want) && time.Since(killed) < broker.RecordBound {
				time.Sleep(20 * time.Millisecond)
				got = second.reconciled()
			}
			t.Logf("%d ends were recorded after %s", len(got), time.Since(killed).Round(time.Millisecond))
			for id, r := range want {
				e, ok := got[id]
				if !ok || !e.Time.Equal(r.Ended) || e.State != r.State || e.Cause != r.Cause || e.Reason != r.Reason || e.Task != r.Task && r.Grant == "" || e.Grant != r.Grant ||
					e.Grants != r.Grants || e.Owner != "team-fin" || e.Purpose != "p" {
					t.Errorf("of %+v: %t, %+v", r, ok, e)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d events for %d ends", len(got), len(want))
			}
		})
	}
}

// endUnrecorded ends things in all ways that leave another trace, and records none of that.
func endUnrecorded(t *testing.T, b *broker.Broker, log *breakingLog) map[broker.EventID]broker.Receipt {
	t.Helper()
	ctx := t.Context()
	begin := func(i int, edit func(*broker.BeginRequest)) (broker.Workload, broker.Begun) {
		t.Helper()
		w := broker.Workload{ID: spiffeid.RequireFromString(workloadName(i)), Thumbprint: "thumb", NotAfter: time.Now().Add(time.Hour), Address: "192.0.2.1:1"}
		req := broker.BeginRequest{Name: "n", Purpose: "p"}
		if edit != nil {
			edit(&req)
		}
		begun, err := b.Begin(ctx, w, req)
		if err != nil {
			t.Fatal(err)
		}
		return w, begun
	}
	withToken := func(r *broker.BeginRequest) { r.Tokens = []broker.TokenRequest{{Audience: "orders"}} }
	var ends []func() (broker.Receipt, error)
	for i := range workloads {
		w, begun := begin(i, []func(*broker.BeginRequest){nil, withToken}[i%2])
		parent := begun.Task.ID
		_, child := begin(i, func(r *broker.BeginRequest) { withToken(r); r.Parent = parent })
		_, other := begin(i, withToken)
		grant := other.Tokens[0].Grant.ID
		for _, id := range []broker.TaskID{child.Task.ID, parent} {
			ends = append(ends, func() (broker.Receipt, error) {
				return b.End(ctx, w, id, broker.EndRequest{State: broker.Failed, Reason: "because"})
			})
		}
		ends = append(ends, func() (broker.Receipt, error) {
			return b.Revoke(ctx, broker.Revocation{Grant: grant, Actor: "ada", Reason: "INC"})
		})
	}
	time.Sleep(3 * time.Second) // what came before is told to be recorded
	log.break_()
	var mu sync.Mutex
	want := map[broker.EventID]broker.Receipt{}
	var all sync.WaitGroup
	for part := range slices.Chunk(ends, 3) {
		all.Go(func() {
			for _, end := range part {
				receipt, err := end()
				if err != nil || !receipt.First {
					t.Errorf("%+v, %v", receipt, err)
				}
				mu.Lock()
				want[receipt.Event] = receipt
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return want
}
