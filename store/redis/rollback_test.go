package redis_test

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

// image is a server's data as of a moment, as a backup or a replica that lags behind has them.
type image map[string]string

func (s *server) image() image {
	s.t.Helper()
	out := image{}
	for _, key := range s.keys("*") {
		dump, err := s.client.Dump(s.t.Context(), key).Result()
		if err != nil {
			s.t.Fatal(err)
		}
		out[key] = dump
	}
	return out
}

// restore makes the server have those data, and no others.
func (s *server) restore(old image) {
	s.t.Helper()
	pipe := s.client.TxPipeline()
	pipe.FlushAll(s.t.Context())
	for key, dump := range old {
		pipe.Restore(s.t.Context(), key, 0, dump)
	}
	if _, err := pipe.Exec(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}

// TestOlderData has the server come back with data of before, as after a failover to a replica that
// lagged behind: what it has lost may be revocations, so every older token dies. Were the epoch the
// same, a reader further on would miss what the numbers stand for the second time.
func TestOlderData(t *testing.T) {
	t.Parallel()
	s := start(t)
	store, peer := s.open(t, redis.Config{Shards: 4}.Patient()), s.open(t, redis.Config{Shards: 4}.Patient())
	reply, err := store.Grant(t.Context(), in(2))
	if err != nil {
		t.Fatal(err)
	}
	old := s.image()
	end(t, store, completing(reply.Task.ID))
	before, err := first(t.Context(), store, broker.Position{})
	if err != nil {
		t.Fatal(err)
	}
	s.restore(old)
	if update, err := first(t.Context(), store, before.Position); !errors.Is(err, broker.ErrEpoch) {
		t.Fatalf("Watch: %+v, error %v; want ErrEpoch", update.Position, err)
	}
	after, err := first(t.Context(), store, broker.Position{})
	if err != nil || after.Position.Epoch <= before.Position.Epoch {
		t.Errorf("the epoch is %d after %d, error %v; want a later one", after.Position.Epoch, before.Position.Epoch, err)
	}
	if record, err := store.Lookup(t.Context(), broker.Ref{Grant: reply.Grants[0].ID}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("the grant of the task that had ended: %+v, error %v; want ErrNotFound", record, err)
	}
	// One that has not read what was lost follows.
	if _, err := first(t.Context(), peer, broker.Position{}); !errors.Is(err, broker.ErrEpoch) {
		t.Errorf("Watch of the other: %v; want ErrEpoch", err)
	}
	if update, err := first(t.Context(), peer, broker.Position{}); err != nil || update.Position.Epoch != after.Position.Epoch {
		t.Errorf("the other is in the epoch %d, error %v; want %d", update.Position.Epoch, err, after.Position.Epoch)
	}
	// A position that nobody has reached is no proof of anything.
	after.Position.Numbers[1]++
	if _, err := first(t.Context(), store, after.Position); !errors.Is(err, broker.ErrEpoch) {
		t.Errorf("Watch from a position that is not there: %v; want ErrEpoch", err)
	}
	if update, err := first(t.Context(), store, broker.Position{}); err != nil || update.Position.Epoch != after.Position.Epoch {
		t.Errorf("then the epoch is %d, error %v; want still %d", update.Position.Epoch, err, after.Position.Epoch)
	}
}

// TestOlderDataThatHaveGrown: nobody looked while the server was behind, and its numbers have come
// further than before since. What they stood for the first time would never be heard.
func TestOlderDataThatHaveGrown(t *testing.T) {
	t.Parallel()
	s := start(t)
	store, peer := s.open(t, redis.Config{}.Patient()), s.open(t, redis.Config{}.Patient())
	var tasks []broker.TaskID
	for range 8 {
		tasks = append(tasks, begin(t, store).Task.ID)
	}
	old := s.image()
	for _, id := range tasks[:3] {
		end(t, store, completing(id))
	}
	before, err := first(t.Context(), store, broker.Position{})
	if err != nil || len(before.Entries) != 3 {
		t.Fatalf("%+v, %v", before, err)
	}
	s.restore(old)
	for _, id := range tasks[3:] {
		end(t, peer, completing(id)) // of a replica that has not noticed
	}
	if update, err := first(t.Context(), store, before.Position); !errors.Is(err, broker.ErrEpoch) {
		t.Fatalf("Watch: %+v, error %v; want ErrEpoch", update, err)
	}
	after, err := first(t.Context(), store, broker.Position{})
	if err != nil || after.Position.Epoch <= before.Position.Epoch {
		t.Fatalf("the epoch is %d after %d, error %v; want a later one", after.Position.Epoch, before.Position.Epoch, err)
	}
	// A task whose end was lost must not come back, not even for a new token.
	ended := tasks[0]
	if record, err := store.Lookup(t.Context(), broker.Ref{Task: ended}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a task that had ended: %+v, %v", record, err)
	}
	again := beginning()
	again.Task, again.Begin = ended, nil
	if reply, err := store.Grant(t.Context(), again); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a token in it: %+v, %v", reply, err)
	}
	if pulses, err := store.Heartbeat(t.Context(), []broker.Beat{{Task: ended, Workload: alice}}); err != nil || !errors.Is(pulses[0].Err, broker.ErrNotFound) {
		t.Errorf("its heartbeat: %+v, %v", pulses, err)
	}
	// Nothing of the lost tasks counts any more.
	one := beginning()
	one.Quota = broker.Quota{Tasks: 1, Grants: 1}
	if _, err := store.Grant(t.Context(), one); err != nil {
		t.Errorf("the first task of the new data set: %v", err)
	}
}

// TestEpochNeverGoesBack: neither to one that a backup has nor, on a server whose clock is behind, to
// one that a new data set would have.
func TestEpochNeverGoesBack(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(*server, image){
		"a backup of an older epoch":      func(s *server, old image) { s.restore(old) },
		"nothing left, and another clock": func(s *server, old image) { s.restore(nil) },
		"one shard left, of an older epoch": func(s *server, old image) {
			s.restore(image{"errand:{p01}:meta": old["errand:{p01}:meta"]})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			store := s.open(t, redis.Config{Shards: 2}.Patient())
			old := s.image()
			reply := begin(t, store)
			ahead := time.Now().Add(time.Hour).UnixMilli()
			for _, key := range s.keys("errand:*:meta") { // begun on a server whose clock was ahead
				s.client.HSet(t.Context(), key, "epoch", ahead)
			}
			if _, err := first(t.Context(), store, broker.Position{}); !errors.Is(err, broker.ErrEpoch) {
				t.Fatalf("Watch: %v; want ErrEpoch", err)
			}
			before, err := first(t.Context(), store, broker.Position{})
			if err != nil || before.Position.Epoch != uint64(ahead) {
				t.Fatalf("the epoch is %d, error %v; want %d", before.Position.Epoch, err, ahead)
			}
			lose(s, old)
			if _, err := first(t.Context(), store, broker.Position{}); !errors.Is(err, broker.ErrEpoch) {
				t.Errorf("Watch of older data: %v; want ErrEpoch", err)
			}
			after, err := first(t.Context(), store, broker.Position{})
			if err != nil || after.Position.Epoch <= before.Position.Epoch {
				t.Errorf("the epoch is %d after %d, error %v; want a later one", after.Position.Epoch, before.Position.Epoch, err)
			}
			if record, err := store.Lookup(t.Context(), broker.Ref{Grant: reply.Grants[0].ID}); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("a grant of an older epoch: %+v, error %v; want ErrNotFound", record, err)
			}
		})
	}
}

// TestNumbersGoOn: a shard that has lost what it knows of itself, and not its feed, must not use the
// feed's numbers again: nothing could be ended in it.
func TestNumbersGoOn(t *testing.T) {
	t.Parallel()
	for _, lost := range []string{"errand:{p00}:meta", "errand:{p01}:meta"} {
		t.Run(lost, func(t *testing.T) {
			s := start(t)
			store := s.open(t, redis.Config{Shards: 2}.Patient())
			for shard := range 2 {
				for range 3 {
					end(t, store, broker.Ending{Kind: broker.TargetKey, Key: "kid"})
					reply, err := store.Grant(t.Context(), in(shard))
					if err != nil {
						t.Fatal(err)
					}
					end(t, store, completing(reply.Task.ID))
				}
			}
			s.client.Del(t.Context(), lost)
			if _, err := first(t.Context(), store, broker.Position{}); !errors.Is(err, broker.ErrEpoch) {
				t.Fatalf("Watch: %v; want ErrEpoch", err)
			}
			before, err := first(t.Context(), store, broker.Position{})
			if err != nil || len(before.Entries) != 18 {
				t.Fatalf("%d entries, error %v; want 18: those of a key count in every epoch", len(before.Entries), err)
			}
			for shard := range 2 {
				reply, err := store.Grant(t.Context(), in(shard))
				if err != nil {
					t.Fatal(err)
				}
				end(t, store, completing(reply.Task.ID))
			}
			if after, err := first(t.Context(), store, before.Position); err != nil || len(after.Entries) != 2 {
				t.Errorf("%d entries more, error %v; want 2", len(after.Entries), err)
			}
		})
	}
}

// TestWhatWaitsIsForItsOwnDataSet: what was decided on the control list of one data set must not be
// written into the next, whose lists may have lower versions.
func TestWhatWaitsIsForItsOwnDataSet(t *testing.T) {
	t.Parallel()
	s := start(t)
	stuck := beginning()
	stuck.Workload = spiffeid.RequireFromString("spiffe://example.org/stuck")
	address, held := holding(t, s.Addr(), stuck.Workload.String())
	store := s.open(t, redis.Config{URL: "redis://" + address})
	begin(t, store)
	var calls sync.WaitGroup
	defer calls.Wait()
	calls.Go(func() { _, _ = store.Grant(t.Context(), stuck) })
	eventually(t, "the lane is stuck", func() bool { return held.Load() > 0 })
	calls.Go(func() {
		if reply, err := store.Grant(t.Context(), beginning()); !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("a begin that has waited for a new data set: %+v, error %v; want ErrUnavailable", reply, err)
		}
	})
	eventually(t, "another begin waits", func() bool { return store.Waiting() > 0 })
	s.client.Del(t.Context(), "errand:{p00}:meta")
	if _, err := first(t.Context(), store, broker.Position{}); !errors.Is(err, broker.ErrEpoch) {
		t.Errorf("Watch: %v; want ErrEpoch", err)
	}
}

// TestLastIsKept: while the feed is followed, the time that is written down goes on, though nothing happens.
func TestLastIsKept(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	begin(t, store)
	last := func() int64 {
		n, err := s.client.HGet(t.Context(), "errand:{p00}:meta", "last").Int64()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := last()
	err := store.Watch(t.Context(), broker.Position{}, func(u broker.Update) error {
		if behind := u.Now.UnixMilli() - last(); behind > 1000 {
			return fmt.Errorf("it is %d ms behind", behind)
		}
		if last() >= before+1000 {
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Errorf("the time that is written down: %v", err)
	}
}

// TestDeletedKeyIsNoticed deletes alone what says what is denied: by those who follow the feed, by who comes anew, and also when
// something has been denied since.
func TestDeletedKeyIsNoticed(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"feed", "locks", "denials"} {
		for _, anew := range []bool{false, true} {
			for _, later := range []bool{false, true} {
				t.Run(fmt.Sprint(name, " anew ", anew, " later ", later), func(t *testing.T) {
					t.Parallel()
					s := start(t)
					var log lines
					store := s.open(t, redis.Config{Shards: 2, Logger: slog.New(slog.NewTextHandler(&log, nil))}.Patient())
					live, err := store.Grant(t.Context(), in(1))
					if err != nil {
						t.Fatal(err)
					}
					selector := broker.Ending{Kind: broker.TargetSelector, Selector: broker.Selector{Audience: "a"}}
					lock := func() broker.Ending {
						return broker.Ending{Kind: broker.TargetLock, Lock: broker.Lock{ID: broker.NewLockID(), Expires: live.Now.Add(time.Hour)}}
					}
					end(t, store, selector)
					end(t, store, lock())
					before, err := first(t.Context(), store, broker.Position{})
					if err != nil {
						t.Fatal(err)
					}
					s.Must("DEL", "errand:{p01}:"+name)
					if later { // which may not hide it
						for _, e := range []broker.Ending{selector, lock(), completing(live.Task.ID)} {
							if replies, err := store.End(t.Context(), []broker.Ending{e}); err == nil && (name == "feed" || e.Kind != broker.TargetTask) {
								t.Errorf("End of %s: %+v; want an error", e.Kind, replies)
							}
						}
					}
					from := before.Position
					if anew {
						store, from = s.open(t, redis.Config{Shards: 2, Logger: slog.New(slog.NewTextHandler(&log, nil))}.Patient()), broker.Position{}
					}
					if update, err := first(t.Context(), store, from); !errors.Is(err, broker.ErrEpoch) {
						t.Fatalf("Watch: %+v, error %v; want ErrEpoch", update, err)
					}
					if log.with("errand:{p01}:"+name) == 0 {
						t.Errorf("the log does not say what has gone")
					}
					for range 2 {
						update, err := first(t.Context(), store, broker.Position{})
						if err != nil || update.Position.Epoch <= before.Position.Epoch || update.Position.Numbers[1] < before.Position.Numbers[1] {
							t.Fatalf("then Watch is at %v, error %v; want a later epoch than that of %v", update.Position, err, before.Position)
						}
					}
					for _, e := range []broker.Ending{selector, lock()} {
						end(t, store, e)
					}
					again, err := store.Grant(t.Context(), in(1))
					if err != nil {
						t.Fatal(err)
					}
					end(t, store, completing(again.Task.ID))
					update, err := first(t.Context(), store, broker.Position{})
					if err != nil || len(update.Entries) < 2 || len(update.Controls[1].Locks) == 0 || len(update.Controls[1].Denials) == 0 {
						t.Errorf("in the end: %+v, error %v; want all that was denied since", update, err)
					}
				})
			}
		}
	}
}

// TestDenialsThatHavePassed: what has passed is missed by nobody.
func TestDenialsThatHavePassed(t *testing.T) {
	t.Parallel()
	s := start(t)
	b := backend(s.URL(), 1)
	store := b.New(t, 1)
	now := begin(t, store).Now
	end(t, store, broker.Ending{Kind: broker.TargetSelector, Selector: broker.Selector{Audience: "a"}})
	end(t, store, broker.Ending{Kind: broker.TargetLock, Lock: broker.Lock{ID: broker.NewLockID(), Expires: now.Add(time.Minute)}})
	end(t, store, broker.Ending{Kind: broker.TargetLock, Lock: broker.Lock{ID: broker.NewLockID(), Expires: now.Add(2 * time.Minute)}})
	b.Advance(90 * time.Second)
	end(t, store, broker.Ending{Kind: broker.TargetAll}) // the first lock goes
	if update, err := first(t.Context(), store, broker.Position{}); err != nil || len(update.Controls[0].Locks) != 1 || len(update.Controls[0].Denials) != 2 {
		t.Errorf("Watch: %+v, error %v; want one lock and two denials", update, err)
	}
	b.Advance(time.Hour)
	s.Must("DEL", "test1:{p00}:locks", "test1:{p00}:denials")
	if update, err := first(t.Context(), store, broker.Position{}); err != nil {
		t.Errorf("Watch: %+v, error %v; want none", update, err)
	}
}
