package server_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
)

// Faults of a store.
const (
	works = iota
	away  // it says at once that it is not there
	hangs // it says nothing
)

// faultyStore is a store that can be made to fail.
type faultyStore struct {
	broker.Store
	fault *atomic.Int32
}

func faulty[T any](ctx context.Context, s faultyStore, call func() (T, error)) (T, error) {
	var none T
	switch s.fault.Load() {
	case away:
		return none, broker.ErrUnavailable
	case hangs:
		<-ctx.Done()
		return none, broker.ErrUnconfirmed
	}
	return call()
}

func (s faultyStore) Grant(ctx context.Context, r broker.GrantRequest) (broker.GrantReply, error) {
	return faulty(ctx, s, func() (broker.GrantReply, error) { return s.Store.Grant(ctx, r) })
}

func (s faultyStore) End(ctx context.Context, r []broker.Ending) ([]broker.EndReply, error) {
	return faulty(ctx, s, func() ([]broker.EndReply, error) { return s.Store.End(ctx, r) })
}

func (s faultyStore) Heartbeat(ctx context.Context, r []broker.Beat) ([]broker.Pulse, error) {
	return faulty(ctx, s, func() ([]broker.Pulse, error) { return s.Store.Heartbeat(ctx, r) })
}

func (s faultyStore) Lookup(ctx context.Context, r broker.Ref) (broker.Record, error) {
	return faulty(ctx, s, func() (broker.Record, error) { return s.Store.Lookup(ctx, r) })
}

func (s faultyStore) List(ctx context.Context, q broker.Query) (broker.Page, error) {
	return faulty(ctx, s, func() (broker.Page, error) { return s.Store.List(ctx, q) })
}

func (s faultyStore) Watch(ctx context.Context, from broker.Position, emit func(broker.Update) error) error {
	return s.Store.Watch(ctx, from, func(u broker.Update) error {
		for s.fault.Load() == hangs { // a store notices by itself that its server is back
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(10 * time.Millisecond):
			}
		}
		_, err := faulty(ctx, s, func() (struct{}, error) { return struct{}{}, emit(u) })
		return err
	})
}

func (c *caller) endWith(id, key string) answer {
	return c.post(taskPath(id, "/end"), fmt.Sprintf(`{"outcome":"completed","end_key":%q}`, key))
}

// breakage is a way in which a store can fail, and be well again.
type breakage struct {
	store      func(broker.Store) broker.Store
	fail, mend func()
}

// breakages are made anew for each test.
var breakages = map[string]func(*testing.T) breakage{
	"away":         func(*testing.T) breakage { return failing(away) },
	"hangs":        func(*testing.T) breakage { return failing(hangs) },
	"Redis killed": func(t *testing.T) breakage { s := newRedis(t); return breakage{onRedis(t, s.URL()), s.Kill, s.Run} },
	"Redis paused": func(t *testing.T) breakage { s := newRedis(t); return breakage{onRedis(t, s.URL()), s.Pause, s.Resume} },

	"the network silent":  func(t *testing.T) breakage { return between(t, redistest.Fault{Silent: true}) },
	"the network deaf":    func(t *testing.T) breakage { return between(t, redistest.Fault{Deaf: true}) },
	"the network late":    func(t *testing.T) breakage { return between(t, redistest.Fault{Latency: 2 * time.Second}) },
	"the network slow":    func(t *testing.T) breakage { return between(t, redistest.Fault{Rate: 100, Slice: 10}) }, // bytes
	"the network refuses": func(t *testing.T) breakage { return between(t, redistest.Fault{Refuse: true}) },
}

func failing(with int32) breakage {
	fault := &atomic.Int32{}
	return breakage{
		store: func(s broker.Store) broker.Store { return faultyStore{s, fault} },
		fail:  func() { fault.Store(with) },
		mend:  func() { fault.Store(works) },
	}
}

// newRedis is a server that forgets nothing when it is killed.
func newRedis(t *testing.T) *redistest.Server {
	return redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
}

// between is a server that is well, behind a network that has a fault.
func between(t *testing.T, fault redistest.Fault) breakage {
	p := redistest.Between(t, newRedis(t).Addr())
	return breakage{
		store: onRedis(t, p.URL()),
		fail: func() {
			p.Set(fault)
			if fault.Refuse {
				p.Reset() // the connections that there are, too
			}
		},
		mend: func() { p.Set(redistest.Fault{}) },
	}
}

func onRedis(t *testing.T, url string) func(broker.Store) broker.Store {
	return func(broker.Store) broker.Store {
		store, err := redis.New(t.Context(), redis.Config{URL: url, Shards: 1, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		return store
	}
}

// outage is a replica whose store can fail, with two tasks of before.
type outage struct {
	*replica
	breakage
	v    *verify.Verifier
	c    *caller
	peer *verify.Peer

	ending, going wire.BeginResponse
}

func startOutage(t *testing.T, b breakage, stale time.Duration) *outage {
	o := &outage{breakage: b}
	o.replica = startFederated(t, nil, func(c *server.Config) { c.Store = b.store(c.Store) })
	o.v = o.verifierWithin(stale)
	o.c, o.peer = o.bearer(reportID)
	const patient = `{"name":"export","purpose":"FIN-212","lease_seconds":600,"tokens":[{"audience":"orders"}]}`
	o.ending, o.going = o.c.beginAs(patient), o.c.beginAs(patient)
	return o
}

func (o *outage) verify(begun wire.BeginResponse) error {
	_, err := o.v.Verify(o.t.Context(), begun.Tokens[0].AccessToken, o.peer, verify.Scope("orders:read"))
	return err
}

func (o *outage) receipt(a answer, status int) wire.Receipt {
	o.t.Helper()
	if a.status != status {
		o.t.Fatalf("got %d %s, want %d", a.status, a.body, status)
	}
	var r wire.Receipt
	a.into(o.t, &r)
	if r.Durable != (status == http.StatusOK) || r.Durable == (r.Feed == "") || r.State != wire.StateCompleted {
		o.t.Errorf("under %d: %+v", status, r)
	}
	return r
}

// TestP4_NotYetDurableIsSaid, and in force all the same: on the replica and at the verifiers that it
// serves, at once. When the store is back, it is durable by itself.
func TestP4_NotYetDurableIsSaid(t *testing.T) {
	for name, newBreakage := range breakages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := startOutage(t, newBreakage(t), verify.DefaultMaxStale)
			if err := o.verify(o.ending); err != nil {
				t.Fatal(err)
			}
			o.fail()
			id := o.ending.Task.ID
			told := o.receipt(o.c.endWith(id, o.ending.EndKey), http.StatusAccepted)
			answered := time.Now()
			o.eventually("the verifier refuses the token", func() bool { return errors.Is(o.verify(o.ending), verify.ErrRevoked) })
			if took := time.Since(answered); took > busy(time.Second) {
				t.Errorf("the verifier refused it after %s", took)
			}
			if again := o.receipt(o.c.end(id, "failed"), http.StatusAccepted); again != told {
				t.Errorf("repeated: %+v, at first %+v", again, told)
			}
			if metrics := o.ops("/metrics"); !strings.Contains(metrics, "errand_ends_pending 1\n") {
				t.Error("the metric does not show it")
			}
			o.mend()
			o.eventually("it is durable", func() bool { return o.c.end(id, "failed").status == http.StatusOK })
			if durable := o.receipt(o.c.end(id, "failed"), http.StatusOK); durable.Event != told.Event || durable.Grants != 1 {
				t.Errorf("durable: %+v, at first %+v", durable, told)
			}
			o.eventually("the feed has it", func() bool {
				var s wire.FeedSnapshot
				o.client(ordersID).get(wire.PathFeedSnapshot+"?aud=orders").into(t, &s)
				return len(s.Entries) == 1 && s.Entries[0].Number == 1 && s.Entries[0].ID == id
			})
			o.eventually("the verifier has it, too", func() bool { return strings.HasSuffix(o.v.Status().Position, ".1") })
			if err := o.verify(o.ending); !errors.Is(err, verify.ErrRevoked) {
				t.Error(err)
			}
			o.eventually("nothing is pending", func() bool { return strings.Contains(o.ops("/metrics"), "errand_ends_pending 0\n") })
		})
	}
}

// TestP10_StoreAway: nothing is issued and all is answered in time, only an end key ends something,
// keys stay up, verifiers refuse when they are too old, and all of it heals by itself.
func TestP10_StoreAway(t *testing.T) {
	for name, newBreakage := range breakages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := startOutage(t, newBreakage(t), verify.MinMaxStale)
			unsure := o.c.begin().Task.ID // what was said of it may have happened, or happen yet
			o.fail()
			going := o.going.Task.ID
			for what, call := range map[string]func() answer{
				"begin":     func() answer { return o.c.post(wire.PathTasks, beginBody) },
				"issue":     func() answer { return o.c.post(taskPath(going, "/tokens"), `{"audience":"orders"}`) },
				"heartbeat": func() answer { return o.c.post(wire.PathHeartbeats, fmt.Sprintf(`{"tasks":[{"id":%q}]}`, going)) },
				"task":      func() answer { return o.c.get(taskPath(going, "")) },
				"end":       func() answer { return o.c.end(unsure, "completed") },
				"wrong key": func() answer { return o.c.endWith(unsure, o.ending.EndKey) },
			} {
				start := time.Now()
				a := call()
				if a.status != http.StatusServiceUnavailable || a.name() != wire.ProblemStoreUnavailable || a.header.Get("Retry-After") == "" {
					t.Errorf("%s: %d %s", what, a.status, a.body)
				}
				if took := time.Since(start); took > busy(time.Second) {
					t.Errorf("%s: an answer after %s", what, took)
				}
			}
			if a := o.c.endWith(going, "end_1.x"); a.status != http.StatusUnprocessableEntity || a.problem.Field != "end_key" {
				t.Errorf("what is no key: %d %s", a.status, a.body)
			}
			o.receipt(o.c.endWith(o.ending.Task.ID, o.ending.EndKey), http.StatusAccepted)
			o.eventually("the verifier is too old", func() bool { return errors.Is(o.verify(o.going), verify.ErrStale) })
			o.eventually("the replica is not ready", func() bool { return o.Ready() != nil })
			for _, path := range []string{wire.PathJWKS, wire.PathMetadata, "/healthz"} {
				if a := o.public(path, nil); a.status != http.StatusOK {
					t.Errorf("%s: %d %s", path, a.status, a.body)
				}
			}
			o.mend()
			o.eventually("the replica is ready", func() bool { return o.Ready() == nil })
			o.eventually("the verifier accepts a live token", func() bool { return o.verify(o.going) == nil })
			if err := o.verify(o.ending); !errors.Is(err, verify.ErrRevoked) {
				t.Errorf("the ended one: %v", err)
			}
			o.c.begin()
		})
	}
}

// ops reads from the ops listener.
func (r *replica) ops(path string) string {
	r.t.Helper()
	resp, err := http.Get("http://" + r.OpsAddr() + path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return string(body)
}
