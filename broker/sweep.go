package broker

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// sweeper is the actor of ends that nobody called for.
const sweeper = "errand"

// sweepTimeout lets the next round begin anew when the store hangs.
const sweepTimeout = 5 * time.Second

// Sweep announces the tasks that are past their lease or deadline. They are dead already; this tells
// the verifiers and the audit log. Any number of replicas may sweep at once, late or twice: the
// store ends only what is due, and once.
func (b *Broker) Sweep(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	var failed error
	for query := (Query{Due: true}); ; {
		page, err := b.Store.List(ctx, query)
		if err != nil {
			return err
		}
		away, err := b.sweepPage(ctx, page.Tasks)
		failed = cmp.Or(failed, err)
		if query.After = page.Next; query.After == "" || away > 1 && away == len(page.Tasks) {
			return failed
		}
	}
}

// sweepPage ends the tasks of one page, and returns for how many the store was away, and why. Those whose ends this
// replica brings into the store anyway it leaves alone.
func (b *Broker) sweepPage(ctx context.Context, tasks []Task) (away int, err error) {
	waiting := b.pending.waiting()
	tasks = slices.DeleteFunc(slices.Clone(tasks), func(t Task) bool { return waiting[t.ID] })
	if len(tasks) == 0 {
		return 0, nil
	}
	round := b.rounds.enter()
	defer b.rounds.leave(round)
	ends := make([]Ending, len(tasks))
	for i, task := range tasks {
		ends[i] = Ending{Kind: TargetTask, Task: task.ID, IfDue: true, Event: b.rounds.event()}
	}
	replies := b.endEach(ctx, sweepTimeout, ends...)
	away, err = b.finishUnsure(pendingEnd{actor: sweeper}, ends, replies)
	b.handOver(b.endEvents(replies, sweeper, ""))
	return away, err
}
