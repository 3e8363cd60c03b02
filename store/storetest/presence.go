package storetest

import (
	"time"

	"github.com/errandhq/errand/broker"
)

func presenceCases() []testCase {
	return []testCase{
		{"presence/begins without a stream", presenceBegins},
		{"presence/only what names the stream extends", presenceNamed},
		{"presence/nobody names the stream any more", presenceGone},
		{"presence/loss cuts the lease short", presenceLost},
		{"presence/another stream in time", presenceAgain},
		{"presence/loss of a stream that is not the last", presenceStale},
		{"presence/a loss never lengthens", presenceShort},
		{"presence/says nothing of other tasks", presenceOthers},
	}
}

func present(r *broker.GrantRequest) { r.Begin.Presence = true }

// stream is what a stream says of a task: that it is bound to it now, or that it is lost.
func (b *bench) stream(task broker.Task, stream broker.StreamID, lost bool) broker.Pulse {
	b.Helper()
	pulse := b.beats(broker.Beat{Task: task.ID, Workload: task.Workload, Stream: stream, Attach: !lost, Lost: lost})[0]
	if pulse.Err != nil {
		b.Fatal(pulse.Err)
	}
	b.same("the task, looked up", b.now(task), pulse.Task)
	return pulse
}

// beside is a beat of a client that has a stream open, or none.
func (b *bench) beside(task broker.Task, stream broker.StreamID) broker.Pulse {
	b.Helper()
	pulse := b.beats(broker.Beat{Task: task.ID, Workload: task.Workload, Stream: stream})[0]
	if pulse.Err != nil {
		b.Fatal(pulse.Err)
	}
	b.same("the task, looked up", b.now(task), pulse.Task)
	return pulse
}

// leased wants a task with a stream and a lease.
func (b *bench) leased(pulse broker.Pulse, stream broker.StreamID, lease time.Duration) {
	b.Helper()
	if t := pulse.Task; !t.Presence || t.Stream != stream || !t.LeaseEnd.Equal(pulse.Now.Add(lease)) || t.State != broker.Active {
		b.Fatalf("at %s: got %+v; want the stream %q and a lease of %s", pulse.Now, t, stream, lease)
	}
}

// presenceBegins: it has a short while to get a stream, which no heartbeat extends, and its own lease from
// then on.
func presenceBegins(b *bench) {
	long := b.must(b.root(present, key("present", 1)))
	b.leased(broker.Pulse{Task: long.Task, Now: long.Now}, "", broker.AttachTime)
	b.same("a replay", b.must(b.root(present, key("present", 1))).Task, long.Task)
	for _, stream := range []broker.StreamID{"", "s"} {
		b.same("after a heartbeat without a stream", b.beside(long.Task, stream).Task, long.Task)
	}
	b.leased(b.stream(long.Task, "s", false), "s", long.Task.Lease)
	short := b.must(b.root(present, lease(400*time.Millisecond)))
	b.leased(broker.Pulse{Task: short.Task, Now: short.Now}, "", 400*time.Millisecond)
	b.follows(short.Task, short.Task.LeaseEnd, broker.Lapsed, broker.CausePresence)
	b.state(long.Task, broker.Active)
}

// presenceNamed: a beat that names no stream, or another than the task is bound to, keeps its note and no more; it
// binds nothing, and each beat of a batch has its own stream.
func presenceNamed(b *bench) {
	task := b.begin(present)
	b.stream(task, "one", false)
	b.Advance(5 * time.Millisecond)
	b.leased(b.beside(task, "one"), "one", task.Lease)
	b.stream(task, "two", false)
	want := b.now(task)
	for _, stream := range []broker.StreamID{"", "one", "three"} {
		b.Advance(5 * time.Millisecond)
		b.same("after a beat that does not name its stream", b.beside(task, stream).Task, want)
	}
	noted := b.beats(noting(task, "halfway"))[0]
	if got := noted.Task; got.Note != "halfway" || !got.Noted.Equal(noted.Now) || !got.LeaseEnd.Equal(want.LeaseEnd) {
		b.Fatalf("got %+v; want the note, and the lease until %s", got, want.LeaseEnd)
	}
	plain, other := b.begin(), b.begin(present)
	b.stream(other, "s", false)
	named, stale := noting(task, "done"), noting(other, "")
	named.Stream, stale.Stream = "two", "old"
	b.Advance(5 * time.Millisecond)
	pulses := b.beats(named, stale, noting(plain, ""))
	b.leased(pulses[0], "two", task.Lease)
	for i, extended := range []bool{true, false, true} {
		if got := pulses[i]; got.Task.LeaseEnd.Equal(got.Now.Add(got.Task.Lease)) != extended {
			b.Errorf("pulse %d at %s: got %+v; want it extended: %t", i, got.Now, got.Task, extended)
		}
	}
}

// presenceGone: with the replica that had the stream nobody says that it is lost. However often the task is
// beaten, it lapses a lease after the last beat that named the stream.
func presenceGone(b *bench) {
	task := b.begin(present, lease(time.Second))
	b.stream(task, "s", false)
	b.Advance(50 * time.Millisecond)
	last := b.beside(task, "s")
	b.leased(last, "s", task.Lease)
	for range 3 {
		b.Advance(100 * time.Millisecond)
		b.same("after a beat without the stream", b.beat(task).Task, last.Task)
	}
	b.follows(last.Task, last.Task.LeaseEnd, broker.Lapsed, broker.CauseLease)
}

// presenceLost: neither a heartbeat that was on its way, nor the same loss again, changes when it lapses.
// It is then found to be due, as every other.
func presenceLost(b *bench) {
	task := b.begin(present)
	b.stream(task, "s", false)
	pulse := b.stream(task, "s", true)
	b.leased(pulse, "", broker.PresenceGrace)
	b.Advance(100 * time.Millisecond)
	for _, again := range []broker.Pulse{b.beat(task), b.beside(task, "s"), b.stream(task, "s", true)} {
		if !again.Task.LeaseEnd.Equal(pulse.Task.LeaseEnd) {
			b.Fatalf("got %+v; want the lease as it was cut", again.Task)
		}
	}
	b.follows(pulse.Task, pulse.Task.LeaseEnd, broker.Lapsed, broker.CausePresence)
	if due := b.list(broker.Query{Due: true}).Tasks; len(due) != 1 || due[0].ID != task.ID {
		b.Fatalf("due is %+v", due)
	}
	b.stream(task, "again", false)
	b.state(task, broker.Lapsed)
}

// presenceAgain: a stream within the time gives the lease back.
func presenceAgain(b *bench) {
	task := b.begin(present)
	b.stream(task, "one", false)
	b.stream(task, "one", true)
	b.Advance(300 * time.Millisecond)
	b.leased(b.stream(task, "two", false), "two", task.Lease)
	b.Advance(broker.PresenceGrace)
	b.leased(b.beside(task, "two"), "two", task.Lease)
}

// presenceStale: the end of the stream before is no loss, whichever replica is how late with it.
func presenceStale(b *bench) {
	task := b.begin(present)
	b.stream(task, "one", false)
	b.stream(task, "two", false)
	want := b.now(task)
	for _, stream := range []broker.StreamID{"one", "three"} {
		b.same("after the loss of another stream", b.stream(task, stream, true).Task, want)
	}
	b.leased(b.stream(task, "two", true), "", broker.PresenceGrace)
}

// presenceShort: the lease that is left may be shorter, and the deadline nearer.
func presenceShort(b *bench) {
	task := b.begin(present, lease(500*time.Millisecond))
	attached := b.stream(task, "s", false)
	b.Advance(100 * time.Millisecond)
	if got := b.stream(task, "s", true).Task; !got.LeaseEnd.Equal(attached.Task.LeaseEnd) {
		b.Fatalf("got %+v; want the lease that was left", got)
	}
	due := b.begin(present, deadline(300*time.Millisecond))
	b.stream(due, "s", false)
	lost := b.stream(due, "s", true).Task
	b.follows(lost, due.Deadline, broker.Expired, broker.CauseDeadline)
}

// presenceOthers: a task without presence takes a stream's beat as any other, and its loss as nothing;
// and a parent's presence is no child's.
func presenceOthers(b *bench) {
	parent := b.begin(present)
	child := b.begin(below(parent))
	b.stream(parent, "s", false)
	pulse := b.stream(child, "s", false)
	if pulse.Task.Presence || pulse.Task.Stream != "" || !pulse.Task.LeaseEnd.Equal(pulse.Now.Add(child.Lease)) {
		b.Fatalf("got %+v; want a plain heartbeat", pulse.Task)
	}
	b.same("after a loss", b.stream(child, "s", true).Task, pulse.Task)
	lost := b.stream(parent, "s", true).Task
	b.follows(b.now(child), lost.LeaseEnd, broker.Canceled, broker.CauseParent)
}
