package redis_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

var alice = spiffeid.RequireFromString("spiffe://example.org/alice")

// beginning asks for a task in shard 0 with one token.
func beginning() broker.GrantRequest {
	return broker.GrantRequest{
		Workload: alice, Task: broker.NewTaskID(0), Control: 1 << 40, // decided on whatever comes
		Begin: &broker.Beginning{Name: "test", Purpose: "to see what happens", Lease: time.Minute, Deadline: time.Hour},
		Grants: []broker.Asked{{
			ID: broker.NewGrantID(0), Audience: "a", Scopes: broker.Scopes{"read"}, Decision: broker.NewDecisionID(), Life: time.Minute,
		}},
	}
}

func begin(t *testing.T, store broker.Store) broker.GrantReply {
	t.Helper()
	reply, err := store.Grant(t.Context(), beginning())
	if err != nil {
		t.Fatalf("Grant: %v", err)
	}
	return reply
}

func completing(id broker.TaskID) broker.Ending {
	return broker.Ending{
		Kind: broker.TargetTask, Task: id, Workload: alice, State: broker.Completed, Cause: broker.CauseCaller, Event: broker.NewEventID(),
	}
}

func end(t *testing.T, store broker.Store, e broker.Ending) broker.EndReply {
	t.Helper()
	replies, err := store.End(t.Context(), []broker.Ending{e})
	if err != nil || replies[0].Err != nil {
		t.Fatalf("End: %+v, %v", replies, err)
	}
	return replies[0]
}

// escape takes the meaning of braces in a pattern away.
var escape = strings.NewReplacer("{", "\\{", "}", "\\}")

var errEnough = errors.New("enough")

// first is the first delivery from a position on.
func first(ctx context.Context, store broker.Store, from broker.Position) (update broker.Update, err error) {
	err = store.Watch(ctx, from, func(u broker.Update) error {
		update = u
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return update, err
}

// operations makes each kind of call on a task, and returns what came of it.
func operations(ctx context.Context, store broker.Store, task broker.Task) map[string]error {
	errs := map[string]error{}
	_, errs["Grant"] = store.Grant(ctx, beginning())
	_, errs["Heartbeat"] = store.Heartbeat(ctx, []broker.Beat{{Task: task.ID, Workload: alice}})
	_, errs["End"] = store.End(ctx, []broker.Ending{completing(task.ID)})
	_, errs["End of all"] = store.End(ctx, []broker.Ending{{Kind: broker.TargetAll}})
	_, errs["Lookup"] = store.Lookup(ctx, broker.Ref{Task: task.ID})
	_, errs["List"] = store.List(ctx, broker.Query{})
	_, errs["Watch"] = first(ctx, store, broker.Position{})
	return errs
}

func TestScriptsAreForgotten(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{Shards: 4}.Patient())
	for range 3 {
		if err := s.client.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		task := begin(t, store).Task
		for what, err := range operations(t.Context(), store, task) {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	// Only what was refused is sent again: each task of a batch ends once, in one entry.
	var ends []broker.Ending
	for range 10 {
		ends = append(ends, completing(begin(t, store).Task.ID))
	}
	before, err := first(t.Context(), store, broker.Position{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.client.ScriptFlush(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	replies, err := store.End(t.Context(), ends)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range replies {
		if !r.Receipt.First || r.Err != nil {
			t.Errorf("got %+v; want a first end", r)
		}
	}
	after, err := first(t.Context(), store, before.Position)
	if err != nil || len(after.Entries) != len(ends) {
		t.Errorf("%d entries, error %v; want %d", len(after.Entries), err, len(ends))
	}
}

// TestMemoryIsFull fills the server up: nothing new begins, and everything can be ended.
func TestMemoryIsFull(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	reply := begin(t, store)
	other := begin(t, store)
	if err := s.client.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	keys := len(s.keys("*"))
	if _, err := store.Grant(t.Context(), beginning()); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("Grant: %v; want ErrUnavailable", err)
	}
	if n := len(s.keys("*")); n != keys {
		t.Errorf("a refused begin has made %d keys", n-keys)
	}
	if _, err := store.Heartbeat(t.Context(), []broker.Beat{{Task: reply.Task.ID, Workload: alice}}); err != nil {
		t.Errorf("Heartbeat: %v", err)
	}
	end(t, store, completing(reply.Task.ID))
	end(t, store, broker.Ending{Kind: broker.TargetGrant, Grant: other.Grants[0].ID, Cause: broker.CauseOperator})
	end(t, store, broker.Ending{Kind: broker.TargetSelector, Selector: broker.Selector{Audience: "a"}})
	locking := broker.Ending{Kind: broker.TargetLock, Lock: broker.Lock{ID: broker.NewLockID(), Expires: reply.Now.Add(time.Hour)}}
	lifted := broker.Ending{Kind: broker.TargetLock, Lock: broker.Lock{ID: broker.NewLockID(), Expires: reply.Now.Add(time.Hour)}}
	end(t, store, locking)
	end(t, store, lifted)
	end(t, store, broker.Ending{Kind: broker.TargetLift, Lock: broker.Lock{ID: lifted.Lock.ID}})
	if swapped, err := store.Record("keys").Write(t.Context(), []byte("sealed"), 0); err != nil || !swapped {
		t.Errorf("Write of a record: %v, %v", swapped, err)
	}
	lost := completing(broker.NewTaskID(0))
	lost.Lost = reply.Task.Deadline
	end(t, store, lost)
	update, err := first(t.Context(), store, broker.Position{})
	if err != nil || len(update.Entries) != 4 || len(update.Controls[0].Locks) != 1 {
		t.Errorf("the feed: %+v, error %v; want four entries and a lock", update, err)
	}
	record, err := store.Lookup(t.Context(), broker.Ref{Grant: reply.Grants[0].ID})
	if err != nil || record.Grant.Live(record.Now, record.Task) {
		t.Errorf("the grant of the ended task: %+v, error %v; want a dead one", record, err)
	}
	if err := s.client.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Lookup(t.Context(), broker.Ref{Task: beginning().Task}); !errors.Is(err, broker.ErrNotFound) {
		t.Errorf("a task that was refused: %v; want ErrNotFound", err)
	}
	begin(t, store)
}

// TestDataAreLost flushes the server, or the keys of one shard: every call fails until the feed is
// followed anew, under another epoch.
func TestDataAreLost(t *testing.T) {
	t.Parallel()
	for _, lost := range []string{"errand:*", "errand:{p00}:*", "errand:{p03}:*", "errand:{p03}:meta"} {
		t.Run(lost, func(t *testing.T) {
			s := start(t)
			store, peer := s.open(t, redis.Config{Shards: 4}.Patient()), s.open(t, redis.Config{Shards: 4}.Patient())
			req := beginning()
			req.Task, req.Grants[0].ID = broker.NewTaskID(2), broker.NewGrantID(2)
			reply, err := store.Grant(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			before, err := first(t.Context(), store, broker.Position{})
			if err != nil {
				t.Fatal(err)
			}
			followed := make(chan error, 1)
			go func() {
				followed <- peer.Watch(t.Context(), before.Position, func(broker.Update) error { return nil })
			}()
			keys := s.keys(lost)
			if len(keys) == 0 {
				t.Fatalf("no keys like %s", lost)
			}
			if err := s.client.Del(t.Context(), keys...).Err(); err != nil {
				t.Fatal(err)
			}
			if err := <-followed; !errors.Is(err, broker.ErrEpoch) {
				t.Errorf("who follows the feed gets %v; want ErrEpoch", err)
			}
			update, err := first(t.Context(), peer, broker.Position{})
			if err != nil || update.Position.Epoch <= before.Position.Epoch {
				t.Fatalf("the new epoch is %d after %d, error %v", update.Position.Epoch, before.Position.Epoch, err)
			}
			// The other replica has not noticed yet: it must not go on as if nothing had happened.
			if _, err := store.Lookup(t.Context(), broker.Ref{Grant: reply.Grants[0].ID}); !errors.Is(err, broker.ErrUnavailable) || !errors.Is(err, broker.ErrEpoch) {
				t.Errorf("Lookup: %v; want ErrUnavailable with ErrEpoch", err)
			}
			if _, err := first(t.Context(), store, before.Position); !errors.Is(err, broker.ErrEpoch) {
				t.Errorf("Watch from the old position: %v; want ErrEpoch", err)
			}
			again, err := first(t.Context(), store, broker.Position{})
			if err != nil || again.Position.Epoch != update.Position.Epoch {
				t.Fatalf("the replicas have the epochs %d and %d, error %v", again.Position.Epoch, update.Position.Epoch, err)
			}
			if record, err := store.Lookup(t.Context(), broker.Ref{Grant: reply.Grants[0].ID}); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("a grant of the old epoch: %+v, error %v; want ErrNotFound", record, err)
			}
			begin(t, store)
		})
	}
}

// TestNoControlList has a shard whose control list nobody is told of: that is an error, and not the end of the process.
func TestNoControlList(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	s.Must("HSET", "errand:{p00}:meta", "version", "-1")
	if update, err := first(t.Context(), store, broker.Position{}); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("got %+v, error %v; want ErrUnavailable", update, err)
	}
}

// bare is an ID as Redis has it.
func bare[ID ~string](id ID) string { return string(id[6:]) }

// TestUnreadableRecords spoils what is stored: it is not alive, it is named in the log once, and nothing
// else suffers.
func TestUnreadableRecords(t *testing.T) {
	s := start(t)
	var log lines
	store := s.open(t, redis.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Patient())
	junk := []string{
		"", "junk", "\x92", "\x80", "\xc0", "\x91\x01", "\x91\x02", "\x01", "\x81\xa1v\x01", strings.Repeat("\x91", 500),
		"\x9f" + strings.Repeat("\x01", 15), "\xdc\x00\x11" + strings.Repeat("\x01", 17), "\x99\x02" + strings.Repeat("\xa1x", 8),
	}
	named := 0
	for _, junk := range junk {
		task, other := begin(t, store), begin(t, store)
		key := "errand:{p00}:g:" + bare(other.Grants[0].ID)
		s.client.HSet(t.Context(), "errand:{p00}:tasks", bare(task.Task.ID), junk)
		s.client.Set(t.Context(), key, junk, goredis.KeepTTL)
		for range 3 {
			for _, ref := range []broker.Ref{{Task: task.Task.ID}, {Grant: task.Grants[0].ID}, {Grant: other.Grants[0].ID}} {
				if record, err := store.Lookup(t.Context(), ref); !errors.Is(err, broker.ErrNotFound) {
					t.Errorf("%q: Lookup of %v: got %+v, error %v; want ErrNotFound", junk, ref, record, err)
				}
			}
			child := beginning()
			child.Begin.Parent = task.Task.ID
			if got, err := store.Grant(t.Context(), child); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("%q: Grant below it: got %+v, error %v; want ErrNotFound", junk, got, err)
			}
			end := completing(task.Task.ID)
			if replies, err := store.End(t.Context(), []broker.Ending{end}); err != nil || !errors.Is(replies[0].Err, broker.ErrNotFound) {
				t.Errorf("%q: End: got %+v, error %v; want ErrNotFound", junk, replies, err)
			}
		}
		for _, id := range []string{bare(task.Task.ID), bare(other.Grants[0].ID)} {
			if n := log.with(id); n != 1 {
				t.Errorf("%q: %s is named in %d lines of the log; want 1", junk, id, n)
			}
			named++
		}
	}
	// What comes due takes them away, and stops at none of them.
	end(t, store, completing(begin(t, store).Task.ID))
	if _, err := store.List(t.Context(), broker.Query{}); err != nil {
		t.Errorf("List: %v", err)
	}
	const most = 100
	for range most {
		task := begin(t, store)
		s.client.HSet(t.Context(), "errand:{p00}:tasks", bare(task.Task.ID), "junk")
		_, _ = store.Lookup(t.Context(), broker.Ref{Task: task.Task.ID})
	}
	if n := log.with("cannot be read"); n != most {
		t.Errorf("%d records are named in the log; want %d, and not one more", n, most)
	}
}

// TestDamagedRecords changes one bit of a record, in each byte in turn. Perhaps it can still be read, perhaps not; in
// either case what is asked for is there or is not, and nothing else suffers: lists go on, and so does the sweeper.
func TestDamagedRecords(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"task", "grant"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			damageEachBit(t, kind == "grant")
		})
	}
}

func damageEachBit(t *testing.T, ofGrant bool) {
	s := start(t)
	var log lines
	store := s.open(t, redis.Config{Logger: slog.New(slog.NewTextHandler(&log, nil))}.Patient())
	missing := 0
	for at := 0; ; at++ {
		healthy, victim := begin(t, store), begin(t, store)
		task, grant := victim.Task, victim.Grants[0].ID
		tasks, key := "errand:{p00}:tasks", "errand:{p00}:g:"+bare(grant)
		raw := []byte(s.client.HGet(t.Context(), tasks, bare(task.ID)).Val())
		if ofGrant {
			raw = []byte(s.client.Get(t.Context(), key).Val())
		}
		if at >= len(raw) {
			break
		}
		bit := rand.IntN(8)
		raw[at] ^= 1 << bit
		if ofGrant {
			s.client.Set(t.Context(), key, raw, goredis.KeepTTL)
		} else {
			s.client.HSet(t.Context(), tasks, bare(task.ID), raw)
		}
		which := fmt.Sprintf("bit %d of byte %d", bit, at)
		for _, ref := range []broker.Ref{{Task: task.ID}, {Grant: grant}} {
			if _, err := store.Lookup(t.Context(), ref); errors.Is(err, broker.ErrNotFound) {
				missing++
			} else if err != nil {
				t.Errorf("%s: Lookup of %v: %v", which, ref, err)
			}
		}
		for _, q := range []broker.Query{{}, {Due: true}, {Grants: true}, {Of: healthy.Task.ID, Grants: true}} {
			q.Limit = broker.MaxPage
			page, err := store.List(t.Context(), q)
			if err != nil {
				t.Fatalf("%s: List of %+v: %v", which, q, err)
			}
			there := slices.ContainsFunc(page.Tasks, func(t broker.Task) bool { return t.ID == healthy.Task.ID }) ||
				slices.ContainsFunc(page.Grants, func(r broker.Record) bool { return r.Task.ID == healthy.Task.ID })
			if !there && !q.Due {
				t.Errorf("%s: List of %+v lacks what is healthy", which, q)
			}
		}
		if pulses, err := store.Heartbeat(t.Context(), []broker.Beat{{Task: task.ID, Workload: alice}, {Task: healthy.Task.ID, Workload: alice}}); err != nil || pulses[1].Err != nil {
			t.Errorf("%s: Heartbeat: %+v, %v", which, pulses, err)
		}
		if replies, err := store.End(t.Context(), []broker.Ending{completing(task.ID)}); err != nil || replies[0].Err != nil && !errors.Is(replies[0].Err, broker.ErrNotFound) {
			t.Errorf("%s: End: %+v, %v", which, replies, err)
		}
		s.client.Del(t.Context(), key)
		s.client.HDel(t.Context(), tasks, bare(task.ID))
		end(t, store, completing(healthy.Task.ID))
	}
	if named := log.with("cannot be read"); missing == 0 || named == 0 {
		t.Errorf("%d records were missing and %d are named in the log; want some", missing, named)
	}
}

// lines is a log.
type lines struct {
	mu   sync.Mutex
	list []string
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, string(b))
	return len(b), nil
}

// with counts the lines that have a text.
func (l *lines) with(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.list {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// TestServerIsGone kills the server: calls fail at once, and work again when it is back.
func TestServerIsGone(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{})
	task := begin(t, store).Task
	s.Kill()
	for range 2 { // with connections that were open, and with none
		_ = operations(t.Context(), store, task)
	}
	for what, err := range operations(t.Context(), store, task) {
		if !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("%s: %v; want ErrUnavailable", what, err)
		}
	}
	s.Run()
	eventually(t, "the feed of the new data set", func() bool {
		_, err := first(t.Context(), store, broker.Position{})
		return err == nil
	})
	begin(t, store)
}

// TestServerIsSilent stops the process without closing its connections.
func TestServerIsSilent(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{})
	task := begin(t, store).Task
	s.Pause()
	for what, err := range operations(t.Context(), store, task) {
		want := []error{broker.ErrUnconfirmed, broker.ErrUnavailable}
		if slices.Contains([]string{"Lookup", "List", "Watch"}, what) {
			want = want[1:]
		}
		if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
			t.Errorf("%s: %v; want one of %v", what, err, want)
		}
	}
	s.Resume()
	eventually(t, "calls work again", func() bool {
		_, err := store.Lookup(t.Context(), broker.Ref{Task: task.ID})
		return err == nil
	})
	end(t, store, completing(task.ID))
}
