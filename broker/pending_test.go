package broker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/feed"
	"github.com/errandhq/errand/sdk/wire"
)

// listener follows the feed from where it is now.
type listener struct {
	deliveries []feed.Delivery
	stop       context.CancelFunc
	done       chan struct{}
}

func (h *harness) listen(audience string) *listener {
	h.t.Helper()
	snapshot, err := h.feed.Snapshot(audience)
	if err != nil {
		h.t.Fatal(err)
	}
	from, err := wire.ParsePosition(snapshot.Position)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &listener{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		_ = h.feed.Follow(ctx, "spiffe://prod/"+audience, audience, from, func(d feed.Delivery) error {
			l.deliveries = append(l.deliveries, d)
			return nil
		})
	}()
	synctest.Wait()
	return l
}

// heard stops the listener, and returns what it was told of a task: early, and with a position.
func (l *listener) heard(id broker.TaskID) (early, numbered int) {
	l.stop()
	<-l.done
	for _, d := range l.deliveries {
		switch {
		case !bytes.Contains(d.Data, []byte(id)):
		case d.ID == "":
			early++
		default:
			numbered++
		}
	}
	return early, numbered
}

// TestP4_AnEndIsInForceBeforeItIsDurable: at once, everywhere on this replica, and then in the store,
// the audit log and the feed, once.
func TestP4_AnEndIsInForceBeforeItIsDurable(t *testing.T) {
	for name, fault := range map[string]int32{"away": away, "hangs": hangs, "loses": loses, "stalls": stalls} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newFaulty(t)
				h := newHarness(t, store, nil)
				withKey := func(r *broker.BeginRequest) { withToken(r); r.Key = "k" }
				begun := h.begin(report, withKey)
				id, grant := begun.Task.ID, begun.Tokens[0].Grant.ID
				below := h.begin(report, func(r *broker.BeginRequest) { withToken(r); r.Parent = id })
				there := h.listen("orders")
				store.ends.Store(fault)
				store.feed.Store(fault)
				start := time.Now()
				receipt, err := h.tryEnd(report, id, begun.EndKey)
				if err != nil || receipt.Durable || !receipt.First || receipt.State != broker.Completed || !receipt.Feed.IsZero() || h.PendingEnds() != 1 {
					t.Fatalf("%+v, %v, %d pending", receipt, err, h.PendingEnds())
				}
				if took := time.Since(start); took >= time.Second {
					t.Errorf("it took %s", took)
				}
				joining := h.listen("files") // everybody is told, also whom the task had no token for
				if !h.names("orders", string(id)) {
					t.Error("a snapshot has it not")
				}
				h.wantEnded(begun, below, withKey)
				if again, err := h.tryEnd(report, id, broker.EndKey{}); err != nil || again.Event != receipt.Event || again.Durable || again.First {
					t.Errorf("repeated: %+v, %v", again, err)
				}
				if n := len(h.audit.of(broker.EventTaskEnded)); n != 0 {
					t.Errorf("%d ends are in the audit log before they are in the store", n)
				}
				time.Sleep(5 * time.Second)
				store.all(works)
				time.Sleep(2 * time.Second)
				for what, l := range map[string]*listener{"who was there": there, "who has joined": joining} {
					early, numbered := l.heard(id)
					if wantNumbered := map[bool]int{true: 1}[l == there]; early != 1 || numbered != wantNumbered {
						t.Errorf("%s was told early %d times, and then %d times", what, early, numbered)
					}
				}
				if entries := h.denied("orders"); len(entries) != 1 || entries[0].Number == 0 || h.PendingEnds() != 0 {
					t.Errorf("the feed has %+v, %d pending", entries, h.PendingEnds())
				}
				again := h.end(report, id)
				ends := h.audit.of(broker.EventTaskEnded)
				if !again.Durable || again.Event != receipt.Event || len(ends) != 1 || ends[0].ID != receipt.Event || ends[0].Actor != "spiffe://prod/report" {
					t.Errorf("afterwards the receipt is %+v, and the audit log has %+v", again, ends)
				}
				if h.live(report, grant) {
					t.Error("the grant is alive")
				}
			})
		})
	}
}

// wantEnded wants a task with its grants and the task below it to be over for every verb, while the
// store says that they are not.
func (h *harness) wantEnded(begun, below broker.Begun, repeat func(*broker.BeginRequest)) {
	h.t.Helper()
	id := begun.Task.ID
	if task, err := h.Task(ctx, workload(report), id); err != nil || task.State != broker.Completed || task.Ended.IsZero() {
		h.t.Errorf("the task is %+v, %v", task, err)
	}
	if task, err := h.Task(ctx, workload(report), below.Task.ID); err != nil || task.State != broker.Canceled || task.Cause != broker.CauseParent {
		h.t.Errorf("the task below is %+v, %v", task, err)
	}
	for _, b := range []broker.Begun{begun, below} {
		if h.live(report, b.Tokens[0].Grant.ID) {
			h.t.Error("a grant is alive")
		}
		_, err := h.Issue(ctx, workload(report), b.Task.ID, broker.TokenRequest{Audience: "orders"})
		want(h.t, err, broker.ErrEnded)
		_, err = h.tryBegin(report, func(r *broker.BeginRequest) { r.Parent = b.Task.ID })
		want(h.t, err, broker.ErrEnded)
	}
	_, err := h.tryBegin(report, repeat)
	want(h.t, err, broker.ErrEnded)
	if page, err := h.store.List(ctx, broker.Query{}); err != nil || len(page.Tasks) != 2 {
		h.t.Errorf("the store has %d tasks, %v", len(page.Tasks), err)
	}
	pulses, err := h.Heartbeat(ctx, workload(report), []broker.Beat{{Task: id}, {Task: below.Task.ID}})
	if err != nil || pulses[0].Task.State != broker.Completed || pulses[1].Task.State != broker.Canceled {
		h.t.Errorf("heartbeats: %+v, %v", pulses, err)
	}
}

// TestP4_NothingIsSignedAfterAnEnd that came while the grant was being recorded.
func TestP4_NothingIsSignedAfterAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		stuck := &atomic.Bool{}
		h := newHarness(t, store, func(c *broker.Config) { c.Auditor = stuckAuditor{&recorder{}, stuck} })
		begun := h.begin(report, nil)
		stuck.Store(true)
		issued := make(chan error, 1)
		go func() {
			_, err := h.Issue(ctx, workload(report), begun.Task.ID, broker.TokenRequest{Audience: "orders"})
			issued <- err
		}()
		synctest.Wait()
		store.all(away)
		if r, err := h.tryEnd(report, begun.Task.ID, begun.EndKey); err != nil || r.Durable {
			t.Fatalf("%+v, %v", r, err)
		}
		stuck.Store(false)
		want(t, <-issued, broker.ErrEnded)
	})
}

// TestAnEndThatWasAnsweredStaysInForce when the store turns out to have lost the task: its tokens are
// still about.
func TestAnEndThatWasAnsweredStaysInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var later atomic.Int64 // how far this replica's clock is ahead
		store := newFaulty(t)
		h := newHarness(t, store, func(c *broker.Config) {
			c.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
		})
		lost := broker.NewTaskID(0) // as after a failover
		store.all(away)
		if r, err := h.Revoke(ctx, broker.Revocation{Task: lost, Actor: "ada", Reason: "INC-9"}); err != nil || r.Durable {
			t.Fatalf("%+v, %v", r, err)
		}
		store.all(works)
		time.Sleep(5 * time.Second)
		if n := h.PendingEnds(); n != 0 {
			t.Errorf("%d ends wait for the store, which has nothing to end", n)
		}
		if !h.names("orders", string(lost)) {
			t.Fatal("the end is not in force any more")
		}
		later.Store(int64(broker.MaxTokenLife))
		time.Sleep(5 * time.Second)
		if !h.names("orders", string(lost)) {
			t.Error("it is in force for less than a token may live")
		}
		later.Store(int64(broker.MaxTokenLife + broker.Margin))
		time.Sleep(5 * time.Second)
		if h.names("orders", string(lost)) {
			t.Error("it is kept for longer than a token may live")
		}
	})
}

// TestAnEndThatAnotherOneWasBeforeIsMoot: the receipt of it is in the log all the same.
func TestAnEndThatAnotherOneWasBeforeIsMoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		begun := h.begin(report, withToken)
		store.all(away)
		receipt, err := h.tryEnd(report, begun.Task.ID, begun.EndKey)
		if err != nil {
			t.Fatal(err)
		}
		unknown, err := h.Revoke(ctx, broker.Revocation{Task: broker.NewTaskID(0), Actor: "ada", Reason: "INC-7"})
		if err != nil || unknown.Durable {
			t.Fatalf("%+v, %v", unknown, err)
		}
		// Another replica was first.
		first := broker.Ending{Kind: broker.TargetTask, Task: begun.Task.ID, State: broker.Revoked, Cause: broker.CauseOperator, Event: broker.NewEventID()}
		if _, err := store.Store.End(ctx, []broker.Ending{first}); err != nil {
			t.Fatal(err)
		}
		store.all(works)
		time.Sleep(2 * time.Second)
		moot := h.audit.of(broker.EventEndMoot)
		if len(moot) != 2 || moot[0].ID == moot[1].ID || h.PendingEnds() != 0 || len(h.audit.of(broker.EventTaskEnded)) != 0 {
			t.Fatalf("the audit log has %+v, %d pending", moot, h.PendingEnds())
		}
		for _, e := range moot {
			switch e.ID {
			case receipt.Event:
				if e.State != broker.Revoked || e.Workload != "spiffe://prod/report" || e.Task != begun.Task.ID {
					t.Errorf("the caller's: %+v", e)
				}
			case unknown.Event:
				if e.Actor != "ada" || e.Reason != "INC-7" {
					t.Errorf("the operator's: %+v", e)
				}
			default:
				t.Errorf("whose is %+v", e)
			}
		}
		if again := h.end(report, begun.Task.ID); again.Event != first.Event || !again.Durable {
			t.Errorf("later the receipt is %+v", again)
		}
	})
}

// TestAnEarlyEndStaysUntilTheFeedHasIt: whoever joins in between is told one way or the other.
func TestAnEarlyEndStaysUntilTheFeedHasIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		begun := h.begin(report, withToken)
		id := begun.Task.ID
		store.all(hangs)
		if _, err := h.tryEnd(report, id, begun.EndKey); err != nil {
			t.Fatal(err)
		}
		store.ends.Store(works)
		time.Sleep(3 * time.Second)
		if r, err := h.tryEnd(report, id, broker.EndKey{}); err != nil || !r.Durable || r.First {
			t.Errorf("written, but not on the feed: %+v, %v", r, err)
		}
		joining := h.listen("orders")
		store.all(works)
		time.Sleep(2 * time.Second)
		if early, numbered := joining.heard(id); early != 1 || numbered != 1 {
			t.Errorf("who has joined was told early %d times, and then %d times", early, numbered)
		}
		if n := h.PendingEnds(); n != 0 {
			t.Errorf("%d are pending", n)
		}
	})
}

// TestAnOperatorsRevocationIsInForceWhileTheStoreIsAway.
func TestAnOperatorsRevocationIsInForceWhileTheStoreIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		withKey := func(r *broker.BeginRequest) { withToken(r); r.Key = "k" }
		one, two := h.begin(report, withKey), h.begin(report, withToken)
		store.ends.Store(away)
		revocations := []broker.Revocation{{Grant: one.Tokens[0].Grant.ID}, {Task: two.Task.ID}}
		for i := range revocations {
			revocations[i].Actor, revocations[i].Reason = "ada", "INC-7"
			if r, err := h.Revoke(ctx, revocations[i]); err != nil || r.Durable || r.State != broker.Revoked {
				t.Fatalf("%+v, %v", r, err)
			}
		}
		for _, b := range []broker.Begun{one, two} {
			if h.live(report, b.Tokens[0].Grant.ID) {
				t.Error("a grant is alive")
			}
		}
		if again := h.begin(report, withKey); len(again.Tokens) != 0 {
			t.Error("a replay has the token again")
		}
		_, err := h.Revoke(ctx, broker.Revocation{All: true, Actor: "ada", Reason: "INC-7"})
		want(t, err, broker.ErrUnavailable)
		store.all(works)
		time.Sleep(2 * time.Second)
		if g, e := h.audit.of(broker.EventGrantRevoked), h.audit.of(broker.EventTaskEnded); len(g) != 1 || len(e) != 1 || e[0].State != broker.Revoked {
			t.Errorf("the audit log has %+v and %+v", g, e)
		}
		if n := len(h.denied("orders")); n != 2 || h.PendingEnds() != 0 {
			t.Errorf("%d entries, %d pending", n, h.PendingEnds())
		}
	})
}

// TestPendingEndsAreBounded: one too many is refused, and none that was answered is dropped.
func TestPendingEndsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		var mine []broker.Begun
		for range broker.MaxPendingPerCaller + 1 {
			begun := h.begin(report, func(r *broker.BeginRequest) { r.Deadline = broker.MaxDeadline })
			h.end(report, begun.Task.ID) // what is over counts for no quota, and its key is good
			mine = append(mine, begun)
		}
		others := h.begin(night, nil)
		store.all(away)
		for i, begun := range mine {
			_, err := h.tryEnd(report, begun.Task.ID, begun.EndKey)
			if full := i == broker.MaxPendingPerCaller; full != errors.Is(err, broker.ErrUnavailable) {
				t.Fatalf("end %d of one workload: %v", i, err)
			}
		}
		if _, err := h.tryEnd(night, others.Task.ID, others.EndKey); err != nil {
			t.Errorf("another workload's: %v", err)
		}
		revoke := func() error {
			_, err := h.Revoke(ctx, broker.Revocation{Task: broker.NewTaskID(0), Actor: "ada", Reason: "INC-7"})
			return err
		}
		for h.PendingEnds() < broker.MaxPendingEnds {
			if err := revoke(); err != nil {
				t.Fatalf("end %d: %v", h.PendingEnds(), err)
			}
		}
		want(t, revoke(), broker.ErrUnavailable)
		if r, err := h.tryEnd(report, mine[0].Task.ID, mine[0].EndKey); err != nil || r.Durable {
			t.Errorf("repeated: %+v, %v", r, err)
		}
		store.all(works)
		time.Sleep(3 * time.Second)
		if n := h.PendingEnds(); n != 0 {
			t.Errorf("%d are pending after the outage", n)
		}
		// All but one were over before, or never there.
		if moot, ends := len(h.audit.of(broker.EventEndMoot)), len(h.audit.of(broker.EventTaskEnded)); moot != broker.MaxPendingEnds-1 || ends != len(mine)+1 {
			t.Errorf("%d moot and %d ends are in the audit log", moot, ends)
		}
	})
}

// TestWhatNobodyWasToldOfTakesHalfOfTheRoom: callers who can prove nothing crowd nobody out.
func TestWhatNobodyWasToldOfTakesHalfOfTheRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		begun := h.begin(report, nil)
		store.all(loses)
		for i := range broker.MaxPendingEnds {
			_, err := h.tryEnd(fmt.Sprintf("stranger-%d", i/(broker.MaxPendingPerCaller+1)), broker.NewTaskID(0), broker.EndKey{})
			want(t, err, broker.ErrUnconfirmed)
		}
		if n := h.PendingEnds(); n != broker.MaxPendingEnds/2 {
			t.Errorf("%d ends wait that nobody was told of", n)
		}
		if r, err := h.tryEnd(report, begun.Task.ID, begun.EndKey); err != nil || r.Durable {
			t.Errorf("an end with its key: %+v, %v", r, err)
		}
		store.all(works)
		time.Sleep(2 * time.Second)
		if n, ends := h.PendingEnds(), len(h.audit.of(broker.EventTaskEnded)); n != 0 || ends != 1 || len(h.audit.of(broker.EventEndMoot)) != 0 {
			t.Errorf("%d pending, %d ends in the audit log", n, ends)
		}
	})
}

// TestWhatIsPendingIsTriedOnceMoreWhenTheBrokerStops, and named when that fails.
func TestWhatIsPendingIsTriedOnceMoreWhenTheBrokerStops(t *testing.T) {
	for name, back := range map[string]bool{"the store is back": true, "the store is away": false} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			audit := &recorder{}
			var id broker.TaskID
			var event broker.EventID
			synctest.Test(t, func(t *testing.T) {
				store := newFaulty(t)
				h := newHarness(t, store, func(c *broker.Config) {
					c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError}))
					c.Auditor = audit
				})
				begun := h.begin(report, withToken)
				store.all(away)
				r, err := h.tryEnd(report, begun.Task.ID, begun.EndKey)
				if err != nil {
					t.Fatal(err)
				}
				id, event = begun.Task.ID, r.Event
				if back {
					store.all(works)
				}
			})
			named := strings.Contains(log.String(), string(id)) && strings.Contains(log.String(), string(event))
			recorded := slices.ContainsFunc(audit.events, func(e broker.Event) bool { return e.ID == event })
			if named == back || recorded != back {
				t.Errorf("in the audit log: %v; the broker's log:\n%s", recorded, log.String())
			}
		})
	}
}

// TestEndsOfOneTaskAtTheSameTime have one receipt and one record, whichever of them the store did.
func TestEndsOfOneTaskAtTheSameTime(t *testing.T) {
	for name, fault := range map[string]int32{"works": works, "away": away, "hangs": hangs, "loses": loses, "stalls": stalls, "loses once": losesOnce} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newFaulty(t)
				h := newHarness(t, store, nil)
				begun := h.begin(report, withToken)
				store.ends.Store(fault)
				receipts := make(chan broker.Receipt, 8)
				for range cap(receipts) {
					go func() {
						r, err := h.tryEnd(report, begun.Task.ID, begun.EndKey)
						if err != nil {
							t.Error(err)
						}
						receipts <- r
					}()
				}
				told := map[broker.EventID]bool{}
				for range cap(receipts) {
					told[(<-receipts).Event] = true
				}
				if len(told) != 1 {
					t.Errorf("receipts of %v", told)
				}
				if again, err := h.tryEnd(report, begun.Task.ID, begun.EndKey); err != nil || !told[again.Event] {
					t.Errorf("repeated: %+v, %v; before it was %v", again, err, told)
				}
				store.ends.Store(works)
				time.Sleep(2 * time.Second)
				truth := h.end(report, begun.Task.ID)
				ends := h.audit.of(broker.EventTaskEnded)
				if len(ends) != 1 || ends[0].ID != truth.Event || h.PendingEnds() != 0 {
					t.Errorf("the receipt is %+v, the audit log has %+v, %d pending", truth, ends, h.PendingEnds())
				}
				for _, e := range append(h.audit.of(broker.EventEndMoot), ends...) {
					delete(told, e.ID)
				}
				if len(told) != 0 {
					t.Errorf("receipts were given of %v, which are not in the audit log", told)
				}
			})
		})
	}
}
