package broker_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

// Faults of a store.
const (
	works     = iota
	away      // it says that it is not there, and does nothing
	hangs     // it says nothing, and does nothing
	loses     // it does what it is asked, and its answer is lost
	stalls    // it does what it is asked, and says nothing
	losesOnce // loses, and then works
)

// faultyStore is a store that can be made to fail, each kind of call by itself.
type faultyStore struct {
	broker.Store
	grants, ends, beats, reads, feed *atomic.Int32

	tries atomic.Int32 // calls of End
}

func newFaulty(t *testing.T) *faultyStore {
	t.Helper()
	store, err := memory.New(memory.Config{Shards: 4})
	if err != nil {
		t.Fatal(err)
	}
	return &faultyStore{
		Store: store, grants: new(atomic.Int32), ends: new(atomic.Int32), beats: new(atomic.Int32), reads: new(atomic.Int32), feed: new(atomic.Int32),
	}
}

func (s *faultyStore) all(fault int32) {
	for _, f := range []*atomic.Int32{s.grants, s.ends, s.beats, s.reads, s.feed} {
		f.Store(fault)
	}
}

func faulty[T any](ctx context.Context, fault *atomic.Int32, call func() (T, error)) (T, error) {
	var none T
	switch fault.Load() {
	case away:
		return none, broker.ErrUnavailable
	case hangs:
		<-ctx.Done()
		return none, broker.ErrUnconfirmed
	case loses, losesOnce:
		fault.CompareAndSwap(losesOnce, works)
		_, _ = call()
		return none, broker.ErrUnconfirmed
	case stalls:
		_, _ = call()
		<-ctx.Done()
		return none, broker.ErrUnconfirmed
	}
	return call()
}

func (s *faultyStore) Grant(ctx context.Context, r broker.GrantRequest) (broker.GrantReply, error) {
	return faulty(ctx, s.grants, func() (broker.GrantReply, error) { return s.Store.Grant(ctx, r) })
}

func (s *faultyStore) End(ctx context.Context, r []broker.Ending) ([]broker.EndReply, error) {
	s.tries.Add(1)
	return faulty(ctx, s.ends, func() ([]broker.EndReply, error) { return s.Store.End(ctx, r) })
}

func (s *faultyStore) Heartbeat(ctx context.Context, r []broker.Beat) ([]broker.Pulse, error) {
	return faulty(ctx, s.beats, func() ([]broker.Pulse, error) { return s.Store.Heartbeat(ctx, r) })
}

func (s *faultyStore) Lookup(ctx context.Context, r broker.Ref) (broker.Record, error) {
	return faulty(ctx, s.reads, func() (broker.Record, error) { return s.Store.Lookup(ctx, r) })
}

func (s *faultyStore) List(ctx context.Context, q broker.Query) (broker.Page, error) {
	return faulty(ctx, s.reads, func() (broker.Page, error) { return s.Store.List(ctx, q) })
}

func (s *faultyStore) Watch(ctx context.Context, from broker.Position, emit func(broker.Update) error) error {
	return s.Store.Watch(ctx, from, func(u broker.Update) error {
		for s.feed.Load() != works && s.feed.Load() != away {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(10 * time.Millisecond):
			}
		}
		if s.feed.Load() == away {
			return broker.ErrUnavailable
		}
		return emit(u)
	})
}

// TestP10_StoreAway: whatever is wrong with the store, nothing is issued, everything is answered within
// a second, only an end key ends something, the replica stops being ready, and all of it heals by
// itself.
func TestP10_StoreAway(t *testing.T) {
	for name, fault := range map[string]int32{"away": away, "hangs": hangs, "loses": loses, "stalls": stalls} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newFaulty(t)
				h := newHarness(t, store, nil)
				begun, other := h.begin(report, withToken), h.begin(report, withToken)
				id := begun.Task.ID
				issued := len(h.audit.of(broker.EventGrantIssued))
				store.all(fault)
				for what, call := range map[string]func() error{
					"begin":    func() error { _, err := h.tryBegin(report, withToken); return err },
					"sub-task": func() error { _, err := h.tryBegin(report, func(r *broker.BeginRequest) { r.Parent = id }); return err },
					"issue": func() error {
						_, err := h.Issue(ctx, workload(report), id, broker.TokenRequest{Audience: "orders"})
						return err
					},
					"heartbeat": func() error { _, err := h.Heartbeat(ctx, workload(report), []broker.Beat{{Task: id}}); return err },
					"task":      func() error { _, err := h.Task(ctx, workload(report), id); return err },
					"grant":     func() error { _, err := h.Grant(ctx, workload(report), begun.Tokens[0].Grant.ID); return err },
					"end":       func() error { _, err := h.tryEnd(report, other.Task.ID, broker.EndKey{}); return err },
				} {
					start := time.Now()
					if err := call(); !errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrUnconfirmed) {
						t.Errorf("%s: %v", what, err)
					}
					if took := time.Since(start); took >= time.Second {
						t.Errorf("%s: it took %s to say so", what, took)
					}
				}
				start := time.Now()
				if r, err := h.tryEnd(report, id, begun.EndKey); err != nil || r.Durable || time.Since(start) >= time.Second {
					t.Errorf("an end with its key: %+v, %v, after %s", r, err, time.Since(start))
				}
				time.Sleep(3 * time.Second)
				want(t, h.Ready(), broker.ErrNotReady)
				if p, err := h.feed.Position("n"); err != nil || p.AgeMS < 2500 {
					t.Errorf("the feed claims an age of %d ms, %v", p.AgeMS, err)
				}
				if n := len(h.audit.of(broker.EventGrantIssued)); n != issued {
					t.Errorf("%d grants more in the audit log", n-issued)
				}
				store.all(works)
				time.Sleep(3 * time.Second)
				if err := h.Ready(); err != nil {
					t.Error(err)
				}
				h.end(report, other.Task.ID)
				for _, id := range []broker.TaskID{id, other.Task.ID} {
					if !h.names("orders", string(id)) {
						t.Errorf("%s is not on the feed after the outage", id)
					}
				}
				if n := h.PendingEnds(); n != 0 {
					t.Errorf("%d ends are pending", n)
				}
			})
		})
	}
}

// TestAnEndWhoseAnswerWasLostIsRecorded once, and its receipt names that record.
func TestAnEndWhoseAnswerWasLostIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		begun := h.begin(report, withToken)
		store.ends.Store(losesOnce)
		receipt := h.end(report, begun.Task.ID)
		ends := h.audit.of(broker.EventTaskEnded)
		if !receipt.First || len(ends) != 1 || ends[0].ID != receipt.Event {
			t.Errorf("receipt %+v, and %+v in the audit log", receipt, ends)
		}
	})
}

// TestALapseWhoseAnswerWasLostIsRecorded: the sweeper finds no task a second time that has ended.
func TestALapseWhoseAnswerWasLostIsRecorded(t *testing.T) {
	for name, fault := range map[string]int32{"once": losesOnce, "for a while": loses} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newFaulty(t)
				h := newHarness(t, store, nil)
				begun := h.begin(report, func(r *broker.BeginRequest) { withToken(r); r.Lease = broker.MinLease })
				time.Sleep(broker.MinLease - time.Second)
				store.ends.Store(fault)
				time.Sleep(3 * time.Second)
				store.all(works)
				time.Sleep(2 * time.Second)
				ended := h.audit.of(broker.EventTaskEnded)
				if len(ended) != 1 || ended[0].Task != begun.Task.ID || ended[0].State != broker.Lapsed || h.PendingEnds() != 0 {
					t.Errorf("the audit log has %+v, %d pending; want one lapse", ended, h.PendingEnds())
				}
			})
		})
	}
}

// TestAnEndWithoutAKeyThatHappenedIsRecorded although nobody could be told that it had.
func TestAnEndWithoutAKeyThatHappenedIsRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		begun := h.begin(report, withToken)
		store.ends.Store(loses)
		_, err := h.tryEnd(report, begun.Task.ID, broker.EndKey{})
		want(t, err, broker.ErrUnconfirmed)
		if len(h.denied("orders")) != 1 || h.denied("orders")[0].Number == 0 {
			t.Errorf("an end that was refused is on the feed early: %+v", h.denied("orders"))
		}
		store.ends.Store(works)
		time.Sleep(time.Second)
		receipt := h.end(report, begun.Task.ID)
		ends := h.audit.of(broker.EventTaskEnded)
		if receipt.First || len(ends) != 1 || ends[0].ID != receipt.Event || h.PendingEnds() != 0 {
			t.Errorf("receipt %+v, %+v in the audit log, %d pending", receipt, ends, h.PendingEnds())
		}
	})
}

// TestALostAnswerToABeginOrIssueIsAskedForAgain, and what it was is no replay to the caller.
func TestALostAnswerToABeginOrIssueIsAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		store.grants.Store(losesOnce)
		begun := h.begin(report, withToken)
		if begun.Replayed || len(begun.Tokens) != 1 || !h.live(report, begun.Tokens[0].Grant.ID) {
			t.Errorf("begun %+v", begun)
		}
		store.grants.Store(losesOnce)
		if issued := h.issue(report, begun.Task.ID); !h.live(report, issued.Grant.ID) {
			t.Errorf("issued %+v", issued)
		}
		if b, i := len(h.audit.of(broker.EventTaskBegun)), len(h.audit.of(broker.EventGrantIssued)); b != 1 || i != 2 {
			t.Errorf("%d begins and %d grants are in the audit log", b, i)
		}
	})
}

// TestAnUnknownOutcomeIsNeverSigned: and repeating with the same key finds what was committed.
func TestAnUnknownOutcomeIsNeverSigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		with := func(r *broker.BeginRequest) { withToken(r); r.Key = "k" }
		store.grants.Store(loses)
		_, err := h.tryBegin(report, with)
		want(t, err, broker.ErrUnconfirmed)
		if n := len(h.audit.of(broker.EventGrantIssued)); n != 0 {
			t.Errorf("%d grants of a begin that was refused are in the audit log", n)
		}
		store.grants.Store(works)
		again := h.begin(report, with)
		page, err := store.List(ctx, broker.Query{})
		if err != nil || len(page.Tasks) != 1 || page.Tasks[0].ID != again.Task.ID || !again.Replayed || len(again.Tokens) != 1 {
			t.Errorf("%+v after an unknown outcome, %v", page.Tasks, err)
		}
		if n := len(h.audit.of(broker.EventGrantIssued)); n != 1 {
			t.Errorf("%d grants are in the audit log", n)
		}
		store.grants.Store(loses)
		_, err = h.Issue(ctx, workload(report), again.Task.ID, broker.TokenRequest{Audience: "orders"})
		want(t, err, broker.ErrUnconfirmed)
		if n := len(h.audit.of(broker.EventGrantIssued)); n != 1 {
			t.Errorf("%d grants are in the audit log after an issue that was refused", n)
		}
	})
}

// TestWhatCouldNotBeRecordedIsTakenBackInTheEnd: when audit log and store fail together.
func TestWhatCouldNotBeRecordedIsTakenBackInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		begun := h.begin(report, nil)
		h.audit.break_(broker.ErrAudit)
		store.ends.Store(hangs)
		_, err := h.Issue(ctx, workload(report), begun.Task.ID, broker.TokenRequest{Audience: "orders"})
		want(t, err, broker.ErrAudit)
		_, err = h.tryBegin(report, withToken)
		want(t, err, broker.ErrAudit)
		h.audit.break_(nil)
		store.all(works)
		time.Sleep(3 * time.Second)
		revoked, ended := h.audit.of(broker.EventGrantRevoked), h.audit.of(broker.EventTaskEnded)
		if len(revoked) != 1 || len(ended) != 1 || ended[0].Cause != broker.CauseAudit || h.PendingEnds() != 0 {
			t.Errorf("the audit log has %+v and %+v, %d pending", revoked, ended, h.PendingEnds())
		}
		if task, err := h.Task(ctx, workload(report), begun.Task.ID); err != nil || task.State != broker.Active {
			t.Errorf("the task is %+v, %v", task, err)
		}
	})
}

// TestPendingEndsAreTriedAtLeastOncePerSecond, and not in a hurry.
func TestPendingEndsAreTriedAtLeastOncePerSecond(t *testing.T) {
	for name, fault := range map[string]int32{"away": away, "hangs": hangs} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newFaulty(t)
				h := newHarness(t, store, nil)
				begun := h.begin(report, withToken)
				store.ends.Store(fault)
				if _, err := h.tryEnd(report, begun.Task.ID, begun.EndKey); err != nil {
					t.Fatal(err)
				}
				before := store.tries.Load()
				time.Sleep(20 * time.Second)
				if n := store.tries.Load() - before; n < 20 || n > 90 {
					t.Errorf("%d tries in 20 seconds", n)
				}
			})
		})
	}
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
			if !ready {
				_, err := h.tryBegin(report, withToken)
				want(t, err, broker.ErrNotReady)
				return
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
