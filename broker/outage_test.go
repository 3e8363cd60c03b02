package broker_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

// awayStore is a store that goes away and comes back.
type awayStore struct {
	broker.Store
	away *atomic.Bool
}

func (s awayStore) Grant(ctx context.Context, r broker.GrantRequest) (broker.GrantReply, error) {
	if s.away.Load() {
		return broker.GrantReply{}, broker.ErrUnavailable
	}
	return s.Store.Grant(ctx, r)
}

func (s awayStore) End(ctx context.Context, r []broker.Ending) ([]broker.EndReply, error) {
	if s.away.Load() {
		return nil, broker.ErrUnavailable
	}
	return s.Store.End(ctx, r)
}

func (s awayStore) Lookup(ctx context.Context, r broker.Ref) (broker.Record, error) {
	if s.away.Load() {
		return broker.Record{}, broker.ErrUnavailable
	}
	return s.Store.Lookup(ctx, r)
}

func (s awayStore) Watch(ctx context.Context, from broker.Position, emit func(broker.Update) error) error {
	if s.away.Load() {
		return broker.ErrUnavailable
	}
	return s.Store.Watch(ctx, from, func(u broker.Update) error {
		if s.away.Load() {
			return broker.ErrUnavailable
		}
		return emit(u)
	})
}

// TestP10_StoreAway: nothing is issued and nothing is said to have ended while the store is away; the
// replica stops being ready, and all of it heals by itself.
func TestP10_StoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		away := &atomic.Bool{}
		h := newHarness(t, awayStore{store, away}, nil)
		begun := h.begin(report, withToken)
		away.Store(true)
		start := time.Now()
		_, err = h.tryBegin(report, withToken)
		want(t, err, broker.ErrUnavailable)
		_, err = h.Issue(ctx, workload(report), begun.Task.ID, broker.TokenRequest{Audience: "orders"})
		want(t, err, broker.ErrUnavailable)
		_, err = h.End(ctx, workload(report), begun.Task.ID, broker.EndRequest{State: broker.Completed})
		want(t, err, broker.ErrUnavailable)
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %s to say so", took)
		}
		time.Sleep(3 * time.Second)
		want(t, h.Ready(), broker.ErrNotReady)
		if p, err := h.feed.Position("n"); err != nil || p.AgeMS < 2500 {
			t.Errorf("the feed claims an age of %d ms, %v", p.AgeMS, err)
		}
		away.Store(false)
		time.Sleep(time.Second)
		if err := h.Ready(); err != nil {
			t.Error(err)
		}
		h.end(report, begun.Task.ID)
		if !h.names("orders", string(begun.Task.ID)) {
			t.Error("the end after the outage is not on the feed")
		}
	})
}

// unsureStore commits and then says that it does not know.
type unsureStore struct {
	broker.Store
	unsure *atomic.Bool
}

func (s unsureStore) Grant(ctx context.Context, r broker.GrantRequest) (broker.GrantReply, error) {
	reply, err := s.Store.Grant(ctx, r)
	if s.unsure.Load() {
		return broker.GrantReply{}, broker.ErrUnconfirmed
	}
	return reply, err
}

// TestAnUnknownOutcomeIsNeverSigned: and repeating with the same key finds what was committed.
func TestAnUnknownOutcomeIsNeverSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		unsure := &atomic.Bool{}
		h := newHarness(t, unsureStore{store, unsure}, nil)
		with := func(r *broker.BeginRequest) { withToken(r); r.Key = "k" }
		unsure.Store(true)
		_, err = h.tryBegin(report, with)
		want(t, err, broker.ErrUnconfirmed)
		unsure.Store(false)
		again := h.begin(report, with)
		page, err := store.List(ctx, broker.Query{})
		if err != nil || len(page.Tasks) != 1 || page.Tasks[0].ID != again.Task.ID || !again.Replayed || len(again.Tokens) != 1 {
			t.Errorf("%+v after an unknown outcome, %v", page.Tasks, err)
		}
		if n := len(h.audit.of(broker.EventGrantIssued)); n != 1 {
			t.Errorf("%d grants are in the audit log", n)
		}
	})
}
