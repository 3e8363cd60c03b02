package memory_test

import (
	"errors"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

func TestConfig(t *testing.T) {
	for _, test := range []struct {
		name   string
		config memory.Config
		shards int // 0: refused
	}{
		{"zero", memory.Config{}, 1},
		{"one", memory.Config{Shards: 1}, 1},
		{"most", memory.Config{Shards: broker.MaxShards}, broker.MaxShards},
		{"too many", memory.Config{Shards: broker.MaxShards + 1}, 0},
		{"negative", memory.Config{Shards: -1}, 0},
		{"no time", memory.Config{Now: func() time.Time { return time.Time{} }}, 0},
	} {
		store, err := memory.New(test.config)
		if test.shards == 0 {
			if err == nil {
				t.Errorf("%s: no error", test.name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if got := position(t, store); len(got.Numbers) != test.shards {
			t.Errorf("%s: %d shards; want %d", test.name, len(got.Numbers), test.shards)
		}
	}
}

// position is the newest in the feed.
func position(t *testing.T, store broker.Store) broker.Position {
	t.Helper()
	var position broker.Position
	enough := errors.New("enough")
	if err := store.Watch(t.Context(), position, func(u broker.Update) error {
		position = u.Position
		return enough
	}); !errors.Is(err, enough) {
		t.Fatal(err)
	}
	return position
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// clock is moved by hand.
func clock(t *testing.T) (*memory.Store, *time.Time) {
	t.Helper()
	now := start
	store, err := memory.New(memory.Config{Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return store, &now
}

func begin(t *testing.T, store *memory.Store, d time.Duration, asks ...broker.Asked) broker.Task {
	t.Helper()
	reply, err := store.Grant(t.Context(), broker.GrantRequest{
		Workload: spiffeid.RequireFromString("spiffe://example.org/w"), Task: broker.NewTaskID(0), Grants: asks,
		Begin: &broker.Beginning{Name: "n", Purpose: "p", Lease: d, Deadline: time.Hour},
	})
	if err != nil {
		t.Fatal(err)
	}
	return reply.Task
}

func TestEpochIsTheTime(t *testing.T) {
	store, now := clock(t)
	*now = now.Add(time.Hour)
	if got := position(t, store).Epoch; got != uint64(start.UnixMilli()) {
		t.Errorf("the epoch is %d; want %d, when the store was made", got, start.UnixMilli())
	}
}

// TestClockGoesBack sets the clock back: the store's time stands still, and nobody comes to life.
func TestClockGoesBack(t *testing.T) {
	store, now := clock(t)
	task := begin(t, store, time.Second)
	*now = start.Add(time.Second)
	for _, back := range []time.Duration{0, time.Second, time.Hour} {
		*now = start.Add(time.Second - back)
		record, err := store.Lookup(t.Context(), broker.Ref{Task: task.ID})
		if err != nil {
			t.Fatal(err)
		}
		if record.Task.State != broker.Lapsed || !record.Now.Equal(start.Add(time.Second)) {
			t.Errorf("with the clock %s back: %s at %s; want lapsed, and no earlier time", back, record.Task.State, record.Now)
		}
	}
	*now = start
	if later := begin(t, store, time.Second); later.Begun.Before(start.Add(time.Second)) {
		t.Errorf("a task begun at %s, which was over", later.Begun)
	}
}

// TestMilliseconds checks that a store on this process's clock counts as every other store does.
func TestMilliseconds(t *testing.T) {
	store, now := clock(t)
	*now = start.Add(1234567 * time.Nanosecond)
	task := begin(t, store, time.Second)
	if want := start.Add(time.Millisecond); !task.Begun.Equal(want) || task.Begun.Location() != time.UTC {
		t.Errorf("begun at %s; want %s", task.Begun, want)
	}
}

// TestRefusesNonsense has what only a bug in the broker can ask for.
func TestRefusesNonsense(t *testing.T) {
	store, _ := clock(t)
	ask := broker.Asked{ID: broker.NewGrantID(0), Audience: "a", Life: time.Minute}
	task := begin(t, store, time.Minute, ask)
	fresh := broker.Asked{ID: broker.NewGrantID(0), Audience: "a", Life: time.Minute}
	elsewhere := broker.Asked{ID: broker.NewGrantID(1), Audience: "a", Life: time.Minute}
	other := begin(t, store, time.Minute)
	for _, test := range []struct {
		name string
		task broker.Task
		asks []broker.Asked
		want error
	}{
		{"a grant in another shard than its task", task, []broker.Asked{elsewhere}, broker.ErrNotFound},
		{"one grant twice", task, []broker.Asked{fresh, fresh}, broker.ErrMismatch},
		{"a grant of another task", other, []broker.Asked{ask}, broker.ErrMismatch},
		{"a grant that is there and one that is not", task, []broker.Asked{ask, fresh}, broker.ErrMismatch},
	} {
		reply, err := store.Grant(t.Context(), broker.GrantRequest{Workload: test.task.Workload, Task: test.task.ID, Grants: test.asks})
		if !errors.Is(err, test.want) {
			t.Errorf("%s: got %+v, error %v; want %v", test.name, reply, err, test.want)
		}
	}
	for _, e := range []broker.Ending{
		{}, {Kind: "task?"}, {Kind: broker.TargetTask, Task: task.ID}, {Kind: broker.TargetTask, Task: task.ID, State: broker.Active},
	} {
		replies, err := store.End(t.Context(), []broker.Ending{e})
		if err != nil || !errors.Is(replies[0].Err, broker.ErrInvalid) {
			t.Errorf("%+v: got %+v, error %v; want ErrInvalid", e, replies, err)
		}
	}
	if record, err := store.Lookup(t.Context(), broker.Ref{Task: task.ID}); err != nil || record.Task.State != broker.Active {
		t.Errorf("got %+v, error %v; want the task as it was", record, err)
	}
}

// TestDurable: what this store is configured to survive is nothing, and that it does.
func TestDurable(t *testing.T) {
	store, _ := clock(t)
	task := begin(t, store, time.Minute)
	replies, err := store.End(t.Context(), []broker.Ending{
		{Kind: broker.TargetTask, Task: task.ID, State: broker.Completed}, {Kind: broker.TargetAll},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, reply := range replies {
		if reply.Err != nil || !reply.Receipt.Durable {
			t.Errorf("got %+v; want a durable end", reply)
		}
	}
}
