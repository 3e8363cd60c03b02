package redis_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
)

// TestNothingStays lets everything pass that a busy time has left, and finds nothing in Redis but
// what each shard must know for ever.
func TestNothingStays(t *testing.T) {
	s := start(t)
	b := backend(s.url(), 1)
	store := b.New(t, 1)
	for i := range 300 {
		req := beginning()
		req.Begin.Key = fmt.Sprint(i)
		reply, err := store.Grant(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		child := beginning()
		child.Begin.Parent = reply.Task.ID
		if _, err := store.Grant(t.Context(), child); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Heartbeat(t.Context(), []broker.Beat{{Task: child.Task, Workload: alice}}); err != nil {
			t.Fatal(err)
		}
		if i%3 > 0 {
			end(t, store, completing(reply.Task.ID))
		}
		if i%3 > 1 {
			end(t, store, broker.Ending{Kind: broker.TargetAll})
			end(t, store, broker.Ending{Kind: broker.TargetLock, Lock: broker.Lock{ID: broker.NewLockID(), Expires: reply.Now.Add(time.Minute)}})
		}
	}
	b.Advance(time.Hour)
	b.Advance(time.Hour)
	// The list of what is due calls for as many rounds as it takes; the locks and denials go with
	// the next change of the control list.
	if page, err := store.List(t.Context(), broker.Query{Due: true}); err != nil || len(page.Tasks) != 0 {
		t.Fatalf("due are %+v, error %v; want none", page.Tasks, err)
	}
	for range 20 {
		if _, err := first(t.Context(), store, broker.Position{}); err != nil {
			t.Fatal(err)
		}
	}
	lock := broker.NewLockID()
	now, err := store.List(t.Context(), broker.Query{})
	if err != nil {
		t.Fatal(err)
	}
	end(t, store, broker.Ending{Kind: broker.TargetLock, Lock: broker.Lock{ID: lock, Expires: now.Now.Add(time.Minute)}})
	keys, err := s.direct().Keys(t.Context(), "test1:*").Result()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{"test1:{p00}:meta": true, "test1:{p00}:locks": true, "test1:{p00}:feed": true}
	for _, key := range keys {
		if !allowed[key] {
			t.Errorf("%s is still there", key)
		}
	}
	if n := s.direct().XLen(t.Context(), "test1:{p00}:feed").Val(); n > 1 {
		t.Errorf("the feed has %d entries; want the one of the lock at most", n)
	}
	if n := s.direct().HLen(t.Context(), "test1:{p00}:locks").Val(); n != 1 {
		t.Errorf("there are %d locks; want 1", n)
	}
}
