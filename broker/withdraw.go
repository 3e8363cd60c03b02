package broker

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// withdrawCall bounds each call of the store while a trust domain is withdrawn.
const withdrawCall = 5 * time.Second

// Withdraw ends what the workloads of a trust domain have, because nobody is to believe them any more:
// first every token that was issued before this moment, by one entry for each shard, and then their
// tasks, page by page. It returns how many tasks this call ended. Any number of replicas may withdraw
// the same domain, and after an error it is to be repeated: what has ended stays so, and is recorded
// once. Tasks that begin while it runs may escape it; see TrustDomains. Errors: those of the store.
func (b *Broker) Withdraw(ctx context.Context, td spiffeid.TrustDomain) (ended int, err error) {
	reason := "the trust domain " + td.Name() + " is not trusted any more"
	selector := Selector{Subject: td.IDString() + "/*"}
	call, cancel := context.WithTimeout(ctx, withdrawCall)
	defer cancel()
	if _, err := b.control(call,
		Ending{Kind: TargetSelector, Selector: selector, State: Revoked, Cause: CauseIdentity, Reason: reason},
		Event{Kind: EventRevoked, Actor: sweeper, Cause: CauseIdentity, Reason: reason, Selector: selector},
	); err != nil {
		return 0, err
	}
	var failed error
	err = b.eachActive(ctx, func(tasks []Task) error {
		var ends []Ending
		for _, task := range tasks {
			if task.Workload.MemberOf(td) {
				ends = append(ends, Ending{Kind: TargetTask, Task: task.ID, State: Revoked, Cause: CauseIdentity, Reason: reason})
			}
		}
		n, err := b.endPage(ctx, ends)
		if ended += n; err != nil && n == 0 && len(ends) > 1 {
			return err
		}
		failed = cmp.Or(failed, err) // of some, for which the others do not wait
		return nil
	})
	return ended, cmp.Or(err, failed)
}

// TrustDomains returns the trust domains that have active tasks, in the order of their names. Errors:
// those of the store.
func (b *Broker) TrustDomains(ctx context.Context) ([]spiffeid.TrustDomain, error) {
	found := map[spiffeid.TrustDomain]bool{}
	err := b.eachActive(ctx, func(tasks []Task) error {
		for _, task := range tasks {
			found[task.Workload.TrustDomain()] = true
		}
		return nil
	})
	return slices.SortedFunc(maps.Keys(found), spiffeid.TrustDomain.Compare), err
}

// eachActive calls f with the active tasks of each page. It rests after each for as long as that took,
// so that a long look at everything takes no more than half of what the store can do.
func (b *Broker) eachActive(ctx context.Context, f func([]Task) error) error {
	for query := (Query{Limit: MaxPage}); ; {
		call, cancel := context.WithTimeout(ctx, withdrawCall)
		began := b.Now()
		page, err := b.Store.List(call, query)
		took := b.Now().Sub(began)
		cancel()
		if err != nil {
			return err
		}
		if err := f(slices.DeleteFunc(page.Tasks, func(t Task) bool { return t.State.Final() })); err != nil {
			return err
		}
		if query.After = page.Next; query.After == "" {
			return ctx.Err()
		}
		select {
		case <-time.After(took):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// endPage ends tasks and waits a moment for the record, so that a slow audit log slows a large
// withdrawal down before it fills the backlog.
func (b *Broker) endPage(ctx context.Context, ends []Ending) (ended int, err error) {
	if len(ends) == 0 {
		return 0, nil
	}
	round := b.rounds.enter()
	defer b.rounds.leave(round)
	for i := range ends {
		ends[i].Event = b.rounds.event()
	}
	replies, _ := b.endTwice(ctx, withdrawCall, ends...) // each says for itself what it has come to
	_, err = b.finishUnsure(pendingEnd{actor: sweeper}, ends, replies)
	events := b.endEvents(replies, sweeper, "")
	b.record(ctx, events)
	return len(events), err
}
