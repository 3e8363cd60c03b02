package broker_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/errandhq/errand/broker"
)

// outages makes random calls of a replica whose store fails at random.
type outages struct {
	*rapid.T
	h     *harness
	store *faultyStore
	tasks []*work
	told  map[broker.EventID]bool // events of receipts, and whether they were durable
}

// work is a task that was begun, and what was said of it.
type work struct {
	broker.Begun
	parent *work
	grants []broker.GrantID
	over   bool // an end was answered, of the task or of one above
}

func (w *work) dead() bool { return w.over || w.parent != nil && w.parent.dead() }

// TestP4_OutagesAtRandom: what was answered as ended is never alive again on this replica and gets
// no token; all of it is in the store after the outage; and each receipt has exactly one record.
func TestP4_OutagesAtRandom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ testing.TB }{t}, func(rt *rapid.T) {
			m := &outages{T: rt, store: newFaulty(t), told: map[broker.EventID]bool{}}
			var stop func()
			m.h, stop = startHarness(t, m.store, nil)
			defer stop()
			rt.Repeat(map[string]func(*rapid.T){
				"":          func(*rapid.T) { m.check() },
				"begin":     func(*rapid.T) { m.begin() },
				"issue":     func(*rapid.T) { m.issue() },
				"end":       func(*rapid.T) { m.end() },
				"end too":   func(*rapid.T) { m.end() },
				"revoke":    func(*rapid.T) { m.revoke() },
				"heartbeat": func(*rapid.T) { m.heartbeat() },
				"break":     func(*rapid.T) { m.breakSomething() },
				"heal":      func(*rapid.T) { m.store.all(works) },
				"wait": func(rt *rapid.T) {
					time.Sleep(time.Duration(rapid.IntRange(1, 4000).Draw(rt, "ms")) * time.Millisecond)
				},
			})
			m.store.all(works)
			time.Sleep(3 * time.Second)
			m.check()
			m.settled()
		})
	})
}

// draw draws a task, and returns nil while there is none.
func (m *outages) draw() *work {
	if len(m.tasks) == 0 {
		m.Skip("no task")
	}
	return rapid.SampledFrom(m.tasks).Draw(m.T, "task")
}

func (m *outages) begin() {
	w := &work{}
	begun, err := m.h.tryBegin(report, func(r *broker.BeginRequest) {
		withToken(r)
		if len(m.tasks) > 0 && rapid.Bool().Draw(m.T, "below") {
			w.parent = m.draw()
			r.Parent = w.parent.Task.ID
		}
	})
	if err != nil {
		return
	}
	if w.dead() || begun.Replayed {
		m.Fatalf("begun below a task that has ended, or again: %+v", begun)
	}
	w.Begun, w.grants = begun, []broker.GrantID{begun.Tokens[0].Grant.ID}
	m.tasks = append(m.tasks, w)
}

func (m *outages) issue() {
	w := m.draw()
	issued, err := m.h.Issue(ctx, workload(report), w.Task.ID, broker.TokenRequest{Audience: "orders"})
	if err != nil {
		return
	}
	if w.dead() {
		m.Fatalf("a token in a task that has ended: %+v", issued)
	}
	w.grants = append(w.grants, issued.Grant.ID)
}

func (m *outages) end() {
	w, key := m.draw(), broker.EndKey{}
	if rapid.Bool().Draw(m.T, "with its key") {
		key = w.EndKey
	}
	start := time.Now()
	receipt, err := m.h.tryEnd(report, w.Task.ID, key)
	if took := time.Since(start); took >= time.Second {
		m.Fatalf("an end took %s", took)
	}
	m.ended(w, receipt, err, key)
}

func (m *outages) revoke() {
	w := m.draw()
	receipt, err := m.h.Revoke(ctx, broker.Revocation{Task: w.Task.ID, Actor: "ada", Reason: "INC"})
	m.ended(w, receipt, err, w.EndKey)
}

func (m *outages) ended(w *work, receipt broker.Receipt, err error, key broker.EndKey) {
	switch {
	case err == nil:
		w.over = true
		m.told[receipt.Event] = m.told[receipt.Event] || receipt.Durable
	case errors.Is(err, broker.ErrNotFound): // all of it is long over
	case key != broker.EndKey{}, !errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrUnconfirmed):
		m.Fatalf("an end: %v", err)
	}
}

func (m *outages) heartbeat() {
	w := m.draw()
	pulses, err := m.h.Heartbeat(ctx, workload(report), []broker.Beat{{Task: w.Task.ID}})
	if err == nil && pulses[0].Err == nil && pulses[0].Task.State == broker.Active && w.dead() {
		m.Fatalf("a heartbeat finds an ended task active: %+v", pulses[0])
	}
}

func (m *outages) breakSomething() {
	fault := rapid.Int32Range(away, losesOnce).Draw(m.T, "fault")
	which := []*atomic.Int32{m.store.grants, m.store.ends, m.store.ends, m.store.beats, m.store.reads, m.store.feed}
	if i := rapid.IntRange(0, len(which)).Draw(m.T, "of"); i < len(which) {
		which[i].Store(fault)
	} else {
		m.store.all(fault)
	}
}

// check looks at all that has ended, if the store answers.
func (m *outages) check() {
	fault := m.store.reads.Load()
	if fault == hangs || fault == stalls {
		return // it would only take its time
	}
	for _, w := range m.tasks {
		if !w.dead() {
			continue
		}
		if task, err := m.h.Task(ctx, workload(report), w.Task.ID); err == nil && task.State == broker.Active {
			m.Fatalf("an ended task is active: %+v", task)
		}
		for _, id := range w.grants {
			if status, err := m.h.Grant(ctx, workload(report), id); err == nil && status.Live {
				m.Fatalf("a grant of an ended task is alive: %+v", status)
			}
		}
	}
}

// settled wants everything to be in the store, in the audit log and nowhere else.
func (m *outages) settled() {
	if n := m.h.PendingEnds(); n != 0 {
		m.Fatalf("%d ends are pending", n)
	}
	records, ends := map[broker.EventID]int{}, map[broker.TaskID]int{}
	for _, kind := range []broker.EventKind{broker.EventTaskEnded, broker.EventEndMoot} {
		for _, e := range m.h.audit.of(kind) {
			records[e.ID]++
			if kind == broker.EventTaskEnded {
				ends[e.Task]++
			}
		}
	}
	for _, w := range m.tasks {
		record, err := m.store.Store.Lookup(ctx, broker.Ref{Task: w.Task.ID})
		if err == nil && w.dead() && record.Task.State == broker.Active {
			m.Fatalf("the store has an ended task as active: %+v", record.Task)
		}
		if err == nil && w.over && ends[w.Task.ID] != 1 {
			m.Fatalf("%d records say that a task has ended: %+v", ends[w.Task.ID], record.Task)
		}
	}
	for id := range m.told {
		if records[id] != 1 {
			m.Fatalf("the event %s of a receipt has %d records", id, records[id])
		}
	}
	for id, n := range records {
		if n != 1 {
			m.Fatalf("the event %s has %d records", id, n)
		}
	}
	for id, n := range ends {
		if n != 1 {
			m.Fatalf("the task %s has ended %d times", id, n)
		}
	}
}
