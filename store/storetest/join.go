package storetest

import (
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
)

func joinCases() []testCase {
	return []testCase{
		{"join/below another workload's task", joinBelow},
		{"join/delegators are kept", joinDelegators},
		{"join/each has its own task", joinOwn},
		{"join/once for a delegation", joinOnce},
		{"join/a replay uses nothing", joinReplay},
		{"join/a delegation of a task that was never handed out", joinGivenUp},
		{"join/a delegation is remembered until it is over", joinUntil},
		{"join/of nobody's task", joinNotFound},
		{"join/order of errors", joinOrder},
		{"join/quotas", joinQuota},
		{"join/ends with the parent", joinEnds},
		{"join/dies with the parent", joinDies},
		{"join/in another shard", joinAcrossShards},
	}
}

func carol() spiffeid.ID { return spiffeid.RequireFromString("spiffe://example.org/carol") }

// joining makes a begin a join of bob's below a task, by a delegation that is over in an hour.
func joining(parent broker.Task, delegation broker.DelegationID) option {
	return func(r *broker.GrantRequest) {
		r.Workload, r.Begin.Parent = bob(), parent.ID
		r.Begin.Join = &broker.Join{Delegation: delegation, Delegator: parent.Workload, Until: parent.Begun.Add(time.Hour)}
		r.Begin.Delegators = append(append([]spiffeid.ID{}, parent.Delegators...), parent.Workload)
	}
}

// usable says when the delegation of a join is over.
func usable(until time.Time) option {
	return func(r *broker.GrantRequest) { r.Begin.Join.Until = until }
}

func joinBelow(b *bench) {
	parent := b.begin()
	req := b.root(joining(parent, broker.NewDelegationID()), asking(b.ask("a", time.Minute)))
	reply := b.must(req)
	want := broker.Task{
		ID: req.Task, Path: []broker.TaskID{parent.ID, req.Task}, Workload: bob(), Name: req.Begin.Name,
		Purpose: req.Begin.Purpose, Ceiling: req.Begin.Ceiling, Begun: reply.Now, Lease: req.Begin.Lease,
		LeaseEnd: reply.Now.Add(req.Begin.Lease), Deadline: parent.Deadline, State: broker.Active, Holder: 1,
		Delegators: []spiffeid.ID{alice()},
	}
	b.same("the joined task", reply.Task, want)
	b.same("the grant's workload", reply.Grants[0].Workload, bob())
	b.everywhere(want)
	b.same("the tasks of the joiner", b.list(broker.Query{Workload: bob()}).Tasks, []broker.Task{want})
	b.same("the tasks of the delegator", b.list(broker.Query{Workload: alice()}).Tasks, []broker.Task{parent})
}

// joinDelegators: they are whatever the caller says, with and without what else a task says of itself.
func joinDelegators(b *bench) {
	a, d := everything()
	parent := b.begin()
	joined := b.begin(joining(parent, broker.NewDelegationID()))
	for _, o := range []option{saying(broker.Attributes{}, nil), saying(a, d)} {
		req := b.root(joining(joined, broker.NewDelegationID()), by(carol()), key("k"+string(rune('0'+len(b.list(broker.Query{}).Tasks))), 1), o)
		task := b.must(req).Task
		want := []spiffeid.ID{alice(), bob()}
		b.same("the delegators", task.Delegators, want)
		b.same("the attributes", task.Attributes, req.Begin.Attributes)
		b.everywhere(task)
		b.same("the delegators in a replay", b.must(req).Task.Delegators, want)
		b.same("the delegators in a pulse", b.beat(task).Task.Delegators, want)
		b.same("the delegators after an adoption", b.adopt(task, 2).Delegators, want)
		child := b.begin(by(carol()), below(task), func(r *broker.GrantRequest) { r.Begin.Delegators = want }, present)
		b.same("the delegators of a child", b.now(child).Delegators, want)
		b.same("the delegators with a stream", b.stream(child, "s", false).Task.Delegators, want)
		b.same("the delegators of an ended task", b.end(completing(task)).Task.Delegators, want)
		req.Begin.Delegators[0] = carol()
		b.same("the delegators after the caller has changed its own", b.now(task).Delegators, want)
	}
	b.same("the delegators of the parent", len(b.now(parent).Delegators), 0)
}

func joinOwn(b *bench) {
	parent := b.begin()
	joined := b.begin(joining(parent, broker.NewDelegationID()), asking(b.ask("a", time.Minute)))
	before := b.now(joined)
	for _, test := range []struct {
		task broker.Task
		by   spiffeid.ID
	}{{joined, alice()}, {parent, bob()}} {
		foreign := test.task
		foreign.Workload = test.by
		if pulse := b.beat(foreign); !errors.Is(pulse.Err, broker.ErrNotFound) {
			b.Errorf("Heartbeat by %s: got %+v; want ErrNotFound", test.by, pulse)
		}
		if pulse := b.beats(adopting(foreign))[0]; !errors.Is(pulse.Err, broker.ErrNotFound) {
			b.Errorf("adoption by %s: got %+v; want ErrNotFound", test.by, pulse)
		}
		if reply := b.ends(completing(foreign))[0]; !errors.Is(reply.Err, broker.ErrNotFound) {
			b.Errorf("End by %s: got %+v; want ErrNotFound", test.by, reply)
		}
		b.refused(b.issuing(foreign, b.ask("a", time.Minute)), broker.ErrNotFound)
		b.refused(b.root(below(foreign), by(test.by)), broker.ErrNotFound)
	}
	b.same("the joined task", b.now(joined), before)
	b.begin(below(joined), by(bob()))
	b.begin(below(parent))
}

func joinOnce(b *bench) {
	parent := b.begin()
	one, two := broker.NewDelegationID(), broker.NewDelegationID()
	joined := b.begin(joining(parent, one))
	for range 2 {
		b.refused(b.root(joining(parent, one)), broker.ErrUsed)
		b.refused(b.root(joining(parent, one), by(carol()), key("k", 1)), broker.ErrUsed)
		b.refused(b.root(joining(parent, one), func(r *broker.GrantRequest) { r.Begin.Delegators = nil }), broker.ErrUsed)
		b.end(completing(joined)) // gives nothing back
	}
	b.begin(joining(parent, two))
	b.refused(b.root(joining(parent, two)), broker.ErrUsed)
	// Whose the tree is that it is shown at says nothing: the broker made it for one.
	b.refused(b.root(joining(b.begin(), one)), broker.ErrUsed)
}

func joinReplay(b *bench) {
	parent := b.begin()
	one, two := broker.NewDelegationID(), broker.NewDelegationID()
	begun := b.must(b.root(joining(parent, one), key("k", 1), asking(b.ask("a", time.Minute), b.ask("b", 2*time.Second))))
	same := func(req broker.GrantRequest) {
		b.Helper()
		reply := b.must(req)
		if !reply.Replayed {
			b.Fatalf("got %+v; want a replay", reply)
		}
		b.same("the replayed task", reply.Task, begun.Task)
		b.same("the replayed grants", reply.Grants, begun.Grants)
	}
	same(b.root(joining(parent, one), key("k", 1), asking(b.ask("a", time.Minute))))
	same(b.root(joining(parent, two), key("k", 1))) // by whatever delegation
	same(b.root(key("k", 1), by(bob())))            // or none
	b.Advance(2 * time.Second)
	begun.Grants = begun.Grants[:1]
	same(b.root(joining(parent, two), key("k", 1), asking(b.ask("a", time.Minute), b.ask("b", time.Minute), b.ask("c", time.Minute))))
	same(b.root(joining(parent, one), key("k", 1), usable(begun.Now)))
	b.refused(b.root(joining(parent, one), key("k", 2)), broker.ErrMismatch)
	if again := b.must(b.root(joining(parent, two))); again.Replayed {
		b.Fatalf("a replay has used a delegation: %+v", again)
	}
	// A key is its workload's own, and so without one the repeated ID of the task tells.
	b.refused(b.root(joining(parent, one), key("k", 1), by(carol())), broker.ErrUsed)
	req := b.root(joining(parent, broker.NewDelegationID()))
	b.must(req)
	if again := b.must(req); !again.Replayed {
		b.Fatalf("a repeated call: got %+v; want a replay", again)
	}
	b.end(completing(begun.Task))
	b.refused(b.root(joining(parent, one), key("k", 1)), broker.ErrEnded)
}

// joinGivenUp ends a joined task because it could not be recorded or signed: the same request begins another
// one. That one uses the delegation.
func joinGivenUp(b *bench) {
	parent := b.begin()
	ending := func(task broker.Task, cause broker.Cause) {
		e := completing(task)
		e.State, e.Cause = broker.Failed, cause
		b.end(e)
	}
	for i, cause := range []broker.Cause{broker.CauseAudit, broker.CauseSigning} {
		join := joining(parent, broker.NewDelegationID())
		k := key(string(cause), byte(i))
		first := b.begin(join, k)
		b.refused(b.root(join), broker.ErrUsed)
		ending(first, cause)
		again := b.must(b.root(join, k))
		if again.Replayed || again.Task.ID == first.ID {
			b.Fatalf("after an end by %s: got %+v; want a new task", cause, again)
		}
		ending(first, cause)
		b.refused(b.root(join), broker.ErrUsed)
		ending(again.Task, broker.CauseCaller)
		b.refused(b.root(join), broker.ErrUsed)
	}
}

func joinUntil(b *bench) {
	parent := b.begin()
	soon := b.list(broker.Query{}).Now.Add(time.Second)
	join := joining(parent, broker.NewDelegationID())
	b.begin(join, usable(soon))
	b.refused(b.root(join, usable(soon)), broker.ErrUsed)
	b.until(soon, 0)
	b.begin(join, usable(soon)) // whether it is over is not the store's to say
	b.begin(join, usable(soon))
	// One that is over leaves nothing behind that another one could meet.
	b.begin(join)
	b.refused(b.root(join, usable(soon)), broker.ErrUsed)
}

func joinNotFound(b *bench) {
	parent, ended := b.begin(), b.begin()
	b.end(completing(ended))
	delegation := broker.NewDelegationID()
	for name, change := range map[string]option{
		"a task of another than the delegator": func(r *broker.GrantRequest) { r.Begin.Join.Delegator = carol() },
		"a task of the joiner's, it says":      func(r *broker.GrantRequest) { r.Begin.Join.Delegator = bob() },
		"no delegator":                         func(r *broker.GrantRequest) { r.Begin.Join.Delegator = spiffeid.ID{} },
		"no parent":                            func(r *broker.GrantRequest) { r.Begin.Parent = "" },
		"no parent and no delegator": func(r *broker.GrantRequest) {
			r.Begin.Parent, r.Begin.Join.Delegator = "", spiffeid.ID{}
		},
		"an unknown parent":        func(r *broker.GrantRequest) { r.Begin.Parent = broker.NewTaskID(b.shard) },
		"a parent in no shard":     func(r *broker.GrantRequest) { r.Begin.Parent = broker.NewTaskID(b.shards) },
		"an ended one's of no one": func(r *broker.GrantRequest) { r.Begin.Parent, r.Begin.Join.Delegator = ended.ID, carol() },
		"no join":                  func(r *broker.GrantRequest) { r.Begin.Join = nil },
	} {
		req := b.root(joining(parent, delegation), change)
		if reply, err := b.store.Grant(b.Context(), req); !errors.Is(err, broker.ErrNotFound) {
			b.Errorf("%s: got %+v, error %v; want ErrNotFound", name, reply, err)
		}
		b.absent(req.Task)
	}
	b.refused(b.root(joining(ended, delegation)), broker.ErrEnded)
	b.begin(joining(parent, delegation)) // none of these has used it
}

// joinOrder takes the causes of refusal away, one after the other. No refusal uses anything.
func joinOrder(b *bench) {
	chain := b.chain(broker.MaxDepth)
	deepest, parent := chain[broker.MaxDepth-1], b.begin()
	taken, free := broker.NewDelegationID(), broker.NewDelegationID()
	b.begin(joining(parent, taken), key("taken", 1), asking(b.ask("a", time.Minute)))
	b.end(denying(broker.TargetSelector))
	over := b.begin()
	b.end(completing(over))

	req := b.root(joining(over, taken), key("taken", 2), asking(b.ask("a", time.Second)),
		quota(broker.Quota{Tasks: 1, Children: 1, Grants: 1}))
	req.Begin.Join.Delegator, req.Control = carol(), 0
	step := func(want error, mend func()) {
		b.Helper()
		b.refused(req, want)
		b.absent(req.Task)
		mend()
	}
	step(broker.ErrMismatch, func() { req.Begin.Key = "free" })
	step(broker.ErrNotFound, func() { req.Begin.Join.Delegator = alice() })
	step(broker.ErrEnded, func() { req.Begin.Parent = deepest.ID })
	step(broker.ErrUsed, func() { req.Begin.Join.Delegation = free })
	step(broker.ErrInvalid, func() { req.Begin.Parent = parent.ID })
	step(broker.ErrBehind, func() { req.Control = b.control })
	b.overQuota(req, "live tasks", 1)
	req.Quota.Tasks = 0
	b.overQuota(req, "live children", 1)
	req.Quota.Children = 0
	b.overQuota(req, "live grants", 1)
	req.Quota.Grants = 0
	step(broker.ErrTooShort, func() { req.Grants[0].Life = time.Minute })
	if reply := b.must(req); reply.Replayed {
		b.Fatalf("got %+v; want a new task", reply)
	}
	b.refused(b.root(joining(parent, free)), broker.ErrUsed)
}

// joinQuota: a joined task is the joiner's and the parent's child; nothing of it is the delegator's.
func joinQuota(b *bench) {
	two := quota(broker.Quota{Tasks: 2, Grants: 2, Children: 2})
	join := func(parent broker.Task, options ...option) broker.GrantRequest {
		options = append([]option{joining(parent, broker.NewDelegationID()), two}, options...)
		return b.root(options...)
	}
	parent, second := b.begin(two), b.begin(two)
	first := b.must(join(parent, asking(b.ask("a", 2*time.Second), b.ask("b", time.Minute)))).Task
	b.overQuota(join(parent, asking(b.ask("a", time.Minute))), "live grants", 2)
	b.must(b.issuing(parent, b.ask("a", time.Minute)))
	last := b.must(join(parent)).Task
	b.overQuota(join(second), "live tasks", 2)
	b.overQuota(join(parent, by(carol())), "live children", 2)
	b.overQuota(b.root(two, below(parent), func(r *broker.GrantRequest) { r.Quota.Tasks = 0 }), "live children", 2)
	b.overQuota(b.root(two), "live tasks", 2) // alice has both parents
	b.must(join(second, by(carol())))
	b.end(completing(last))
	b.must(join(parent))
	b.end(completing(first))
	// A dead one counts until it is ended itself, as every task below another one.
	b.end(completing(second))
	b.must(join(b.begin(two)))
	b.overQuota(join(parent), "live tasks", 2)
}

func joinEnds(b *bench) {
	parent := b.begin(asking(b.ask("a", time.Minute)))
	joined := b.begin(joining(parent, broker.NewDelegationID()), asking(b.ask("b", 2*time.Minute)))
	third := b.begin(joining(joined, broker.NewDelegationID()), by(carol()), asking(b.ask("c", 3*time.Minute)))
	spared := b.begin(joining(parent, broker.NewDelegationID()))
	b.end(completing(spared))
	b.state(parent, broker.Active)
	grant := b.issue(third, "d", 4*time.Minute)
	receipt := b.end(completing(parent)).Receipt
	if receipt.SubTasks != 3 || receipt.Grants != 4 {
		b.Errorf("the receipt counts %d tasks and %d grants; want 3 and 4", receipt.SubTasks, receipt.Grants)
	}
	b.same("the entry", b.entry(ofTask(parent)).Audiences, []string{"a", "b", "c", "d"})
	b.same("the entry's end", b.entry(ofTask(parent)).Until, grant.Expires.Add(broker.Margin))
	b.same("the feed's length", len(b.feed().Entries), 1)
	b.state(spared, broker.Completed)
	for _, task := range []broker.Task{joined, third} {
		b.state(task, broker.Canceled)
		b.refused(b.issuing(task, b.ask("a", time.Minute)), broker.ErrEnded)
		b.refused(b.root(joining(task, broker.NewDelegationID())), broker.ErrEnded)
		if r := b.end(completing(task)).Receipt; !r.First || r.State != broker.Canceled || r.Cause != broker.CauseParent || !r.Ended.Equal(receipt.Ended) {
			b.Errorf("got %+v; want a first cancel at %s", r, receipt.Ended)
		}
	}
}

// joinDies: neither its own deadline nor its heartbeats nor an adoption keep it alive.
func joinDies(b *bench) {
	parent := b.begin(lease(500*time.Millisecond), deadline(time.Minute))
	joined := b.begin(joining(parent, broker.NewDelegationID()), deadline(time.Hour), asking(b.ask("a", 10*time.Minute)))
	b.same("the deadline", joined.Deadline, parent.Deadline)
	if grant := b.issue(joined, "a", 10*time.Minute); grant.Expires.After(parent.Deadline) {
		b.Errorf("a token until %s in a task below one until %s", grant.Expires, parent.Deadline)
	}
	b.beat(joined)
	b.adopt(joined, 2)
	b.follows(b.now(joined), parent.LeaseEnd, broker.Canceled, broker.CauseParent)
}

func joinAcrossShards(b *bench) {
	if b.shards == 1 {
		return // there is no other shard
	}
	parent := b.begin()
	req := b.root(joining(parent, broker.NewDelegationID()))
	req.Task = broker.NewTaskID(0)
	b.refused(req, broker.ErrNotFound)
	b.absent(req.Task)
}

// agingDelegation: it outlives the task that has joined by it, and everything between.
func agingDelegation(b *bench) {
	parent := b.begin(lease(2*time.Hour), deadline(2*time.Hour))
	over := parent.Begun.Add(40 * time.Minute)
	join := joining(parent, broker.NewDelegationID())
	joined := b.begin(join, usable(over), asking(b.ask("a", time.Minute)))
	b.end(completing(joined))
	for _, at := range []time.Time{joined.Begun.Add(10 * time.Minute), over} {
		b.until(at, time.Second)
		b.refused(b.root(join, usable(over)), broker.ErrUsed)
	}
	b.absent(joined.ID)
	b.until(over, 0)
	b.begin(join)
	b.refused(b.root(join), broker.ErrUsed)
}

// agingGivenUp: when nobody knows any more that its task was never handed out, it is used.
func agingGivenUp(b *bench) {
	parent := b.begin(lease(2*time.Hour), deadline(2*time.Hour))
	kept, gone := joining(parent, broker.NewDelegationID()), joining(parent, broker.NewDelegationID())
	var last time.Time
	for _, join := range []option{kept, gone} {
		e := completing(b.begin(join))
		e.Cause = broker.CauseAudit
		last = b.end(e).Receipt.Ended
	}
	b.until(last.Add(broker.Margin), 2*time.Second)
	b.begin(kept)
	b.until(last.Add(broker.Margin), -grace)
	b.refused(b.root(gone), broker.ErrUsed)
}
