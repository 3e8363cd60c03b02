package redis_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/storetest"
)

// forward moves the time of a shard. A shard's time never goes behind what it has written down, so
// that is where time can be turned forward.
const forward = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local last = tonumber(redis.call('HGET', KEYS[1], 'last')) or 0
redis.call('HSET', KEYS[1], 'last', math.max(now, last) + ARGV[1])
return 1`

// pastime is the patience that something in the background gets when a clock is turned forward.
const pastime = 10 * time.Millisecond

// moved is a backend whose clock is turned forward instead of waited for: an hour passes at once.
func moved(t *testing.T, s *server) storetest.Backend {
	b := backend(s)
	c := s.direct()
	var mu sync.Mutex
	var metas []string // of the data sets of the running case
	made := 0
	b.New = func(t testing.TB, shards int) broker.Store {
		mu.Lock()
		defer mu.Unlock()
		made++
		prefix := fmt.Sprintf("moved%d:", made)
		metas = nil
		for shard := range shards {
			metas = append(metas, fmt.Sprintf("%s{p%02d}:meta", prefix, shard))
		}
		return s.open(t, redis.Config{Prefix: prefix, Shards: shards})
	}
	b.Advance = func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if _, err := c.Pipelined(context.Background(), func(p goredis.Pipeliner) error {
			for _, meta := range metas {
				p.Eval(context.Background(), forward, []string{meta}, d.Milliseconds())
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
		time.Sleep(min(d, pastime))
	}
	return b
}

func TestStoreAging(t *testing.T) { storetest.Aging(t, moved(t, start(t))) }

// TestNothingStays lets everything pass that a busy time has left, and finds nothing in Redis but
// what each shard must know for ever.
func TestNothingStays(t *testing.T) {
	s := start(t)
	b := moved(t, s)
	store := b.New(t, 1).(*redis.Store)
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
	keys, err := s.direct().Keys(t.Context(), "moved1:*").Result()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{"moved1:{p00}:meta": true, "moved1:{p00}:locks": true, "moved1:{p00}:feed": true}
	for _, key := range keys {
		if !allowed[key] {
			t.Errorf("%s is still there", key)
		}
	}
	if n := s.direct().XLen(t.Context(), "moved1:{p00}:feed").Val(); n > 1 {
		t.Errorf("the feed has %d entries; want the one of the lock at most", n)
	}
	if n := s.direct().HLen(t.Context(), "moved1:{p00}:locks").Val(); n != 1 {
		t.Errorf("there are %d locks; want 1", n)
	}
}
