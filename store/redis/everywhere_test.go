package redis_test

import (
	"bytes"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

// TestP14ManySelectors: as many selectors as a revocation may have do not wait for each other. They would take too long together
// where the way to Redis is long.
func TestP14ManySelectors(t *testing.T) {
	t.Parallel()
	s := start(t)
	var sent atomic.Int32
	const reason = "in how many pieces is this sent"
	store := s.open(t, redis.Config{Shards: 4, URL: "redis://" + between(t, s.Addr(), func() func([]byte) ([]byte, bool) {
		return func(piece []byte) ([]byte, bool) {
			if bytes.Contains(piece, []byte(reason)) {
				sent.Add(1)
			}
			return nil, true
		}
	})}.Patient())
	var ends []broker.Ending
	for i := range broker.MaxSelectors {
		ends = append(ends, broker.Ending{
			Kind: broker.TargetSelector, Selector: broker.Selector{Audience: fmt.Sprintf("a%d", i)}, Event: broker.NewEventID(),
			State: broker.Revoked, Cause: broker.CauseOperator, Reason: reason,
		})
	}
	replies, err := store.End(t.Context(), ends)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range replies {
		if p := r.Receipt.Feed; r.Err != nil || r.Receipt.Event != ends[i].Event || len(p.Numbers) != 4 || i > 0 && p.Numbers[3] <= replies[i-1].Receipt.Feed.Numbers[3] {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if n := sent.Load(); n > broker.MaxSelectors/2 {
		t.Errorf("%d selectors were sent in %d pieces", len(ends), n)
	}
}

// TestLiftedLockStaysLifted: a lock that has been lifted is not made anew in a shard that lacks it, however often the lock is
// repeated.
func TestLiftedLockStaysLifted(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{Shards: 2}.Patient())
	lock := broker.Lock{ID: broker.NewLockID(), Reason: "why", Expires: time.Now().Add(time.Hour)}
	end(t, store, broker.Ending{Kind: broker.TargetLock, Lock: lock})
	end(t, store, broker.Ending{Kind: broker.TargetLift, Lock: broker.Lock{ID: lock.ID}})
	other := broker.Lock{ID: broker.NewLockID(), Expires: lock.Expires} // without one the shard would have lost its data
	end(t, store, broker.Ending{Kind: broker.TargetLock, Lock: other})
	s.Must("HDEL", "errand:{p01}:locks", string(lock.ID))
	if end(t, store, broker.Ending{Kind: broker.TargetLock, Lock: lock}).Receipt.First {
		t.Error("a lock that was there is made for the first time")
	}
	update, err := first(t.Context(), store, broker.Position{})
	if err != nil {
		t.Fatal(err)
	}
	for shard, c := range update.Controls {
		if len(c.Locks) != 1 || c.Locks[0].ID != other.ID {
			t.Errorf("shard %d has %+v; want the other lock alone", shard, c.Locks)
		}
	}
}
