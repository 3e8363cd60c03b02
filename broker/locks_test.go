package broker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
)

// lockAll locks what a filter means, in ada's name.
func (h *harness) lockAll(f broker.Filter, edit func(*broker.LockRequest)) ([]broker.StandingLock, error) {
	req := broker.LockRequest{Filter: f, Life: time.Hour, Actor: ada.String(), Address: "192.0.2.9:1", Reason: because, Ticket: "INC-4411"}
	if edit != nil {
		edit(&req)
	}
	return h.LockAll(context.Background(), req)
}

// A lock for each combination is in force when it is answered, is listed, and is gone when it is lifted or has expired.
func TestLockAll(t *testing.T) {
	inBubble(t, func(h *harness) {
		ctx := context.Background()
		locks, err := h.lockAll(broker.Filter{Workloads: []string{"spiffe://prod/report", "spiffe://prod/batch/*"}, Audiences: []string{"files", "orders"}}, nil)
		if err != nil || len(locks) != 4 {
			t.Fatalf("%+v, %v", locks, err)
		}
		_, err = h.tryBegin(report, withToken)
		want(t, err, broker.ErrQuarantined)
		begun := h.begin(report, nil) // a lock of an audience lets tasks begin
		events := h.audit.of(broker.EventLocked)
		standing, err := h.Locks(ctx)
		if err != nil || len(standing) != 4 || len(events) != 4 {
			t.Fatalf("%+v, %v, and %d events", standing, err, len(events))
		}
		for _, e := range events {
			i := slices.IndexFunc(standing, func(l broker.Lock) bool { return l.ID == e.Lock })
			if i < 0 || standing[i].Selector != e.Selector || standing[i].Actor != ada.String() || standing[i].Since.IsZero() || standing[i].Reason != because ||
				e.Actor != ada.String() || e.Reason != because || e.Ticket != "INC-4411" || e.Address != "192.0.2.9:1" || !e.Expires.Equal(standing[i].Expires) {
				t.Errorf("%+v of %+v", e, standing)
			}
		}
		for _, l := range standing {
			if err := h.Lift(ctx, broker.Lifting{Lock: l.ID, Actor: ada.String(), Address: "192.0.2.9:1", Reason: "it is over"}); err != nil {
				t.Error(err)
			}
			_, err := h.FindLock(ctx, l.ID)
			want(t, err, broker.ErrNotFound)
		}
		h.issue(report, begun.Task.ID)
		if lifted := h.audit.of(broker.EventLifted); len(lifted) != 4 || lifted[0].Address != "192.0.2.9:1" {
			t.Errorf("lifted: %+v", lifted)
		}
		if _, err := h.lockAll(broker.Filter{Owners: []string{"team-fin"}}, func(r *broker.LockRequest) { r.Life = time.Second }); err != nil {
			t.Error(err)
		}
		_, err = h.tryBegin(night, nil)
		want(t, err, broker.ErrQuarantined)
		time.Sleep(2 * time.Second)
		h.begin(night, nil)
		if left, err := h.Locks(ctx); err != nil || len(left) != 0 {
			t.Errorf("an hour later: %+v, %v", left, err)
		}
	})
}

// Everything can be locked, by whom may; a heartbeat and an end go on.
func TestLockEverything(t *testing.T) {
	inBubble(t, func(h *harness) {
		begun := h.begin(report, withToken)
		everything := broker.Filter{All: true}
		_, err := h.lockAll(everything, nil)
		want(t, err, broker.ErrAll)
		if _, err := h.lockAll(everything, func(r *broker.LockRequest) { r.MayAll = true }); err != nil {
			t.Fatal(err)
		}
		for _, w := range []string{report, night} {
			_, err = h.tryBegin(w, nil)
			want(t, err, broker.ErrQuarantined)
		}
		_, err = h.Issue(context.Background(), workload(report), begun.Task.ID, broker.TokenRequest{Audience: "orders"})
		want(t, err, broker.ErrQuarantined)
		if pulses, err := h.Heartbeat(context.Background(), workload(report), []broker.Beat{{Task: begun.Task.ID}}); err != nil || pulses[0].Err != nil {
			t.Errorf("a heartbeat: %+v, %v", pulses, err)
		}
		if !h.live(report, begun.Tokens[0].Grant.ID) {
			t.Error("a lock has killed a token")
		}
		h.end(report, begun.Task.ID)
	})
}

// What stands already is said to, and nothing is added; one that is to stand for longer is.
func TestLockStands(t *testing.T) {
	inBubble(t, func(h *harness) {
		filter := broker.Filter{Audiences: []string{"orders"}}
		first, err := h.lockAll(filter, nil)
		if err != nil || first[0].Stood {
			t.Fatalf("%+v, %v", first, err)
		}
		time.Sleep(30 * time.Second)
		again, err := h.lockAll(broker.Filter{Audiences: []string{"files", "orders"}}, nil)
		if err != nil || len(again) != 2 || again[0].Stood || !again[1].Stood || again[1].ID != first[0].ID {
			t.Errorf("%+v, %v", again, err)
		}
		longer, err := h.lockAll(filter, func(r *broker.LockRequest) { r.Life = 2 * time.Hour })
		if err != nil || longer[0].Stood || longer[0].ID == first[0].ID {
			t.Errorf("%+v, %v", longer, err)
		}
		if locks, err := h.Locks(context.Background()); err != nil || len(locks) != 3 || len(h.audit.of(broker.EventLocked)) != 3 {
			t.Errorf("%+v, %v", locks, err)
		}
		time.Sleep(2*time.Hour - 10*time.Second)
		last, err := h.lockAll(filter, func(r *broker.LockRequest) { r.Life = time.Minute })
		if err != nil || last[0].Stood {
			t.Errorf("one that is about to expire was taken for another minute: %+v, %v", last, err)
		}
	})
}

// heard is a store whose feed a test may hold back, or change.
type heard struct {
	broker.Store
	update func(broker.Update) broker.Update
}

func (s *heard) Watch(ctx context.Context, from broker.Position, f func(broker.Update) error) error {
	return s.Store.Watch(ctx, from, func(u broker.Update) error { return f(s.update(u)) })
}

// What was lifted at another replica a moment ago does not stand, although this one has not heard of it.
func TestALiftedLockDoesNotStand(t *testing.T) {
	inBubble(t, func(h *harness) {
		gate := make(chan struct{}, 1)
		gate <- struct{}{}
		late := newHarness(h.t, &heard{h.store, func(u broker.Update) broker.Update {
			<-gate
			gate <- struct{}{}
			return u
		}}, nil)
		filter := broker.Filter{Workloads: []string{"spiffe://prod/report"}}
		first, err := late.lockAll(filter, nil)
		if err != nil {
			t.Fatal(err)
		}
		<-gate
		if err := h.Lift(context.Background(), broker.Lifting{Lock: first[0].ID, Actor: ada.String(), Reason: "it is over"}); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() { gate <- struct{}{} })
		again, err := late.lockAll(filter, nil)
		if err != nil || again[0].Stood {
			t.Errorf("%+v, %v", again, err)
		}
		_, err = h.tryBegin(report, nil)
		want(t, err, broker.ErrQuarantined)
	})
}

// A lock that came into some of the shards only, as when the store goes away in the middle, is added when it is asked for again.
func TestHalfALockDoesNotStand(t *testing.T) {
	inBubble(t, func(h *harness) {
		filter := broker.Filter{Workloads: []string{"spiffe://prod/report"}}
		first, err := h.lockAll(filter, nil)
		if err != nil {
			t.Fatal(err)
		}
		shards := 0
		half := newHarness(h.t, &heard{h.store, func(u broker.Update) broker.Update {
			shards = len(u.Position.Numbers)
			for i := range u.Controls[min(1, len(u.Controls)):] {
				u.Controls[1+i].Locks = nil
			}
			return u
		}}, nil)
		again, err := half.lockAll(filter, nil)
		if err != nil || again[0].Stood != (shards == 1) || again[0].Stood != (again[0].ID == first[0].ID) {
			t.Errorf("with %d shards: %+v, %v", shards, again, err)
		}
	})
}

// What may have happened, and nobody could be told, is in the audit log: whoever asks again finds that it has happened.
func TestLostAnswersOfOperatorsAreRecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		unsure := func(kind broker.EventKind, n int, call func() error) broker.Event {
			t.Helper()
			store.ends.Store(loses)
			want(t, call(), broker.ErrUnconfirmed)
			store.ends.Store(works)
			if err := call(); err != nil {
				t.Error(err)
			}
			events := h.audit.of(kind)
			if len(events) != n || !events[0].Unsure || events[0].Actor != ada.String() || events[0].Reason != because || events[0].Time.IsZero() {
				t.Fatalf("%+v", events)
			}
			return events[0]
		}
		added := unsure(broker.EventLocked, 1, func() error {
			_, err := h.lockAll(broker.Filter{Workloads: []string{"spiffe://prod/report"}}, nil)
			synctest.Wait()
			return err
		})
		if added.Selector.Subject != "spiffe://prod/report" || added.Ticket != "INC-4411" {
			t.Errorf("%+v", added)
		}
		lifted := unsure(broker.EventLifted, 1, func() error {
			return h.Lift(context.Background(), broker.Lifting{Lock: added.Lock, Actor: ada.String(), Reason: because})
		})
		if lifted.Lock != added.Lock {
			t.Errorf("%+v", lifted)
		}
		unsure(broker.EventRevoked, 2, func() error {
			_, err := h.mass(broker.Filter{Audiences: []string{"orders"}}, nil)
			return err
		})
	})
}

func TestLockRefuses(t *testing.T) {
	inBubble(t, func(h *harness) {
		orders := broker.Filter{Audiences: []string{"orders"}}
		for field, test := range map[string]struct {
			filter broker.Filter
			edit   func(*broker.LockRequest)
		}{
			"selector":          {broker.Filter{}, nil},
			"selector: task":    {broker.Filter{Tasks: []broker.TaskID{broker.NewTaskID(0)}}, nil},
			"selector: name":    {broker.Filter{Names: []string{"x"}, Audiences: []string{"orders"}}, nil},
			"selector: none":    {broker.Filter{Owners: []string{"nobody"}}, nil},
			"selector.workload": {broker.Filter{Workloads: []string{"*"}}, nil},
			"reason":            {orders, func(r *broker.LockRequest) { r.Reason = "short" }},
			"expires_in":        {orders, func(r *broker.LockRequest) { r.Life = 0 }},
			"expires_in: 31":    {orders, func(r *broker.LockRequest) { r.Life = broker.MaxLock + time.Second }},
		} {
			_, err := h.lockAll(test.filter, test.edit)
			if bad := (*broker.Invalid)(nil); !errors.As(err, &bad) || bad.Field != field[:len(bad.Field)] {
				t.Errorf("%s: %v", field, err)
			}
		}
		var names []string
		for i := range broker.MaxSelectors {
			names = append(names, fmt.Sprintf("s%d", i))
		}
		for i := range broker.MaxLocks / broker.MaxSelectors {
			if _, err := h.lockAll(broker.Filter{Audiences: []string{fmt.Sprintf("a%d", i)}, Scopes: names}, nil); err != nil {
				t.Fatal(err)
			}
		}
		_, err := h.lockAll(orders, nil)
		want(t, err, broker.ErrQuota)
		if !strings.Contains(err.Error(), "lift some") {
			t.Errorf("what to do is not said: %v", err)
		}
		want(t, h.Lift(context.Background(), broker.Lifting{Lock: broker.NewLockID(), Actor: "ada", Reason: "x"}), broker.ErrNotFound)
	})
}

// TestRaceIssueUnderALock: whoever asks for tokens while an operator locks and then revokes has none afterwards.
func TestRaceIssueUnderALock(t *testing.T) {
	race(t, func(h *harness, both func(one, other func())) {
		task := h.begin("crowd", nil)
		var issued broker.Issued
		var failed error
		var locks []broker.StandingLock
		filter := broker.Filter{Workloads: []string{"spiffe://prod/crowd"}}
		both(func() {
			issued, failed = h.Issue(context.Background(), workload("crowd"), task.Task.ID, broker.TokenRequest{Audience: "orders"})
		}, func() {
			var err error
			if locks, err = h.lockAll(filter, nil); err != nil || locks[0].Stood {
				h.t.Errorf("lock: %+v, %v", locks, err)
			}
			if done, err := h.mass(filter, nil); err != nil || done.Left != "" {
				h.t.Errorf("revoke: %+v, %v", done, err)
			}
		})
		switch {
		case failed == nil && h.live("crowd", issued.Grant.ID):
			h.t.Error("a grant has slipped in between the lock and the revocation")
		case failed != nil && !errors.Is(failed, broker.ErrQuarantined):
			h.t.Errorf("issue: %v; want ErrQuarantined or none", failed)
		}
		if err := h.Lift(context.Background(), broker.Lifting{Lock: locks[0].ID, Actor: ada.String(), Reason: "it is over"}); err != nil {
			h.t.Error(err)
		}
		h.end("crowd", task.Task.ID)
	})
}
