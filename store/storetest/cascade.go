package storetest

import (
	"time"

	"github.com/errandhq/errand/broker"
)

func cascadeCases() []testCase {
	return []testCase{
		{"cascade/to the deepest task in one entry", cascadeDeep},
		{"cascade/too deep", cascadeTooDeep},
		{"cascade/spares siblings and parents", cascadeSpares},
		{"cascade/end below an ended task", cascadeBelow},
		{"cascade/first moment counts", cascadeFirst},
	}
}

func cascadeDeep(b *bench) {
	tasks := b.chain(broker.MaxDepth)
	var grants []broker.Grant
	for i, task := range tasks {
		grants = append(grants, b.issue(task, []string{"a", "b"}[i%2], time.Minute+time.Duration(i)*time.Second))
	}
	before := b.feed().Position.Numbers[b.shard]
	receipt := b.end(completing(tasks[0])).Receipt
	update := b.feed()
	b.same("the feed", update.Entries, []broker.Entry{{
		Shard: b.shard, Number: before + 1, Denial: ofTask(tasks[0]), Audiences: []string{"a", "b"},
		Until: grants[len(grants)-1].Expires.Add(broker.Margin),
	}})
	if receipt.Grants != broker.MaxDepth || receipt.SubTasks != broker.MaxDepth-1 {
		b.Errorf("the receipt counts %d grants and %d tasks below; want %d and %d", receipt.Grants, receipt.SubTasks, broker.MaxDepth, broker.MaxDepth-1)
	}
	for i, task := range tasks {
		record := b.lookup(broker.Ref{Grant: grants[i].ID})
		want := task
		want.State, want.Cause, want.Ended = broker.Canceled, broker.CauseParent, receipt.Ended
		if i == 0 {
			want.State, want.Cause = broker.Completed, broker.CauseCaller
		}
		b.same("the task", record.Task, want)
		if record.Grant.Live(record.Now, record.Task) {
			b.Errorf("the grant at depth %d is live", i+1)
		}
	}
}

func cascadeTooDeep(b *bench) {
	tasks := b.chain(broker.MaxDepth)
	deepest := tasks[broker.MaxDepth-1]
	if len(deepest.Path) != broker.MaxDepth {
		b.Fatalf("the path has %d tasks; want %d", len(deepest.Path), broker.MaxDepth)
	}
	req := b.root(below(deepest))
	b.refused(req, broker.ErrInvalid)
	b.absent(req.Task)
}

func cascadeSpares(b *bench) {
	root := b.begin()
	child, sibling := b.begin(below(root)), b.begin(below(root))
	stranger := b.begin()
	leaf := b.begin(below(child))
	b.end(completing(child))
	for _, task := range []broker.Task{root, sibling, stranger} {
		b.state(task, broker.Active)
		b.issue(task, "a", time.Minute)
	}
	b.state(leaf, broker.Canceled)
}

// cascadeBelow ends tasks below one that was ended by a write: its entry covers them.
func cascadeBelow(b *bench) {
	tasks := b.chain(3)
	for _, task := range tasks {
		b.issue(task, "a", time.Minute)
	}
	receipt := b.end(completing(tasks[0])).Receipt
	b.Advance(20 * time.Millisecond)
	before := b.feed().Position
	for _, task := range tasks[1:] {
		r := b.end(completing(task)).Receipt
		if !r.First || r.State != broker.Canceled || r.Cause != broker.CauseParent || !r.Ended.Equal(receipt.Ended) {
			b.Errorf("got %+v; want a first cancel at %s", r, receipt.Ended)
		}
	}
	b.same("the feed's position", b.feed().Position, before)
}

// cascadeFirst ends a task, and then the one above it.
func cascadeFirst(b *bench) {
	tasks := b.chain(3)
	b.issue(tasks[2], "a", time.Minute)
	child := b.end(completing(tasks[1])).Receipt
	b.Advance(20 * time.Millisecond)
	root := b.end(completing(tasks[0])).Receipt
	if !root.Ended.After(child.Ended) {
		b.Fatalf("the ends are at %s and %s; the test needs two moments", child.Ended, root.Ended)
	}
	b.state(tasks[1], broker.Completed)
	if leaf := b.now(tasks[2]); leaf.State != broker.Canceled || !leaf.Ended.Equal(child.Ended) {
		b.Errorf("the leaf: got %s at %s; want canceled at %s", leaf.State, leaf.Ended, child.Ended)
	}
	// Both have an entry: the one below was there first, and did not cover all that the root does.
	b.same("the feed's length", len(b.feed().Entries), 2)
}
