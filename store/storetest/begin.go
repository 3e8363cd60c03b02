package storetest

import (
	"sync"
	"time"

	"github.com/errandhq/errand/broker"
)

func beginCases() []testCase {
	return []testCase{
		{"begin/with grants in one step", beginWithGrants},
		{"begin/child", beginChild},
		{"begin/child's deadline is capped", beginChildDeadline},
		{"begin/key makes one task of a hundred calls", beginKeyConcurrently},
		{"begin/key of another request", beginMismatch},
		{"begin/key belongs to its workload", beginKeyOfAnother},
		{"begin/replay after the end", beginReplayEnded},
		{"begin/key of a task that was never handed out", beginKeyGivenUp},
		{"begin/replay drops what has expired", beginReplayExpired},
		{"begin/replay is not decided again", beginReplayFirst},
		{"begin/repeated without a key", beginRepeated},
		{"begin/parent in another shard", beginAcrossShards},
	}
}

func beginWithGrants(b *bench) {
	req := b.root(asking(b.ask("a", 3*time.Second), b.ask("b", time.Minute)))
	reply := b.must(req)
	want := broker.Task{
		ID: req.Task, Path: []broker.TaskID{req.Task}, Workload: req.Workload, Name: req.Begin.Name,
		Purpose: req.Begin.Purpose, Ceiling: req.Begin.Ceiling, Begun: reply.Now, Lease: req.Begin.Lease,
		LeaseEnd: reply.Now.Add(req.Begin.Lease), Deadline: reply.Now.Add(req.Begin.Deadline), State: broker.Active, Holder: 1,
	}
	b.same("the begun task", reply.Task, want)
	if reply.Replayed || len(reply.Grants) != 2 {
		b.Fatalf("got %d grants, replayed %v; want 2 that are new", len(reply.Grants), reply.Replayed)
	}
	epoch := b.feed().Position.Epoch
	for i, got := range reply.Grants {
		ask := req.Grants[i]
		issued := reply.Now.Truncate(time.Second)
		b.same("the grant", got, broker.Grant{
			ID: ask.ID, Task: req.Task, Workload: req.Workload, Audience: ask.Audience, Scopes: ask.Scopes,
			Binding: ask.Binding, Thumbprint: ask.Thumbprint, Decision: ask.Decision,
			Issued: issued, Expires: issued.Add(ask.Life), Epoch: epoch,
		})
		record := b.lookup(broker.Ref{Grant: got.ID})
		b.same("the grant, looked up", record.Grant, got)
		b.same("the grant's task, looked up", record.Task, want)
	}
	record := b.lookup(broker.Ref{Task: req.Task})
	b.same("the task, looked up", record.Task, want)
	b.same("the grant of a task", record.Grant, broker.Grant{})
}

func beginChild(b *bench) {
	parent := b.begin()
	child := b.begin(below(parent), asking(b.ask("a", time.Minute)))
	b.same("the path", child.Path, []broker.TaskID{parent.ID, child.ID})
	b.same("the child, looked up", b.now(child), child)
	b.state(parent, broker.Active)
}

func beginChildDeadline(b *bench) {
	parent := b.begin(deadline(time.Minute))
	if child := b.begin(below(parent), deadline(time.Hour)); !child.Deadline.Equal(parent.Deadline) {
		b.Fatalf("the child's deadline is %s; want its parent's, %s", child.Deadline, parent.Deadline)
	}
	if child := b.begin(below(parent), deadline(time.Second)); !child.Deadline.Equal(child.Begun.Add(time.Second)) {
		b.Fatalf("the child's deadline is %s; want a second after %s", child.Deadline, child.Begun)
	}
}

func beginKeyConcurrently(b *bench) {
	const callers = 100
	replies := make([]broker.GrantReply, callers)
	errs := make([]error, callers)
	requests := make([]broker.GrantRequest, callers)
	for i := range requests {
		requests[i] = b.root(key("once", 1), asking(b.ask("a", time.Minute), b.ask("b", time.Minute)))
	}
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() { replies[i], errs[i] = b.store.Grant(b.Context(), requests[i]) })
	}
	wg.Wait()
	made := 0
	for i, reply := range replies {
		if errs[i] != nil {
			b.Fatalf("call %d: %v", i, errs[i])
		}
		b.same("the task of every call", reply.Task, replies[0].Task)
		b.same("the grants of every call", reply.Grants, replies[0].Grants)
		if !reply.Replayed {
			made++
		}
	}
	if tasks := b.list(broker.Query{}).Tasks; made != 1 || len(tasks) != 1 {
		b.Fatalf("%d calls began a task, and there are %d tasks; want 1 and 1", made, len(tasks))
	}
	if receipt := b.end(completing(replies[0].Task)).Receipt; receipt.Grants != 2 {
		b.Fatalf("%d grants were issued; want 2", receipt.Grants)
	}
}

func beginMismatch(b *bench) {
	task := b.begin(key("k", 1))
	b.refused(b.root(key("k", 2)), broker.ErrMismatch)
	b.begin(key("another", 2))
	b.end(completing(task))
	b.refused(b.root(key("k", 2)), broker.ErrMismatch) // kept as long as the task
}

func beginKeyOfAnother(b *bench) {
	first := b.begin(key("k", 1))
	reply := b.must(b.root(key("k", 2), by(bob())))
	if reply.Replayed || reply.Task.ID == first.ID || reply.Task.Workload != bob() {
		b.Fatalf("another workload's key was taken for this one's: %+v", reply)
	}
}

func beginReplayEnded(b *bench) {
	req := b.root(key("k", 1), asking(b.ask("a", time.Minute)))
	task := b.must(req).Task
	b.end(completing(task))
	err := b.refused(b.root(key("k", 1)), broker.ErrEnded)
	ended := b.now(task)
	b.same("the error", err, error(&broker.Ended{Task: task.ID, State: broker.Completed, Cause: broker.CauseCaller, At: ended.Ended}))

	parent := b.begin()
	b.begin(below(parent), key("child", 1))
	b.end(completing(parent))
	b.refused(b.root(below(parent), key("child", 1)), broker.ErrEnded)
}

// beginKeyGivenUp ends a task because it could not be recorded or signed: the same request begins
// another one. For any other cause the key stands, and so it does for a task that has it since.
func beginKeyGivenUp(b *bench) {
	ending := func(task broker.Task, cause broker.Cause) broker.Ending {
		e := completing(task)
		e.State, e.Cause = broker.Failed, cause
		return e
	}
	for i, cause := range []broker.Cause{broker.CauseAudit, broker.CauseSigning} {
		k := key(string(cause), byte(i))
		first := b.begin(k)
		b.end(ending(first, cause))
		again := b.must(b.root(k))
		if again.Replayed || again.Task.ID == first.ID {
			b.Fatalf("after an end by %s: %+v; want a new task", cause, again)
		}
		b.end(ending(first, cause))
		if replay := b.must(b.root(k)); !replay.Replayed || replay.Task.ID != again.Task.ID {
			b.Fatalf("after an end by %s, repeated: %+v; want a replay of the second task", cause, replay)
		}
		b.end(ending(again.Task, broker.CauseCaller))
		b.refused(b.root(k), broker.ErrEnded)
	}
}

func beginReplayExpired(b *bench) {
	req := b.root(key("k", 1), asking(b.ask("a", 2*time.Second), b.ask("b", time.Minute)))
	begun := b.must(req)
	later := b.issue(begun.Task, "a", time.Minute)
	b.Advance(2 * time.Second)
	reply := b.must(b.root(key("k", 1), asking(b.ask("a", time.Minute))))
	if !reply.Replayed {
		b.Fatal("the reply does not say that it is a replay")
	}
	b.same("the replayed task", reply.Task, begun.Task)
	b.same("the replayed grants: not the expired one, nor "+string(later.ID), reply.Grants, begun.Grants[1:])
}

// beginReplayFirst repeats a begin that would now be refused for every other reason.
func beginReplayFirst(b *bench) {
	begun := b.must(b.root(key("k", 1), asking(b.ask("a", time.Minute))))
	b.end(broker.Ending{Kind: broker.TargetSelector, Selector: broker.Selector{Audience: "a"}, Event: broker.NewEventID()})
	again := b.root(key("k", 1), quota(broker.Quota{Tasks: 1, Grants: 1}), asking(b.ask("a", time.Second)))
	again.Control = 0
	reply := b.must(again)
	b.same("the replayed task", reply.Task, begun.Task)
	b.same("the replayed grants", reply.Grants, begun.Grants)
}

func beginRepeated(b *bench) {
	req := b.root(asking(b.ask("a", time.Minute)))
	begun := b.must(req)
	issuing := b.issuing(begun.Task, b.ask("b", time.Minute))
	issued := b.must(issuing)
	b.end(revoking(issued.Grants[0]))
	b.Advance(1100 * time.Millisecond)
	// A caller that was not told what happened repeats: the IDs tell the store. It may say what it
	// likes, but must not write anything over.
	revoked := b.lookup(broker.Ref{Grant: issued.Grants[0].ID}).Grant
	for _, r := range []broker.GrantRequest{req, issuing} {
		r.Control = b.control
		if reply, err := b.store.Grant(b.Context(), r); err == nil && !reply.Replayed {
			b.Fatalf("a repeated call was taken for a new one: %+v", reply)
		}
	}
	foreign := req
	foreign.Workload, foreign.Control = bob(), b.control
	if reply, err := b.store.Grant(b.Context(), foreign); err == nil {
		b.Fatalf("a begin with the ID of another workload's task: got %+v; want an error", reply)
	}
	b.same("the task", b.now(begun.Task), begun.Task)
	b.same("the revoked grant", b.lookup(broker.Ref{Grant: revoked.ID}).Grant, revoked)
	if receipt := b.end(completing(begun.Task)).Receipt; receipt.Grants != 2 {
		b.Fatalf("%d grants were issued; want 2", receipt.Grants)
	}
}

func beginAcrossShards(b *bench) {
	if b.shards == 1 {
		return // there is no other shard
	}
	parent := b.begin()
	req := b.root(below(parent))
	req.Task = broker.NewTaskID(0)
	b.refused(req, broker.ErrNotFound)
	b.absent(req.Task)
}
