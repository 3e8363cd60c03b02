package broker

import (
	"context"
	"errors"
)

// Join begins a task below the one of another workload that was delegated to this one. It acts in that one's
// name, and in the name of all in whose name that one acts: its tokens say so, a lock or denial of any of them
// is one of it, and it ends when what is above it does. All else is as with Begin; what the request leaves open
// of its ceiling is what the delegation has, as far as this workload is registered for it.
//
// Errors are those of Begin, and ErrNotDelegate, ErrHandleExpired, and ErrUsed; ErrEnded and ErrNotFound are of
// the task that was delegated.
func (b *Broker) Join(ctx context.Context, w Workload, h Handle, req BeginRequest) (Begun, error) {
	if err := req.normalize(); err != nil {
		return Begun{}, err
	}
	d, err := b.endKeys.open(h)
	if err != nil {
		return Begun{}, err
	}
	registration, err := b.Registry.Workload(w.ID)
	if d.To != w.ID {
		why := &NotDelegate{Delegation: d.ID, To: d.To}
		return Begun{}, b.refuse(w, registration, req.task(w), Decision{Rule: "delegation/not-delegate"}, why)
	}
	if err != nil {
		return Begun{}, b.refuse(w, registration, req.task(w), Decision{Rule: "registry/unregistered"}, unregistered(w, err))
	}
	asking, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	from, err := b.joiningPoint(asking, w, registration, &req, d)
	if err != nil {
		return Begun{}, err
	}
	begun, err := b.beginFrom(ctx, asking, w, registration, &req, from)
	if errors.Is(err, ErrUsed) {
		return Begun{}, b.refuse(w, registration, req.task(w), Decision{Rule: "delegation/used"}, &Used{Delegation: d.ID})
	}
	return begun, err
}

// joiningPoint is the startingPoint of a task that joins another one.
func (b *Broker) joiningPoint(ctx context.Context, w Workload, registration WorkloadRegistration, req *BeginRequest, d delegation) (start, error) {
	record, err := b.Store.Lookup(ctx, Ref{Task: d.Task})
	if err == nil && record.Task.Workload != d.Delegator {
		err = ErrNotFound
	}
	if errors.Is(err, ErrNotFound) {
		return start{}, &wrapped{ErrNotFound, "the task that was delegated is not there any more; the delegator has to delegate another one"}
	}
	if err != nil {
		return start{}, err
	}
	if !record.Now.Before(d.Expires) {
		return start{}, &HandleExpired{Delegation: d.ID, At: d.Expires}
	}
	parent := b.pending.task(record.Task)
	if parent.State.Final() {
		return start{}, ended(parent)
	}
	most := d.Ceiling.bound(parent.Ceiling)
	from := start{
		shard: d.Task.Shard(), parent: d.Task, most: &most, delegators: append(parent.Delegators, parent.Workload), delegation: d.ID,
		// Whoever has looked the task up in time may come to the store a little later.
		join: &Join{Delegation: d.ID, Delegator: d.Delegator, Until: d.Expires.Add(Margin)},
	}
	if from.ceiling, err = req.Ceiling.within(most, registration, "delegation"); err != nil {
		return start{}, b.refuse(w, registration, from.task(w, req), Decision{Rule: "task/ceiling"}, err)
	}
	return from, nil
}
