package broker_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

// awayStore is a store that goes away and comes back.
type awayStore struct {
	broker.Store
	away *atomic.Bool
}

func (s awayStore) Grant(ctx context.Context, r broker.GrantRequest) (broker.GrantReply, error) {
	if s.away.Load() {
		return broker.GrantReply{}, broker.ErrUnavailable
	}
	return s.Store.Grant(ctx, r)
}

func (s awayStore) End(ctx context.Context, r []broker.Ending) ([]broker.EndReply, error) {
	if s.away.Load() {
		return nil, broker.ErrUnavailable
	}
	return s.Store.End(ctx, r)
}

func (s awayStore) Lookup(ctx context.Context, r broker.Ref) (broker.Record, error) {
	if s.away.Load() {
		return broker.Record{}, broker.ErrUnavailable
	}
	return s.Store.Lookup(ctx, r)
}

func (s awayStore) Watch(ctx context.Context, from broker.Position, emit func(broker.Update) error) error {
	if s.away.Load() {
		return broker.ErrUnavailable
	}
	return s.Store.Watch(ctx, from, func(u broker.Update) error {
		if s.away.Load() {
			return broker.ErrUnavailable
		}
		return emit(u)
	})
}

// TestP10_StoreAway: nothing is issued and nothing is said to have ended while the store is away; the
// replica stops being ready, and all of it heals by itself.
func TestP10_StoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		away := &atomic.Bool{}
		h := newHarness(t, awayStore{store, away}, nil)
		begun := h.begin(report, withToken)
		away.Store(true)
		start := time.Now()
		_, err = h.tryBegin(report, withToken)
		want(t, err, broker.ErrUnavailable)
		_, err = h.Issue(ctx, workload(report), begun.Task.ID, broker.TokenRequest{Audience: "orders"})
		want(t, err, broker.ErrUnavailable)
		_, err = h.End(ctx, workload(report), begun.Task.ID, broker.EndRequest{State: broker.Completed})
		want(t, err, broker.ErrUnavailable)
		if took := time.Since(start); took > time.Second {
			t.Errorf("it took %s to say so", took)
		}
		time.Sleep(3 * time.Second)
		want(t, h.Ready(), broker.ErrNotReady)
		if p, err := h.feed.Position("n"); err != nil || p.AgeMS < 2500 {
			t.Errorf("the feed claims an age of %d ms, %v", p.AgeMS, err)
		}
		away.Store(false)
		time.Sleep(time.Second)
		if err := h.Ready(); err != nil {
			t.Error(err)
		}
		h.end(report, begun.Task.ID)
		if !h.names("orders", string(begun.Task.ID)) {
			t.Error("the end after the outage is not on the feed")
		}
	})
}

// unsureStore commits and then says that it does not know.
type unsureStore struct {
	broker.Store
	unsure *atomic.Bool
}

func (s unsureStore) Grant(ctx context.Context, r broker.GrantRequest) (broker.GrantReply, error) {
	reply, err := s.Store.Grant(ctx, r)
	if s.unsure.Load() {
		return broker.GrantReply{}, broker.ErrUnconfirmed
	}
	return reply, err
}

func (s unsureStore) End(ctx context.Context, e []broker.Ending) ([]broker.EndReply, error) {
	replies, err := s.Store.End(ctx, e)
	if s.unsure.CompareAndSwap(true, false) {
		return nil, broker.ErrUnconfirmed
	}
	return replies, err
}

// TestAnEndWhoseAnswerWasLostIsRecorded once, and its receipt names that record.
func TestAnEndWhoseAnswerWasLostIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		unsure := &atomic.Bool{}
		h := newHarness(t, unsureStore{store, unsure}, nil)
		begun := h.begin(report, withToken)
		unsure.Store(true)
		receipt := h.end(report, begun.Task.ID)
		ends := h.audit.of(broker.EventTaskEnded)
		if !receipt.First || len(ends) != 1 || ends[0].ID != receipt.Event {
			t.Errorf("receipt %+v, and %+v in the audit log", receipt, ends)
		}
	})
}

// TestAnUnknownOutcomeIsNeverSigned: and repeating with the same key finds what was committed.
func TestAnUnknownOutcomeIsNeverSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		unsure := &atomic.Bool{}
		h := newHarness(t, unsureStore{store, unsure}, nil)
		with := func(r *broker.BeginRequest) { withToken(r); r.Key = "k" }
		unsure.Store(true)
		_, err = h.tryBegin(report, with)
		want(t, err, broker.ErrUnconfirmed)
		unsure.Store(false)
		again := h.begin(report, with)
		page, err := store.List(ctx, broker.Query{})
		if err != nil || len(page.Tasks) != 1 || page.Tasks[0].ID != again.Task.ID || !again.Replayed || len(again.Tokens) != 1 {
			t.Errorf("%+v after an unknown outcome, %v", page.Tasks, err)
		}
		if n := len(h.audit.of(broker.EventGrantIssued)); n != 1 {
			t.Errorf("%d grants are in the audit log", n)
		}
	})
}

// stuckAuditor hangs until it is let go, or the caller gives up.
type stuckAuditor struct {
	*recorder
	stuck *atomic.Bool
}

func (a stuckAuditor) Record(ctx context.Context, events ...broker.Event) error {
	for a.stuck.Load() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return a.recorder.Record(ctx, events...)
}

// TestAStuckAuditLogHoldsUpNoEnd: lapses are announced, ends are answered, issuing is refused in
// time, the replica says that it is not ready, and in the end everything is in the log, in order.
func TestAStuckAuditLogHoldsUpNoEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		stuck := &atomic.Bool{}
		log := &recorder{}
		h := newHarness(t, store, func(c *broker.Config) { c.Auditor = stuckAuditor{log, stuck} })
		var lapsing []broker.TaskID
		for i := range 3 {
			begun := h.begin(report, func(r *broker.BeginRequest) { withToken(r); r.Lease = time.Duration(5+3*i) * time.Second })
			lapsing = append(lapsing, begun.Task.ID)
		}
		ending := h.begin(report, withToken)
		stuck.Store(true)
		start := time.Now()
		h.end(report, ending.Task.ID)
		_, err = h.tryBegin(report, withToken)
		want(t, err, broker.ErrAudit)
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("an end and a begin took %s", took)
		}
		time.Sleep(12 * time.Second)
		for _, id := range append(lapsing, ending.Task.ID) {
			if !h.names("orders", string(id)) {
				t.Errorf("%s is not on the feed", id)
			}
		}
		want(t, h.Ready(), broker.ErrNotReady)
		stuck.Store(false)
		time.Sleep(3 * time.Second)
		if err := h.Ready(); err != nil {
			t.Error(err)
		}
		if n := len(log.of(broker.EventTaskEnded)); n != 5 { // three lapses, the end, and the begin that was taken back
			t.Errorf("%d ends are in the audit log", n)
		}
	})
}

// TestWhatIsLeftIsRecordedWhenTheBrokerStops.
func TestWhatIsLeftIsRecordedWhenTheBrokerStops(t *testing.T) {
	log := &recorder{}
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, func(c *broker.Config) { c.Auditor = log })
		begun := h.begin(report, nil)
		log.break_(broker.ErrAudit)
		h.end(report, begun.Task.ID)
		log.break_(nil)
	})
	n := 0
	for _, e := range log.events {
		if e.Kind == broker.EventTaskEnded {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d ends are in the audit log", n)
	}
}

// TestP13_SkewBeyondTheBoundIsNotReady, and less changes nothing.
func TestP13_SkewBeyondTheBoundIsNotReady(t *testing.T) {
	for skew, ready := range map[time.Duration]bool{
		broker.MaxSkew: true, -broker.MaxSkew: true, broker.MaxSkew + time.Second: false, -broker.MaxSkew - time.Second: false,
	} {
		synctest.Test(t, func(t *testing.T) {
			store, err := memory.New(memory.Config{Now: func() time.Time { return time.Now().Add(skew) }})
			if err != nil {
				t.Fatal(err)
			}
			h := newHarness(t, store, nil)
			if err := h.Ready(); ready != (err == nil) {
				t.Errorf("skew %s: %v", skew, err)
			}
			begun := h.begin(report, withToken)
			if life := begun.Tokens[0].Life; life != broker.DefaultTokenLife {
				t.Errorf("skew %s: a life of %s", skew, life)
			}
			h.end(report, begun.Task.ID)
			if h.live(report, begun.Tokens[0].Grant.ID) {
				t.Errorf("skew %s: alive after its end", skew)
			}
		})
	}
}

// TestABeginThatCouldNotBeRecordedCanBeRepeated with the same key.
func TestABeginThatCouldNotBeRecordedCanBeRepeated(t *testing.T) {
	inBubble(t, func(h *harness) {
		with := func(r *broker.BeginRequest) { withToken(r); r.Key = "k" }
		h.audit.break_(broker.ErrAudit)
		_, err := h.tryBegin(report, with)
		want(h.t, err, broker.ErrAudit)
		h.audit.break_(nil)
		time.Sleep(2 * time.Second)
		if again := h.begin(report, with); again.Replayed || len(again.Tokens) != 1 {
			h.t.Errorf("got %+v", again)
		}
	})
}

// TestAReplayHandsOutNothingDead: what a selector has killed, and what is bound to a certificate that
// the workload does not have any more.
func TestAReplayHandsOutNothingDead(t *testing.T) {
	inBubble(t, func(h *harness) {
		with := func(r *broker.BeginRequest) { withToken(r); r.Key = "k" }
		h.begin(report, with)
		rotated := workload(report)
		rotated.Thumbprint = "thumb-of-the-next-svid"
		again, err := h.Begin(ctx, rotated, broker.BeginRequest{Name: "export", Purpose: "FIN-212", Key: "k", Tokens: []broker.TokenRequest{{Audience: "orders"}}})
		if err != nil || !again.Replayed || len(again.Tokens) != 0 {
			h.t.Errorf("after a rotation: %+v, %v", again, err)
		}
		if _, err := h.Revoke(ctx, broker.Revocation{Selector: broker.Selector{Subject: "spiffe://prod/report"}, Actor: "ada", Reason: "INC"}); err != nil {
			h.t.Fatal(err)
		}
		if again := h.begin(report, with); !again.Replayed || len(again.Tokens) != 0 {
			h.t.Errorf("after a selector: %+v", again)
		}
	})
}
