package broker

import (
	"context"
	"sync"
	"time"
)

// taskEvent fills in what every event about a task says.
func taskEvent(kind EventKind, registration WorkloadRegistration, task Task) Event {
	return Event{
		ID: NewEventID(), Kind: kind, Workload: task.Workload.String(), Owner: registration.Owner,
		Task: task.ID, TaskPath: task.Path, TaskName: task.Name, Purpose: task.Purpose,
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
// recorded.
func (b *Broker) refuse(ctx context.Context, w Workload, registration WorkloadRegistration, task string, d Decision, why error) error {
	e := Event{
		ID: NewEventID(), Kind: EventDenied, Time: b.Now(), Workload: w.ID.String(), Owner: registration.Owner,
		Address: w.Address, Actor: w.ID.String(), TaskName: task, Thumbprint: w.Thumbprint,
		Decision: d.ID, Rule: d.Rule, Revision: d.Revision, Reason: why.Error(),
	}
	if err := b.Auditor.Record(ctx, e); err != nil {
		b.Logger.Error("a refusal could not be recorded", "error", err, "rule", d.Rule)
	}
	return why
}

// record writes events about what has happened already. What cannot be written waits.
func (b *Broker) record(ctx context.Context, events []Event) {
	if len(events) == 0 {
		return
	}
	if err := b.Auditor.Record(context.WithoutCancel(ctx), events...); err != nil {
		b.Logger.Error("the audit log failed; the end stands, and its record waits", "error", err, "events", len(events))
		if lost := b.backlog.add(events); lost > 0 {
			b.Logger.Error("the audit backlog is full; records are lost that only the store's receipts have", "events", lost)
		}
	}
}

const (
	maxBacklog      = 10_000
	backlogInterval = time.Second
)

// backlog has the events that are still to be recorded.
type backlog struct {
	max    int
	mu     sync.Mutex // guards events
	events []Event
}

func (q *backlog) add(events []Event) (lost int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	room := min(len(events), q.max-len(q.events))
	q.events = append(q.events, events[:room]...)
	return len(events) - room
}

func (q *backlog) take() []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	events := q.events
	q.events = nil
	return events
}

func (q *backlog) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.events)
}

// flushBacklog tries again to record what could not be recorded before.
func (b *Broker) flushBacklog(ctx context.Context) error {
	events := b.backlog.take()
	if len(events) == 0 {
		return nil
	}
	err := b.Auditor.Record(ctx, events...)
	if err != nil {
		b.backlog.add(events)
	}
	return err
}
