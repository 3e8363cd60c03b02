package storetest

import (
	"errors"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

func agingCases() []testCase {
	return []testCase{
		{"aging/an ended task stays for its tokens", agingEnded},
		{"aging/a task without a token stays for a while", agingBare},
		{"aging/a lapsed task that nobody swept", agingUnswept},
		{"aging/a task below one that is gone", agingOrphan},
		{"aging/a lost task stays dead for its tokens", agingLost},
		{"aging/a lost task with a far deadline", agingLostLong},
		{"aging/a lost task below one that is gone", agingLostOrphan},
		{"aging/lists have what can be looked up", agingLists},
		{"aging/an entry stays for its tokens", agingEntry},
		{"aging/no entry when all tokens are past", agingNoEntry},
		{"aging/denials by a property", agingControl},
		{"aging/a key goes with its task", agingKey},
		{"aging/a delegation goes when it is over", agingDelegation},
		{"aging/a delegation of a task that was never handed out", agingGivenUp},
		{"aging/a long task outlives its tokens", agingLong},
		{"aging/epoch and numbers stay", agingIdle},
	}
}

// grace is how late the store may be with what it takes away.
const grace = 2 * time.Second

// until lets time pass until a moment of the store's, less what the second argument says.
func (b *bench) until(at time.Time, before time.Duration) {
	b.Helper()
	if d := at.Add(-before).Sub(b.list(broker.Query{}).Now); d > 0 {
		b.Advance(d)
	}
}

// stays wants a task to be there until a moment, and gone after it.
func (b *bench) stays(task broker.Task, at time.Time) {
	b.Helper()
	b.until(at, time.Second)
	b.now(task)
	b.until(at, -grace)
	b.absent(task.ID)
	if reply := b.ends(due(task.ID))[0]; !errors.Is(reply.Err, broker.ErrNotFound) {
		b.Fatalf("End of a task that is gone: got %+v; want ErrNotFound", reply)
	}
	if pulse := b.beat(task); !errors.Is(pulse.Err, broker.ErrNotFound) {
		b.Fatalf("Heartbeat of a task that is gone: got %+v; want ErrNotFound", pulse)
	}
	b.refused(b.issuing(task, b.ask("a", time.Minute)), broker.ErrNotFound)
	b.refused(b.root(below(task)), broker.ErrNotFound)
}

func agingEnded(b *bench) {
	task := b.begin(asking(b.ask("a", time.Minute)))
	grant := b.issue(task, "a", 2*time.Minute)
	b.end(completing(task))
	b.until(grant.Expires, time.Second)
	if got := b.lookup(broker.Ref{Grant: grant.ID}); got.Grant.ID != grant.ID {
		b.Fatalf("the grant is gone before it has expired: %+v", got)
	}
	b.until(grant.Expires.Add(broker.Margin), time.Second)
	if again := b.end(completing(task)).Receipt; again.First || again.State != broker.Completed {
		b.Fatalf("repeated: got %+v; want the first receipt", again)
	}
	b.stays(task, grant.Expires.Add(broker.Margin))
	if record, err := b.store.Lookup(b.Context(), broker.Ref{Grant: grant.ID}); !errors.Is(err, broker.ErrNotFound) {
		b.Fatalf("the grant outlives its task: %+v, error %v", record, err)
	}
}

func agingBare(b *bench) {
	task := b.begin()
	b.stays(task, b.end(completing(task)).Receipt.Ended.Add(broker.Margin))
}

func agingUnswept(b *bench) {
	task := b.begin(lease(10 * time.Second))
	b.stays(task, task.LeaseEnd.Add(broker.Margin))
	task = b.begin(deadline(10 * time.Second))
	grant := b.issue(task, "a", time.Minute)
	if !grant.Expires.Before(task.Deadline.Add(time.Millisecond)) {
		b.Fatal("a grant outlives its task's deadline")
	}
	b.stays(task, task.Deadline.Add(broker.Margin))
	task = b.begin(lease(10 * time.Second))
	b.stays(task, b.issue(task, "a", time.Minute).Expires.Add(broker.Margin))
}

// agingOrphan lets a tree go away from the root down: nothing in it comes to life again.
func agingOrphan(b *bench) {
	root := b.begin(lease(10 * time.Second))
	child := b.begin(below(root), key("child", 1), lease(10*time.Minute))
	b.until(root.LeaseEnd, -time.Second)
	b.state(child, broker.Canceled)
	b.until(root.LeaseEnd.Add(broker.Margin), -grace)
	b.absent(root.ID)
	b.absent(child.ID)
	if pulse := b.beat(child); !errors.Is(pulse.Err, broker.ErrNotFound) {
		b.Fatalf("Heartbeat: got %+v; want ErrNotFound", pulse)
	}
	b.refused(b.issuing(child, b.ask("a", time.Minute)), broker.ErrNotFound)
	if reply := b.ends(completing(child))[0]; !errors.Is(reply.Err, broker.ErrNotFound) {
		b.Fatalf("End: got %+v; want ErrNotFound", reply)
	}
	b.until(child.LeaseEnd, -grace)
	b.same("what is due", len(b.list(broker.Query{Due: true}).Tasks), 0)
	b.until(child.LeaseEnd.Add(broker.Margin), -grace)
	b.absent(child.ID)
}

// agingLists lets grants and their tasks go, one after the other.
func agingLists(b *bench) {
	job := broker.TaskRef{Kind: "k8s/job", ID: "7"}
	root := b.begin(lease(20*time.Second), ref(job.Kind, job.ID, ""), asking(b.ask("a", time.Minute), b.ask("a", 3*time.Minute)))
	child := b.begin(below(root), lease(10*time.Minute), asking(b.ask("a", 2*time.Minute)))
	grants := b.list(broker.Query{Grants: true}).Grants
	slices.SortFunc(grants, func(x, y broker.Record) int { return x.Grant.Expires.Compare(y.Grant.Expires) })
	b.end(completing(child))
	lists := func(n int) {
		b.Helper()
		var left []broker.Grant
		for _, record := range grants[n:] {
			left = append(left, record.Grant)
		}
		b.same("all grants", b.grantPages(broker.Query{Limit: 1}), placed(left...))
		b.same("the grants of the tree", b.grantPages(broker.Query{Below: root.ID}), placed(left...))
		b.same("the grants from the first on", b.grantPages(broker.Query{After: broker.PlaceOf(grants[0].Grant).String()}),
			from(left, broker.PlaceOf(grants[0].Grant)))
	}
	until := func(at time.Time) { // with heartbeats, and somebody who looks at what is due
		b.Helper()
		for b.list(broker.Query{Due: true}).Now.Before(at) {
			b.Advance(max(time.Millisecond, min(8*time.Second, at.Sub(b.beat(root).Now))))
		}
	}
	for n, record := range grants {
		until(record.Grant.Expires.Add(broker.Margin - time.Second))
		lists(n)
		until(record.Grant.Expires.Add(broker.Margin + grace))
		lists(n + 1)
	}
	b.absent(child.ID)
	b.same("the tree", b.pages(broker.Query{Below: root.ID}), []broker.TaskID{root.ID})
	b.same("the job's", b.pages(broker.Query{Ref: job, After: string(root.ID[:len(root.ID)-1]) + "2"}), b.pages(broker.Query{After: string(root.ID[:len(root.ID)-1]) + "2"}))
	b.end(completing(root))
	b.Advance(broker.Margin + grace)
	for _, q := range []broker.Query{{}, {Below: root.ID}, {Of: root.ID}, {Ref: job}, {After: string(root.ID)}} {
		b.same("in the end", len(b.pages(q)), 0)
	}
}

func agingEntry(b *bench) {
	task := b.begin(asking(b.ask("a", time.Minute), b.ask("b", 2*time.Minute)))
	short := b.issue(task, "a", time.Minute)
	b.end(revoking(short))
	b.end(completing(task))
	entries := b.feed().Entries
	if len(entries) != 2 || !entries[0].Until.Before(entries[1].Until) {
		b.Fatalf("got %+v; want two entries, the first for a shorter time", entries)
	}
	// A reader that comes back while the entry stands gets it, however long it was away.
	from := b.feed().Position
	from.Numbers[b.shard] = 0
	b.until(entries[0].Until, 1500*time.Millisecond)
	update, err := first(b.Context(), b.store, from)
	if err != nil {
		b.Fatal(err)
	}
	b.same("while both stand", update.Entries, entries)
	b.until(entries[0].Until, 400*time.Millisecond)
	b.feed()
	b.until(entries[0].Until, 0)
	b.same("right when the first passes", b.feed().Entries, entries[1:])
	b.until(entries[0].Until, -grace)
	b.same("when the first has passed", b.feed().Entries, entries[1:])
	b.until(entries[1].Until, time.Second)
	b.same("at the end", b.feed().Entries, entries[1:])
	b.until(entries[1].Until, -grace)
	update, err = first(b.Context(), b.store, from)
	if err != nil || len(update.Entries) != 0 || update.Position.Numbers[b.shard] != 2 {
		b.Fatalf("when both have passed: got %+v, error %v; want number 2 and no entry", update, err)
	}
}

func agingNoEntry(b *bench) {
	one := b.begin(lease(10*time.Minute), asking(b.ask("a", 10*time.Second)))
	two := b.begin(lease(10*time.Minute), asking(b.ask("a", 10*time.Second)))
	b.Advance(10*time.Second + broker.Margin - time.Second)
	b.end(completing(one)) // its token has expired, and some clock may not know it yet
	b.same("within the margin", len(b.entries(ofTask(one))), 1)
	b.Advance(grace)
	b.end(completing(two))
	b.same("past the margin", len(b.entries(ofTask(two))), 0)
	b.same("the number", b.feed().Position.Numbers[b.shard], uint64(1))
}

func agingControl(b *bench) {
	w := b.watch()
	var last broker.Receipt
	for _, kind := range []broker.TargetKind{broker.TargetSelector, broker.TargetAll, broker.TargetKey} {
		last = b.end(denying(kind)).Receipt
	}
	w.reaches(last.Feed)
	version := b.control
	until := last.Ended.Add(broker.MaxTokenLife + broker.Margin)
	b.until(until, time.Second)
	update := b.feed()
	b.same("the entries while they stand", len(update.Entries), 3*b.shards)
	b.same("the control list while they stand", len(update.Controls[b.shard].Denials), 2)
	b.until(until, -grace)
	update = b.feed()
	b.same("the entries in the end", len(update.Entries), 0)
	b.same("the control list in the end", update.Controls[b.shard], broker.Control{Version: version})
	b.same("the watcher's entries", len(w.entries()), 3*b.shards)
}

func agingKey(b *bench) {
	task := b.begin(key("k", 1))
	b.until(b.end(completing(task)).Receipt.Ended.Add(broker.Margin), time.Second)
	b.refused(b.root(key("k", 2)), broker.ErrMismatch)
	b.refused(b.root(key("k", 1)), broker.ErrEnded)
	b.Advance(time.Second + grace)
	if again := b.must(b.root(key("k", 2))); again.Replayed || again.Task.ID == task.ID {
		b.Fatalf("the key outlives its task: %+v", again)
	}
}

// agingLong keeps a task alive for an hour and gives it tokens all the time.
func agingLong(b *bench) {
	task := b.begin(lease(2*time.Minute), deadline(time.Hour), key("long", 1))
	child := b.begin(below(task), lease(2*time.Minute))
	var grants []broker.Grant
	for range 59 {
		grants = append(grants, b.must(func() broker.GrantRequest {
			r := b.issuing(child, b.ask("a", time.Minute))
			r.Quota.Grants = 2
			return r
		}()).Grants[0])
		b.Advance(time.Minute)
		b.beat(task)
		b.beat(child)
	}
	b.state(task, broker.Active)
	b.state(child, broker.Active)
	if again := b.must(b.root(key("long", 1))); !again.Replayed || again.Task.ID != task.ID {
		b.Fatalf("the key is gone before its task: %+v", again)
	}
	if _, err := b.store.Lookup(b.Context(), broker.Ref{Grant: grants[0].ID}); !errors.Is(err, broker.ErrNotFound) {
		b.Errorf("a grant of an hour ago is still there: %v", err)
	}
	receipt := b.end(completing(task)).Receipt
	if receipt.Grants != len(grants) || receipt.SubTasks != 1 {
		b.Errorf("the receipt counts %d grants and %d tasks; want %d and 1, gone ones included", receipt.Grants, receipt.SubTasks, len(grants))
	}
	b.state(child, broker.Canceled)
}

// agingIdle leaves the store alone for an hour.
func agingIdle(b *bench) {
	lock := b.locking(broker.Selector{Scope: "read"}, 2*time.Hour)
	lock.Lock.Since = b.end(lock).Receipt.Ended
	b.end(denying(broker.TargetSelector))
	before := b.feed()
	b.Advance(time.Hour)
	after := b.feed()
	b.same("the position", after.Position, before.Position)
	b.same("the version", after.Controls[b.shard].Version, before.Controls[b.shard].Version)
	b.same("the locks", after.Controls[b.shard].Locks, []broker.Lock{lock.Lock})
	stale := b.root()
	stale.Control--
	b.refused(stale, broker.ErrBehind)
	grant := b.issue(b.begin(), "a", time.Minute)
	b.same("the grant's number", grant.Number, before.Position.Numbers[b.shard])
	if _, err := first(b.Context(), b.store, before.Position); err != nil {
		b.Errorf("Watch from the position of an hour ago: %v", err)
	}
}
