package memory

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
)

// records counts everything that is held in memory.
func (s *Store) records() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := map[string]int{"locks": len(s.locks), "alarms": len(s.alarms), "kinds of notes": len(s.board)}
	for _, sh := range s.shards {
		n["entries"] += len(sh.entries)
		n["denials"] += len(sh.denials)
		n["tasks"] += len(sh.tasks)
		n["grants"] += len(sh.grants)
		n["keys"] += len(sh.keys)
		n["used"] += len(sh.used)
		n["due"] += len(sh.due)
		n["usage"] += len(sh.usage)
	}
	return n
}

func (s *Store) empty(t *testing.T) {
	t.Helper()
	for what, n := range s.records() {
		if n != 0 {
			t.Errorf("%d %s are left over", n, what)
		}
	}
}

// crowd makes a tree that is ended, one that is not, grants, revocations, denials and locks.
func crowd(t *testing.T, s *Store) {
	t.Helper()
	workload := spiffeid.RequireFromString("spiffe://example.org/w")
	var ends []broker.Ending
	for i := range 200 {
		shard := i % len(s.shards)
		parent := broker.TaskID("")
		for range 3 {
			req := broker.GrantRequest{
				Workload: workload, Task: broker.NewTaskID(shard), Control: 1 << 62,
				Begin: &broker.Beginning{
					Parent: parent, Lease: time.Duration(i%7+1) * time.Minute, Deadline: time.Duration(i%60+1) * time.Minute,
					Key: string(broker.NewEventID()),
				},
				Grants: []broker.Asked{{ID: broker.NewGrantID(shard), Audience: "a", Life: time.Duration(i%15+1) * time.Minute}},
			}
			if _, err := s.Grant(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			parent = req.Task
			joined := broker.GrantRequest{Workload: spiffeid.RequireFromString("spiffe://example.org/j"), Task: broker.NewTaskID(shard), Control: 1 << 62}
			joined.Begin = &broker.Beginning{Parent: parent, Lease: time.Minute, Deadline: time.Minute, Join: &broker.Join{
				Delegation: broker.NewDelegationID(), Delegator: workload, Until: time.Now().Add(time.Duration(i-20) * time.Minute / 2),
			}}
			if _, err := s.Grant(t.Context(), joined); err != nil {
				t.Fatal(err)
			}
			if i%3 == 0 {
				ends = append(ends, broker.Ending{Kind: broker.TargetGrant, Grant: req.Grants[0].ID})
			}
		}
		if i%2 == 0 {
			ends = append(ends, broker.Ending{Kind: broker.TargetTask, Task: parent, State: broker.Completed})
		}
	}
	for range 20 {
		lock := broker.Lock{ID: broker.NewLockID(), Expires: time.Now().Add(time.Hour)}
		ends = append(ends,
			broker.Ending{Kind: broker.TargetLock, Lock: lock}, broker.Ending{Kind: broker.TargetLift, Lock: lock},
			broker.Ending{Kind: broker.TargetLock, Lock: broker.Lock{ID: broker.NewLockID(), Expires: time.Now().Add(time.Hour)}},
			broker.Ending{Kind: broker.TargetAll}, broker.Ending{Kind: broker.TargetSelector}, broker.Ending{Kind: broker.TargetKey})
	}
	for i := range 20 {
		if err := s.Post(t.Context(), broker.BoardNote{Kind: "kind", ID: fmt.Sprint(i), Life: time.Duration(i+1) * time.Minute}); err != nil {
			t.Fatal(err)
		}
	}
	replies, err := s.End(t.Context(), ends)
	if err != nil {
		t.Fatal(err)
	}
	for _, reply := range replies {
		if reply.Err != nil {
			t.Fatal(reply.Err)
		}
	}
}

// TestNothingIsLeftOver lets time pass in one go, or bit by bit with sweeps in between.
func TestNothingIsLeftOver(t *testing.T) {
	for name, steps := range map[string]int{"at once": 1, "bit by bit": 2000} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, err := New(Config{Shards: 4})
				if err != nil {
					t.Fatal(err)
				}
				crowd(t, s)
				for range steps {
					time.Sleep(2 * time.Hour / time.Duration(steps))
					page, err := s.List(t.Context(), broker.Query{Due: true, Limit: 3})
					if err != nil {
						t.Fatal(err)
					}
					for _, task := range page.Tasks {
						if _, err := s.End(t.Context(), []broker.Ending{{Kind: broker.TargetTask, Task: task.ID, IfDue: true}}); err != nil {
							t.Fatal(err)
						}
					}
				}
				s.empty(t)
			})
		})
	}
}

// TestWatchTrims lets nobody call the store but a watcher.
func TestWatchTrims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		crowd(t, s)
		done := make(chan error)
		stop := make(chan struct{})
		go func() {
			done <- s.Watch(t.Context(), broker.Position{}, func(broker.Update) error {
				select {
				case <-stop:
					return broker.ErrUnavailable
				default:
					return nil
				}
			})
		}()
		time.Sleep(2 * time.Hour)
		s.empty(t)
		close(stop)
		if err := <-done; err != broker.ErrUnavailable {
			t.Fatalf("got %v; want what emit returned", err)
		}
	})
}

// TestUnderLoad keeps ending what it begins: what is held must follow the load, not the time.
func TestUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Config{})
		if err != nil {
			t.Fatal(err)
		}
		most := 0
		for i := range 3000 {
			req := broker.GrantRequest{
				Workload: spiffeid.RequireFromString("spiffe://example.org/w"), Task: broker.NewTaskID(0),
				Begin:  &broker.Beginning{Lease: 10 * time.Minute, Deadline: time.Hour, Key: string(broker.NewEventID())},
				Grants: []broker.Asked{{ID: broker.NewGrantID(0), Audience: "a", Life: time.Minute}},
			}
			if _, err := s.Grant(t.Context(), req); err != nil {
				t.Fatal(err)
			}
			if _, err := s.End(t.Context(), []broker.Ending{{Kind: broker.TargetTask, Task: req.Task, State: broker.Completed}}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if i > 1000 {
				for _, n := range s.records() {
					most = max(most, n)
				}
			}
		}
		// A task and its grant, each with an alarm, for a minute and the margin.
		if limit := 2 * int((time.Minute+broker.Margin)/time.Second+2); most > limit {
			t.Errorf("up to %d records of a kind at one task a second; want %d at most", most, limit)
		}
	})
}
