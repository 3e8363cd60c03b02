package broker

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// EndRequest says how the caller's task ended.
type EndRequest struct {
	State  State  // Completed, Failed or Canceled
	Reason string // at most MaxPurpose bytes; may be empty

	// Holder is who ends it, as the task counts them: if another one holds it, nothing ends. 0 is whoever it is.
	Holder int

	// Key is the task's end key. One that is not this task's and workload's is no key: their identity
	// alone decides, for as long as the store can say whose the task is.
	Key EndKey

	// Wait has End also Await what the verifiers of the task's audiences say, and put it into the receipt; at most
	// MaxWait. Waiting, if set, is called when it begins to.
	Wait    time.Duration
	Waiting func()
}

// End ends a task of the workload, with everything below it and every token. It may be repeated:
// the first end wins, whoever called for it, and its receipt is the answer to all. When End returns
// nil the tokens are dead for every look-up of this replica and on its feed, and when the receipt is
// Durable for every look-up. A ctx that ends does not undo it. Errors: ErrInvalid, ErrNotFound, ErrAdopted
// and those of the store; after ErrUnconfirmed it may have happened, or happen yet.
//
// With its end key a task also ends while the store is away, or, within MaxLostEnds, when it has lost
// the task. What the store does not have yet is not Durable: the receipt says what is in force here,
// and this replica brings it into the store as soon as that is back. If the task had ended by itself
// before, that is then what its receipt says. Who holds the task the store alone can say: while it is away,
// an end by a holder that this replica knows no successor of is in force like any other, and stays so,
// since verifiers have heard of it.
func (b *Broker) End(ctx context.Context, w Workload, id TaskID, req EndRequest) (Receipt, error) {
	return b.endAs(ctx, w.ID.String(), w, id, req)
}

// EndKeyHolder is the actor of ends that nothing but their key has proved.
const EndKeyHolder = "end key"

// EndByKey ends a task of a workload for somebody at an address who proves nothing but that they have its
// end key, as a CI step that has lost its identity. Without the right key nobody is asked for anything: the
// answer is ErrEndKey, whether or not there is such a task. Everything else is as with End.
func (b *Broker) EndByKey(ctx context.Context, address string, workload spiffeid.ID, id TaskID, req EndRequest) (Receipt, error) {
	if b.endKeys.proves(req.Key, id, workload).IsZero() {
		return Receipt{}, ErrEndKey
	}
	return b.endAs(ctx, EndKeyHolder, Workload{ID: workload, Address: address}, id, req)
}

func (b *Broker) endAs(ctx context.Context, actor string, w Workload, id TaskID, req EndRequest) (Receipt, error) {
	if err := checkOutcome("outcome", req.State); err != nil {
		return Receipt{}, err
	}
	if len(req.Reason) > MaxPurpose {
		return Receipt{}, invalid("reason", "has %d bytes; at most %d are allowed", len(req.Reason), MaxPurpose)
	}
	if err := checkWait(req.Wait); err != nil {
		return Receipt{}, err
	}
	if req.Holder < 0 {
		return Receipt{}, badHolder("holder", req.Holder)
	}
	lost := b.endKeys.proves(req.Key, id, w.ID)
	p := &pendingEnd{actor: actor, address: w.Address, Ending: Ending{
		Kind: TargetTask, Task: id, Workload: w.ID, State: req.State, Cause: CauseCaller, Reason: req.Reason, Holder: req.Holder, Lost: lost,
	}}
	if !lost.IsZero() {
		p.until = lost.Add(Margin)
	}
	receipt, err := b.endOne(ctx, p)
	if err == nil && req.Wait > 0 {
		if req.Waiting != nil {
			req.Waiting()
		}
		receipt.Propagation = b.propagated(ctx, w.ID.String(), receipt.Feed.Of(id.Shard()), p.audiences, req.Wait)
	}
	return receipt, err
}

// propagated waits for the verifiers of what has ended. It is nil when nothing can be said: the end is not in the
// store's feed yet, the caller has gone, too many wait, or the Board is away. The end stands whatever it is.
func (b *Broker) propagated(ctx context.Context, caller string, p Position, audiences []string, wait time.Duration) *Propagation {
	if p.Epoch == 0 {
		return nil
	}
	out, err := b.Await(ctx, caller, p, audiences, wait)
	if err != nil {
		return nil
	}
	return &out
}

// checkOutcome wants a state in which whoever does the work can leave it.
func checkOutcome(field string, s State) error {
	switch s {
	case Completed, Failed, Canceled:
		return nil
	}
	return invalid(field, "is %q; it must be completed, failed or canceled", s)
}

// endOne ends one target and records the end if this call made it. While the store is away it is
// only in force here, if there is a moment until which it must be.
func (b *Broker) endOne(ctx context.Context, p *pendingEnd) (Receipt, error) {
	if receipt, ok := b.pending.find(p.Ending); ok {
		return receipt, nil
	}
	round := b.rounds.enter()
	defer b.rounds.leave(round)
	p.Event = b.rounds.event()
	ctx = context.WithoutCancel(ctx)
	asked := b.lost.within(p.Ending, b.Now())
	replies, err := b.endTwice(ctx, storeTry, asked)
	if err != nil {
		return b.endHere(p, errors.Is(err, ErrUnconfirmed), err)
	}
	if replies[0].Err != nil {
		return Receipt{}, replies[0].Err
	}
	p.audiences = replies[0].Audiences
	b.known.forget(p.Task)
	b.record(ctx, b.endEvents(replies, p.actor, p.address))
	return replies[0].Receipt, nil
}

// endHere puts an end in force on this replica, which then brings it into the store. What may not be
// in force without the store is only looked after when it may have happened.
func (b *Broker) endHere(p *pendingEnd, unsure bool, away error) (Receipt, error) {
	if p.Kind == TargetTask && b.adoptions.passed(p.Task, p.Holder) {
		if unsure { // by a holder it would only happen if the store knows better
			b.finish(*p, p.Ending)
		}
		return Receipt{}, ErrAdopted
	}
	now := b.Now().UTC().Truncate(time.Millisecond)
	if p.told = now.Before(p.until); p.told {
		p.Holder = 0 // nobody can take back what is in force
		p.receipt = Receipt{
			Event: p.Event, Task: p.Task, Grant: p.Grant, State: p.State, Cause: p.Cause, Reason: p.Reason, Ended: now, First: true,
		}
		b.Logger.Warn("the store is away; an end is in force on this replica, and not durable yet", "task", string(p.Task), "grant", string(p.Grant), "event", string(p.Event), "error", away)
		receipt, err := b.pending.add(p, b.early)
		if err != nil && unsure {
			b.rounds.lose(p.Event)
		}
		return receipt, err
	}
	if unsure {
		b.finish(*p, p.Ending)
	}
	return Receipt{}, away
}

// endEvents are the audit events of the ends that these replies report first.
func (b *Broker) endEvents(replies []EndReply, actor, address string) []Event {
	var events []Event
	for _, r := range replies {
		if r.Err != nil || !r.Receipt.First {
			continue
		}
		e := taskEvent(EventTaskEnded, b.registration(r.Task.Workload), r.Task)
		if r.Task.Begun.IsZero() {
			e.Kind = EventTaskLost
		}
		if r.Receipt.Grant != "" {
			e = grantEvent(EventGrantRevoked, b.registration(r.Task.Workload), r.Task, r.Grant)
		}
		e.ID, e.Time, e.Actor, e.Address = r.Receipt.Event, r.Receipt.Ended, actor, address
		e.State, e.Cause, e.Reason = r.Receipt.State, r.Receipt.Cause, r.Receipt.Reason
		e.Grants, e.SubTasks = r.Receipt.Grants, r.Receipt.SubTasks
		events = append(events, e)
	}
	return events
}
