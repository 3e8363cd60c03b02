package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// MaxLocks bounds the locks that stand, since every decision looks at all of them.
	MaxLocks = 1000

	// sameLock is how much later than one that stands a lock may expire and be taken for the same, as when a request is
	// repeated whose answer was lost; a tenth of its life at most.
	sameLock = time.Minute
)

// LockRequest asks for locks on everything that a filter means.
type LockRequest struct {
	Filter     Filter // no more than a Selector can say, or All
	Life       time.Duration
	Actor      string // who says so
	Address    string // the peer's
	Thumbprint string // of the actor's certificate
	Reason     string // why; MinReason characters at least
	Ticket     string
	MayAll     bool // the actor may lock everything
}

// StandingLock is a lock with whether it stood already.
type StandingLock struct {
	Lock
	Stood bool
}

// LockAll adds a lock for each combination of what the filter names, in one call of the store, and returns them when
// they are in force everywhere. One that stands already for the same, and not for much shorter, is returned in the place of
// a new one. Errors: ErrInvalid, ErrAll, ErrQuota, ErrNotReady and those of the store; to repeat it is safe.
func (b *Broker) LockAll(ctx context.Context, req LockRequest) ([]StandingLock, error) {
	if err := checkMass(req.Actor, req.Reason, req.Ticket); err != nil {
		return nil, err
	}
	if req.Life < time.Second || req.Life > MaxLock {
		return nil, invalid("expires_in", "is %d; it must be 1 to %d seconds", int64(req.Life/time.Second), int64(MaxLock/time.Second))
	}
	selectors, err := b.lockable(&req)
	if err != nil {
		return nil, err
	}
	standing, now, err := b.standing(ctx, selectors)
	if err != nil {
		return nil, err
	}
	age, _, _ := b.view.age(b.Now())
	expires := now.Add(age + req.Life) // by the store's clock
	out := make([]StandingLock, len(selectors))
	var ends []Ending
	var at []int
	for i, s := range selectors {
		if there := slices.IndexFunc(standing, func(l Lock) bool { return l.Selector == s && l.Expires.Add(min(sameLock, req.Life/10)).After(expires) }); there >= 0 {
			out[i] = StandingLock{standing[there], true}
			continue
		}
		lock := Lock{ID: NewLockID(), Selector: s, Reason: req.Reason, Actor: req.Actor, Expires: expires}
		ends, at = append(ends, Ending{Kind: TargetLock, Lock: lock, Reason: req.Reason}), append(at, i)
	}
	if locks, _, err := b.locks(1); err == nil && len(locks)+len(ends) > MaxLocks {
		return nil, &QuotaExceeded{What: "locks", Limit: MaxLocks}
	}
	receipts, err := b.controlAll(ctx, req, ends)
	if err != nil {
		return nil, err
	}
	for n, receipt := range receipts {
		lock := ends[n].Lock
		lock.Since = receipt.Ended
		out[at[n]] = StandingLock{Lock: lock}
	}
	return out, nil
}

// standing are the locks on these selectors that stand in every shard: one that was written half way is not one. What was
// lifted before the call, at whatever replica, is not among them. When that cannot be told, nothing stands: a lock
// that is there twice does no harm.
func (b *Broker) standing(ctx context.Context, selectors []Selector) (locks []Lock, now time.Time, err error) {
	look := func() bool {
		locks, now, err = b.locks(max(1, b.view.shards()))
		locks = slices.DeleteFunc(locks, func(l Lock) bool { return !slices.Contains(selectors, l.Selector) })
		return err == nil && len(locks) > 0
	}
	if look() && (!b.view.since(ctx, b.Now(), staleView) || !look()) {
		locks = nil
	}
	return locks, now, err
}

// lockable are the selectors of a request.
func (b *Broker) lockable(req *LockRequest) ([]Selector, error) {
	f := &req.Filter
	if err := f.normalize("selector."); err != nil {
		return nil, err
	}
	switch {
	case f.IsZero():
		return nil, invalid("selector", `is empty; name what is to be locked, or everything with {"all": true}`)
	case f.All && !req.MayAll:
		return nil, ErrAll
	case f.All:
		return []Selector{{}}, nil
	case !f.isPure():
		return nil, invalid("selector", "names tasks or grants; a lock is on workloads, owners, risk classes, audiences and scopes: end tasks with a revocation")
	}
	return b.selectors("selector", *f)
}

// controlAll writes locks, and their events.
func (b *Broker) controlAll(ctx context.Context, req LockRequest, ends []Ending) ([]Receipt, error) {
	if len(ends) == 0 {
		return nil, nil
	}
	ctx = context.WithoutCancel(ctx)
	round := b.rounds.enter()
	defer b.rounds.leave(round)
	events := make([]Event, len(ends))
	for i, e := range ends {
		ends[i].Event = b.rounds.event()
		events[i] = Event{
			ID: ends[i].Event, Kind: EventLocked, Actor: req.Actor, Address: req.Address, Thumbprint: req.Thumbprint, Reason: req.Reason,
			Selector: e.Lock.Selector, Lock: e.Lock.ID, Expires: e.Lock.Expires, Attributes: Attributes{Ticket: req.Ticket},
		}
	}
	b.intend(ctx, events...)
	replies, err := b.endTwice(ctx, withdrawCall, ends...)
	if err != nil {
		b.recordUnsure(ctx, err, events...)
		return nil, err
	}
	receipts := make([]Receipt, len(replies))
	var feed Position
	var unsure []Event
	for i, r := range replies {
		if errors.Is(r.Err, ErrUnconfirmed) {
			unsure = append(unsure, events[i])
		}
		receipts[i], events[i].Time = r.Receipt, r.Receipt.Ended
		feed = feed.union(r.Receipt.Feed)
		err = cmp.Or(err, r.Err)
	}
	b.record(ctx, slices.DeleteFunc(events, func(e Event) bool { return e.Time.IsZero() })) // those that were refused
	b.recordUnsure(ctx, ErrUnconfirmed, unsure...)
	b.seen(ctx, feed)
	return receipts, err
}

// Locks returns the locks that stand, by the end of their lives. Errors: ErrNotReady.
func (b *Broker) Locks(context.Context) ([]Lock, error) {
	if age, _, ok := b.view.age(b.Now()); ok && age > staleView {
		return nil, notReady(fmt.Sprintf("the store's feed has not been heard for %s", age.Round(time.Millisecond)))
	}
	locks, _, err := b.locks(1)
	return locks, err
}

// FindLock returns a lock that stands. Errors: ErrNotFound, ErrNotReady.
func (b *Broker) FindLock(ctx context.Context, id LockID) (Lock, error) {
	locks, err := b.Locks(ctx)
	if err != nil {
		return Lock{}, err
	}
	i := slices.IndexFunc(locks, func(l Lock) bool { return l.ID == id })
	if i < 0 {
		return Lock{}, ErrNotFound
	}
	return locks[i], nil
}

// locks are those that stand in so many shards at least, of which there are fewer while one is being added or lifted.
func (b *Broker) locks(shards int) (locks []Lock, now time.Time, err error) {
	in := map[LockID]int{}
	for shard := range max(1, b.view.shards()) {
		var control Control
		if control, now, err = b.view.control(shard); err != nil {
			return nil, now, err
		}
		for _, l := range control.Locks {
			if in[l.ID]++; in[l.ID] == shards && now.Before(l.Expires) {
				locks = append(locks, l)
			}
		}
	}
	slices.SortFunc(locks, func(a, b Lock) int { return cmp.Or(a.Expires.Compare(b.Expires), cmp.Compare(a.ID, b.ID)) })
	return locks, now, nil
}
