package broker

import (
	"context"
	"runtime"
	"sync"
	"time"
)

const (
	maxBacklog   = 10_000 // events
	maxRecord    = 200    // events in one record of the backlog, unless they belong together
	retryRecord  = time.Second
	flushTimeout = 3 * time.Second // of the last try, when the broker stops
)

// writeBacklog records what is handed over, in its order, until ctx ends.
func (b *Broker) writeBacklog(ctx context.Context) error {
	for {
		pause := time.Duration(0)
		runtime.Gosched() // those who have events ready share this record
		if err := b.recordNext(ctx); err != nil {
			pause = retryRecord
		}
		if err := b.backlog.wait(ctx, pause); err != nil {
			return err
		}
	}
}

// flushBacklog is the last try before the broker stops.
func (b *Broker) flushBacklog(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	for b.backlog.len() > 0 && ctx.Err() == nil {
		if err := b.recordNext(ctx); err != nil {
			b.Logger.Error("the broker stops, and the audit log does not have everything; the store's receipts do", "error", err, "events", b.backlog.len())
			return
		}
	}
}

// recordNext records the oldest entries of the backlog, which leave it only then.
func (b *Broker) recordNext(ctx context.Context) error {
	next, events := b.backlog.next()
	if len(events) == 0 {
		return nil
	}
	if err := b.recordNow(ctx, events...); err != nil {
		return err
	}
	b.backlog.remove(next)
	return nil
}

// backlog has the events that are still to be recorded, the oldest first.
type backlog struct {
	max    int
	mu     sync.Mutex // guards what follows
	queue  []handed
	events int           // in the queue
	wake   chan struct{} // closed and replaced when something is added
}

// handed is what one caller has handed over.
type handed struct {
	events []Event
	at     time.Time
	done   chan struct{} // closed when it is durable
}

// closed is what waits for nothing.
var closed = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

// add returns a channel that is closed when the events are durable, and how many found no room.
func (q *backlog) add(events []Event, now time.Time) (done <-chan struct{}, lost int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	room := min(len(events), q.max-q.events)
	if room == 0 {
		return closed, len(events) // an entry without events would never leave
	}
	return q.append(events[:room], now), len(events) - room
}

// addMinor refuses the event when half of the room is taken: what nobody waits for must not crowd out
// what somebody has to answer for.
func (q *backlog) addMinor(e Event, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.events >= q.max/2 {
		return false
	}
	q.append([]Event{e}, now)
	return true
}

// append is called with mu held.
func (q *backlog) append(events []Event, now time.Time) <-chan struct{} {
	h := handed{events: events, at: now, done: make(chan struct{})}
	q.queue = append(q.queue, h)
	q.events += len(events)
	close(q.wake)
	q.wake = make(chan struct{})
	return h.done
}

// next returns how many of the oldest entries can be recorded at once, and their events.
func (q *backlog) next() (n int, events []Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, h := range q.queue {
		if n > 0 && len(events)+len(h.events) > maxRecord {
			break
		}
		n++
		events = append(events, h.events...)
	}
	return n, events
}

func (q *backlog) remove(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, h := range q.queue[:n] {
		q.events -= len(h.events)
		close(h.done)
	}
	clear(q.queue[:n])
	q.queue = q.queue[n:]
}

func (q *backlog) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.events
}

// oldestRound is the lowest round of a process with an event that waits, and at most the one given.
func (q *backlog) oldestRound(maker string, most uint32) uint32 {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, h := range q.queue {
		for _, e := range h.events {
			if round, ok := roundOf(maker, e.ID); ok {
				most = min(most, round)
			}
		}
	}
	return most
}

// age is how long the oldest entry has been waiting.
func (q *backlog) age(now time.Time) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) == 0 {
		return 0
	}
	return now.Sub(q.queue[0].at)
}

// wait returns after the pause, once there is something to record, or with ctx's error.
func (q *backlog) wait(ctx context.Context, pause time.Duration) error {
	if pause > 0 {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	q.mu.Lock()
	wake, there := q.wake, q.events > 0
	q.mu.Unlock()
	if there {
		return ctx.Err()
	}
	select {
	case <-wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
