package redis_test

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
)

// become makes a key a list, which no script can use, until it is put right: then it has what it had.
func (s *server) become(key string) (putRight func()) {
	s.t.Helper()
	there := s.client.Exists(s.t.Context(), key).Val() == 1
	if there {
		s.Must("RENAME", key, key+" saved")
	}
	s.Must("LPUSH", key, "not ours")
	return func() {
		s.t.Helper()
		s.Must("DEL", key)
		if there {
			s.Must("RENAME", key+" saved", key)
		}
	}
}

// TestEndThatFailsHalfWay: an end of which a receipt tells is there for everybody, also when one before it, in the same run,
// could not do all that belongs to it.
func TestEndThatFailsHalfWay(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	req := beginning()
	req.Begin.Lease = 10 * time.Minute
	live, err := store.Grant(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	putRight := s.become("errand:{p00}:alarms")
	var answered sync.Map
	for i, err := range together(9, func(i int) error {
		replies, err := store.End(t.Context(), []broker.Ending{completing(live.Task.ID)})
		if err == nil {
			answered.Store(i, replies[0])
		}
		return err
	}) {
		if err != nil && !errors.Is(err, broker.ErrUnconfirmed) {
			t.Errorf("end %d: %v", i, err)
		}
	}
	record, err := store.Lookup(t.Context(), broker.Ref{Task: live.Task.ID})
	answered.Range(func(_, r any) bool {
		if err != nil || record.Task.State != broker.Completed {
			t.Errorf("the answer was %+v, and a look-up says %s, error %v; want an ended task", r, record.Task.State, err)
		}
		return false
	})
	putRight()
	if r := end(t, store, completing(live.Task.ID)); r.Receipt.State != broker.Completed {
		t.Errorf("in the end: %+v", r)
	}
	if update, err := first(t.Context(), store, broker.Position{}); err != nil || len(update.Entries) != 1 {
		t.Errorf("the feed has %+v, error %v; want one entry", update.Entries, err)
	}
}

// TestLostEndThatFailsHalfWay: the same of a task that is ended though it is unknown.
func TestLostEndThatFailsHalfWay(t *testing.T) {
	t.Parallel()
	s := start(t)
	store := s.open(t, redis.Config{}.Patient())
	deadline := begin(t, store).Task.Deadline
	for _, name := range []string{"lists", "alarms"} {
		before, err := first(t.Context(), store, broker.Position{})
		if err != nil {
			t.Fatal(err)
		}
		putRight := s.become("errand:{p00}:" + name)
		lost := completing(broker.NewTaskID(0))
		lost.Lost = deadline
		if replies, err := store.End(t.Context(), []broker.Ending{lost}); !errors.Is(err, broker.ErrUnconfirmed) {
			t.Fatalf("%s: %+v, error %v; want ErrUnconfirmed", name, replies, err)
		}
		putRight()
		if r := end(t, store, lost); r.Receipt.First {
			t.Errorf("%s: %+v; want the receipt of the first end", name, r)
		}
		if update, err := first(t.Context(), store, before.Position); err != nil || len(update.Entries) != 1 {
			t.Errorf("%s: the feed has %+v, error %v; want one entry", name, update.Entries, err)
		}
	}
}

// TestBeginThatFailsHalfWay: of one that cannot be kept whole there is no task and no grant, and nothing counts.
func TestBeginThatFailsHalfWay(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"lists", "alarms"} {
		s := start(t)
		store := s.open(t, redis.Config{}.Patient())
		live := begin(t, store)
		putRight := s.become("errand:{p00}:" + name)
		more := beginning()
		more.Task, more.Begin = live.Task.ID, nil
		child := beginning()
		child.Begin.Parent = live.Task.ID
		joined := joining(live.Task, broker.NewDelegationID())
		failed := []broker.GrantRequest{beginning(), child, joined, more}
		if name == "alarms" {
			failed = failed[:3] // a further token needs none
		}
		for _, req := range failed {
			if reply, err := store.Grant(t.Context(), req); !errors.Is(err, broker.ErrUnconfirmed) {
				t.Fatalf("%s: Grant: %+v, error %v; want ErrUnconfirmed", name, reply, err)
			}
		}
		putRight()
		for _, req := range failed {
			for _, ref := range []broker.Ref{{Task: req.Task}, {Grant: req.Grants[0].ID}} {
				if record, err := store.Lookup(t.Context(), ref); ref.Task != live.Task.ID && !errors.Is(err, broker.ErrNotFound) {
					t.Errorf("%s: Lookup of %v: %+v, error %v; want ErrNotFound", name, ref, record, err)
				}
			}
		}
		last := beginning()
		last.Begin.Parent, last.Quota = live.Task.ID, broker.Quota{Tasks: 2, Grants: 2, Children: 1}
		if _, err := store.Grant(t.Context(), last); err != nil {
			t.Errorf("%s: a second task: %v", name, err)
		}
		if _, err := store.Grant(t.Context(), joined); err != nil {
			t.Errorf("%s: the join once more: %v; want its delegation to be good still", name, err)
		}
		if r := end(t, store, completing(live.Task.ID)).Receipt; r.SubTasks != 2 || r.Grants != 3 {
			t.Errorf("%s: the receipt counts %d tasks and %d grants; want 2 and 3", name, r.SubTasks, r.Grants)
		}
	}
}
