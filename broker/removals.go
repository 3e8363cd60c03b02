package broker

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	// maxRemovals bounds the keys whose denial the store does not have yet.
	maxRemovals = 64
	// removalPause is at least between two tries for which there was no answer: each may have written an entry.
	removalPause = time.Second
)

// removals are the keys that were revoked here while the store was away. Each is out of use on this replica, which tells
// its own verifiers so, and brings the denial into the store as soon as that is back. They live in memory alone, which
// is what Receipt.Durable says.
type removals struct {
	mu      sync.Mutex // guards what follows
	waiting []*removal
	wake    chan struct{} // has an element when something was added
}

// removal is one of them.
type removal struct {
	Ending
	receipt Receipt
	until   time.Time // nothing that the key has signed lives longer

	// Of writeRemovals alone.
	written bool // the store has it; it only waits for the store's feed to reach at
	at      Position
}

func (r *removal) denial() Denial { return Denial{Kind: DenyKey, Key: r.Key} }

func newRemovals() removals { return removals{wake: make(chan struct{}, 1)} }

// add returns the receipt, that of the first one if the key is there already. announce is called for a new one.
func (q *removals) add(r *removal, announce func(Entry)) (Receipt, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if i := slices.IndexFunc(q.waiting, func(there *removal) bool { return there.Key == r.Key }); i >= 0 {
		first := q.waiting[i].receipt
		first.First = false
		return first, nil
	}
	if len(q.waiting) >= maxRemovals {
		return Receipt{}, &wrapped{ErrUnavailable, "too many keys wait for it already"}
	}
	q.waiting = append(q.waiting, r)
	announce(Entry{Denial: r.denial(), Until: r.until})
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return r.receipt, nil
}

func (q *removals) list() []*removal {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.waiting)
}

// drop forgets those that are over, and calls settled for each.
func (q *removals) drop(over func(*removal) bool, settled func(Denial)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = slices.DeleteFunc(q.waiting, func(r *removal) bool {
		if !over(r) {
			return false
		}
		settled(r.denial())
		return true
	})
}

// removeHere puts the denial of a key in force that the store is away for, and records it.
func (b *Broker) removeHere(ctx context.Context, end Ending, event Event) (Receipt, error) {
	now := b.Now().UTC().Truncate(time.Millisecond)
	receipt, err := b.removals.add(&removal{
		Ending: end, until: now.Add(MaxTokenLife + Margin),
		receipt: Receipt{Event: end.Event, Cause: end.Cause, Reason: end.Reason, Ended: now, First: true},
	}, b.early)
	if err == nil && receipt.First {
		event.Time = now
		b.record(ctx, []Event{event})
	}
	return receipt, err
}

// writeRemovals brings the denials of keys into the store, until ctx ends.
func (b *Broker) writeRemovals(ctx context.Context) error {
	away := Fault{Logger: b.Logger, What: "a key is revoked on this replica alone; the others are told when the store is back", Over: "the store knows the revoked keys again"}
	for {
		waiting := b.removals.list()
		if len(waiting) == 0 {
			select {
			case <-b.removals.wake:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		pause := pendingPause
		switch err := b.settleRemovals(ctx, waiting); {
		case err == nil:
			away.Ended(b.Now())
		case ctx.Err() == nil:
			pause = removalPause
			away.Met(b.Now(), err, "keys", len(waiting))
		}
		select {
		case <-time.After(pause + rand.N(pause)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// settleRemovals writes what the store does not have, and forgets what its feed has brought back, and what has nothing left
// to kill.
func (b *Broker) settleRemovals(ctx context.Context, waiting []*removal) (err error) {
	for _, r := range waiting {
		if r.written {
			continue
		}
		replies, failed := b.tryEnd(ctx, storeTry, r.Ending)
		if failed == nil {
			failed = replies[0].Err
		}
		if failed != nil {
			err = failed
			continue
		}
		r.written, r.at = true, replies[0].Receipt.Feed
	}
	now := b.Now()
	b.removals.drop(func(r *removal) bool {
		return r.written && b.view.covers(r.at) || !now.Before(r.until)
	}, b.Announcer.Settled)
	return err
}

// flushRemovals is the last try before the broker stops.
func (b *Broker) flushRemovals(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTry)
	defer cancel()
	waiting := slices.DeleteFunc(b.removals.list(), func(r *removal) bool { return r.written })
	if err := b.settleRemovals(ctx, waiting); err != nil {
		for _, r := range waiting {
			if !r.written {
				b.Logger.Error("the broker stops, and verifiers are not told of a key that was revoked; revoke it again", "key", r.Key, "event", string(r.Event), "error", err)
			}
		}
	}
}
