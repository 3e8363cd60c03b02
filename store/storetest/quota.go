package storetest

import (
	"time"

	"github.com/errandhq/errand/broker"
)

func quotaCases() []testCase {
	return []testCase{
		{"quota/tasks", quotaTasks},
		{"quota/children", quotaChildren},
		{"quota/grants", quotaGrants},
		{"quota/zero is no bound", quotaNone},
	}
}

func quotaTasks(b *bench) {
	two := quota(broker.Quota{Tasks: 2})
	first := b.begin(two)
	b.begin(two, lease(500*time.Millisecond))
	b.overQuota(b.root(two), "live tasks", 2)
	b.begin(two, by(bob())) // has a quota of his own
	b.end(completing(first))
	parent := b.begin(two)
	b.overQuota(b.root(two), "live tasks", 2)
	b.Advance(500 * time.Millisecond)
	child := b.begin(two, below(parent)) // in the room of the lapsed one, which nobody has swept
	b.overQuota(b.root(two), "live tasks", 2)
	b.end(completing(parent))
	b.begin(two)
	// The child is dead, but counts: it is not ended itself.
	b.state(child, broker.Canceled)
	b.overQuota(b.root(two), "live tasks", 2)
	b.end(completing(child))
	b.begin(two, deadline(500*time.Millisecond))
	b.overQuota(b.root(two), "live tasks", 2)
	b.Advance(500 * time.Millisecond)
	for _, task := range b.list(broker.Query{Due: true}).Tasks {
		b.end(due(task.ID)) // must not free the room a second time
	}
	b.begin(two)
	b.overQuota(b.root(two), "live tasks", 2)
}

func quotaChildren(b *bench) {
	two := quota(broker.Quota{Children: 2})
	root := b.begin(two)
	child := b.begin(two, below(root))
	b.begin(two, below(root), lease(500*time.Millisecond))
	b.overQuota(b.root(two, below(root)), "live children", 2)
	b.begin(two, below(child)) // a child of another task
	b.end(completing(child))
	b.begin(two, below(root))
	b.overQuota(b.root(two, below(root)), "live children", 2)
	b.Advance(500 * time.Millisecond)
	b.begin(two, below(root))
	b.overQuota(b.root(two, below(root)), "live children", 2)
}

func quotaGrants(b *bench) {
	asks := func(n int, life time.Duration) option {
		return func(r *broker.GrantRequest) {
			for range n {
				r.Grants = append(r.Grants, b.ask("a", life))
			}
		}
	}
	three := quota(broker.Quota{Grants: 3})
	task := b.begin(three, asks(2, 2*time.Second))
	b.overQuota(b.root(three, asks(2, time.Minute)), "live grants", 3)
	other := b.begin(three, asks(1, time.Minute))
	b.overQuota(b.root(three, asks(1, time.Minute)), "live grants", 3)
	b.begin(three)                                  // without a grant
	b.begin(three, by(bob()), asks(3, time.Minute)) // has a quota of his own
	// Grants count until they expire, whatever becomes of them before.
	b.end(completing(task))
	b.end(completing(other))
	b.overQuota(b.root(three, asks(1, time.Minute)), "live grants", 3)
	b.Advance(2 * time.Second)
	b.begin(three, asks(2, time.Minute))
	b.overQuota(b.root(three, asks(1, time.Minute)), "live grants", 3)
}

func quotaNone(b *bench) {
	root := b.begin()
	for range 20 {
		b.begin(below(root), asking(b.ask("a", time.Minute), b.ask("b", time.Minute)))
	}
}
