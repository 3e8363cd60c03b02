package broker

import (
	"context"
	"errors"
	"strings"
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

// cut shortens a text to so many bytes of valid UTF-8.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return strings.ToValidUTF8(s[:limit], "")
}
