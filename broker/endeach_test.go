package broker_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// spotty is a store that cannot tell of one target among others, as when its record, or the way to its shard, is broken.
type spotty struct {
	broker.Store
	mu    sync.Mutex
	which func(broker.Ending) bool
	times int // that it cannot tell of it
	how   loss
}

// loss is what becomes of a target that the store cannot tell of.
type loss int

const (
	nothing loss = iota // and the store knows that
	unknown             // nothing, and it does not know
	ended               // the answer alone is lost
)

// lose has the store tell nothing of some target, so many times.
func (s *spotty) lose(which func(broker.Ending) bool, times int, how loss) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.which, s.times, s.how = which, times, how
}

// is tells a task from others.
func is(id broker.TaskID) func(broker.Ending) bool {
	return func(e broker.Ending) bool { return e.Task == id }
}

func (s *spotty) End(ctx context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var passed []broker.Ending
	at := map[int]error{}
	for i, e := range ends {
		lost := s.times > 0 && s.which(e)
		if lost {
			if at[i] = broker.ErrUnavailable; s.how != nothing {
				at[i] = broker.ErrUnconfirmed
			}
			s.times--
		}
		if !lost || s.how == ended {
			passed = append(passed, e)
		}
	}
	told, err := s.Store.End(ctx, passed)
	if err != nil {
		return nil, err
	}
	replies := make([]broker.EndReply, len(ends))
	for i := range ends {
		if why, lost := at[i]; lost {
			replies[i].Err = why
			if s.how == ended {
				told = told[1:]
			}
			continue
		}
		replies[i], told = told[0], told[1:]
	}
	if len(at) == len(ends) && len(ends) > 0 {
		return nil, replies[0].Err // as the contract has it
	}
	return replies, nil
}

// onSpotty runs f with a broker on such a store, which sweeps at an interval.
func onSpotty(t *testing.T, interval time.Duration, f func(h *harness, s *spotty)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{Shards: 4})
		if err != nil {
			t.Fatal(err)
		}
		s := &spotty{Store: store}
		f(newHarness(t, s, func(c *broker.Config) { c.SweepInterval = interval }), s)
	})
}

// way is one in which a broker ends many tasks at once.
type way struct {
	workload string // whose they are
	prepare  func(*broker.GrantRequest)
	end      func(*harness) error // says whether all have ended
}

func eachEnd() map[string]way {
	left := func(done broker.MassRevocation, err error) error {
		if err == nil && done.Left != "" {
			err = errors.New(done.Left)
		}
		return err
	}
	return map[string]way{
		"Sweep": {"spiffe://prod/report", func(r *broker.GrantRequest) { r.Begin.Lease = time.Second }, func(h *harness) error {
			time.Sleep(2 * time.Second)
			return h.Sweep(context.Background())
		}},
		"Withdraw": {"spiffe://partner.example/agent", func(*broker.GrantRequest) {}, func(h *harness) error {
			_, err := h.Withdraw(context.Background(), partner)
			return err
		}},
		"RevokeAll": {"spiffe://prod/report", func(*broker.GrantRequest) {}, func(h *harness) error {
			return left(h.mass(broker.Filter{Names: []string{"each"}}, func(m *broker.Mass) { m.What = broker.WhatTasks }))
		}},
		"EndRef": {"spiffe://prod/report", func(r *broker.GrantRequest) { r.Begin.Ref = broker.TaskRef{Kind: "k8s/job", ID: "uid-1"} }, func(h *harness) error {
			_, err := h.endRef(jobEnded("uid-1"))
			return err
		}},
	}
}

// sow begins so many tasks, straight in the store.
func (h *harness) sow(n int, workload string, edit func(*broker.GrantRequest)) (ids []broker.TaskID) {
	h.t.Helper()
	for range n {
		id, _ := h.seed(workload, "each", func(r *broker.GrantRequest) {
			r.Workload = spiffeid.RequireFromString(workload)
			edit(r)
		})
		ids = append(ids, id)
	}
	return ids
}

// recorded counts the ends in the audit log.
func (h *harness) recorded() map[broker.TaskID]int {
	ends := map[broker.TaskID]int{}
	for _, e := range h.audit.of(broker.EventTaskEnded) {
		ends[e.Task]++
	}
	return ends
}

// TestOneEndHoldsUpNoOther: of two pages of tasks the store cannot tell of one in the first. All others end in the same call,
// whose error says that it is not all, and this one when it is repeated.
func TestOneEndHoldsUpNoOther(t *testing.T) {
	for name, way := range eachEnd() {
		t.Run(name, func(t *testing.T) {
			onSpotty(t, time.Hour, func(h *harness, s *spotty) {
				tasks := h.sow(broker.MaxPage+3, way.workload, way.prepare)
				page, err := h.store.List(context.Background(), broker.Query{})
				if err != nil {
					h.t.Fatal(err)
				}
				broken := page.Tasks[7].ID
				s.lose(is(broken), 1<<20, nothing)
				if err := way.end(h); err == nil {
					h.t.Error("nothing says that one has not ended")
				}
				got := h.recorded()
				for _, id := range tasks {
					if id != broken && got[id] != 1 {
						h.t.Fatalf("%d ends are recorded; want those of all %d but one", len(got), len(tasks))
					}
				}
				if got[broken] != 0 {
					h.t.Error("an end is recorded that has not happened")
				}
				s.lose(nil, 0, nothing)
				if err := way.end(h); err != nil {
					h.t.Errorf("repeated: %v", err)
				}
				if got := h.recorded(); got[broken] != 1 || len(got) != len(tasks) {
					h.t.Errorf("repeated: %d ends are recorded, of the one %d", len(got), got[broken])
				}
			})
		})
	}
}

// TestOneLostAnswer: of several tasks that end in one call the answer about one is lost, once or for a while. Its end is
// recorded all the same, once, and takes up no more room than it is.
func TestOneLostAnswer(t *testing.T) {
	for name, way := range eachEnd() {
		for times, often := range map[int]string{1: "once", 8: "for a while"} {
			t.Run(name+" "+often, func(t *testing.T) {
				onSpotty(t, time.Hour, func(h *harness, s *spotty) {
					tasks := h.sow(4, way.workload, way.prepare)
					s.lose(is(tasks[2]), times, ended)
					_ = way.end(h)
					if n := h.PendingEnds(); n > 1 {
						h.t.Errorf("%d ends are pending; want the one at most", n)
					}
					time.Sleep(10 * time.Second)
					got := h.recorded()
					for i, id := range tasks {
						if got[id] != 1 {
							h.t.Errorf("the end of task %d is recorded %d times", i, got[id])
						}
					}
					if n := h.PendingEnds(); n != 0 {
						h.t.Errorf("%d ends are still pending", n)
					}
				})
			})
		}
	}
}

// TestSweepLeavesPendingEndsAlone: while the store cannot tell of a task that is due, sweeping adds to what is pending once.
func TestSweepLeavesPendingEndsAlone(t *testing.T) {
	onSpotty(t, broker.DefaultSweep, func(h *harness, s *spotty) {
		tasks := h.sow(3, "spiffe://prod/report", func(r *broker.GrantRequest) { r.Begin.Lease = time.Second })
		s.lose(is(tasks[0]), 1<<20, unknown)
		time.Sleep(20 * time.Second)
		if n := h.PendingEnds(); n != 1 {
			h.t.Errorf("%d ends are pending; want 1", n)
		}
		s.lose(nil, 0, nothing)
		time.Sleep(2 * time.Second)
		if got := h.recorded(); len(got) != 3 || got[tasks[0]] != 1 || h.PendingEnds() != 0 {
			h.t.Errorf("recorded are %v, and %d ends pending", got, h.PendingEnds())
		}
	})
}

// TestOneOfManyDenials: of three selectors, or locks, the store cannot tell of one. The others are in force and recorded, this
// one is recorded as what may be, and the answer says that it is not all.
func TestOneOfManyDenials(t *testing.T) {
	filter := broker.Filter{Workloads: []string{"spiffe://prod/batch/night", "spiffe://prod/report", "spiffe://prod/small"}}
	for name, test := range map[string]struct {
		kind broker.EventKind
		deny func(h *harness) error
	}{
		"selectors": {broker.EventRevoked, func(h *harness) error {
			done, err := h.mass(filter, nil)
			if err != nil || done.Entries != 2 {
				return err
			}
			return errors.New(done.Left)
		}},
		"locks": {broker.EventLocked, func(h *harness) error {
			_, err := h.LockAll(context.Background(), broker.LockRequest{Filter: filter, Life: time.Hour, Actor: ada.String(), Reason: because})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			onSpotty(t, time.Hour, func(h *harness, s *spotty) {
				s.lose(func(e broker.Ending) bool {
					return e.Selector.Subject+e.Lock.Selector.Subject == "spiffe://prod/report"
				}, 1<<20, unknown)
				if err := test.deny(h); err == nil || err.Error() == "" {
					h.t.Error("nothing says that it is not all")
				}
				unsure := map[string]bool{}
				for _, e := range h.audit.of(test.kind) {
					unsure[e.Selector.Subject] = e.Unsure
				}
				if len(unsure) != 3 || !unsure["spiffe://prod/report"] || unsure["spiffe://prod/small"] || unsure["spiffe://prod/batch/night"] {
					h.t.Errorf("recorded, with whether it is unsure, are %v", unsure)
				}
			})
		})
	}
}

// TestOneOfManyUnrecorded: what a killed replica has left is recorded by another one, whose store cannot tell of one of these
// ends; that one is, when it can.
func TestOneOfManyUnrecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newWitness(t, 4)
		one := startReplica(t, store)
		tasks := make([]broker.TaskID, 3)
		for i := range tasks {
			tasks[i] = one.begin(report, withToken).Task.ID
		}
		slices.Sort(tasks)
		time.Sleep(3 * time.Second)
		one.unrecorded(func() {
			for _, id := range tasks {
				one.end(report, id)
			}
		})
		s := &spotty{Store: store}
		s.lose(is(tasks[0]), 1<<20, nothing)
		two := newHarness(t, s, func(c *broker.Config) { c.Board = store })
		time.Sleep(25 * time.Second)
		if got := two.recorded(); len(got) != 2 || got[tasks[0]] != 0 {
			t.Errorf("recorded are %v; want the other two", got)
		}
		s.lose(nil, 0, nothing)
		time.Sleep(20 * time.Second)
		if got := two.recorded(); got[tasks[0]] == 0 {
			t.Errorf("recorded are %v; want all", got)
		}
	})
}

// TestPendingEndsDoNotWaitForOne: of more ends than go into one call the store cannot tell of the oldest. All others are written,
// and this one when it can be.
func TestPendingEndsDoNotWaitForOne(t *testing.T) {
	onSpotty(t, time.Hour, func(h *harness, s *spotty) {
		var begun []broker.Begun
		for range 450 {
			begun = append(begun, h.begin(report, withToken))
		}
		s.lose(func(broker.Ending) bool { return true }, 1<<20, nothing)
		for _, b := range begun {
			if r, err := h.tryEnd(report, b.Task.ID, b.EndKey); err != nil || r.Durable {
				h.t.Fatalf("%+v, %v; want an end in force here", r, err)
			}
		}
		s.lose(is(begun[0].Task.ID), 1<<20, nothing)
		time.Sleep(time.Second)
		if n, got := h.PendingEnds(), h.recorded(); n != 1 || len(got) != len(begun)-1 {
			h.t.Errorf("%d ends are pending, and %d recorded", n, len(got))
		}
		s.lose(nil, 0, nothing)
		time.Sleep(time.Second)
		if n, got := h.PendingEnds(), h.recorded(); n != 0 || got[begun[0].Task.ID] != 1 {
			h.t.Errorf("%d ends are pending, and %d recorded", n, len(got))
		}
	})
}
