package broker

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// taskEvent fills in what every event about a task says.
func taskEvent(kind EventKind, registration WorkloadRegistration, task Task) Event {
	return Event{
		ID: NewEventID(), Kind: kind, Workload: task.Workload.String(), Owner: registration.Owner,
		Task: task.ID, TaskPath: task.Path, TaskName: task.Name, Purpose: task.Purpose, Delegators: names(task.Delegators),
	}
}

// grantEvent fills in what every event about a grant says.
func grantEvent(kind EventKind, registration WorkloadRegistration, task Task, grant Grant) Event {
	e := taskEvent(kind, registration, task)
	e.Grant, e.Audience, e.Scopes, e.Expires = grant.ID, grant.Audience, grant.Scopes, grant.Expires
	e.Thumbprint, e.Decision = grant.Thumbprint, grant.Decision
	return e
}

// refuse records a refusal and returns its error. The answer is no whether or not it can be
// recorded, and does not wait for it.
func (b *Broker) refuse(w Workload, registration WorkloadRegistration, task Task, d Decision, why error) error {
	var denied *Denied
	if errors.As(why, &denied) {
		d = denied.Decision // the one that the caller is told of
	}
	e := Event{
		ID: NewEventID(), Kind: EventDenied, Time: b.Now(), Workload: w.ID.String(), Owner: registration.Owner,
		Address: w.Address, Actor: w.ID.String(), Thumbprint: w.Thumbprint,
		TaskName: task.Name, Purpose: task.Purpose, Attributes: task.Attributes, Details: task.Ceiling.Details,
		Delegators: names(task.Delegators),
		Decision:   d.ID, Rule: d.Rule, Revision: d.Revision, Reason: cut(why.Error(), MaxPurpose),
	}
	e.Delegation, e.To = delegationOf(why)
	if len(task.Path) > 0 { // else it has never begun
		e.Task, e.TaskPath = task.ID, task.Path
	}
	b.recordRefusal(e)
	return why
}

// delegationOf is the delegation that an error is about, and for whom that is.
func delegationOf(err error) (DelegationID, string) {
	var not *NotDelegate
	var used *Used
	switch {
	case errors.As(err, &not):
		return not.Delegation, not.To.String()
	case errors.As(err, &used):
		return used.Delegation, ""
	}
	return "", ""
}

func names(ids []spiffeid.ID) (out []string) {
	for _, id := range ids {
		out = append(out, id.String())
	}
	return out
}

// recordWait is how long an answer waits for the audit log.
const recordWait = time.Second

// recordNow returns when the events are durable. The log has it when none can be recorded.
func (b *Broker) recordNow(ctx context.Context, events ...Event) error {
	wait, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	err := b.Auditor.Record(wait, events...)
	switch {
	case err == nil:
		b.unlogged.Ended(b.Now())
	case !errors.Is(ctx.Err(), context.Canceled): // then whoever waits has gone
		b.unlogged.Met(b.Now(), err, "waiting", b.backlog.len())
	}
	return err
}

// record hands over events about what has happened already, and waits a moment for them to be
// durable. What is not by then stays in the backlog: the facts stand.
func (b *Broker) record(ctx context.Context, events []Event) {
	if len(events) == 0 {
		return
	}
	done := b.handOver(events)
	wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordWait)
	defer cancel()
	select {
	case <-done:
	case <-wait.Done():
	}
}

// recordUnsure records what an operator has asked for and nobody can tell whether it has happened: it may never be asked
// for again, or be taken for what has happened before.
func (b *Broker) recordUnsure(ctx context.Context, err error, events ...Event) {
	if !errors.Is(err, ErrUnconfirmed) {
		return
	}
	for i := range events {
		events[i].Time, events[i].Unsure = b.Now(), true
	}
	b.record(ctx, events)
}

// handOver puts events into the backlog, and returns a channel that is closed when they are durable.
func (b *Broker) handOver(events []Event) (done <-chan struct{}) {
	done, lost := b.backlog.add(events, b.Now())
	if lost > 0 {
		for _, e := range events[len(events)-lost:] {
			b.rounds.lose(e.ID)
		}
		b.Logger.Error("the audit backlog is full; ends are recorded later, by what the store has of them, and other records are lost", "events", lost)
	}
	return done
}

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

// cut shortens a text to so many bytes of valid UTF-8.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "")
}
