package storetest

import (
	"errors"
	"time"

	"github.com/errandhq/errand/broker"
)

func grantCases() []testCase {
	return []testCase{
		{"grant/order of the errors", grantOrder},
		{"grant/nothing is written when a part fails", grantWhole},
		{"grant/too short", grantTooShort},
		{"grant/expires at the earliest bound", grantExpires},
		{"grant/does not depend on heartbeats", grantWithoutHeartbeat},
		{"grant/unknown and foreign", grantNotFound},
		{"grant/ended", grantEnded},
		{"grant/shares no memory", grantMemory},
	}
}

// chain begins a root and tasks below it, n in all.
func (b *bench) chain(n int) []broker.Task {
	b.Helper()
	tasks := []broker.Task{b.begin()}
	for len(tasks) < n {
		tasks = append(tasks, b.begin(below(tasks[len(tasks)-1])))
	}
	return tasks
}

// grantOrder begins with a request that is wrong in every way, and mends one thing after the other.
func grantOrder(b *bench) {
	ended, live := b.chain(broker.MaxDepth), b.chain(broker.MaxDepth)
	b.end(completing(ended[broker.MaxDepth-1]))
	foreign := b.begin(by(bob()))
	b.begin(below(live[0]), key("taken", 1))
	lock := broker.Lock{ID: broker.NewLockID(), Selector: broker.Selector{Audience: "z"}, Expires: live[0].Begun.Add(time.Hour)}
	b.end(broker.Ending{Kind: broker.TargetLock, Lock: lock, Event: broker.NewEventID()})

	req := b.root(key("taken", 2), asking(b.ask("a", time.Minute), b.ask("b", time.Second)),
		quota(broker.Quota{Tasks: 1, Children: 1, Grants: 1}))
	req.Control = b.control - 1
	req.Begin.Parent = broker.NewTaskID(b.shard)
	b.refused(req, broker.ErrMismatch)
	req.Begin.Key = ""
	b.refused(req, broker.ErrNotFound)
	req.Begin.Parent = foreign.ID
	b.refused(req, broker.ErrNotFound)
	req.Begin.Parent = ended[broker.MaxDepth-1].ID
	b.refused(req, broker.ErrEnded)
	req.Begin.Parent = live[broker.MaxDepth-1].ID
	b.refused(req, broker.ErrInvalid)
	req.Begin.Parent = live[broker.MaxDepth-2].ID
	b.same("behind", b.refused(req, broker.ErrBehind), error(&broker.Behind{Shard: b.shard, Version: b.control}))
	req.Control = b.control
	b.overQuota(req, "live tasks", 1)
	req.Quota.Tasks = 0
	b.overQuota(req, "live children", 1)
	req.Quota.Children = 2
	b.overQuota(req, "live grants", 1)
	req.Quota.Grants = 2
	b.refused(req, broker.ErrTooShort)
	req.Grants[1].Life = 2 * time.Second
	b.must(req)
}

func (b *bench) overQuota(req broker.GrantRequest, what string, limit int) {
	b.Helper()
	b.same("the quota", b.refused(req, broker.ErrQuota), error(&broker.QuotaExceeded{What: what, Limit: limit}))
}

func grantWhole(b *bench) {
	root := b.begin(quota(broker.Quota{}))
	before := b.feed()
	bad := b.root(below(root), key("k", 1), asking(b.ask("a", time.Minute), b.ask("b", time.Second)))
	b.refused(bad, broker.ErrTooShort)
	b.refused(b.issuing(root, bad.Grants...), broker.ErrTooShort)
	over := b.issuing(root, bad.Grants[0], b.ask("b", time.Minute))
	over.Quota.Grants = 1
	b.refused(over, broker.ErrQuota)

	b.absent(bad.Task)
	for _, ask := range over.Grants {
		if _, err := b.store.Lookup(b.Context(), broker.Ref{Grant: ask.ID}); !errors.Is(err, broker.ErrNotFound) {
			b.Fatalf("Lookup of a grant that was refused: %v; want ErrNotFound", err)
		}
	}
	b.same("the feed's position", b.feed().Position, before.Position)
	// Neither the key nor any quota is taken, and nothing is counted.
	again := b.root(below(root), key("k", 2), quota(broker.Quota{Tasks: 2, Children: 1, Grants: 1}), asking(b.ask("a", time.Minute)))
	b.must(again)
	receipt := b.end(completing(root)).Receipt
	if receipt.Grants != 1 || receipt.SubTasks != 1 {
		b.Fatalf("the receipt counts %d grants and %d tasks below; want 1 and 1", receipt.Grants, receipt.SubTasks)
	}
	b.same("the audiences", b.entry(ofTask(root)).Audiences, []string{"a"})
}

func grantTooShort(b *bench) {
	task := b.begin()
	b.refused(b.issuing(task, b.ask("a", broker.MinTokenLife-time.Millisecond)), broker.ErrTooShort)
	b.issue(task, "a", broker.MinTokenLife)

	ask := b.ask("a", time.Minute)
	ask.NotAfter = b.list(broker.Query{}).Now.Truncate(time.Second).Add(broker.MinTokenLife - time.Millisecond)
	b.refused(b.issuing(task, ask), broker.ErrTooShort)

	b.refused(b.root(deadline(900*time.Millisecond), asking(b.ask("a", time.Minute))), broker.ErrTooShort)
}

func grantExpires(b *bench) {
	task := b.begin(deadline(30*time.Second + 700*time.Millisecond))
	for _, test := range []struct {
		name     string
		life     time.Duration
		notAfter time.Duration // from the task's begin
		want     func(broker.Grant) time.Time
	}{
		{"life", 20 * time.Second, 0, func(g broker.Grant) time.Time { return g.Issued.Add(20 * time.Second) }},
		{"deadline", time.Minute, time.Hour, func(broker.Grant) time.Time { return task.Deadline }},
		{"certificate", time.Minute, 9900 * time.Millisecond, func(broker.Grant) time.Time { return task.Begun.Add(9900 * time.Millisecond) }},
	} {
		ask := b.ask("a", test.life)
		if test.notAfter > 0 {
			ask.NotAfter = task.Begun.Add(test.notAfter)
		}
		reply := b.must(b.issuing(task, ask))
		got := reply.Grants[0]
		if want := test.want(got).Truncate(time.Second); !got.Expires.Equal(want) {
			b.Errorf("bound by %s: the grant expires at %s; want %s", test.name, got.Expires, want)
		}
		if want := reply.Now.Truncate(time.Second); !got.Issued.Equal(want) {
			b.Errorf("the grant is issued at %s; want %s", got.Issued, want)
		}
		b.Advance(300 * time.Millisecond) // so that not all of it begins with a second
	}
}

func grantWithoutHeartbeat(b *bench) {
	task := b.begin(lease(3 * time.Second))
	grant := b.issue(task, "a", time.Minute)
	b.beat(task)
	b.same("the grant after a heartbeat", b.lookup(broker.Ref{Grant: grant.ID}).Grant, grant)
}

func grantNotFound(b *bench) {
	task := b.begin()
	foreign := b.issuing(task, b.ask("a", time.Minute))
	foreign.Workload = bob()
	b.refused(foreign, broker.ErrNotFound)
	unknown := broker.Task{ID: broker.NewTaskID(b.shard), Workload: alice()}
	b.refused(b.issuing(unknown, b.ask("a", time.Minute)), broker.ErrNotFound)
	outside := b.root()
	outside.Task = broker.NewTaskID(b.shards)
	b.refused(outside, broker.ErrNotFound)
	b.refused(b.issuing(broker.Task{ID: outside.Task, Workload: alice()}), broker.ErrNotFound)
	for _, ref := range []broker.Ref{
		{Task: unknown.ID}, {Task: outside.Task},
		{Grant: broker.NewGrantID(b.shard)}, {Grant: broker.NewGrantID(b.shards)},
	} {
		if _, err := b.store.Lookup(b.Context(), ref); !errors.Is(err, broker.ErrNotFound) {
			b.Errorf("Lookup %v: %v; want ErrNotFound", ref, err)
		}
	}
}

func grantEnded(b *bench) {
	tasks := b.chain(3)
	b.end(completing(tasks[1]))
	for _, task := range tasks[1:] {
		now := b.now(task)
		want := &broker.Ended{Task: task.ID, State: now.State, Cause: now.Cause, At: now.Ended}
		b.same("the error of an issue", b.refused(b.issuing(task, b.ask("a", time.Minute)), broker.ErrEnded), error(want))
		b.same("the error of a begin", b.refused(b.root(below(task)), broker.ErrEnded), error(want))
	}
	b.issue(tasks[0], "a", time.Minute)
}

// grantMemory writes over everything that went in and came out.
func grantMemory(b *bench) {
	req := b.root(key("k", 1), asking(b.ask("a", time.Minute)))
	reply := b.must(req)
	wantTask, wantGrant := reply.Task.Clone(), reply.Grants[0].Clone()
	spoil := func(task broker.Task, grant broker.Grant) {
		task.Path[0] = "spoiled"
		task.Ceiling.Audiences[0], task.Ceiling.Scopes[0] = "spoiled", "spoiled"
		if grant.ID != "" {
			grant.Scopes[0] = "spoiled"
		}
	}
	spoil(reply.Task, reply.Grants[0])
	req.Begin.Ceiling.Audiences[0], req.Begin.Ceiling.Scopes[0], req.Grants[0].Scopes[0] = "spoiled", "spoiled", "spoiled"
	for range 2 {
		record := b.lookup(broker.Ref{Grant: wantGrant.ID})
		b.same("the task", record.Task, wantTask)
		b.same("the grant", record.Grant, wantGrant)
		spoil(record.Task, record.Grant)
		spoil(b.list(broker.Query{}).Tasks[0], broker.Grant{})
		spoil(b.beat(broker.Task{ID: wantTask.ID, Workload: wantTask.Workload}).Task, broker.Grant{})
		wantTask.LeaseEnd = b.now(wantTask).LeaseEnd
		end := b.end(revoking(wantGrant))
		wantGrant.Revoked = true
		spoil(end.Task, end.Grant)
		end.Receipt.Feed.Numbers[b.shard] = 99
		update := b.feed()
		for _, e := range update.Entries {
			e.Audiences[0] = "spoiled"
		}
		update.Position.Numbers[b.shard] = 99
	}
	b.same("the receipt's position", b.end(revoking(wantGrant)).Receipt.Feed, b.feed().Position)
	b.same("the audiences", b.entry(ofGrant(wantGrant)).Audiences, []string{"a"})
}
