package redis_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

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
	store := s.open(t, redis.Config{Shards: 4})
	for range 3 {
		if err := s.direct().ScriptFlush(t.Context()).Err(); err != nil {
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
	if err := s.direct().ScriptFlush(t.Context()).Err(); err != nil {
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
	store := s.open(t, redis.Config{})
	reply := begin(t, store)
	other := begin(t, store)
	if err := s.direct().ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Grant(t.Context(), beginning()); !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("Grant: %v; want ErrUnavailable", err)
	}
	if _, err := store.Heartbeat(t.Context(), []broker.Beat{{Task: reply.Task.ID, Workload: alice}}); err != nil {
		t.Errorf("Heartbeat: %v", err)
	}
	end(t, store, completing(reply.Task.ID))
	end(t, store, broker.Ending{Kind: broker.TargetGrant, Grant: other.Grants[0].ID, Cause: broker.CauseOperator})
	end(t, store, broker.Ending{Kind: broker.TargetSelector, Selector: broker.Selector{Audience: "a"}})
	end(t, store, broker.Ending{Kind: broker.TargetLock, Lock: broker.Lock{ID: broker.NewLockID(), Expires: reply.Now.Add(time.Hour)}})
	update, err := first(t.Context(), store, broker.Position{})
	if err != nil || len(update.Entries) != 3 || len(update.Controls[0].Locks) != 1 {
		t.Errorf("the feed: %+v, error %v; want three entries and a lock", update, err)
	}
	record, err := store.Lookup(t.Context(), broker.Ref{Grant: reply.Grants[0].ID})
	if err != nil || record.Grant.Live(record.Now, record.Task) {
		t.Errorf("the grant of the ended task: %+v, error %v; want a dead one", record, err)
	}
	if err := s.direct().ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
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
			store, peer := s.open(t, redis.Config{Shards: 4}), s.open(t, redis.Config{Shards: 4})
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
			keys, err := s.direct().Keys(t.Context(), strings.NewReplacer("{", "\\{", "}", "\\}").Replace(lost)).Result()
			if err != nil || len(keys) == 0 {
				t.Fatalf("no keys like %s: %v", lost, err)
			}
			if err := s.direct().Del(t.Context(), keys...).Err(); err != nil {
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

// TestWrongType puts a list where each of the keys of the records should be.
func TestWrongType(t *testing.T) {
	for _, name := range []string{"meta", "tasks", "grants"} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			store := s.open(t, redis.Config{})
			reply := begin(t, store)
			key := "errand:{p00}:" + name
			s.direct().Del(t.Context(), key)
			if err := s.direct().LPush(t.Context(), key, "not ours").Err(); err != nil {
				t.Fatal(err)
			}
			if record, err := store.Lookup(t.Context(), broker.Ref{Grant: reply.Grants[0].ID}); err == nil {
				t.Errorf("Lookup: got %+v; want an error", record)
			}
			if got, err := store.Grant(t.Context(), beginning()); err == nil {
				t.Errorf("Grant: got %+v; want an error", got)
			}
		})
	}
}

// TestUnreadableRecords spoils what is stored: it is not alive, and nothing else suffers.
func TestUnreadableRecords(t *testing.T) {
	s := start(t)
	store := s.open(t, redis.Config{})
	for _, junk := range []string{"", "junk", "\x92", "\x80", "\xc0", "\x81\xa1v\x01", "\x81\xa1v\x02"} {
		task, grant := begin(t, store), begin(t, store)
		c := s.direct()
		c.HSet(t.Context(), "errand:{p00}:tasks", string(task.Task.ID), junk)
		c.HSet(t.Context(), "errand:{p00}:grants", string(grant.Grants[0].ID), junk)
		for _, ref := range []broker.Ref{{Task: task.Task.ID}, {Grant: task.Grants[0].ID}, {Grant: grant.Grants[0].ID}} {
			record, err := store.Lookup(t.Context(), ref)
			if err == nil {
				t.Errorf("%q: Lookup of %v: got %+v; want an error", junk, ref, record)
			}
		}
		c.HDel(t.Context(), "errand:{p00}:tasks", string(task.Task.ID))
		c.HDel(t.Context(), "errand:{p00}:grants", string(grant.Grants[0].ID))
	}
	end(t, store, completing(begin(t, store).Task.ID))
}

// TestServerIsGone kills the server: calls fail at once, and work again when it is back.
func TestServerIsGone(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{})
	task := begin(t, store).Task
	s.stop()
	for range 2 { // with connections that were open, and with none
		_ = operations(t.Context(), store, task)
	}
	for what, err := range operations(t.Context(), store, task) {
		if !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("%s: %v; want ErrUnavailable", what, err)
		}
	}
	s.run()
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
	s.pause()
	for what, err := range operations(t.Context(), store, task) {
		want := []error{broker.ErrUnconfirmed, broker.ErrUnavailable}
		if slices.Contains([]string{"Lookup", "List", "Watch"}, what) {
			want = want[1:]
		}
		if !slices.ContainsFunc(want, func(w error) bool { return errors.Is(err, w) }) {
			t.Errorf("%s: %v; want one of %v", what, err, want)
		}
	}
	s.resume()
	eventually(t, "calls work again", func() bool {
		_, err := store.Lookup(t.Context(), broker.Ref{Task: task.ID})
		return err == nil
	})
	end(t, store, completing(task.ID))
}

func TestNewRefuses(t *testing.T) {
	s := start(t)
	s.open(t, redis.Config{Shards: 4})
	evicting := start(t, "--maxmemory-policy", "allkeys-lru")
	for _, test := range []struct {
		name   string
		config redis.Config
		want   string
	}{
		{"no URL", redis.Config{}, "Config.URL"},
		{"another protocol", redis.Config{URL: "http://127.0.0.1"}, "Config.URL"},
		{"another kind", redis.Config{URL: "redis+ring://127.0.0.1"}, "ring"},
		{"a URL that is none", redis.Config{URL: "redis://u:hunter2@127.0.0.1:port/0"}, "Config.URL"},
		{"nobody there", redis.Config{URL: fmt.Sprintf("redis://127.0.0.1:%d", freePort(t))}, "does not answer"},
		{"another number of shards", redis.Config{URL: s.url(), Shards: 1}, "has 4 shards"},
		{"too many shards", redis.Config{URL: s.url(), Shards: broker.MaxShards + 1}, "Config.Shards"},
		{"less than no shards", redis.Config{URL: s.url(), Shards: -1}, "Config.Shards"},
		{"braces", redis.Config{URL: s.url(), Prefix: "{x}"}, "Config.Prefix"},
		{"eviction", redis.Config{URL: evicting.url()}, "noeviction"},
	} {
		t.Run(test.name, func(t *testing.T) {
			store, err := redis.New(t.Context(), test.config)
			if err == nil {
				_ = store.Close()
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v; want an error with %q", err, test.want)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Fatalf("the error has the password: %v", err)
			}
		})
	}
	most := s.open(t, redis.Config{Prefix: "most:", Shards: broker.MaxShards})
	if update, err := first(t.Context(), most, broker.Position{}); err != nil || len(update.Position.Numbers) != broker.MaxShards {
		t.Errorf("the most shards: %+v, error %v", update.Position, err)
	}
}
