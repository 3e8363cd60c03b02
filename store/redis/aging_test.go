package redis_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

// TestNothingStays lets everything pass that a busy time has left, and finds nothing in Redis but
// what each shard must know for ever.
func TestNothingStays(t *testing.T) {
	s := start(t)
	b := backend(s.URL(), 1)
	store := b.New(t, 1).(*data)
	if swapped, err := store.Record("keys").Write(t.Context(), []byte("sealed"), 0); !swapped || err != nil {
		t.Fatalf("Write: %v, %v", swapped, err)
	}
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
		joined := joining(reply.Task, broker.NewDelegationID())
		if _, err := store.Grant(t.Context(), joined); err != nil {
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
	for _, key := range s.keys("test1:*:g:*") {
		// The server takes each away by itself, on a clock that no test can move.
		at, err := s.client.PExpireTime(t.Context(), key).Result()
		record, lookup := store.Lookup(t.Context(), broker.Ref{Grant: broker.GrantID("gnt_00" + key[len(key)-26:])})
		if want := record.Grant.Expires.Add(broker.Margin); err != nil || lookup != nil || at != time.Duration(want.UnixNano()) {
			t.Fatalf("%s expires at %d, error %v; want %d, error %v", key, at.Milliseconds(), err, want.UnixMilli(), lookup)
		}
		s.client.Del(t.Context(), key)
	}
	for _, key := range s.keys("test1:*:j:*") {
		if at, err := s.client.PExpireTime(t.Context(), key).Result(); err != nil || at <= 0 {
			t.Fatalf("%s expires at %d, error %v; want a moment", key, at.Milliseconds(), err)
		}
		s.client.Del(t.Context(), key)
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
	var left []string
	for _, key := range s.keys("test1:*") {
		left = append(left, strings.TrimPrefix(key, "test1:{p00}:"))
		if ttl := s.client.TTL(t.Context(), key).Val(); ttl != -1 {
			t.Errorf("%s expires in %s; want never", key, ttl)
		}
	}
	slices.Sort(left)
	if want := []string{"feed", "locks", "meta", "record:keys"}; !slices.Equal(left, want) {
		t.Errorf("there is still %v; want %v", left, want)
	}
	if n := s.client.XLen(t.Context(), "test1:{p00}:feed").Val(); n > 1 {
		t.Errorf("the feed has %d entries; want the one of the lock at most", n)
	}
	if n := s.client.HLen(t.Context(), "test1:{p00}:locks").Val(); n != 1 {
		t.Errorf("there are %d locks; want 1", n)
	}
	if value, version, _, err := store.Record("keys").Read(t.Context()); err != nil || version != 1 || string(value) != "sealed" {
		t.Errorf("the record is %q at %d, error %v", value, version, err)
	}
}

// TestEndedTasksGo ends tasks whose leases are of all lengths: what is left of each goes at most a minute after
// it may be asked for last, and not before.
func TestEndedTasksGo(t *testing.T) {
	for _, lease := range []time.Duration{5 * time.Second, 30 * time.Second, 89 * time.Second, 92 * time.Second, 10 * time.Minute} {
		s := start(t)
		b := backend(s.URL(), 1)
		store := b.New(t, 1)
		req := beginning()
		req.Grants, req.Begin.Lease = nil, lease
		reply, err := store.Grant(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		end(t, store, completing(req.Task))
		there := func() bool {
			if _, err := store.List(t.Context(), broker.Query{Due: true}); err != nil { // which does all that has come due
				t.Fatal(err)
			}
			return s.client.HExists(t.Context(), "test1:{p00}:tasks", bare(reply.Task.ID)).Val()
		}
		b.Advance(broker.Margin - time.Second)
		if !there() {
			t.Errorf("with a lease of %s it has gone too early", lease)
		}
		b.Advance(30 * time.Second)
		there() // its lease may have ended
		b.Advance(32 * time.Second)
		if there() {
			t.Errorf("with a lease of %s it is still there %s after it had gone", lease, time.Minute)
		}
	}
}

// TestQuotaAfterARush lets more tasks come due than one call does: a quota that they filled is free at
// once, and exact.
func TestQuotaAfterARush(t *testing.T) {
	const limit = 450
	b := backend(start(t).URL(), 1)
	store := b.New(t, 1)
	rush := func() broker.GrantRequest {
		req := beginning()
		req.Quota, req.Begin.Lease, req.Grants = broker.Quota{Tasks: limit}, time.Second, nil
		return req
	}
	for range limit {
		if _, err := store.Grant(t.Context(), rush()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.Grant(t.Context(), rush()); !errors.Is(err, broker.ErrQuota) {
		t.Fatalf("one more: %v; want ErrQuota", err)
	}
	b.Advance(time.Second)
	only := rush()
	only.Quota.Tasks = 1
	if _, err := store.Grant(t.Context(), only); err != nil {
		t.Fatalf("the only live task: %v", err)
	}
	for i := range limit - 1 {
		if _, err := store.Grant(t.Context(), rush()); err != nil {
			t.Fatalf("begin %d after all have lapsed: %v", i, err)
		}
	}
	if _, err := store.Grant(t.Context(), rush()); !errors.Is(err, broker.ErrQuota) {
		t.Fatalf("one more: %v; want ErrQuota", err)
	}
}

// TestTimeThatEndedSomethingIsKept: a server that takes over with a slower clock must not bring it back.
// What nothing depends on writes nothing.
func TestTimeThatEndedSomethingIsKept(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	last := func() int64 {
		n, err := s.client.HGet(t.Context(), "errand:{p00}:meta", "last").Int64()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	long := begin(t, store).Task
	req := beginning()
	req.Begin.Lease = 50 * time.Millisecond
	reply, err := store.Grant(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	before := last()
	if before != reply.Now.UnixMilli() {
		t.Errorf("a begin at %d has kept %d", reply.Now.UnixMilli(), before)
	}
	var lapsed broker.Record
	eventually(t, "the task lapses", func() bool {
		if _, err := store.Lookup(t.Context(), broker.Ref{Task: long.ID}); err != nil || last() != before {
			t.Fatalf("a look-up that ended nothing has moved the kept time to %d, error %v", last(), err)
		}
		lapsed, err = store.Lookup(t.Context(), broker.Ref{Task: reply.Task.ID})
		return err == nil && lapsed.Task.State == broker.Lapsed
	})
	if last() != lapsed.Now.UnixMilli() {
		t.Errorf("a task is lapsed as of %d, and %d is kept", lapsed.Now.UnixMilli(), last())
	}
	short := beginning()
	short.Grants[0].Life = broker.MinTokenLife
	if reply, err = store.Grant(t.Context(), short); err != nil {
		t.Fatal(err)
	}
	var expired broker.Record
	eventually(t, "the grant expires", func() bool {
		expired, err = store.Lookup(t.Context(), broker.Ref{Grant: reply.Grants[0].ID})
		return err == nil && !expired.Grant.Live(expired.Now, expired.Task)
	})
	if last() != expired.Now.UnixMilli() {
		t.Errorf("a grant is expired as of %d, and %d is kept", expired.Now.UnixMilli(), last())
	}
}
