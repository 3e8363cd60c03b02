package broker

import (
	"context"
	"errors"
	"fmt"
)

// EndRequest says how the caller's task ended.
type EndRequest struct {
	State  State  // Completed, Failed or Canceled
	Reason string // at most MaxPurpose bytes; may be empty
}

// End ends a task of the workload, with everything below it and every token. It may be repeated:
// the first end wins, whoever called for it, and its receipt is the answer to all. When End returns
// nil the tokens are dead for every look-up. Errors: ErrInvalid, ErrNotFound and those of the store.
func (b *Broker) End(ctx context.Context, w Workload, id TaskID, req EndRequest) (Receipt, error) {
	switch req.State {
	case Completed, Failed, Canceled:
	default:
		return Receipt{}, invalid("outcome", "is %q; it must be completed, failed or canceled", req.State)
	}
	if len(req.Reason) > MaxPurpose {
		return Receipt{}, invalid("reason", "has %d bytes; at most %d are allowed", len(req.Reason), MaxPurpose)
	}
	return b.endOne(ctx, w.ID.String(), w.Address, Ending{
		Kind: TargetTask, Task: id, Workload: w.ID, State: req.State, Cause: CauseCaller, Reason: req.Reason,
	})
}

// endOne ends one target and records the end if this call made it.
func (b *Broker) endOne(ctx context.Context, actor, address string, req Ending) (Receipt, error) {
	req.Event = NewEventID()
	replies, err := b.Store.End(ctx, []Ending{req})
	if errors.Is(err, ErrUnconfirmed) {
		// It may have happened. The same event ID shows whether it was this call.
		replies, err = b.Store.End(ctx, []Ending{req})
	}
	if err != nil {
		return Receipt{}, err
	}
	if len(replies) != 1 {
		return Receipt{}, fmt.Errorf("%w: %d answers to one end", ErrUnconfirmed, len(replies))
	}
	if replies[0].Err != nil {
		return Receipt{}, replies[0].Err
	}
	receipt := replies[0].Receipt
	receipt.First = receipt.First || receipt.Event == req.Event
	replies[0].Receipt = receipt
	b.record(ctx, b.endEvents(replies, actor, address))
	return receipt, nil
}

// endEvents are the audit events of the ends that these replies report first.
func (b *Broker) endEvents(replies []EndReply, actor, address string) []Event {
	var events []Event
	for _, r := range replies {
		if r.Err != nil || !r.Receipt.First {
			continue
		}
		e := taskEvent(EventTaskEnded, b.registration(r.Task), r.Task)
		if r.Receipt.Grant != "" {
			e = grantEvent(EventGrantRevoked, b.registration(r.Task), r.Task, r.Grant)
		}
		e.ID, e.Time, e.Actor, e.Address = r.Receipt.Event, r.Receipt.Ended, actor, address
		e.State, e.Cause, e.Reason = r.Receipt.State, r.Receipt.Cause, r.Receipt.Reason
		e.Grants, e.SubTasks = r.Receipt.Grants, r.Receipt.SubTasks
		events = append(events, e)
	}
	return events
}
