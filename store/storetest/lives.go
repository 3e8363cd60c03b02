package storetest

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/errandhq/errand/broker"
)

// Lives makes random trees at random times, and wants that nothing makes a life longer than was said when
// it began: no heartbeat, no further token, no child, no join, no adoption, no end, and, by the store's time, no step of its
// clock, for which step is called with up to 5 s to either side if it is not nil.
func Lives(t *testing.T, b Backend, step func(time.Duration)) {
	b.In(t, func(t *testing.T) {
		// As in Machine.
		rapid.Check(struct{ testing.TB }{t}, func(rt *rapid.T) {
			bench := newBench(t, b, b.Shards[len(b.Shards)-1])
			l := &lives{T: rt, bench: bench, step: step, tasks: map[broker.TaskID]*life{}}
			l.run()
		})
	})
}

// life is what a task was told, and what has been seen of it.
type life struct {
	broker.Task
	grants []broker.Grant
	over   *broker.Task // as it was first seen to be
}

type lives struct {
	*rapid.T
	bench *bench
	step  func(time.Duration)
	tasks map[broker.TaskID]*life
	ids   []broker.TaskID
	last  time.Time // the store's time that was seen last
}

func (l *lives) run() {
	l.begin("")
	actions := map[string]func(*rapid.T){
		"begin":     func(*rapid.T) { l.begin("") },
		"child":     func(*rapid.T) { l.begin(l.draw().ID) },
		"child too": func(*rapid.T) { l.begin(l.draw().ID) },
		"join":      func(*rapid.T) { l.join() },
		"issue":     func(*rapid.T) { l.issue() },
		"heartbeat": func(*rapid.T) { l.heartbeat() },
		"end":       func(*rapid.T) { l.end() },
		"look":      func(*rapid.T) { l.look(l.draw()) },
		"look too":  func(*rapid.T) { l.look(l.draw()) },
		"advance": func(*rapid.T) {
			l.bench.Advance(time.Duration(rapid.IntRange(1, 4000).Draw(l.T, "ms")) * time.Millisecond)
		},
	}
	if l.step != nil {
		actions["step"] = func(*rapid.T) {
			l.step(time.Duration(rapid.IntRange(-5000, 5000).Draw(l.T, "step")) * time.Millisecond)
		}
	}
	l.Repeat(actions)
	for _, id := range l.ids {
		l.look(l.tasks[id])
	}
}

func (l *lives) draw() *life { return l.tasks[rapid.SampledFrom(l.ids).Draw(l.T, "task")] }

// at notes the store's time, which never goes back.
func (l *lives) at(now time.Time) {
	if now.Before(l.last) {
		l.Fatalf("the store's time went from %s back to %s", l.last, now)
	}
	l.last = now
}

func (l *lives) asks() []broker.Asked {
	var asks []broker.Asked
	for range rapid.IntRange(0, 2).Draw(l.T, "grants") {
		asks = append(asks, l.bench.ask("a", time.Duration(rapid.IntRange(2, 900).Draw(l.T, "life"))*time.Second))
	}
	return asks
}

// join begins a task of another workload.
func (l *lives) join() {
	parent := l.draw()
	l.begin(parent.ID, joining(parent.Task, broker.NewDelegationID()), by(rapid.SampledFrom([]spiffeid.ID{bob(), carol()}).Draw(l.T, "joiner")))
}

func (l *lives) begin(parent broker.TaskID, options ...option) {
	req := l.bench.root(asking(l.asks()...),
		lease(time.Duration(rapid.IntRange(5, 60).Draw(l.T, "lease"))*time.Second),
		deadline(time.Duration(rapid.IntRange(5, 120).Draw(l.T, "deadline"))*time.Second))
	req.Begin.Parent = parent
	if parent != "" {
		req.Workload = l.tasks[parent].Workload
	}
	for _, o := range options {
		o(&req)
	}
	reply, err := l.bench.store.Grant(l.bench.Context(), req)
	if l.refused(err) {
		return
	}
	l.at(reply.Now)
	t := &life{Task: reply.Task}
	l.tasks[t.ID], l.ids = t, append(l.ids, t.ID)
	if t.Deadline.After(t.Begun.Add(req.Begin.Deadline)) || t.LeaseEnd.After(t.Begun.Add(req.Begin.Lease)) {
		l.Fatalf("it was to live for %s, and its lease for %s: %+v", req.Begin.Deadline, req.Begin.Lease, t.Task)
	}
	if parent != "" {
		up := l.tasks[parent]
		if up.over != nil || t.Deadline.After(up.Deadline) {
			l.Fatalf("a child that lives until %s, below a task until %s that is over: %t", t.Deadline, up.Deadline, up.over != nil)
		}
	}
	l.keep(t, reply.Grants)
}

// refused reports a refusal, which must be one of those that time and trees bring about.
func (l *lives) refused(err error) bool {
	for _, good := range []error{broker.ErrEnded, broker.ErrNotFound, broker.ErrTooShort, broker.ErrInvalid} {
		if errors.Is(err, good) {
			return true
		}
	}
	if err != nil {
		l.Fatalf("Grant: %v", err)
	}
	return false
}

// keep notes new grants of a task.
func (l *lives) keep(t *life, grants []broker.Grant) {
	for _, g := range grants {
		if g.Expires.After(t.Deadline) {
			l.Fatalf("a token until %s in a task until %s", g.Expires, t.Deadline)
		}
		t.grants = append(t.grants, g)
	}
}

func (l *lives) issue() {
	t := l.draw()
	asks := l.asks()
	if len(asks) == 0 {
		l.Skip("nothing to ask for")
	}
	reply, err := l.bench.store.Grant(l.bench.Context(), l.bench.issuing(t.Task, asks...))
	if l.refused(err) {
		return
	}
	l.at(reply.Now)
	l.keep(t, reply.Grants)
	l.saw(t, reply.Task, reply.Now)
}

func (l *lives) heartbeat() {
	t := l.draw()
	beat := broker.Beat{Task: t.ID, Workload: t.Workload, Holder: rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(l.T, "holder")}
	beat.Adopt = rapid.IntRange(0, 2).Draw(l.T, "adopts") == 2
	pulses, err := l.bench.store.Heartbeat(l.bench.Context(), []broker.Beat{beat})
	if err != nil {
		l.Fatalf("Heartbeat: %v", err)
	}
	if pulse := pulses[0]; pulse.Err == nil {
		l.at(pulse.Now)
		if works := beat.Holder == 0 || beat.Holder == t.Holder; works && pulse.Task.State == broker.Active {
			if beat.Adopt {
				t.Holder++
			}
			t.LeaseEnd = pulse.Now.Add(t.Lease)
		}
		l.saw(t, pulse.Task, pulse.Now)
	}
}

func (l *lives) end() {
	t := l.draw()
	e := held(completing(t.Task), rapid.SampledFrom([]int{0, 1, 2}).Draw(l.T, "holder"))
	replies, err := l.bench.store.End(l.bench.Context(), []broker.Ending{e})
	if err != nil {
		l.Fatalf("End: %v", err)
	}
	if r := replies[0]; r.Err == nil {
		l.saw(t, r.Task, l.last)
	}
}

func (l *lives) look(t *life) {
	record, err := l.bench.store.Lookup(l.bench.Context(), broker.Ref{Task: t.ID})
	if errors.Is(err, broker.ErrNotFound) {
		return // it is gone, which is no life
	}
	if err != nil {
		l.Fatalf("Lookup: %v", err)
	}
	l.at(record.Now)
	l.saw(t, record.Task, record.Now)
	for _, g := range t.grants {
		record, err := l.bench.store.Lookup(l.bench.Context(), broker.Ref{Grant: g.ID})
		if err != nil {
			continue
		}
		l.at(record.Now)
		if live := record.Grant.Live(record.Now, record.Task); !record.Grant.Expires.Equal(g.Expires) || live && (!record.Now.Before(g.Expires) || t.over != nil) {
			l.Fatalf("at %s a grant is live: %t, until %s; it was given until %s", record.Now, live, record.Grant.Expires, g.Expires)
		}
	}
}

// saw compares what the store says of a task with what it has said before.
func (l *lives) saw(t *life, now broker.Task, at time.Time) {
	if now.Holder != t.Holder {
		l.Fatalf("its holder is %d; want %d", now.Holder, t.Holder)
	}
	if !now.Deadline.Equal(t.Deadline) || !slices.Equal(now.Path, t.Path) {
		l.Fatalf("its deadline was %s, and is %s", t.Deadline, now.Deadline)
	}
	if t.over != nil && (now.State != t.over.State || now.Cause != t.over.Cause || !now.Ended.Equal(t.over.Ended)) {
		l.Fatalf("it was %s by %s at %s, and is %s by %s at %s", t.over.State, t.over.Cause, t.over.Ended, now.State, now.Cause, now.Ended)
	}
	for _, id := range t.Path {
		up := l.tasks[id]
		if late := !at.Before(up.Deadline) || !at.Before(up.LeaseEnd) || up.over != nil; late && now.State == broker.Active {
			l.Fatalf("at %s it is active, and its lease, or that of a task above, is until %s, and the deadline %s", at, up.LeaseEnd, up.Deadline)
		}
	}
	if now.State.Final() && t.over == nil {
		t.over = &now
	}
}
