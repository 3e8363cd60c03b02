package broker_test

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

// raceRounds is how often each race is run.
const raceRounds = 1000

// race runs rounds of what two do at once, each with a crowd's harness.
func race(t *testing.T, round func(h *harness, both func(one, other func()))) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{Shards: 4})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, crowded(t, nil))
		for i := range raceRounds {
			round(h, func(one, other func()) {
				if i%2 == 1 { // the runtime prefers the one that was made last
					one, other = other, one
				}
				var wg sync.WaitGroup
				wg.Go(one)
				wg.Go(other)
				wg.Wait()
			})
			if t.Failed() {
				t.Fatalf("in round %d", i)
			}
		}
	})
}

func (h *harness) mustRevoke(r broker.Revocation) broker.Receipt {
	h.t.Helper()
	r.Actor, r.Reason = "spiffe://prod/alice", "a test"
	receipt, err := h.Revoke(h.t.Context(), r)
	if err != nil {
		h.t.Errorf("revoke: %v", err)
	}
	return receipt
}

// TestRaceHeartbeatAgainstEnd: no heartbeat revives what has ended.
func TestRaceHeartbeatAgainstEnd(t *testing.T) {
	race(t, func(h *harness, both func(one, other func())) {
		begun := h.begin("crowd", withToken)
		both(func() {
			if _, err := h.Heartbeat(h.t.Context(), workload("crowd"), []broker.Beat{{Task: begun.Task.ID}}); err != nil {
				h.t.Errorf("heartbeat: %v", err)
			}
		}, func() { h.end("crowd", begun.Task.ID) })
		if h.live("crowd", begun.Tokens[0].Grant.ID) {
			h.t.Error("the grant is live")
		}
		pulses, err := h.Heartbeat(h.t.Context(), workload("crowd"), []broker.Beat{{Task: begun.Task.ID}})
		if err != nil || pulses[0].Task.State != broker.Completed {
			h.t.Errorf("after the end: %+v, %v", pulses, err)
		}
	})
}

// TestRaceEndAgainstRevoke: one of them is the first, both get its receipt, and it is recorded once.
func TestRaceEndAgainstRevoke(t *testing.T) {
	recorded := 0
	race(t, func(h *harness, both func(one, other func())) {
		begun := h.begin("crowd", withToken)
		var end, revoke broker.Receipt
		both(func() { end = h.end("crowd", begun.Task.ID) }, func() { revoke = h.mustRevoke(broker.Revocation{Task: begun.Task.ID}) })
		if end.First == revoke.First || end.Event != revoke.Event || end.State != revoke.State || h.live("crowd", begun.Tokens[0].Grant.ID) {
			h.t.Errorf("the end is %+v, the revocation %+v", end, revoke)
		}
		recorded++
		if n := len(h.audit.of(broker.EventTaskEnded)); n != recorded {
			h.t.Errorf("%d ends are recorded after %d", n, recorded)
		}
	})
}

// TestRaceIssueAgainstEnd: a token that leaves while its task ends is dead when both have answered, and
// the task's entry covers it.
func TestRaceIssueAgainstEnd(t *testing.T) {
	race(t, func(h *harness, both func(one, other func())) {
		id := h.begin("crowd", nil).Task.ID
		var issued broker.Issued
		var failed error
		both(func() {
			issued, failed = h.Issue(h.t.Context(), workload("crowd"), id, broker.TokenRequest{Audience: "orders"})
		}, func() { h.end("crowd", id) })
		switch {
		case failed == nil && (h.live("crowd", issued.Grant.ID) || !h.names("orders", string(id))):
			h.t.Errorf("a grant is live, or the feed does not have the end: %+v", issued.Grant)
		case failed != nil && !errors.Is(failed, broker.ErrEnded):
			h.t.Errorf("issue: %v; want ErrEnded or none", failed)
		}
	})
}

// TestRaceBeginAgainstLock: whatever begins while a workload is locked and then revoked is dead when that has
// answered, or never was.
func TestRaceBeginAgainstLock(t *testing.T) {
	race(t, func(h *harness, both func(one, other func())) {
		var begun broker.Begun
		var failed error
		var lock broker.LockID
		both(func() { begun, failed = h.tryBegin("crowd", withToken) }, func() {
			id, err := h.Lock(h.t.Context(), broker.Lock{
				Selector: broker.Selector{Subject: "spiffe://prod/crowd"}, Actor: "spiffe://prod/alice", Reason: "a test", Expires: time.Now().Add(time.Hour),
			})
			if err != nil {
				h.t.Errorf("lock: %v", err)
			}
			lock = id
			h.mustRevoke(broker.Revocation{Selector: broker.Selector{Subject: "spiffe://prod/crowd"}})
		})
		switch {
		case failed == nil && h.live("crowd", begun.Tokens[0].Grant.ID):
			h.t.Error("a grant has slipped in between the lock and the revocation")
		case failed != nil && !errors.Is(failed, broker.ErrQuarantined):
			h.t.Errorf("begin: %v; want ErrQuarantined or none", failed)
		}
		if _, err := h.tryBegin("crowd", withToken); !errors.Is(err, broker.ErrQuarantined) {
			h.t.Errorf("begin under the lock: %v; want ErrQuarantined", err)
		}
		if err := h.Lift(h.t.Context(), broker.Lifting{Lock: lock, Actor: "spiffe://prod/alice", Reason: "a test"}); err != nil {
			h.t.Errorf("lift: %v", err)
		}
		if failed == nil {
			h.end("crowd", begun.Task.ID)
		}
	})
}
