package storetest

import (
	"errors"
	"time"

	"github.com/errandhq/errand/broker"
)

func holderCases() []testCase {
	return []testCase{
		{"holder/the first one", holderFirst},
		{"holder/adopted", holderAdopted},
		{"holder/adopted with presence", holderPresence},
		{"holder/another one's beat does nothing", holderBeat},
		{"holder/another one's end does nothing", holderEnd},
		{"holder/an ended task has its receipt for everybody", holderOver},
		{"holder/an ended task is not adopted", holderLate},
		{"holder/adoption moves no deadline", holderDeadline},
		{"holder/in a batch", holderBatch},
	}
}

// adopting makes the caller the next holder.
func adopting(task broker.Task) broker.Beat {
	return broker.Beat{Task: task.ID, Workload: task.Workload, Adopt: true}
}

// adopt adopts a task, which must succeed.
func (b *bench) adopt(task broker.Task, want int) broker.Task {
	b.Helper()
	pulse := b.beats(adopting(task))[0]
	if t := pulse.Task; pulse.Err != nil || t.State != broker.Active || t.Holder != want {
		b.Fatalf("Heartbeat that adopts: got %+v; want the holder %d of an active task", pulse, want)
	}
	return pulse.Task
}

// held ends a task as one of its holders.
func held(e broker.Ending, holder int) broker.Ending {
	e.Holder = holder
	return e
}

// everywhere wants a task to be seen as it is by everything that shows one.
func (b *bench) everywhere(task broker.Task) {
	b.Helper()
	b.same("the task, looked up", b.now(task), task)
	grant := b.issue(task, "a", time.Minute)
	b.same("the task of a grant", b.lookup(broker.Ref{Grant: grant.ID}).Task, task)
	b.same("the task in the reply to a grant", b.must(b.issuing(task, b.ask("a", time.Minute))).Task, task)
	for _, listed := range b.list(broker.Query{Workload: task.Workload}).Tasks {
		if listed.ID == task.ID {
			b.same("the task, listed", listed, task)
		}
	}
	b.same("the task of a revoked grant", b.end(revoking(grant)).Task, task)
	b.same("the task, not due", b.end(due(task.ID)).Task, task)
}

func holderFirst(b *bench) {
	task := b.begin(key("k", 1))
	child := b.begin(below(task))
	for _, t := range []broker.Task{task, child} {
		b.same("the holder", t.Holder, 1)
		b.everywhere(t)
		b.same("the holder in a pulse", b.beat(t).Task.Holder, 1)
	}
	b.same("the holder in a replay", b.must(b.root(key("k", 1))).Task.Holder, 1)
	b.same("the holder of an ended task", b.end(completing(task)).Task.Holder, 1)
}

// holderAdopted: each adoption makes the next holder, also one that only repeats another.
func holderAdopted(b *bench) {
	task := b.begin(key("k", 1))
	b.beats(noting(task, "halfway"))
	for holder := 2; holder < 5; holder++ {
		b.Advance(5 * time.Millisecond)
		pulse := b.beats(adopting(task))[0]
		want := task
		want.Holder, want.LeaseEnd, want.Note, want.Noted = holder, pulse.Now.Add(task.Lease), "halfway", pulse.Task.Noted
		b.same("the adopted task", pulse.Task, want)
		b.everywhere(want)
	}
	noted := adopting(task)
	noted.Note = "taken over"
	pulse := b.beats(noted)[0]
	if t := pulse.Task; t.Holder != 5 || t.Note != "taken over" || !t.Noted.Equal(pulse.Now) {
		b.Fatalf("an adoption with a note: got %+v", pulse)
	}
	if t := b.must(b.root(key("k", 1))).Task; t.Holder != 5 {
		b.Fatalf("a replay: got the holder %d; want 5", t.Holder)
	}
	b.same("the holder of a child", b.begin(below(task)).Holder, 1)
	b.same("the holder of an ended task", b.end(held(completing(task), 5)).Task.Holder, 5)
}

// holderPresence: the stream of the holder before is not this one's, and neither it nor its loss is anything.
func holderPresence(b *bench) {
	task := b.begin(present)
	b.stream(task, "one", false)
	// Whatever else the beat says.
	for i, beat := range []broker.Beat{{}, {Stream: "one"}, {Stream: "two", Attach: true}, {Stream: "one", Lost: true}} {
		beat.Task, beat.Workload, beat.Adopt = task.ID, task.Workload, true
		pulse := b.beats(beat)[0]
		b.leased(pulse, "", broker.AttachTime)
		b.same("the holder", pulse.Task.Holder, i+2)
		b.same("the task, looked up", b.now(task), pulse.Task)
	}
	adopted := b.now(task)
	b.same("after the loss of the old stream", b.stream(task, "one", true).Task, adopted)
	old := broker.Beat{Task: task.ID, Workload: task.Workload, Stream: "one", Attach: true, Holder: 1}
	b.same("after a beat of the old stream", b.beats(old)[0].Task, adopted)
	b.same("after a beat without a stream", b.beat(task).Task, adopted)
	b.leased(b.stream(task, "two", false), "two", task.Lease)
	short := b.begin(present, lease(400*time.Millisecond))
	b.stream(short, "s", false)
	lost := b.adopt(short, 2)
	b.follows(lost, lost.LeaseEnd, broker.Lapsed, broker.CausePresence)
	long := b.begin(present)
	b.stream(long, "s", false)
	lost = b.adopt(long, 2)
	b.follows(lost, lost.LeaseEnd, broker.Lapsed, broker.CausePresence)
	if due := b.list(broker.Query{Due: true}).Tasks; len(due) != 2 {
		b.Fatalf("due are %+v; want both that have lapsed", due)
	}
}

func holderBeat(b *bench) {
	plain, bound := b.begin(), b.begin(present)
	b.beats(noting(plain, "halfway"))
	b.adopt(plain, 2)
	b.adopt(bound, 2)
	b.stream(bound, "s", false)
	b.Advance(5 * time.Millisecond)
	for _, task := range []broker.Task{b.now(plain), b.now(bound)} {
		for _, holder := range []int{1, 3, -1, 1 << 40} {
			for _, beat := range []broker.Beat{{}, {Note: "late"}, {Adopt: true}, {Stream: "s"}, {Stream: "old", Attach: true}, {Stream: "s", Lost: true}, {Note: "late", Stream: "old", Adopt: true}} {
				beat.Task, beat.Workload, beat.Holder = task.ID, task.Workload, holder
				pulse := b.beats(beat)[0]
				if pulse.Err != nil {
					b.Fatalf("%+v: %v", beat, pulse.Err)
				}
				b.same("the task in the pulse", pulse.Task, task)
			}
		}
		b.same("the task, looked up", b.now(task), task)
		for _, holder := range []int{0, 2} {
			b.Advance(5 * time.Millisecond)
			pulse := b.beats(broker.Beat{Task: task.ID, Workload: task.Workload, Holder: holder, Note: "mine", Stream: "s"})[0]
			if !pulse.Task.LeaseEnd.Equal(pulse.Now.Add(task.Lease)) || pulse.Task.Note != "mine" || pulse.Task.Holder != 2 {
				b.Fatalf("the holder's beat: got %+v", pulse)
			}
		}
	}
}

func holderEnd(b *bench) {
	task := b.begin(asking(b.ask("a", time.Minute)))
	task = b.adopt(task, 2)
	before := b.feed().Position
	lost := held(completing(task), 1)
	lost.Lost = task.Deadline
	for _, e := range []broker.Ending{held(completing(task), 1), held(completing(task), 3), held(completing(task), -1), lost} {
		if got := b.ends(e)[0]; !errors.Is(got.Err, broker.ErrAdopted) || got.Task.ID != "" || got.Receipt.Event != "" {
			b.Fatalf("an end by the holder %d: got %+v; want ErrAdopted and nothing else", e.Holder, got)
		}
	}
	foreign := held(completing(task), 1)
	foreign.Workload = bob()
	if got := b.ends(foreign)[0]; !errors.Is(got.Err, broker.ErrNotFound) {
		b.Fatalf("an end by another workload: got %+v; want ErrNotFound", got)
	}
	b.same("the feed's position", b.feed().Position, before)
	b.same("the task, looked up", b.now(task), task)
	// The holder may end it, and so may who does not say who it is: an operator.
	e := held(completing(task), 2)
	if r := b.end(e).Receipt; !r.First || r.State != broker.Completed || r.Event != e.Event {
		b.Fatalf("an end by the holder: got %+v", r)
	}
	other := b.adopt(b.begin(), 2)
	if r := b.end(completing(other)).Receipt; !r.First || r.State != broker.Completed {
		b.Fatalf("an end by nobody in particular: got %+v", r)
	}
}

func holderOver(b *bench) {
	ended, lapsing, parent := b.begin(), b.begin(lease(300*time.Millisecond)), b.begin()
	child := b.begin(below(parent))
	for _, task := range []broker.Task{ended, lapsing, child} {
		b.adopt(task, 2)
	}
	b.end(held(completing(ended), 2))
	b.end(completing(parent))
	b.Advance(400 * time.Millisecond)
	for _, test := range []struct {
		task  broker.Task
		state broker.State
		first bool
	}{{ended, broker.Completed, false}, {lapsing, broker.Lapsed, true}, {child, broker.Canceled, true}} {
		e := held(completing(test.task), 1)
		e.State = broker.Failed
		if r := b.end(e).Receipt; r.State != test.state || r.First != test.first {
			b.Errorf("got %+v; want %s, first %v", r, test.state, test.first)
		}
		if r := b.end(e).Receipt; r.State != test.state || r.First {
			b.Errorf("repeated: got %+v; want %s, and not first", r, test.state)
		}
	}
	buried := b.losing(broker.NewTaskID(b.shard), time.Minute)
	if r := b.end(held(buried, 7)).Receipt; !r.First {
		b.Errorf("a lost task: got %+v; want it ended, whoever held it", r)
	}
	b.same("the holder of a lost task", b.now(broker.Task{ID: buried.Task}).Holder, 0)
}

func holderLate(b *bench) {
	ended, lapsing, parent := b.begin(), b.begin(lease(300*time.Millisecond)), b.begin()
	child := b.begin(below(parent))
	b.end(completing(ended))
	b.end(completing(parent))
	b.Advance(300 * time.Millisecond)
	for _, task := range []broker.Task{ended, lapsing, child} {
		want := b.now(task)
		if want.State == broker.Active {
			b.Fatalf("the test needs a task that has ended: %+v", want)
		}
		b.same("the pulse", b.beats(adopting(task))[0].Task, want)
		b.same("the task, looked up", b.now(task), want)
	}
	foreign, unknown := adopting(b.begin()), adopting(broker.Task{ID: broker.NewTaskID(b.shard), Workload: alice()})
	foreign.Workload = bob()
	for _, pulse := range b.beats(foreign, unknown) {
		if !errors.Is(pulse.Err, broker.ErrNotFound) {
			b.Errorf("got %+v; want ErrNotFound", pulse)
		}
	}
	b.same("the holder after a foreign adoption", b.now(broker.Task{ID: foreign.Task}).Holder, 1)
}

func holderDeadline(b *bench) {
	parent := b.begin(deadline(time.Second))
	child := b.begin(below(parent), deadline(time.Hour))
	task := b.begin(deadline(500 * time.Millisecond))
	for _, t := range []broker.Task{task, child} {
		b.same("the deadline", b.adopt(t, 2).Deadline, t.Deadline)
	}
	b.follows(b.now(task), task.Deadline, broker.Expired, broker.CauseDeadline)
	b.adopt(child, 3)
	b.until(parent.Deadline, 0)
	b.same("the state of the child", b.now(child).State, broker.Expired)
}

// holderBatch: one beat of a batch says nothing of the others.
func holderBatch(b *bench) {
	one, two, three, four := b.begin(), b.begin(present), b.begin(), b.begin()
	b.adopt(three, 2)
	before := b.now(three)
	b.Advance(5 * time.Millisecond)
	stream := broker.Beat{Task: two.ID, Workload: two.Workload, Stream: "s", Attach: true, Holder: 1}
	stale := broker.Beat{Task: three.ID, Workload: three.Workload, Holder: 1, Note: "late"}
	nobody := adopting(broker.Task{ID: broker.NewTaskID(b.shard), Workload: alice()})
	twice := adopting(one)
	twice.Holder = 2
	pulses := b.beats(adopting(one), stream, stale, nobody, noting(four, "four"), twice)
	for i, want := range []struct {
		holder int
		stream broker.StreamID
		note   string
	}{{2, "", ""}, {1, "s", ""}, {2, "", ""}, {0, "", ""}, {1, "", "four"}, {3, "", ""}} {
		got := pulses[i].Task
		if got.Holder != want.holder || got.Stream != want.stream || got.Note != want.note {
			b.Errorf("pulse %d: got %+v; want %+v", i, got, want)
		}
	}
	b.same("the task that another one holds", b.now(three), before)
}
