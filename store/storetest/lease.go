package storetest

import (
	"errors"
	"time"

	"github.com/errandhq/errand/broker"
)

func leaseCases() []testCase {
	return []testCase{
		{"lease/lapses exactly", leaseLapses},
		{"lease/heartbeat extends", leaseExtends},
		{"lease/heartbeat does not revive", leaseNoRevival},
		{"lease/heartbeat does not move the deadline", leaseDeadline},
		{"lease/deadline decides when both pass at once", leaseTie},
		{"lease/heartbeats are answered one by one", leaseBatch},
		{"lease/parent's lapse", leaseOfParent},
		{"lease/time does not go backwards", leaseTime},
	}
}

// follows wants each look-up to agree with the store's own time: alive before the moment, and
// otherwise ended at it. It looks until a millisecond before, right then, and later.
func (b *bench) follows(task broker.Task, at time.Time, state broker.State, cause broker.Cause) {
	b.Helper()
	look := func() {
		b.Helper()
		record := b.lookup(broker.Ref{Task: task.ID})
		want := task.Clone()
		if !record.Now.Before(at) {
			want.State, want.Cause, want.Ended = state, cause, at
		}
		b.same("the task as of "+record.Now.String(), record.Task, want)
	}
	look()
	if left := at.Sub(b.list(broker.Query{}).Now); left > time.Millisecond {
		b.Advance(left - time.Millisecond)
		look()
	}
	b.Advance(time.Millisecond)
	look()
	b.Advance(200 * time.Millisecond)
	look()
	if got := b.now(task); got.State != state {
		b.Fatalf("the task is %s; want %s", got.State, state)
	}
}

func leaseLapses(b *bench) {
	reply := b.must(b.root(lease(400*time.Millisecond), asking(b.ask("a", time.Minute))))
	b.follows(reply.Task, reply.Now.Add(400*time.Millisecond), broker.Lapsed, broker.CauseLease)
	b.refused(b.issuing(reply.Task, b.ask("a", time.Minute)), broker.ErrEnded)
	record := b.lookup(broker.Ref{Grant: reply.Grants[0].ID})
	if record.Grant.Live(record.Now, record.Task) {
		b.Fatal("the grant of a lapsed task is live")
	}
	if n := len(b.feed().Entries); n != 0 {
		b.Fatalf("the feed has %d entries of a task that nobody has swept", n)
	}
}

func leaseExtends(b *bench) {
	task := b.begin(lease(time.Second))
	for range 3 {
		b.Advance(300 * time.Millisecond)
		pulse := b.beat(task)
		if pulse.Err != nil || !pulse.Task.LeaseEnd.Equal(pulse.Now.Add(time.Second)) {
			b.Fatalf("at %s: got %+v; want a lease until a second later", pulse.Now, pulse)
		}
		b.same("the task, looked up", b.now(task), pulse.Task)
		task = pulse.Task
	}
	b.follows(task, task.LeaseEnd, broker.Lapsed, broker.CauseLease)
}

func leaseNoRevival(b *bench) {
	lapsed := b.begin(lease(200 * time.Millisecond))
	ended := b.begin()
	parent := b.begin()
	child := b.begin(below(parent))
	b.end(completing(ended))
	b.end(completing(parent))
	b.Advance(200 * time.Millisecond)
	for _, task := range []broker.Task{lapsed, ended, child} {
		before := b.now(task)
		pulse := b.beat(task)
		if !before.State.Final() || pulse.Err != nil {
			b.Fatalf("%s: error %v; want a final state and none", before.State, pulse.Err)
		}
		b.same("the task in the pulse", pulse.Task, before)
		b.same("the task after it", b.now(task), before)
	}
}

func leaseDeadline(b *bench) {
	task := b.begin(lease(time.Second), deadline(600*time.Millisecond))
	b.Advance(300 * time.Millisecond)
	pulse := b.beat(task)
	if !pulse.Task.Deadline.Equal(task.Deadline) {
		b.Fatalf("the heartbeat moved the deadline from %s to %s", task.Deadline, pulse.Task.Deadline)
	}
	b.follows(pulse.Task, task.Deadline, broker.Expired, broker.CauseDeadline)
}

func leaseTie(b *bench) {
	task := b.begin(lease(300*time.Millisecond), deadline(300*time.Millisecond))
	b.follows(task, task.Deadline, broker.Expired, broker.CauseDeadline)
}

func leaseBatch(b *bench) {
	one, two := b.begin(), b.begin(by(bob()))
	foreign := b.begin(by(bob()))
	pulses, err := b.store.Heartbeat(b.Context(), []broker.Beat{
		{Task: two.ID, Workload: bob()},
		{Task: broker.NewTaskID(b.shard), Workload: alice()},
		{Task: foreign.ID, Workload: alice()},
		{Task: broker.NewTaskID(b.shards), Workload: alice()},
		{Task: one.ID, Workload: alice()},
	})
	if err != nil || len(pulses) != 5 {
		b.Fatalf("Heartbeat: %d pulses, error %v; want 5", len(pulses), err)
	}
	if pulses[0].Task.ID != two.ID || pulses[4].Task.ID != one.ID || pulses[0].Err != nil || pulses[4].Err != nil {
		b.Fatalf("the pulses are not in the order of the beats: %+v", pulses)
	}
	for _, pulse := range pulses[1:4] {
		if !errors.Is(pulse.Err, broker.ErrNotFound) || pulse.Task.ID != "" {
			b.Errorf("got %+v; want ErrNotFound and nothing else", pulse)
		}
	}
	b.same("the foreign task", b.now(foreign), foreign)
	if pulses, err := b.store.Heartbeat(b.Context(), nil); err != nil || len(pulses) != 0 {
		b.Fatalf("no beats: got %v, error %v", pulses, err)
	}
}

func leaseOfParent(b *bench) {
	parent := b.begin(lease(400 * time.Millisecond))
	child := b.begin(below(parent))
	grandchild := b.begin(below(child))
	b.follows(grandchild, parent.LeaseEnd, broker.Canceled, broker.CauseParent)
	b.state(child, broker.Canceled)
	b.state(parent, broker.Lapsed)

	// The first end on the path decides, not the nearest.
	parent = b.begin(lease(600 * time.Millisecond))
	child = b.begin(below(parent), lease(300*time.Millisecond))
	grandchild = b.begin(below(child), lease(450*time.Millisecond))
	b.follows(grandchild, child.LeaseEnd, broker.Canceled, broker.CauseParent)
	b.follows(child, child.LeaseEnd, broker.Lapsed, broker.CauseLease)
	b.Advance(600 * time.Millisecond)
	if got := b.now(child); got.State != broker.Lapsed || !got.Ended.Equal(child.LeaseEnd) {
		b.Fatalf("the later end of the parent changed the child's: %+v", got)
	}
}

func leaseTime(b *bench) {
	task := b.begin()
	var last time.Time
	for range 50 {
		for _, now := range []time.Time{
			b.lookup(broker.Ref{Task: task.ID}).Now, b.list(broker.Query{}).Now, b.beat(task).Now, b.feed().Now,
		} {
			if now.Before(last) {
				b.Fatalf("the store's time went from %s back to %s", last, now)
			}
			last = now
		}
		b.Advance(time.Millisecond)
	}
}
