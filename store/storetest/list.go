package storetest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

func listCases() []testCase {
	return []testCase{
		{"list/pages", listPages},
		{"list/of a workload", listWorkload},
		{"list/what is due", listDue},
		{"list/by the event of the end", listEnded},
		{"list/limits", listLimits},
		{"list/as of now", listAsOf},
		{"list/grants", listGrants},
		{"list/grants, their limits", listGrantsLimits},
		{"list/grants, whatever became of them", listGrantsEnded},
		{"list/of a task", listOf},
		{"list/below a task", listBelow},
		{"list/below a task, many", listBelowMany},
		{"list/by what a task is elsewhere", listRef},
		{"list/what makes no sense", listNonsense},
	}
}

// spread begins n tasks over all shards and returns their IDs in order.
func (b *bench) spread(n int, options ...option) []broker.TaskID {
	b.Helper()
	var ids []broker.TaskID
	for i := range n {
		b.shard = i % b.shards
		ids = append(ids, b.begin(options...).ID)
	}
	slices.Sort(ids)
	return ids
}

// pages lists all pages of a query.
func (b *bench) pages(q broker.Query) []broker.TaskID {
	b.Helper()
	var ids []broker.TaskID
	for {
		page := b.list(q)
		for _, task := range page.Tasks {
			ids = append(ids, task.ID)
		}
		if page.Next == "" {
			return ids
		}
		if page.Next <= q.After || len(page.Tasks) > 0 && string(page.Tasks[0].ID) <= q.After {
			b.Fatalf("after %q comes %+v, and it says that there is more from %q on", q.After, page.Tasks, page.Next)
		}
		q.After = page.Next
	}
}

func listPages(b *bench) {
	if page := b.list(broker.Query{}); len(page.Tasks) != 0 || page.Next != "" || page.Now.IsZero() {
		b.Fatalf("an empty store lists %+v", page)
	}
	ids := b.spread(12)
	for _, limit := range []int{0, 1, 5, 6, 11, 12, 13, broker.MaxPage} {
		b.same("the pages", b.pages(broker.Query{Limit: limit}), ids)
	}
	page := b.list(broker.Query{Limit: 12})
	if page.Next != "" {
		b.Error("a page that ends with the last task says that there is more")
	}
	if page := b.list(broker.Query{After: string(ids[11])}); len(page.Tasks) != 0 || page.Next != "" {
		b.Errorf("after the last: got %+v", page)
	}
	// The cursor's task need not be there.
	for shard := range b.shards {
		nobody := broker.NewTaskID(shard)
		rest := slices.DeleteFunc(slices.Clone(ids), func(id broker.TaskID) bool { return id <= nobody })
		b.same("after no task's ID", b.pages(broker.Query{After: string(nobody), Limit: 2}), rest)
	}
}

func listWorkload(b *bench) {
	mine := b.spread(4)
	his := b.spread(4, by(bob()))
	b.same("one's", b.pages(broker.Query{Workload: alice(), Limit: 3}), mine)
	b.same("the other's", b.pages(broker.Query{Workload: bob(), Limit: 3}), his)
}

func listDue(b *bench) {
	b.spread(3)
	lapsing := b.spread(4, lease(300*time.Millisecond))
	expiring := b.spread(3, by(bob()), deadline(300*time.Millisecond))
	parent := b.begin(lease(300 * time.Millisecond))
	b.begin(below(parent)) // dead with its parent, and not due itself
	ended := b.begin(lease(300 * time.Millisecond))
	b.end(completing(ended))
	b.same("before it is time", b.pages(broker.Query{Due: true}), []broker.TaskID(nil))
	b.Advance(300 * time.Millisecond)
	all := append(append(slices.Clone(lapsing), expiring...), parent.ID)
	slices.Sort(all)
	b.same("what is due", b.pages(broker.Query{Due: true, Limit: 3}), all)
	b.same("what is due of one", b.pages(broker.Query{Due: true, Workload: bob()}), expiring)
	for _, task := range b.list(broker.Query{Due: true}).Tasks {
		if !task.State.Final() {
			b.Errorf("a task that is due is %s", task.State)
		}
	}
	for _, id := range all[:4] {
		b.end(due(id))
	}
	b.same("what is still due", b.pages(broker.Query{Due: true}), all[4:])
	for _, id := range all[4:] {
		e := completing(broker.Task{ID: id})
		e.Workload = alice()
		if slices.Contains(expiring, id) {
			e.Workload = bob()
		}
		b.end(e)
	}
	b.same("what is due in the end", b.pages(broker.Query{Due: true}), []broker.TaskID(nil))
}

func listEnded(b *bench) {
	b.spread(3)
	parent := b.begin(deadline(300 * time.Millisecond))
	b.begin(below(parent)) // dead with its parent, and nobody has said so
	ids := b.spread(8)
	event := func(i int) broker.EventID { return broker.EventID(fmt.Sprintf("evt_%c", 'a'+i)) }
	for i, id := range ids[:6] {
		e := completing(broker.Task{ID: id, Workload: alice()})
		e.Event = event(i)
		b.end(e)
	}
	b.Advance(300 * time.Millisecond)
	late := due(parent.ID)
	late.Event = event(6)
	b.end(late)
	revoked := b.begin(asking(b.ask("a", time.Minute)))
	e := revoking(b.list(broker.Query{Grants: true, Of: revoked.ID}).Grants[0].Grant)
	e.Event = event(1)
	b.end(e)

	ended := func(from, until int) broker.EventRange {
		return broker.EventRange{From: event(from), Until: event(until)}
	}
	for _, limit := range []int{0, 1, 2, 3} {
		b.same("some", b.pages(broker.Query{Ended: ended(1, 4), Limit: limit}), ids[1:4])
	}
	b.same("none", b.pages(broker.Query{Ended: ended(20, 21)}), []broker.TaskID(nil))
	b.same("of another workload", b.pages(broker.Query{Ended: ended(0, 26), Workload: bob()}), []broker.TaskID(nil))
	b.same("what was due", b.pages(broker.Query{Ended: ended(6, 7)}), []broker.TaskID{parent.ID})
	b.same("an event that begins as one that is meant", b.pages(broker.Query{Ended: broker.EventRange{From: "evt_a0", Until: "evt_b"}}), []broker.TaskID(nil))
	b.Advance(broker.Margin)
	b.same("what is no more", b.pages(broker.Query{Ended: ended(0, 26)}), []broker.TaskID(nil))
}

func listLimits(b *bench) {
	for _, limit := range []int{-1, broker.MaxPage + 1} {
		if _, err := b.store.List(b.Context(), broker.Query{Limit: limit}); !errors.Is(err, broker.ErrInvalid) {
			b.Errorf("a limit of %d: %v; want ErrInvalid", limit, err)
		}
	}
	b.spread(broker.MaxPage + 1)
	for _, limit := range []int{0, broker.MaxPage} {
		if page := b.list(broker.Query{Limit: limit}); len(page.Tasks) != broker.MaxPage || page.Next == "" {
			b.Errorf("a limit of %d: got %d tasks, more %v; want %d and true", limit, len(page.Tasks), page.Next != "", broker.MaxPage)
		}
	}
}

func listAsOf(b *bench) {
	root := b.begin(lease(300 * time.Millisecond))
	b.begin(below(root))
	b.end(completing(b.begin()))
	b.Advance(300 * time.Millisecond)
	for _, task := range b.list(broker.Query{}).Tasks {
		b.same("the listed task", task, b.now(task))
		if !task.State.Final() {
			b.Errorf("got %+v; want none that is active", task)
		}
	}
}
