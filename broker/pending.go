package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
)

// Bounds of the ends that are in force here and not yet in the store. When there is no room an end
// is refused with ErrUnavailable; one that was answered is never dropped.
const (
	MaxPendingEnds      = 10_000
	MaxPendingPerCaller = 1000 // of one workload: it must not take the others' places
)

const (
	maxPendingBatch = 200                    // ends in one call of the store
	pendingPause    = 250 * time.Millisecond // at least, and less than twice that, between tries
	lastTry         = 2 * time.Second        // for what is left when the broker stops
)

// pendingEnd is an end that was asked for and that the store has not confirmed.
type pendingEnd struct {
	Ending
	actor, address string
	revocation     RevocationID // the mass action that it is part of
	ticket         string
	audiences      []string // whose verifiers must know, once the store has said; nil for all

	// told says that a receipt was given: the end is in force here. One that nobody was told of is
	// only to happen at last, or to be recorded if it has happened after all.
	told    bool
	receipt Receipt
	until   time.Time // no token that it kills lives longer

	// written is set when the store has it; then it only waits for the store's feed.
	written bool
	// held is set when the store has nothing to end: it has lost the task, whose tokens are about.
	held bool
}

func (p *pendingEnd) denial() Denial {
	if p.Kind == TargetGrant {
		return Denial{Kind: DenyGrant, Grant: p.Grant}
	}
	return Denial{Kind: DenyTask, Task: p.Task}
}

func (p *pendingEnd) shard() int {
	if p.Kind == TargetGrant {
		return p.Grant.Shard()
	}
	return p.Task.Shard()
}

// pending is this replica's own log of ends, for as long as the store does not have them. It lives
// in memory alone, which is what Receipt.Durable says.
type pending struct {
	size atomic.Int64 // of list; spares everybody mu while there is nothing
	held atomic.Int64 // of these, those that are held

	mu      sync.Mutex // guards what follows; held for memory work only
	list    []*pendingEnd
	inForce map[Denial]*pendingEnd
	callers map[spiffeid.ID]int
	wake    chan struct{} // has an element when something was added
}

func newPending() pending {
	return pending{inForce: map[Denial]*pendingEnd{}, callers: map[spiffeid.ID]int{}, wake: make(chan struct{}, 1)}
}

// find returns the receipt of an end that is in force, to whoever may know of it.
func (q *pending) find(e Ending) (Receipt, bool) {
	if q.size.Load() == 0 {
		return Receipt{}, false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.known(&pendingEnd{Ending: e})
}

// known is called with mu held.
func (q *pending) known(p *pendingEnd) (Receipt, bool) {
	there, ok := q.inForce[p.denial()]
	proven := p.Workload.IsZero() || !p.Lost.IsZero()
	if !ok || !proven && there.Workload != p.Workload {
		return Receipt{}, false
	}
	receipt := there.receipt
	receipt.First, receipt.Feed = false, receipt.Feed.Clone()
	return receipt, true
}

// add takes in an end. One that is told is in force when add returns, and announce was called for
// it; if another one of the same target was first, that one's receipt is returned.
func (q *pending) add(p *pendingEnd, announce func(Entry)) (Receipt, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	first, known := q.known(p)
	if known {
		p.told = false
	}
	room := MaxPendingEnds
	if !p.told {
		room /= 2 // what nobody was told of must not crowd out what somebody relies on
	}
	if len(q.list)-int(q.held.Load()) >= room || q.callers[p.Workload] >= MaxPendingPerCaller && !p.Workload.IsZero() {
		if known {
			return first, nil
		}
		return Receipt{}, &wrapped{ErrUnavailable, "too many ends wait for it already"}
	}
	q.list = append(q.list, p)
	q.callers[p.Workload]++
	q.size.Store(int64(len(q.list)))
	if p.told {
		q.inForce[p.denial()] = p
		announce(Entry{Denial: p.denial(), Until: p.until})
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
	if known {
		return first, nil
	}
	return p.receipt, nil
}

// unwritten returns the ends that the store does not have, the oldest first.
func (q *pending) unwritten() []*pendingEnd {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(q.list), func(p *pendingEnd) bool { return p.written })
}

// waiting are the tasks whose ends the store does not have.
func (q *pending) waiting() map[TaskID]bool {
	if q.size.Load() == 0 {
		return nil
	}
	tasks := map[TaskID]bool{}
	for _, p := range q.unwritten() {
		tasks[p.Task] = true
	}
	return tasks
}

// wrote notes that the store has an end, or has nothing to end.
func (q *pending) wrote(p *pendingEnd, receipt Receipt) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p.written, p.receipt = true, receipt
}

// hold keeps an end in force that the store has nothing to end for, until no token can be left. It
// takes no room from those that wait for the store; MaxPendingEnds are held at most.
func (q *pending) hold(p *pendingEnd, until time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p.written = true
	if q.held.Load() >= MaxPendingEnds {
		return
	}
	p.held = true
	q.held.Add(1)
	q.leave(p)
	if until.Before(p.until) {
		p.until = until
	}
}

// leave takes an end out of what its caller may have. It is called with mu held.
func (q *pending) leave(p *pendingEnd) {
	if q.callers[p.Workload]--; q.callers[p.Workload] == 0 {
		delete(q.callers, p.Workload)
	}
}

// drop forgets the ends that are over, and calls settled for each that was in force.
func (q *pending) drop(over func(*pendingEnd) bool, settled func(Denial)) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.list = slices.DeleteFunc(q.list, func(p *pendingEnd) bool {
		if !over(p) {
			return false
		}
		if p.held {
			q.held.Add(-1)
		} else {
			q.leave(p)
		}
		if q.inForce[p.denial()] == p {
			delete(q.inForce, p.denial())
			settled(p.denial())
		}
		return true
	})
	q.size.Store(int64(len(q.list)))
}

// task is a task as it is with the ends that are in force here.
func (q *pending) task(t Task) Task {
	if q.size.Load() == 0 || t.State != Active {
		return t
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range slices.Backward(t.Path) {
		p, ok := q.inForce[Denial{Kind: DenyTask, Task: id}]
		switch {
		case ok && id == t.ID:
			t.State, t.Cause, t.Ended = p.receipt.State, p.receipt.Cause, p.receipt.Ended
			return t
		case ok:
			t.State, t.Cause, t.Ended = Canceled, CauseParent, p.receipt.Ended
			return t
		}
	}
	return t
}

// revoked reports whether a grant was revoked by itself.
func (q *pending) revoked(id GrantID) bool {
	if q.size.Load() == 0 {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	_, ok := q.inForce[Denial{Kind: DenyGrant, Grant: id}]
	return ok
}

// wait returns when there is something, or with ctx's error.
func (q *pending) wait(ctx context.Context) error {
	for q.size.Load() == 0 {
		select {
		case <-q.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}

// PendingEnds is how many ends the store has not confirmed to this replica.
func (b *Broker) PendingEnds() int { return int(b.pending.size.Load() - b.pending.held.Load()) }

// writePending brings what is pending into the store, until ctx ends.
func (b *Broker) writePending(ctx context.Context) error {
	away := Fault{Logger: b.Logger, What: "ends are in force on this replica alone; they are written when the store is back", Over: "ends that waited for the store are written again"}
	for {
		if err := b.pending.wait(ctx); err != nil {
			return err
		}
		select {
		case <-time.After(pendingPause + rand.N(pendingPause)):
		case <-ctx.Done():
			return ctx.Err()
		}
		switch err := b.settlePending(ctx); {
		case err == nil:
			away.Ended(b.Now())
		case ctx.Err() == nil:
			away.Met(b.Now(), err, "ends", b.PendingEnds())
		}
	}
}

// finish looks after ends that may have happened and that nobody was told of: they are to happen at
// last, and to be recorded as whose they are.
func (b *Broker) finish(as pendingEnd, ends ...Ending) {
	for _, end := range ends {
		p := as
		p.Ending = end
		if _, err := b.pending.add(&p, b.early); err != nil {
			b.rounds.lose(end.Event)
			b.Logger.Error("an end may have happened that is not recorded yet", "task", string(end.Task), "grant", string(end.Grant), "event", string(end.Event))
		}
	}
}

// finishUnsure is finish for those of some ends that may have happened. It returns for how many the store was away, and why.
func (b *Broker) finishUnsure(as pendingEnd, ends []Ending, replies []EndReply) (away int, err error) {
	for i, r := range replies {
		if !isAway(r.Err) {
			continue
		}
		away, err = away+1, r.Err
		if errors.Is(r.Err, ErrUnconfirmed) {
			b.finish(as, ends[i])
		}
	}
	return away, err
}

// flushPending is the last try before the broker stops.
func (b *Broker) flushPending(ctx context.Context) {
	if b.PendingEnds() == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTry)
	defer cancel()
	err := b.settlePending(ctx)
	for _, p := range b.pending.unwritten() {
		what := "the broker stops, and an end that it has answered is lost unless it is asked for again"
		if !p.told {
			what = "the broker stops, and does not know whether an end that it has refused has happened; the store's receipts do"
		}
		b.Logger.Error(what, "task", string(p.Task), "grant", string(p.Grant), "event", string(p.Event), "actor", p.actor, "error", err)
	}
}

// settlePending writes what the store does not have, and forgets what its feed has brought back.
func (b *Broker) settlePending(ctx context.Context) error {
	err := b.writeBatches(ctx)
	now := b.Now()
	b.pending.drop(func(p *pendingEnd) bool {
		if !p.written && p.told && !now.Before(p.until) {
			b.handOver([]Event{b.mootEvent(p, p.receipt)}) // nothing is left that it could kill
			return true
		}
		if p.held {
			return !now.Before(p.until)
		}
		// Whoever joins the feed in between must hear of it one way or the other.
		return p.written && (!p.told || b.view.covers(p.receipt.Feed))
	}, b.Announcer.Settled)
	return err
}

// writeBatches asks for all ends that the store does not have. Shards do not wait for each other: one
// of them may be away alone. Nor does any end wait for one that fails by itself.
func (b *Broker) writeBatches(ctx context.Context) error {
	shards := map[int][]*pendingEnd{}
	for _, p := range b.pending.unwritten() {
		shards[p.shard()] = append(shards[p.shard()], p)
	}
	var all errgroup.Group
	for _, list := range shards {
		all.Go(func() (failed error) {
			for batch := range slices.Chunk(list, maxPendingBatch) {
				away, err := b.writeBatch(ctx, batch)
				if failed = cmp.Or(failed, err); away == len(batch) {
					break
				}
			}
			return failed
		})
	}
	return all.Wait()
}

// writeBatch returns for how many the store was away, and why.
func (b *Broker) writeBatch(ctx context.Context, batch []*pendingEnd) (away int, err error) {
	ends := make([]Ending, len(batch))
	for i, p := range batch {
		ends[i] = p.Ending
	}
	for i, reply := range b.endEach(ctx, storeTry, ends...) {
		if isAway(reply.Err) {
			away, err = away+1, reply.Err
			continue
		}
		b.settle(batch[i], reply)
	}
	return away, err
}

// settle takes in the store's answer to one pending end, and records it.
func (b *Broker) settle(p *pendingEnd, reply EndReply) {
	truth := reply.Receipt
	truth.First = truth.First || truth.Event == p.Event
	reply.Receipt = truth
	events := b.endEvents([]EndReply{reply}, p.actor, p.address)
	for i := range events {
		events[i].Revocation, events[i].Ticket = p.revocation, cmp.Or(events[i].Ticket, p.ticket)
	}
	if reply.Err != nil {
		truth = p.receipt // nothing is known that is truer
	}
	if len(events) == 0 && p.told {
		b.Logger.Warn("an end that was answered was not the one", "task", string(p.Task), "grant", string(p.Grant), "event", string(p.Event), "error", reply.Err)
		events = append(events, b.mootEvent(p, truth))
	}
	b.handOver(events)
	if p.told && errors.Is(reply.Err, ErrNotFound) {
		b.pending.hold(p, b.Now().Add(MaxTokenLife+Margin))
		return
	}
	b.pending.wrote(p, truth)
}

// mootEvent is what the log has under the event of a receipt that was given for an end which then
// turned out not to be the one.
func (b *Broker) mootEvent(p *pendingEnd, truth Receipt) Event {
	e := Event{
		ID: p.Event, Kind: EventEndMoot, Time: p.receipt.Ended, Actor: p.actor, Address: p.address,
		Task: p.Task, Grant: p.Grant, State: truth.State, Cause: truth.Cause, Reason: p.Reason,
		Revocation: p.revocation, Attributes: Attributes{Ticket: p.ticket},
	}
	if !p.Workload.IsZero() {
		e.Workload, e.Owner = p.Workload.String(), b.registration(p.Workload).Owner
	}
	return e
}

// endTwice asks the store, and once more for what may have happened, for at most limit each time. The
// event IDs show what this call has ended. Each reply has its own error, which says of one that the store was away for whether
// it may have happened; when it was for all, that is the error.
func (b *Broker) endTwice(ctx context.Context, limit time.Duration, ends ...Ending) ([]EndReply, error) {
	replies := b.endEach(ctx, limit, ends...)
	var again []Ending
	var whose []int
	for i, r := range replies {
		if errors.Is(r.Err, ErrUnconfirmed) {
			again, whose = append(again, ends[i]), append(whose, i)
		}
	}
	if len(again) > 0 {
		for n, r := range b.endEach(ctx, limit, again...) {
			if !isAway(r.Err) {
				replies[whose[n]] = r
			}
		}
	}
	for i := range replies {
		r := &replies[i].Receipt
		r.First = r.First || r.Event == ends[i].Event
	}
	return replies, awayForAll(replies)
}

// tryEnd asks the store once, for at most limit, for ends of which each is as good as none without the others.
func (b *Broker) tryEnd(ctx context.Context, limit time.Duration, ends ...Ending) ([]EndReply, error) {
	replies := b.endEach(ctx, limit, ends...)
	if i := slices.IndexFunc(replies, func(r EndReply) bool { return isAway(r.Err) }); i >= 0 {
		return nil, replies[i].Err
	}
	return replies, nil
}

// endEach asks the store once, for at most limit. What it says of all together is in each reply.
func (b *Broker) endEach(ctx context.Context, limit time.Duration, ends ...Ending) []EndReply {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	replies, err := b.Store.End(ctx, ends)
	if err == nil && len(replies) != len(ends) {
		err = fmt.Errorf("%w: %d answers to %d ends", ErrUnconfirmed, len(replies), len(ends))
	}
	if err != nil {
		if !isAway(err) {
			err = fmt.Errorf("%w: %w", ErrUnconfirmed, err)
		}
		return slices.Repeat([]EndReply{{Err: err}}, len(ends))
	}
	b.lost.count(ends, replies)
	b.followers.ended(replies)
	b.adoptions.ended(replies, b.Now())
	return replies
}

// awayForAll is the error of ends that the store was away for, if it was for all of them: ErrUnconfirmed when any may have happened.
func awayForAll(replies []EndReply) (err error) {
	for _, r := range replies {
		if !isAway(r.Err) {
			return nil
		}
		if err == nil || errors.Is(r.Err, ErrUnconfirmed) {
			err = r.Err
		}
	}
	return err
}

// isAway reports whether an error says that the store could not answer.
func isAway(err error) bool { return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrUnconfirmed) }
