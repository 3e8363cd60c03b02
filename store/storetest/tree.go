package storetest

import (
	"sync"
	"testing"

	"github.com/errandhq/errand/broker"
)

// Tree builds a tree with so many tasks below its root, as deep as one may be, and wants the end of the
// root to be one write that leaves nothing alive.
func Tree(t *testing.T, b Backend, descendants int) {
	b.In(t, func(t *testing.T) {
		bench := newBench(t, b, b.Shards[len(b.Shards)-1])
		root := bench.begin()
		kept, issued := bench.grow(root, descendants)
		before := bench.feed()
		receipt := bench.end(completing(root)).Receipt
		after := bench.feed()
		if receipt.SubTasks != descendants || receipt.Grants != issued {
			t.Errorf("the receipt counts %d tasks and %d grants below; want %d and %d", receipt.SubTasks, receipt.Grants, descendants, issued)
		}
		if n := after.Position.Numbers[bench.shard] - before.Position.Numbers[bench.shard]; n != 1 || len(after.Entries) != len(before.Entries)+1 {
			t.Errorf("the end of the tree made %d changes, and %d entries of the feed; want 1 and 1", n, len(after.Entries)-len(before.Entries))
		}
		deepest := 0
		for _, reply := range kept {
			deepest = max(deepest, len(reply.Task.Path))
			record := bench.lookup(broker.Ref{Grant: reply.Grants[0].ID})
			if record.Grant.Live(record.Now, record.Task) || record.Task.State != broker.Canceled || record.Task.Cause != broker.CauseParent || !record.Task.Ended.Equal(receipt.Ended) {
				t.Fatalf("at depth %d, %s by %s at %s; want canceled by its parent at %s", len(reply.Task.Path), record.Task.State, record.Task.Cause, record.Task.Ended, receipt.Ended)
			}
			bench.refused(bench.issuing(reply.Task, bench.ask("a", broker.DefaultTokenLife)), broker.ErrEnded)
			bench.refused(bench.root(below(reply.Task)), broker.ErrEnded)
		}
		if deepest != broker.MaxDepth {
			t.Errorf("the deepest task that was looked at is at depth %d; want %d: build more", deepest, broker.MaxDepth)
		}
	})
}

const (
	sampled = 100 // one in so many has a grant, and is looked at
	growers = 64  // that build at the same time
)

// fanOut is the least number of children that makes so many descendants in a tree.
func fanOut(descendants int) int {
	for n := 1; ; n++ {
		room, level := 0, 1
		for range broker.MaxDepth - 1 {
			level *= n
			room += level
		}
		if room >= descendants {
			return n
		}
	}
}

// grow begins tasks level by level, and returns those that have a grant.
func (b *bench) grow(root broker.Task, descendants int) (kept []broker.GrantReply, issued int) {
	level, fanOut := []broker.Task{root}, fanOut(descendants)
	for made := 0; made < descendants; {
		n := min(len(level)*fanOut, descendants-made)
		next := make([]broker.GrantReply, n)
		var wg sync.WaitGroup
		for grower := range growers {
			wg.Go(func() {
				for i := grower; i < n; i += growers {
					req := b.root(below(level[i/fanOut]), quota(broker.Quota{Children: broker.MaxChildren}))
					if (made+i)%sampled == 0 || made+i == descendants-1 {
						req.Grants = []broker.Asked{b.ask("a", broker.MaxTokenLife)}
					}
					var err error
					if next[i], err = b.store.Grant(b.Context(), req); err != nil {
						b.Errorf("Grant: %v", err)
						return
					}
				}
			})
		}
		wg.Wait()
		if b.Failed() {
			b.FailNow()
		}
		made += n
		level = level[:0:0]
		for _, reply := range next {
			level = append(level, reply.Task)
			if len(reply.Grants) > 0 {
				kept = append(kept, reply)
			}
		}
	}
	return kept, len(kept)
}
