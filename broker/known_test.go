package broker_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

// countedStore counts what is looked up.
type countedStore struct {
	broker.Store
	lookups atomic.Int32
}

func (s *countedStore) Lookup(ctx context.Context, ref broker.Ref) (broker.Record, error) {
	s.lookups.Add(1)
	return s.Store.Lookup(ctx, ref)
}

// counted runs f with two replicas on one store, of which the first one's look-ups are counted.
func counted(t *testing.T, f func(one, other *harness, lookups func() int32)) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{Shards: 4})
		if err != nil {
			t.Fatal(err)
		}
		s := &countedStore{Store: store}
		f(newHarness(t, s, crowded(t, nil)), newHarness(t, store, crowded(t, nil)), func() int32 { return s.lookups.Swap(0) })
	})
}

// below begins a child.
func below(parent broker.TaskID) func(*broker.BeginRequest) {
	return func(req *broker.BeginRequest) { req.Parent = parent }
}

func TestATokenInAKnownTaskTakesOneRoundTrip(t *testing.T) {
	counted(t, func(one, other *harness, lookups func() int32) {
		begun := one.begin("crowd", nil).Task.ID
		one.issue("crowd", begun)
		one.begin("crowd", below(begun))
		if n := lookups(); n != 0 {
			t.Errorf("%d look-ups for a token and a child of a task that was begun here", n)
		}
		elsewhere := other.begin("crowd", nil).Task.ID
		one.issue("crowd", elsewhere)
		one.issue("crowd", elsewhere)
		one.begin("crowd", below(elsewhere))
		if n := lookups(); n != 1 {
			t.Errorf("%d look-ups for two tokens and a child of a task that was begun elsewhere; want 1", n)
		}
	})
}

// TestAKnownTaskIsNoneThatIsAlive: whatever this replica remembers, the store decides. What has ended here, or what the
// store has said to be over, is over whatever else is wrong with a request.
func TestAKnownTaskIsNoneThatIsAlive(t *testing.T) {
	ends := map[string]func(one, other *harness, parent, id broker.TaskID){
		"ended here":      func(one, _ *harness, _, id broker.TaskID) { one.end("crowd", id) },
		"ended elsewhere": func(_, other *harness, _, id broker.TaskID) { other.end("crowd", id) },
		"its parent ended elsewhere": func(_, other *harness, parent, _ broker.TaskID) {
			other.end("crowd", parent)
		},
		"lapsed": func(*harness, *harness, broker.TaskID, broker.TaskID) { time.Sleep(broker.DefaultLease) },
		"forgotten": func(*harness, *harness, broker.TaskID, broker.TaskID) {
			time.Sleep(broker.DefaultLease + broker.MaxTokenLife + 2*broker.Margin)
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			counted(t, func(one, other *harness, _ func() int32) {
				parent := one.begin("crowd", nil).Task.ID
				id := one.begin("crowd", below(parent)).Task.ID
				one.issue("crowd", id)
				end(one, other, parent, id)
				audiences := []string{"orders", "mesh"} // the second is nothing that it may have
				if name == "ended here" {
					slices.Reverse(audiences)
				}
				for _, audience := range audiences {
					_, err := one.Issue(context.Background(), workload("crowd"), id, broker.TokenRequest{Audience: audience})
					_, child := one.tryBegin("crowd", below(id))
					for _, err := range []error{err, child} {
						if !errors.Is(err, broker.ErrEnded) && (name != "forgotten" || !errors.Is(err, broker.ErrNotFound)) {
							t.Errorf("in a task that is over: %v", err)
						}
					}
				}
			})
		})
	}
}

func TestAKnownTaskIsItsWorkloadsAlone(t *testing.T) {
	counted(t, func(one, _ *harness, _ func() int32) {
		id := one.begin("crowd", nil).Task.ID
		if _, err := one.Issue(context.Background(), workload(report), id, broker.TokenRequest{Audience: "orders"}); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("another workload's token: %v", err)
		}
		if _, err := one.tryBegin(small, below(id)); !errors.Is(err, broker.ErrNotFound) {
			t.Errorf("another workload's child: %v", err)
		}
	})
}

// TestARevokedKnownTaskIssuesNothing: what stands against its workload is looked at anew.
func TestARevokedKnownTaskIssuesNothing(t *testing.T) {
	counted(t, func(one, other *harness, _ func() int32) {
		id := one.begin("crowd", nil).Task.ID
		one.issue("crowd", id)
		if _, err := other.lockAll(broker.Filter{Workloads: []string{"spiffe://prod/crowd"}}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := one.Issue(context.Background(), workload("crowd"), id, broker.TokenRequest{Audience: "orders"}); !errors.Is(err, broker.ErrQuarantined) {
			t.Errorf("a locked workload: %v", err)
		}
	})
}

// TestWhatIsRememberedIsBounded: a task is known until so many others have come, and not longer.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	const remembered = 2 * 4096
	for _, more := range []int{remembered - 1, remembered} {
		counted(t, func(one, _ *harness, lookups func() int32) {
			first := one.begin("crowd", nil).Task.ID
			for range more {
				one.begin("crowd", nil)
			}
			one.issue("crowd", first)
			if n := lookups(); n != int32(more/remembered) {
				t.Errorf("%d look-ups after %d other tasks", n, more)
			}
		})
	}
}
