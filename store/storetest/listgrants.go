package storetest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

// ref says what a task is in another system.
func ref(kind, id, url string) option {
	return func(r *broker.GrantRequest) { r.Begin.Ref = broker.TaskRef{Kind: kind, ID: id, URL: url} }
}

// grantPages lists all pages of a query for grants, each of which must be what Lookup says.
func (b *bench) grantPages(q broker.Query) []broker.GrantID {
	b.Helper()
	q.Grants = true
	var ids []broker.GrantID
	var last broker.Place
	for {
		page := b.list(q)
		if limit := q.Limit; len(page.Tasks) > 0 || limit > 0 && len(page.Grants) > limit {
			b.Fatalf("a page of %d tasks and %d grants; want none, and %d at most", len(page.Tasks), len(page.Grants), limit)
		}
		for _, record := range page.Grants {
			if place := broker.PlaceOf(record.Grant); place.Compare(last) <= 0 {
				b.Fatalf("%s comes after %s", place, last)
			} else {
				last = place
			}
			want := b.lookup(broker.Ref{Grant: record.Grant.ID})
			want.Now, want.Control = time.Time{}, 0
			b.same("the listed grant", record, want)
			ids = append(ids, record.Grant.ID)
		}
		if page.Next == "" {
			return ids
		}
		if page.Next == q.After {
			b.Fatalf("after %q comes the same cursor again", q.After)
		}
		q.After = page.Next
	}
}

// placed returns the IDs of grants in the order of their places.
func placed(grants ...broker.Grant) []broker.GrantID {
	grants = slices.Clone(grants)
	slices.SortFunc(grants, func(x, y broker.Grant) int { return broker.PlaceOf(x).Compare(broker.PlaceOf(y)) })
	var ids []broker.GrantID
	for _, g := range grants {
		ids = append(ids, g.ID)
	}
	return ids
}

// spreadGrants begins n tasks over all shards, with grants of several lives in each.
func (b *bench) spreadGrants(n int, options ...option) (tasks []broker.Task, grants []broker.Grant) {
	b.Helper()
	for i := range n {
		b.shard = i % b.shards
		reply := b.must(b.root(append(options, asking(b.ask("a", 2*time.Minute), b.ask("b", time.Minute)))...))
		tasks, grants = append(tasks, reply.Task), append(grants, reply.Grants...)
		grants = append(grants, b.issue(reply.Task, "a", 90*time.Second))
	}
	return tasks, grants
}

func listGrants(b *bench) {
	if page := b.list(broker.Query{Grants: true}); len(page.Grants) != 0 || page.Next != "" || page.Now.IsZero() {
		b.Fatalf("an empty store lists %+v", page)
	}
	b.begin() // without any
	_, mine := b.spreadGrants(4)
	_, his := b.spreadGrants(3, by(bob()))
	all := placed(append(slices.Clone(mine), his...)...)
	for _, limit := range []int{0, 1, 2, 20, 21, 22, broker.MaxPage} {
		b.same("the pages", b.grantPages(broker.Query{Limit: limit}), all)
	}
	b.same("one's", b.grantPages(broker.Query{Workload: alice(), Limit: 2}), placed(mine...))
	b.same("the other's", b.grantPages(broker.Query{Workload: bob(), Limit: 2}), placed(his...))
	if page := b.list(broker.Query{Grants: true, Limit: len(all)}); page.Next != "" {
		b.Error("a page that ends with the last grant says that there is more")
	}
	// The cursor may be any task or grant, there or not.
	for _, g := range mine {
		at := broker.PlaceOf(g)
		b.same("from a task on", b.grantPages(broker.Query{After: string(g.Task), Limit: 4}), from(append(mine, his...), broker.Place{Task: g.Task}))
		at.Grant = broker.NewGrantID(g.ID.Shard())
		b.same("from no grant on", b.grantPages(broker.Query{After: at.String(), Limit: 4}), from(append(mine, his...), at))
		at.Task = broker.NewTaskID(g.Task.Shard())
		b.same("from no task's on", b.grantPages(broker.Query{After: at.String(), Limit: 4}), from(append(mine, his...), at))
	}
}

// from returns the IDs of the grants after a place, in order.
func from(grants []broker.Grant, place broker.Place) []broker.GrantID {
	return placed(slices.DeleteFunc(slices.Clone(grants), func(g broker.Grant) bool { return broker.PlaceOf(g).Compare(place) <= 0 })...)
}

func listGrantsLimits(b *bench) {
	for _, limit := range []int{-1, broker.MaxPage + 1} {
		if _, err := b.store.List(b.Context(), broker.Query{Grants: true, Limit: limit}); !errors.Is(err, broker.ErrInvalid) {
			b.Errorf("a limit of %d: %v; want ErrInvalid", limit, err)
		}
	}
	var grants []broker.Grant
	task := b.begin()
	for len(grants) <= broker.MaxPage {
		if len(grants) > broker.MaxPage/2 && len(grants) <= broker.MaxPage/2+8 {
			task = b.begin(below(task))
		}
		var asks []broker.Asked
		for range 8 {
			asks = append(asks, b.ask("a", time.Minute))
		}
		grants = append(grants, b.must(b.issuing(task, asks...)).Grants...)
	}
	for _, q := range []broker.Query{{Limit: 1}, {}, {Limit: broker.MaxPage}, {Below: task.Root()}} {
		q.Grants = true
		page := b.list(q)
		want := q.Limit
		if want == 0 {
			want = broker.MaxPage
		}
		if len(page.Grants) != want || page.Next == "" {
			b.Errorf("a limit of %d: got %d grants, next %q; want %d and one", q.Limit, len(page.Grants), page.Next, want)
		}
	}
	if got := b.grantPages(broker.Query{}); !slices.Equal(got, placed(grants...)) {
		b.Errorf("got %d grants; want %d in order", len(got), len(grants))
	}
}

// listGrantsEnded has grants that are good for nothing, and that Lookup finds all the same.
func listGrantsEnded(b *bench) {
	tasks, grants := b.spreadGrants(2)
	short := b.issue(tasks[1], "a", broker.MinTokenLife)
	lapsing := b.must(b.root(lease(time.Second), asking(b.ask("a", time.Minute))))
	grants = append(grants, short, lapsing.Grants[0])
	b.end(revoking(grants[0]))
	b.end(completing(tasks[0]))
	b.Advance(broker.MinTokenLife + time.Second)
	b.same("all", b.grantPages(broker.Query{Limit: 3}), placed(grants...))
	states := map[broker.State]int{}
	revoked := 0
	for _, record := range b.list(broker.Query{Grants: true}).Grants {
		states[record.Task.State]++
		if record.Grant.Revoked {
			revoked++
		}
	}
	b.same("their tasks' states", states, map[broker.State]int{broker.Completed: 3, broker.Active: 4, broker.Lapsed: 1})
	b.same("how many are revoked", revoked, 1)
}

func listOf(b *bench) {
	tasks, grants := b.spreadGrants(3)
	child := b.begin(below(tasks[2]), asking(b.ask("a", time.Minute)))
	for i, task := range tasks {
		b.same("the task", b.pages(broker.Query{Of: task.ID}), []broker.TaskID{task.ID})
		b.same("its grants", b.grantPages(broker.Query{Of: task.ID, Limit: 1}), placed(grants[3*i:3*i+3]...))
		b.same("of its workload", b.pages(broker.Query{Of: task.ID, Workload: alice()}), []broker.TaskID{task.ID})
		b.same("of another workload", len(b.pages(broker.Query{Of: task.ID, Workload: bob()})), 0)
		b.same("its grants of another workload", len(b.grantPages(broker.Query{Of: task.ID, Workload: bob()})), 0)
		b.same("after itself", len(b.pages(broker.Query{Of: task.ID, After: string(task.ID)})), 0)
		b.same("its grants after the first", b.grantPages(broker.Query{Of: task.ID, After: placeOf(b, grants[3*i:3*i+3], 0)}), placed(grants[3*i : 3*i+3]...)[1:])
	}
	b.same("a child", b.pages(broker.Query{Of: child.ID}), []broker.TaskID{child.ID})
	b.same("a child's grants", len(b.grantPages(broker.Query{Of: child.ID})), 1)
	for _, nobody := range []broker.TaskID{broker.NewTaskID(b.shard), broker.NewTaskID(b.shards), "no task's ID"} {
		for _, q := range []broker.Query{{Of: nobody}, {Below: nobody}} {
			if page := b.list(q); len(page.Tasks) != 0 || page.Next != "" || page.Now.IsZero() {
				b.Errorf("%+v: got %+v; want an empty page with the time", q, page)
			}
			b.same("the grants of no task", len(b.grantPages(q)), 0)
		}
	}
}

// placeOf is the cursor of the grant that is in a place among others.
func placeOf(b *bench, grants []broker.Grant, index int) string {
	id := placed(grants...)[index]
	return broker.PlaceOf(b.lookup(broker.Ref{Grant: id}).Grant).String()
}

func listBelow(b *bench) {
	type node struct {
		broker.Task
		grants []broker.Grant
	}
	var all []node
	add := func(options ...option) broker.Task {
		reply := b.must(b.root(append(options, asking(b.ask("a", time.Minute), b.ask("b", time.Minute)))...))
		all = append(all, node{reply.Task, reply.Grants})
		return reply.Task
	}
	for range 2 {
		root := add()
		for range 3 {
			child := add(below(root))
			for range 2 {
				grandchild := add(below(child))
				add(below(grandchild))
			}
		}
	}
	add() // alone
	b.end(completing(all[1].Task))
	for _, top := range all {
		var tasks []broker.TaskID
		var grants []broker.Grant
		for _, n := range all {
			if slices.Contains(n.Path, top.ID) {
				tasks, grants = append(tasks, n.ID), append(grants, n.grants...)
			}
		}
		slices.Sort(tasks)
		for _, limit := range []int{0, 1, 2, 7} {
			b.same("the tasks below", b.pages(broker.Query{Below: top.ID, Limit: limit}), tasks)
			b.same("the grants below", b.grantPages(broker.Query{Below: top.ID, Limit: limit}), placed(grants...))
		}
		b.same("below, of the workload", b.pages(broker.Query{Below: top.ID, Workload: alice()}), tasks)
		b.same("below, of another workload", len(b.pages(broker.Query{Below: top.ID, Workload: bob()})), 0)
		for i, id := range tasks {
			b.same("the tasks after one", b.pages(broker.Query{Below: top.ID, After: string(id)}), tasks[i+1:])
		}
		nobody := broker.NewTaskID(b.shard)
		rest := slices.DeleteFunc(tasks, func(id broker.TaskID) bool { return id <= nobody })
		b.same("the tasks after none", b.pages(broker.Query{Below: top.ID, After: string(nobody)}), rest)
	}
}

// listBelowMany has more tasks than a store would look at in one go.
func listBelowMany(b *bench) {
	root := b.begin()
	var tasks []broker.TaskID
	var grants []broker.Grant
	for i := range 260 {
		task := b.begin(below(root))
		tasks = append(tasks, task.ID)
		if i%10 > 0 {
			grants = append(grants, b.issue(task, "a", time.Minute))
		}
	}
	leaf := b.begin(below(b.now(broker.Task{ID: tasks[259]})))
	all := append(slices.Clone(tasks), root.ID, leaf.ID)
	slices.Sort(all)
	b.same("all", b.pages(broker.Query{Below: root.ID}), all)
	b.same("all by tens", b.pages(broker.Query{Below: root.ID, Limit: 10}), all)
	two := []broker.TaskID{tasks[259], leaf.ID}
	slices.Sort(two)
	b.same("two", b.pages(broker.Query{Below: tasks[259]}), two)
	b.same("their grants", b.grantPages(broker.Query{Below: root.ID}), placed(grants...))
	b.same("no grants", len(b.grantPages(broker.Query{Below: leaf.ID})), 0)
}

func listRef(b *bench) {
	here := broker.TaskRef{Kind: "k8s/job", ID: "7"}
	var tasks []broker.TaskID
	var grants []broker.Grant
	for i := range 9 {
		b.shard = i % b.shards
		reply := b.must(b.root(ref(here.Kind, here.ID, fmt.Sprintf("https://example.org/%d", i)), asking(b.ask("a", time.Minute), b.ask("a", 2*time.Minute))))
		tasks, grants = append(tasks, reply.Task.ID), append(grants, reply.Grants...)
		b.begin(ref("k8s/pod", here.ID, ""), asking(b.ask("a", time.Minute)))
		b.begin(ref(here.Kind, "77", ""))
		b.begin(ref("k8s/job7", "", ""), asking(b.ask("a", time.Minute)))
		b.begin(below(reply.Task)) // has none itself
	}
	his := b.begin(by(bob()), ref(here.Kind, here.ID, ""))
	all := append(slices.Clone(tasks), his.ID)
	slices.Sort(tasks)
	slices.Sort(all)
	for _, limit := range []int{0, 1, 4, 10} {
		b.same("the tasks", b.pages(broker.Query{Ref: here, Limit: limit}), all)
		b.same("the tasks of one", b.pages(broker.Query{Ref: here, Limit: limit, Workload: alice()}), tasks)
		b.same("the grants", b.grantPages(broker.Query{Ref: here, Limit: limit}), placed(grants...))
	}
	for _, g := range grants {
		at := broker.PlaceOf(g)
		b.same("the grants after one", b.grantPages(broker.Query{Ref: here, After: at.String()}), from(grants, at))
	}
	b.same("with another URL", b.pages(broker.Query{Ref: broker.TaskRef{Kind: here.Kind, ID: here.ID, URL: "https://example.org/"}}), all)
	b.end(completing(broker.Task{ID: tasks[0], Workload: alice()}))
	b.same("with one that has ended", b.pages(broker.Query{Ref: here}), all)
	b.same("of no task", len(b.pages(broker.Query{Ref: broker.TaskRef{Kind: "k8s/job", ID: "8"}})), 0)
}

func listNonsense(b *bench) {
	task := b.begin(asking(b.ask("a", time.Minute)))
	grant := b.list(broker.Query{Grants: true}).Grants[0].Grant
	job := broker.TaskRef{Kind: "k8s/job", ID: "7"}
	for _, q := range []broker.Query{
		{After: "no cursor"}, {After: string(task.ID) + "0"}, {After: string(grant.ID)}, {After: broker.PlaceOf(grant).String()},
		{Grants: true, After: "no cursor"}, {Grants: true, After: string(grant.ID)}, {Grants: true, After: broker.PlaceOf(grant).String() + "."},
		{Grants: true, Due: true}, {Of: task.ID, Below: task.ID}, {Of: task.ID, Ref: job}, {Below: task.ID, Ref: job}, {Below: task.ID, Due: true},
		{Grants: true, Ended: broker.EventRange{From: "evt_a", Until: "evt_b"}}, {Ended: broker.EventRange{From: "evt_b", Until: "evt_a"}}, {Ended: broker.EventRange{Until: "evt_a"}},
		{Ref: broker.TaskRef{Kind: "k8s/job"}}, {Ref: broker.TaskRef{ID: "7"}}, {Ref: broker.TaskRef{URL: "https://example.org/"}},
	} {
		if page, err := b.store.List(b.Context(), q); !errors.Is(err, broker.ErrInvalid) {
			b.Errorf("%+v: got %+v, error %v; want ErrInvalid", q, page, err)
		}
	}
}
