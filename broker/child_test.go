package broker_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/store/memory"
)

// generous is a policy that gives everything that there is, whatever was asked for.
type generous struct{}

func (generous) Decide(_ context.Context, ask broker.Ask) (broker.Decision, error) {
	return broker.Decision{Allowed: true, Rule: "generous", Scopes: ask.Scopes, Life: time.Minute, Ceiling: broker.Ceiling{
		Audiences: broker.Audiences{"files", "orders"}, Scopes: broker.Scopes{"files:write", "orders:read", "orders:write"},
	}}, nil
}

// TestNoPolicyWidensAChild beyond its parent, not even one that is wrong.
func TestNoPolicyWidensAChild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, func(c *broker.Config) { c.Policy = generous{} })
		narrow := newHarness(t, store, nil).begin(report, func(r *broker.BeginRequest) {
			r.Ceiling = broker.Ceiling{Audiences: broker.Audiences{"orders"}, Scopes: broker.Scopes{"orders:read"}}
		})
		below := h.begin(report, func(r *broker.BeginRequest) { r.Parent = narrow.Task.ID })
		if c := below.Task.Ceiling; c.Scopes.String() != "orders:read" || len(c.Audiences) != 1 || c.Audiences[0] != "orders" {
			t.Errorf("the child of a task with orders:read has %+v", c)
		}
	})
}

// crowd is the inventory with a workload that may have many tasks.
const crowd = inventory + `  - {id: spiffe://prod/crowd, owner: team-fin, purpose: crowds, ceiling: {orders: ["orders:read"]}, max_tasks: 100000, max_grants: 100000}` + "\n"

// TestP7_NoChildSurvivesARace: however the begin of a task meets the end of its parent, or of that one's
// parent, what was begun is over when both have answered, and nothing begins any more.
func TestP7_NoChildSurvivesARace(t *testing.T) {
	const rounds = 1000
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{Shards: 4})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, func(c *broker.Config) {
			known, err := registry.Parse([]byte(crowd))
			if err != nil {
				t.Fatal(err)
			}
			c.Registry = known
		})
		inTime := 0
		for round := range rounds {
			root := h.begin("crowd", nil).Task.ID
			above := root
			for range round % 3 {
				above = h.begin("crowd", func(r *broker.BeginRequest) { r.Parent = above }).Task.ID
			}
			var begun broker.Begun
			var failed error
			var wg sync.WaitGroup
			wg.Go(func() {
				begun, failed = h.tryBegin("crowd", func(r *broker.BeginRequest) { withToken(r); r.Parent = above })
			})
			wg.Go(func() { h.end("crowd", root) })
			wg.Wait()
			switch {
			case failed == nil:
				inTime++
				if h.live("crowd", begun.Tokens[0].Grant.ID) {
					t.Fatal("a grant of a child that was begun in time is live")
				}
				if task, err := h.Task(t.Context(), workload("crowd"), begun.Task.ID); err != nil || task.State != broker.Canceled {
					t.Fatalf("the child is %s, %v", task.State, err)
				}
			case !errors.Is(failed, broker.ErrEnded):
				t.Fatalf("begin: %v; want ErrEnded or none", failed)
			}
			if _, err := h.tryBegin("crowd", func(r *broker.BeginRequest) { r.Parent = above }); !errors.Is(err, broker.ErrEnded) {
				t.Fatalf("begin after the end: %v; want ErrEnded", err)
			}
		}
		t.Logf("%d of %d were begun in time", inTime, rounds)
	})
}
