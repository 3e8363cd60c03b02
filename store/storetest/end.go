package storetest

import (
	"errors"
	"time"

	"github.com/errandhq/errand/broker"
)

func endCases() []testCase {
	return []testCase{
		{"end/task", endTask},
		{"end/repeated", endRepeated},
		{"end/after the lapse", endAfterLapse},
		{"end/if due", endIfDue},
		{"end/counts", endCounts},
		{"end/entry", endEntry},
		{"end/no entry without a grant", endNoEntry},
		{"end/grant", endGrant},
		{"end/grant of an ended task", endGrantOfEnded},
		{"end/unknown and foreign", endNotFound},
		{"end/targets are independent", endBatch},
		{"end/audiences that must know", endAudiences},
	}
}

func endTask(b *bench) {
	for _, state := range []broker.State{broker.Completed, broker.Failed, broker.Canceled, broker.Revoked} {
		grant := b.must(b.root(asking(b.ask("a", time.Minute)))).Grants[0]
		task := b.lookup(broker.Ref{Grant: grant.ID}).Task
		e := completing(task)
		e.State, e.Cause = state, broker.CauseOperator
		lo := b.lookup(broker.Ref{Task: task.ID}).Now
		reply := b.end(e)
		record := b.lookup(broker.Ref{Grant: grant.ID})
		ended := reply.Receipt.Ended
		if ended.Before(lo) || ended.After(record.Now) {
			b.Errorf("ended at %s; want the store's time of the call, %s to %s", ended, lo, record.Now)
		}
		want := task
		want.State, want.Cause, want.Ended = state, broker.CauseOperator, ended
		b.same("the task in the reply", reply.Task, want)
		b.same("the task, looked up", record.Task, want)
		if record.Grant.Live(record.Now, record.Task) || record.Grant.Revoked {
			b.Errorf("the grant of an ended task: live, or revoked by itself: %+v", record.Grant)
		}
		b.same("the receipt", reply.Receipt, broker.Receipt{
			Event: e.Event, Task: task.ID, State: state, Cause: broker.CauseOperator, Reason: e.Reason,
			Ended: ended, Grants: 1, Feed: b.feed().Position, Durable: reply.Receipt.Durable, First: true,
		})
	}
}

func endRepeated(b *bench) {
	task := b.begin(asking(b.ask("a", time.Minute)))
	first := b.end(completing(task)).Receipt
	b.Advance(50 * time.Millisecond)
	b.end(completing(b.begin(asking(b.ask("a", time.Minute))))) // moves the feed
	before := b.feed().Position
	again := completing(task)
	again.State, again.Cause, again.Reason = broker.Revoked, broker.CauseOperator, "too late"
	for _, e := range []broker.Ending{completing(task), again, due(task.ID)} {
		reply := b.end(e)
		want := first
		want.First = false
		b.same("the repeated receipt", reply.Receipt, want)
		b.same("the task", reply.Task, b.now(task))
	}
	b.state(task, broker.Completed)
	b.same("the feed's position", b.feed().Position, before)
}

func endAfterLapse(b *bench) {
	lapsing := b.must(b.root(lease(300*time.Millisecond), asking(b.ask("a", time.Minute)))).Task
	expiring := b.must(b.root(deadline(300*time.Millisecond), lease(time.Minute))).Task
	below := b.begin(below(lapsing), asking(b.ask("b", time.Minute)))
	b.Advance(400 * time.Millisecond)
	for _, test := range []struct {
		task  broker.Task
		state broker.State
		cause broker.Cause
		at    time.Time
	}{
		{below, broker.Canceled, broker.CauseParent, lapsing.LeaseEnd},
		{lapsing, broker.Lapsed, broker.CauseLease, lapsing.LeaseEnd},
		{expiring, broker.Expired, broker.CauseDeadline, expiring.Deadline},
	} {
		e := completing(test.task)
		first := b.end(e)
		r := first.Receipt
		if r.State != test.state || r.Cause != test.cause || !r.Ended.Equal(test.at) || !r.First || r.Event != e.Event {
			b.Errorf("got %+v; want a first %s at %s", r, test.state, test.at)
		}
		if again := b.end(completing(test.task)).Receipt; again.First || again.Event != e.Event || again.State != test.state {
			b.Errorf("repeated: got %+v; want the first receipt", again)
		}
		if got := b.now(test.task); got.State != test.state || !got.Ended.Equal(test.at) {
			b.Errorf("the task: got %+v; want %s at %s", got, test.state, test.at)
		}
	}
	// Nobody had swept the task above, so the one below has an entry of its own.
	b.same("the entries for the task below", len(b.entries(ofTask(below))), 1)
	b.same("the entries for the lapsed task", len(b.entries(ofTask(lapsing))), 1)
	b.same("the entries for a task without grants", len(b.entries(ofTask(expiring))), 0)
}

func endIfDue(b *bench) {
	task := b.begin(lease(300*time.Millisecond), asking(b.ask("a", time.Minute)))
	before := b.feed().Position
	reply := b.end(due(task.ID))
	if reply.Receipt.First || reply.Receipt.State != broker.Active || reply.Task.State != broker.Active {
		b.Fatalf("not due: got %+v; want an active task and no end", reply)
	}
	b.same("the feed's position", b.feed().Position, before)
	b.Advance(300 * time.Millisecond)
	e := due(task.ID)
	reply = b.end(e)
	r := reply.Receipt
	if !r.First || r.State != broker.Lapsed || r.Cause != broker.CauseLease || !r.Ended.Equal(task.LeaseEnd) || r.Event != e.Event {
		b.Fatalf("due: got %+v; want a lapse at %s", r, task.LeaseEnd)
	}
	b.same("the task", reply.Task, b.now(task))
	if again := b.end(due(task.ID)).Receipt; again.First || again.Event != e.Event {
		b.Fatalf("repeated: got %+v; want the first receipt", again)
	}
	b.same("the entries", len(b.entries(ofTask(task))), 1)
}

func endCounts(b *bench) {
	root := b.begin(asking(b.ask("a", time.Minute)))
	child := b.begin(below(root), asking(b.ask("a", time.Minute), b.ask("b", time.Minute)))
	leaf := b.begin(below(child))
	b.begin(below(root))
	b.issue(leaf, "a", 2*time.Second)
	b.end(completing(leaf))
	for _, test := range []struct {
		task             broker.Task
		grants, subTasks int
	}{{leaf, 1, 0}, {child, 3, 1}, {root, 4, 3}} {
		r := b.end(completing(test.task)).Receipt
		if r.Grants != test.grants || r.SubTasks != test.subTasks {
			b.Errorf("got %d grants and %d tasks below; want %d and %d, ended ones included", r.Grants, r.SubTasks, test.grants, test.subTasks)
		}
	}
}

func endEntry(b *bench) {
	root := b.begin()
	child := b.begin(below(root))
	sibling := b.begin(below(root))
	b.issue(root, "b", 5*time.Minute)
	short := b.issue(child, "a", time.Minute)
	long := b.issue(child, "a", 3*time.Minute)
	b.issue(sibling, "c", 10*time.Minute)
	b.end(completing(child))
	b.same("the entry", b.entries(ofTask(child)), []broker.Entry{{
		Shard: b.shard, Number: 1, Denial: ofTask(child), Audiences: []string{"a", "b", "c"},
		Until: long.Expires.Add(broker.Margin),
	}})
	if !short.Expires.Before(long.Expires) {
		b.Fatal("the test needs two expiries")
	}
	b.state(sibling, broker.Active)
}

func endNoEntry(b *bench) {
	root := b.begin(asking(b.ask("a", time.Minute)))
	child := b.begin(below(root))
	before := b.feed().Position
	receipt := b.end(completing(child)).Receipt
	b.same("the entries", len(b.entries(ofTask(child))), 0)
	b.same("the feed's position", b.feed().Position, before)
	b.same("the receipt's position", receipt.Feed, before)
}

func endGrant(b *bench) {
	reply := b.must(b.root(asking(b.ask("a", time.Minute), b.ask("b", time.Minute))))
	grant, other := reply.Grants[0], reply.Grants[1]
	e := revoking(grant)
	first := b.end(e)
	record := b.lookup(broker.Ref{Grant: grant.ID})
	grant.Revoked = true
	b.same("the grant", record.Grant, grant)
	b.same("the grant in the reply", first.Grant, grant)
	b.same("the task in the reply", first.Task, reply.Task)
	b.same("the task", record.Task, reply.Task)
	b.same("the other grant", b.lookup(broker.Ref{Grant: other.ID}).Grant, other)
	b.same("the receipt", first.Receipt, broker.Receipt{
		Event: e.Event, Task: grant.Task, Grant: grant.ID, State: broker.Revoked, Cause: e.Cause, Reason: e.Reason,
		Ended: first.Receipt.Ended, Feed: b.feed().Position, Durable: first.Receipt.Durable, First: true,
	})
	b.same("the entry", b.entries(ofGrant(grant)), []broker.Entry{{
		Shard: b.shard, Number: 1, Denial: ofGrant(grant), Audiences: []string{"a"}, Until: grant.Expires.Add(broker.Margin),
	}})
	b.Advance(50 * time.Millisecond)
	want := first.Receipt
	want.First = false
	b.same("the repeated receipt", b.end(revoking(grant)).Receipt, want)
	b.same("the entries after the repetition", len(b.entries(ofGrant(grant))), 1)
	b.issue(reply.Task, "a", time.Minute)
}

func endGrantOfEnded(b *bench) {
	reply := b.must(b.root(asking(b.ask("a", time.Minute))))
	b.end(completing(reply.Task))
	got := b.end(revoking(reply.Grants[0]))
	if !got.Receipt.First || !got.Grant.Revoked || got.Task.State != broker.Completed {
		b.Fatalf("got %+v; want the grant revoked in its completed task", got)
	}
}

func endNotFound(b *bench) {
	reply := b.must(b.root(asking(b.ask("a", time.Minute))))
	foreignTask, foreignGrant := completing(reply.Task), revoking(reply.Grants[0])
	foreignTask.Workload, foreignGrant.Workload = bob(), bob()
	targets := []broker.Ending{
		foreignTask, foreignGrant,
		due(broker.NewTaskID(b.shard)), due(broker.NewTaskID(b.shards)), due(broker.NewTaskID(broker.MaxShards - 1)), due(""),
		revoking(broker.Grant{ID: broker.NewGrantID(b.shard)}), revoking(broker.Grant{ID: broker.NewGrantID(b.shards)}),
		{Kind: broker.TargetLift, Lock: broker.Lock{ID: broker.NewLockID()}},
	}
	before := b.feed().Position
	for i, got := range b.ends(targets...) {
		if !errors.Is(got.Err, broker.ErrNotFound) || got.Task.ID != "" || got.Grant.ID != "" || got.Receipt.Event != "" {
			b.Errorf("target %d, a %s: got %+v; want ErrNotFound and nothing else", i, targets[i].Kind, got)
		}
	}
	b.same("the feed's position", b.feed().Position, before)
	record := b.lookup(broker.Ref{Grant: reply.Grants[0].ID})
	if !record.Grant.Live(record.Now, record.Task) {
		b.Fatalf("a foreign end killed the grant: %+v", record)
	}
}

func endBatch(b *bench) {
	one, two := b.begin(asking(b.ask("a", time.Minute))), b.begin(asking(b.ask("a", time.Minute)))
	mine := completing(one)
	mine.Workload = one.Workload
	replies := b.ends(mine, due(broker.NewTaskID(b.shard)), completing(two), completing(one), due(two.ID))
	if !errors.Is(replies[1].Err, broker.ErrNotFound) {
		b.Errorf("the unknown target: %+v; want ErrNotFound", replies[1])
	}
	for i, want := range map[int]struct {
		task  broker.Task
		first bool
	}{0: {one, true}, 2: {two, true}, 3: {one, false}, 4: {two, false}} {
		r := replies[i].Receipt
		if r.Task != want.task.ID || r.First != want.first || r.State != broker.Completed {
			b.Errorf("reply %d: got %+v; want an end of %s, first %v", i, r, want.task.ID, want.first)
		}
	}
	b.same("the feed's length", len(b.feed().Entries), 2)
	if replies := b.ends(); len(replies) != 0 {
		b.Errorf("no targets: got %v", replies)
	}
	// What is said of each is no failure of the call, also when it is said of all.
	for i, reply := range b.ends(due(broker.NewTaskID(b.shard)), broker.Ending{Kind: "what"}, due("")) {
		if want := []error{broker.ErrNotFound, broker.ErrInvalid, broker.ErrNotFound}[i]; !errors.Is(reply.Err, want) {
			b.Errorf("target %d: %+v; want error %v", i, reply, want)
		}
	}
}

func endAudiences(b *bench) {
	told := func(e broker.Ending, first bool, want []string) {
		b.Helper()
		reply := b.end(e)
		if reply.Receipt.First != first || (reply.Audiences == nil) != (want == nil) {
			b.Fatalf("end of a %s: first %t, audiences %#v; want first %t and %#v", e.Kind, reply.Receipt.First, reply.Audiences, first, want)
		}
		b.same("the audiences", reply.Audiences, want)
	}
	none := b.begin()
	told(completing(none), true, []string{})
	told(completing(none), false, []string{})

	root := b.begin()
	child := b.begin(below(root), asking(b.ask("c", time.Minute), b.ask("a", time.Minute)))
	other := b.begin(below(root), asking(b.ask("b", time.Minute), b.ask("a", time.Minute)))
	told(completing(child), true, []string{"a", "b", "c"})
	told(completing(child), false, []string{"a", "b", "c"})
	grant := b.issue(other, "d", time.Minute)
	told(revoking(grant), true, []string{"d"})
	told(revoking(grant), false, []string{"d"})
	told(completing(child), false, []string{"a", "b", "c", "d"})
	told(completing(root), true, []string{"a", "b", "c", "d"})
	told(completing(other), true, []string{"a", "b", "c", "d"})

	lost := b.losing(broker.NewTaskID(b.shard), time.Minute)
	told(lost, true, nil)
	told(lost, false, nil)
	lock := b.locking(broker.Selector{Scope: "read"}, time.Hour)
	lift := lock
	lift.Kind = broker.TargetLift
	for _, e := range []broker.Ending{denying(broker.TargetKey), denying(broker.TargetSelector), denying(broker.TargetAll), lock, lift} {
		told(e, true, nil)
	}
	if reply := b.ends(due(b.begin().ID))[0]; reply.Err != nil || reply.Receipt.State != broker.Active || reply.Audiences != nil {
		b.Errorf("of a task that is not due: got %+v; want none", reply)
	}
}
