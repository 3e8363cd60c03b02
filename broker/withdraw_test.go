package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// plant begins tasks of a workload in the store, each with a grant.
func (h *harness) plant(id string, n int) (tasks []broker.TaskID) {
	h.t.Helper()
	req := broker.GrantRequest{Workload: spiffeid.RequireFromString(id)}
	for range n {
		req.Task = broker.NewTaskID(0)
		req.Begin = &broker.Beginning{Name: "sync", Purpose: "nightly", Lease: time.Minute, Deadline: time.Hour}
		req.Grants = []broker.Asked{{ID: broker.NewGrantID(0), Audience: "orders", Scopes: broker.Scopes{"orders:read"}, Life: time.Minute}}
		reply, err := h.store.Grant(context.Background(), req)
		if err != nil {
			h.t.Fatal(err)
		}
		tasks = append(tasks, reply.Task.ID)
	}
	return tasks
}

func (h *harness) states(tasks []broker.TaskID) map[string]int {
	h.t.Helper()
	out := map[string]int{}
	for _, id := range tasks {
		record, err := h.store.Lookup(context.Background(), broker.Ref{Task: id})
		if err != nil {
			h.t.Fatal(err)
		}
		out[fmt.Sprint(record.Task.State, " ", record.Task.Cause)]++
	}
	return out
}

var partner = spiffeid.RequireTrustDomainFromString("partner.example")

// A domain's tokens die by one entry for each shard and its tasks by pages; a domain whose name only
// begins alike keeps its own. Replicas may do it at once: what ends is recorded once.
func TestWithdraw(t *testing.T) {
	inBubble(t, func(h *harness) {
		ctx := context.Background()
		const many = broker.MaxPage + 1 // so that there is a second page
		theirs := h.plant("spiffe://partner.example/agent", many)
		other := h.plant("spiffe://partner.example.org/agent", 2)
		ours := h.begin(report, withToken)
		domains, err := h.TrustDomains(ctx)
		if err != nil || fmt.Sprint(domains) != "[partner.example partner.example.org prod]" {
			t.Errorf("live are %v, %v", domains, err)
		}
		var replicas sync.WaitGroup
		ended := make([]int, 3)
		for i := range ended {
			replicas.Go(func() {
				n, err := h.Withdraw(ctx, partner)
				if ended[i] = n; err != nil {
					t.Error(err)
				}
			})
		}
		replicas.Wait()
		if got := ended[0] + ended[1] + ended[2]; got != many {
			t.Errorf("%v tasks were ended by the replicas; there were %d", ended, many)
		}
		if got := h.states(theirs); got["revoked identity"] != many {
			t.Errorf("theirs are %v", got)
		}
		if got := h.states(append(other, ours.Task.ID)); got["active "] != 3 {
			t.Errorf("the others are %v", got)
		}
		if !h.live(report, ours.Tokens[0].Grant.ID) {
			t.Error("our own token is dead")
		}
		if got := len(h.audit.of(broker.EventTaskEnded)); got != many {
			t.Errorf("%d ends were recorded", got)
		}
		for _, e := range append(h.audit.of(broker.EventTaskEnded)[:1], h.audit.of(broker.EventRevoked)...) {
			if e.Actor != "errand" || e.Cause != broker.CauseIdentity || e.Reason != "the trust domain partner.example is not trusted any more" {
				t.Errorf("recorded: %+v", e)
			}
		}
		selectors := slices.DeleteFunc(h.denied("orders"), func(e wire.FeedEntry) bool { return e.Subject != "spiffe://partner.example/*" })
		if len(selectors) == 0 {
			t.Error("the feed does not have the domain")
		}
		if domains, err := h.TrustDomains(ctx); err != nil || slices.Contains(domains, partner) {
			t.Errorf("live are still %v, %v", domains, err)
		}
	})
}

// brittle is a store that answers to some ends with an error, though they have happened.
type brittle struct {
	broker.Store
	calls int
}

func (s *brittle) End(ctx context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	replies, err := s.Store.End(ctx, ends)
	if s.calls++; s.calls == 2 {
		return nil, broker.ErrUnconfirmed
	}
	return replies, err
}

// An end whose answer was lost is recorded all the same.
func TestWithdrawIsRecordedWhenAnAnswerIsLost(t *testing.T) {
	inBubble(t, func(h *harness) {
		theirs := h.plant("spiffe://partner.example/agent", 3)
		replica := newHarness(h.t, &brittle{Store: h.store}, func(c *broker.Config) { c.SweepInterval = time.Hour })
		if ended, err := replica.Withdraw(context.Background(), partner); err != nil || ended != 3 {
			t.Errorf("%d were ended, %v", ended, err)
		}
		if got := h.states(theirs); got["revoked identity"] != 3 {
			t.Errorf("theirs are %v", got)
		}
		if got := len(replica.audit.of(broker.EventTaskEnded)); got != 3 {
			t.Errorf("%d ends were recorded", got)
		}
	})
}

// An audit log that does not answer holds nothing up for good, and a context ends it.
func TestWithdrawWithoutAnAuditLog(t *testing.T) {
	inBubble(t, func(h *harness) {
		theirs := h.plant("spiffe://partner.example/agent", 2)
		h.audit.break_(errors.New("the disk is full"))
		if _, err := h.Withdraw(context.Background(), partner); err != nil {
			t.Error(err)
		}
		if got := h.states(theirs); got["revoked identity"] != 2 {
			t.Errorf("theirs are %v", got)
		}
		h.audit.break_(nil)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := h.TrustDomains(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("a context that has ended: %v", err)
		}
	})
}
