package storetest

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/errandhq/errand/broker"
)

func raceCases() []testCase {
	return []testCase{
		{"race/end against issue", raceIssue},
		{"race/end against begin below", raceBegin},
		{"race/end against heartbeat", raceHeartbeat},
		{"race/many ends", raceEnds},
		{"race/lock against begin", raceLock},
		{"race/quota", raceQuota},
		{"race/everybody sees every number once", raceNumbers},
	}
}

// rounds is how often a race is run, with contenders against one.
const (
	rounds     = 60
	contenders = 4
	maxLate    = 20
)

// against runs contend in a few goroutines, and decide in the middle of it. A contender goes on until
// it returns false, or has tried for long enough after the decision.
func against(contend func(i int) bool, decide func()) {
	var wg sync.WaitGroup
	var tries atomic.Int64
	var decided atomic.Bool
	for i := range contenders {
		wg.Go(func() {
			defer tries.Add(contenders) // one that is done has tried enough for all
			for late := 0; late < maxLate && contend(i); {
				tries.Add(1)
				if decided.Load() {
					late++
				}
			}
		})
	}
	for tries.Load() < contenders {
		runtime.Gosched()
	}
	decide()
	decided.Store(true)
	wg.Wait()
}

func raceIssue(b *bench) {
	for range rounds {
		task := b.begin()
		var mu sync.Mutex
		var issued []broker.Grant
		var ended atomic.Bool
		var receipt broker.Receipt
		against(func(i int) bool {
			late := ended.Load()
			reply, err := b.store.Grant(b.Context(), b.issuing(task, b.ask(fmt.Sprintf("audience-%d", i), time.Minute+time.Duration(i)*time.Second)))
			if err != nil {
				if !errors.Is(err, broker.ErrEnded) {
					b.Errorf("Grant: %v; want ErrEnded or none", err)
				}
				return false
			}
			if late {
				b.Error("a grant was issued after End had returned")
			}
			mu.Lock()
			defer mu.Unlock()
			issued = append(issued, reply.Grants...)
			return true
		}, func() {
			replies, err := b.store.End(b.Context(), []broker.Ending{completing(task)})
			ended.Store(true)
			if err != nil || replies[0].Err != nil {
				b.Fatalf("End: %v, %+v", err, replies)
			}
			receipt = replies[0].Receipt
		})
		b.covered(task, receipt, issued)
	}
}

// covered wants one entry that kills all the grants.
func (b *bench) covered(task broker.Task, receipt broker.Receipt, issued []broker.Grant) {
	b.Helper()
	if receipt.Grants != len(issued) {
		b.Fatalf("the receipt counts %d grants, and %d were issued", receipt.Grants, len(issued))
	}
	entry := b.entry(ofTask(task))
	for _, grant := range issued {
		if !entry.For(grant.Audience) || entry.Until.Before(grant.Expires.Add(broker.Margin)) {
			b.Fatalf("the entry %+v does not cover %+v", entry, grant)
		}
		if record := b.lookup(broker.Ref{Grant: grant.ID}); record.Grant.Live(record.Now, record.Task) {
			b.Fatalf("a grant is live after the end: %+v", record)
		}
	}
}

func raceBegin(b *bench) {
	for range rounds {
		parent := b.begin()
		var mu sync.Mutex
		var begun []broker.Task
		var issued []broker.Grant
		var ended atomic.Bool
		var receipt broker.Receipt
		against(func(i int) bool {
			late := ended.Load()
			reply, err := b.store.Grant(b.Context(), b.root(below(parent), asking(b.ask(fmt.Sprintf("audience-%d", i), time.Minute))))
			if err != nil {
				if !errors.Is(err, broker.ErrEnded) {
					b.Errorf("Grant: %v; want ErrEnded or none", err)
				}
				return false
			}
			if late {
				b.Error("a task was begun after the End of its parent had returned")
			}
			mu.Lock()
			defer mu.Unlock()
			begun, issued = append(begun, reply.Task), append(issued, reply.Grants...)
			return true
		}, func() {
			replies, err := b.store.End(b.Context(), []broker.Ending{completing(parent)})
			ended.Store(true)
			if err != nil || replies[0].Err != nil {
				b.Fatalf("End: %v, %+v", err, replies)
			}
			receipt = replies[0].Receipt
		})
		if receipt.SubTasks != len(begun) {
			b.Fatalf("the receipt counts %d tasks below, and %d were begun", receipt.SubTasks, len(begun))
		}
		for _, task := range begun {
			b.state(task, broker.Canceled)
		}
		b.covered(parent, receipt, issued)
	}
}

func raceHeartbeat(b *bench) {
	for range rounds {
		parent := b.begin()
		child := b.begin(below(parent))
		var ended atomic.Bool
		against(func(int) bool {
			late := ended.Load()
			pulses, err := b.store.Heartbeat(b.Context(), []broker.Beat{{Task: child.ID, Workload: child.Workload}})
			if err != nil || pulses[0].Err != nil {
				b.Errorf("Heartbeat: %v, %+v", err, pulses)
				return false
			}
			alive := pulses[0].Task.State == broker.Active
			if late && alive {
				b.Error("a task was alive after the End of its parent had returned")
			}
			return alive
		}, func() {
			if _, err := b.store.End(b.Context(), []broker.Ending{completing(parent)}); err != nil {
				b.Errorf("End: %v", err)
			}
			ended.Store(true)
		})
		b.state(child, broker.Canceled)
	}
}

func raceEnds(b *bench) {
	for range rounds {
		task := b.begin(asking(b.ask("a", time.Minute)))
		receipts := make([]broker.Receipt, 16)
		var wg sync.WaitGroup
		for i := range receipts {
			wg.Go(func() {
				replies, err := b.store.End(b.Context(), []broker.Ending{completing(task)})
				if err != nil || replies[0].Err != nil {
					b.Errorf("End: %v, %+v", err, replies)
					return
				}
				receipts[i] = replies[0].Receipt
			})
		}
		wg.Wait()
		firsts := 0
		for i := range receipts {
			if receipts[i].First {
				firsts++
			}
			receipts[i].First = false
			b.same("the receipts", receipts[i], receipts[0])
		}
		if firsts != 1 {
			b.Fatalf("%d of %d ends were the first; want 1", firsts, len(receipts))
		}
		b.same("the entries", len(b.entries(ofTask(task))), 1)
	}
}

// raceLock wants no begin that was decided before a lock to slip in after it.
func raceLock(b *bench) {
	for range rounds / 4 {
		var locked atomic.Bool
		decidedOn := b.control
		lock := b.locking(broker.Selector{Scope: "read"}, time.Hour)
		against(func(int) bool {
			late := locked.Load()
			req := b.root()
			req.Control = decidedOn
			_, err := b.store.Grant(b.Context(), req)
			if err == nil && late {
				b.Error("a begin that was decided before the lock slipped in after it")
			}
			if err != nil && !errors.Is(err, broker.ErrBehind) {
				b.Errorf("Grant: %v; want ErrBehind or none", err)
			}
			return err == nil
		}, func() {
			if _, err := b.store.End(b.Context(), []broker.Ending{lock}); err != nil {
				b.Errorf("End: %v", err)
			}
			locked.Store(true)
		})
		b.control = b.feed().Controls[b.shard].Version
	}
}

func raceQuota(b *bench) {
	const limit = 10
	var wg sync.WaitGroup
	var begun atomic.Int64
	for range 3 * limit {
		wg.Go(func() {
			_, err := b.store.Grant(b.Context(), b.root(quota(broker.Quota{Tasks: limit})))
			switch {
			case err == nil:
				begun.Add(1)
			case !errors.Is(err, broker.ErrQuota):
				b.Errorf("Grant: %v; want ErrQuota or none", err)
			}
		})
	}
	wg.Wait()
	b.same("the tasks begun at once", begun.Load(), int64(limit))
}

// raceNumbers writes to all shards at once while some watch from the beginning.
func raceNumbers(b *bench) {
	watchers := []*watcher{b.watch(), b.watch()}
	const writers, each = 6, 30
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for i := range each {
				req := b.root(asking(broker.Asked{ID: broker.NewGrantID(i % b.shards), Audience: "a", Life: time.Minute}))
				req.Task = broker.NewTaskID(i % b.shards)
				reply, err := b.store.Grant(b.Context(), req)
				if err != nil {
					b.Errorf("Grant: %v", err)
					return
				}
				e := completing(reply.Task)
				if i%10 == 0 {
					e = broker.Ending{Kind: broker.TargetKey, Key: "kid"}
				}
				if _, err := b.store.End(b.Context(), []broker.Ending{e}); err != nil {
					b.Errorf("End: %v", err)
				}
			}
		})
	}
	wg.Wait()
	final := b.feed()
	for _, w := range append(watchers, b.watch()) {
		w.reaches(final.Position)
		got := slices.Clone(w.entries())
		sortEntries(got)
		want := slices.Clone(final.Entries)
		sortEntries(want)
		b.same("what a watcher saw", got, want)
	}
	next := make([]uint64, b.shards)
	sortEntries(final.Entries)
	for _, e := range final.Entries {
		if next[e.Shard]++; e.Number != next[e.Shard] {
			b.Fatalf("shard %d: number %d follows %d", e.Shard, e.Number, next[e.Shard]-1)
		}
	}
	b.same("the position", final.Position.Numbers, next)
}
