package broker

import (
	"context"
	"errors"
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
	for query := (Query{Due: true}); ; {
		page, err := b.Store.List(ctx, query)
		if err != nil {
			return err
		}
		if err := b.sweepPage(ctx, page.Tasks); err != nil {
			return err
		}
		if query.After = page.Next; query.After == "" {
			return nil
		}
	}
}

// sweepPage ends the tasks of one page.
func (b *Broker) sweepPage(ctx context.Context, tasks []Task) error {
	if len(tasks) == 0 {
		return nil
	}
	round := b.rounds.enter()
	defer b.rounds.leave(round)
	ends := make([]Ending, len(tasks))
	for i, task := range tasks {
		ends[i] = Ending{Kind: TargetTask, Task: task.ID, IfDue: true, Event: b.rounds.event()}
	}
	replies, err := b.Store.End(ctx, ends)
	if err != nil {
		if errors.Is(err, ErrUnconfirmed) {
			b.finish(pendingEnd{actor: sweeper}, ends...)
		}
		return err
	}
	b.followers.ended(replies)
	b.handOver(b.endEvents(replies, sweeper, ""))
	return nil
}
