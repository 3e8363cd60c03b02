package broker_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// watcher is the source of the inventory.
func (h *harness) watcher() broker.SourceRegistration {
	h.t.Helper()
	s, err := h.registry.Source(spiffeid.RequireFromString("spiffe://prod/watcher"))
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// about is a change to a begin that gives the task a reference.
func about(kind, id string) func(*broker.BeginRequest) {
	return func(r *broker.BeginRequest) {
		withToken(r)
		r.Ref = broker.TaskRef{Kind: kind, ID: id, URL: "https://cluster.example/" + id}
	}
}

func jobEnded(id string) broker.RefEnd {
	return broker.RefEnd{URI: "spiffe://prod/watcher", Ref: broker.TaskRef{Kind: "k8s/job", ID: id}, State: broker.Failed, Reason: "OOMKilled"}
}

func (h *harness) endRef(e broker.RefEnd) (int, error) {
	return h.EndRef(h.t.Context(), h.watcher(), "192.0.2.9:1", e)
}

// TestEndRefEndsWhatCarriesIt, with what is below, and nothing else; once.
func TestEndRefEndsWhatCarriesIt(t *testing.T) {
	inBubble(t, func(h *harness) {
		first, second := h.begin(report, about("k8s/job", "uid-1")), h.begin(night, about("k8s/job", "uid-1"))
		child, err := h.Begin(h.t.Context(), workload(report), broker.BeginRequest{Parent: first.Task.ID, Name: "part", Purpose: "p"})
		if err != nil {
			t.Fatal(err)
		}
		others := []broker.TaskID{
			h.begin(report, about("k8s/job", "uid-2")).Task.ID, h.begin(report, about("k8s/pod", "uid-1")).Task.ID, h.begin(report, withToken).Task.ID,
		}
		if n, err := h.endRef(jobEnded("uid-1")); n != 2 || err != nil {
			t.Fatalf("%d ended, %v", n, err)
		}
		for w, id := range map[string]broker.TaskID{report: first.Task.ID, night: second.Task.ID} {
			if task := h.at(w, id); task.State != broker.Failed || task.Cause != broker.CauseRef {
				t.Errorf("%s's task is %s with cause %s", w, task.State, task.Cause)
			}
		}
		if h.at(report, child.Task.ID).State != broker.Canceled || h.live(report, first.Tokens[0].Grant.ID) || !h.names("orders", string(first.Task.ID)) {
			t.Error("something of it lives on")
		}
		for _, id := range others {
			if task := h.at(report, id); task.State != broker.Active {
				t.Errorf("another task is %s", task.State)
			}
		}
		ends := h.audit.of(broker.EventTaskEnded)
		if len(ends) != 2 || ends[0].Actor != "source cluster" || ends[0].Address != "192.0.2.9:1" || ends[0].Cause != broker.CauseRef || ends[0].Reason != "OOMKilled" {
			t.Errorf("the audit log has %+v", ends)
		}
		// Once more, and for one that nobody carries: nothing happens. A task that begins afterwards lives.
		later := h.begin(report, about("k8s/job", "uid-1")).Task.ID
		if n, err := h.endRef(jobEnded("uid-3")); n != 0 || err != nil {
			t.Errorf("an unknown one: %d, %v", n, err)
		}
		if h.at(report, later).State != broker.Active {
			t.Error("a task that began after the event has ended")
		}
		if n, err := h.endRef(jobEnded("uid-1")); n != 1 || err != nil {
			t.Errorf("said again, of what has begun since: %d, %v", n, err)
		}
		if n, err := h.endRef(jobEnded("uid-1")); n != 0 || err != nil {
			t.Errorf("a repetition: %d, %v", n, err)
		}
	})
}

// TestEndRefComesLate: what says when it happened ends nothing that has begun since, within the skew of two
// clocks, however often it is repeated.
func TestEndRefComesLate(t *testing.T) {
	inBubble(t, func(h *harness) {
		first := h.begin(report, about("k8s/job", "nightly")).Task
		time.Sleep(10 * time.Second)
		word := jobEnded("nightly")
		word.Time = time.Now()
		time.Sleep(broker.MaxSkew)
		second := h.begin(report, about("k8s/job", "nightly")).Task
		time.Sleep(time.Millisecond)
		third := h.begin(report, about("k8s/job", "nightly")).Task
		for range 2 {
			if _, err := h.endRef(word); err != nil {
				t.Fatal(err)
			}
		}
		for id, want := range map[broker.TaskID]broker.State{first.ID: broker.Failed, second.ID: broker.Failed, third.ID: broker.Active} {
			if got := h.at(report, id).State; got != want {
				t.Errorf("%s is %s; want %s", id, got, want)
			}
		}
		word.Time = time.Time{}
		if n, err := h.endRef(word); n != 1 || err != nil {
			t.Errorf("without a time: %d, %v", n, err)
		}
	})
}

// TestEndRefManyTasks: more than a page of them.
func TestEndRefManyTasks(t *testing.T) {
	inBubble(t, func(h *harness) {
		const n = broker.MaxPage + 7
		for range n {
			h.begin(report, func(r *broker.BeginRequest) { r.Ref = broker.TaskRef{Kind: "k8s/job", ID: "uid-1"} })
		}
		ended := 0
		for range 3 {
			k, err := h.endRef(jobEnded("uid-1"))
			if ended += k; err == nil {
				break
			}
		}
		if ended != n || len(h.audit.of(broker.EventTaskEnded)) != n {
			t.Errorf("%d of %d ended", ended, n)
		}
	})
}

// TestASourceEndsOnlyWhatItMay: what it may not say is refused, recorded, and changes nothing.
func TestASourceEndsOnlyWhatItMay(t *testing.T) {
	inBubble(t, func(h *harness) {
		foreign := h.begin(small, about("k8s/job", "uid-1")).Task.ID
		mine := h.begin(report, about("ci/run", "7")).Task.ID
		for name, test := range map[string]struct {
			edit func(*broker.RefEnd)
			rule string
		}{
			"another's source":   {func(e *broker.RefEnd) { e.URI = "https://forge.example" }, broker.RuleSourceURI},
			"no source":          {func(e *broker.RefEnd) { e.URI = "" }, broker.RuleSourceURI},
			"another kind":       {func(e *broker.RefEnd) { e.Ref = broker.TaskRef{Kind: "ci/run", ID: "7"} }, broker.RuleSourceKind},
			"a kind below its":   {func(e *broker.RefEnd) { e.Ref.Kind = "k8s/job/x" }, broker.RuleSourceKind},
			"another's workload": {func(*broker.RefEnd) {}, broker.RuleSourceWorkload},
		} {
			e := jobEnded("uid-1")
			test.edit(&e)
			before := len(h.audit.of(broker.EventDenied))
			n, err := h.endRef(e)
			var denied *broker.Denied
			if n != 0 || !errors.As(err, &denied) || denied.Decision.Rule != test.rule || len(denied.Decision.Missing) == 0 {
				t.Errorf("%s: %d, %v", name, n, err)
			}
			events := h.audit.of(broker.EventDenied)
			if len(events) != before+1 || events[before].Actor != "source cluster" || events[before].Rule != test.rule || events[before].Ref.ID != e.Ref.ID {
				t.Errorf("%s: the audit log has %+v", name, events[before:])
			}
		}
		if h.at(small, foreign).State != broker.Active || h.at(report, mine).State != broker.Active {
			t.Error("a task has ended")
		}
		// Beside one that it may end, another's is let alone without a word.
		h.begin(report, about("k8s/job", "uid-1"))
		if n, err := h.endRef(jobEnded("uid-1")); n != 1 || err != nil || h.at(small, foreign).State != broker.Active {
			t.Errorf("%d, %v", n, err)
		}
	})
}

// TestEndRefBadInput names the field.
func TestEndRefBadInput(t *testing.T) {
	inBubble(t, func(h *harness) {
		id := h.begin(report, about("k8s/job", "uid-1")).Task.ID
		for field, edit := range map[string]func(*broker.RefEnd){
			"outcome":  func(e *broker.RefEnd) { e.State = broker.Revoked },
			"reason":   func(e *broker.RefEnd) { e.Reason = string(make([]byte, broker.MaxPurpose+1)) },
			"ref":      func(e *broker.RefEnd) { e.Ref = broker.TaskRef{} },
			"ref.kind": func(e *broker.RefEnd) { e.Ref.Kind = "" },
			"ref.id":   func(e *broker.RefEnd) { e.Ref.ID = "a b" },
		} {
			e := jobEnded("uid-1")
			edit(&e)
			_, err := h.endRef(e)
			var bad *broker.Invalid
			if !errors.As(err, &bad) || bad.Field != field {
				t.Errorf("%s: %v", field, err)
			}
		}
		if h.at(report, id).State != broker.Active {
			t.Error("the task has ended")
		}
	})
}

// TestEndRefWhileTheStoreIsAway says so: what was written and not confirmed is recorded when it is, and
// repeating ends the rest.
func TestEndRefWhileTheStoreIsAway(t *testing.T) {
	for name, fault := range map[string]int32{"away": away, "hangs": hangs, "loses the answer": loses} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newFaulty(t)
				h := newHarness(t, store, nil)
				id := h.begin(report, func(r *broker.BeginRequest) { about("k8s/job", "uid-1")(r); r.Lease = broker.MaxLease }).Task.ID
				store.ends.Store(fault)
				start := time.Now()
				n, err := h.endRef(jobEnded("uid-1"))
				if n != 0 || !errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrUnconfirmed) || time.Since(start) > time.Second {
					t.Fatalf("%d, %v after %s", n, err, time.Since(start))
				}
				store.ends.Store(works)
				if _, err := h.endRef(jobEnded("uid-1")); err != nil {
					t.Fatal(err)
				}
				time.Sleep(2 * time.Second)
				if task := h.at(report, id); task.State != broker.Failed || task.Cause != broker.CauseRef {
					t.Errorf("the task is %s, %s", task.State, task.Cause)
				}
				if ends := h.audit.of(broker.EventTaskEnded); len(ends) != 1 || ends[0].Actor != "source cluster" {
					t.Errorf("the audit log has %+v", ends)
				}
			})
		})
	}
}
