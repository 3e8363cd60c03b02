package broker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// RefEnd is a source's word that what a reference names has ended, and how.
type RefEnd struct {
	URI    string  // whom the source speaks as: one of its registration's
	Ref    TaskRef // the URL is not looked at
	State  State   // Completed, Failed or Canceled
	Reason string  // at most MaxPurpose bytes; may be empty

	// Time is when it ended, by the source's clock; zero if it does not say. What began more than MaxSkew later is
	// another run under the same name, and the word comes late.
	Time time.Time
}

// Rules of the refusals of what a source says.
const (
	RuleSourceURI      = "source/uri"
	RuleSourceKind     = "source/kind"
	RuleSourceWorkload = "source/workload"
)

// EndRef ends the live tasks that carry a reference and that the source may end, and returns how many this
// call has ended. It may be repeated, and a task that begins later is not touched. What the source may not
// say is refused and recorded, and so is a reference that only tasks of other workloads carry. Errors:
// ErrInvalid, ErrDenied and those of the store, also beside a number: the rest is ended by repeating it.
func (b *Broker) EndRef(ctx context.Context, by SourceRegistration, address string, e RefEnd) (ended int, err error) {
	if err := e.check(); err != nil {
		return 0, err
	}
	switch {
	case !slices.Contains(by.URIs, e.URI):
		return 0, b.refuseSource(by, address, e, RuleSourceURI, "it does not speak as this source, but as "+strings.Join(by.URIs, ", "),
			"source", "the URI among those of "+by.Name+" in the inventory, under sources")
	case !slices.Contains(by.Kinds, e.Ref.Kind):
		return 0, b.refuseSource(by, address, e, RuleSourceKind, fmt.Sprintf("it may not end tasks by a reference of the kind %q", e.Ref.Kind),
			"kind", "the kind among those of "+by.Name+" in the inventory, under sources")
	}
	ctx, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	others, failed := false, error(nil)
	query := Query{Ref: TaskRef{Kind: e.Ref.Kind, ID: e.Ref.ID}}
	for {
		page, err := b.Store.List(ctx, query)
		if err != nil {
			return ended, err
		}
		var ends []Ending
		for _, task := range page.Tasks {
			switch {
			case task.Ref.Kind != e.Ref.Kind || task.Ref.ID != e.Ref.ID: // of a store that does not look
			case b.pending.task(task).State.Final() || e.isBefore(task):
			case !by.mayEnd(task.Workload):
				others = true
			default:
				ends = append(ends, Ending{
					Kind: TargetTask, Task: task.ID, Workload: task.Workload, State: e.State, Cause: CauseRef, Reason: e.reason(),
				})
			}
		}
		n, err := b.endAll(ctx, by.Actor(), address, ends)
		if ended += n; err != nil && n == 0 && len(ends) > 1 {
			return ended, err
		}
		failed = cmp.Or(failed, err) // of some, for which the others do not wait
		if query.After = page.Next; query.After == "" {
			break
		}
	}
	if others && ended == 0 && failed == nil {
		return 0, b.refuseSource(by, address, e, RuleSourceWorkload, "the tasks that carry this reference are of workloads whose tasks it may not end",
			"workload", "the workload among those of "+by.Name+" in the inventory, under sources")
	}
	return ended, failed
}

func (e RefEnd) check() error {
	if err := checkOutcome("outcome", e.State); err != nil {
		return err
	}
	if len(e.Reason) > MaxPurpose {
		return invalid("reason", "has %d bytes; at most %d are allowed", len(e.Reason), MaxPurpose)
	}
	if (e.Ref == TaskRef{}) {
		return invalid("ref", "is missing; say what has ended, by its kind and id")
	}
	return e.Ref.check()
}

// isBefore reports whether a task has surely begun since.
func (e RefEnd) isBefore(task Task) bool {
	return !e.Time.IsZero() && task.Begun.After(e.Time.Add(MaxSkew))
}

// reason is what the receipt says.
func (e RefEnd) reason() string {
	if e.Reason != "" {
		return e.Reason
	}
	return e.Ref.Kind + " " + e.Ref.ID + " has ended"
}

// endAll ends tasks in somebody's name, and records those that this call has ended.
func (b *Broker) endAll(ctx context.Context, actor, address string, ends []Ending) (ended int, err error) {
	if len(ends) == 0 {
		return 0, nil
	}
	ctx = context.WithoutCancel(ctx)
	round := b.rounds.enter()
	defer b.rounds.leave(round)
	for i := range ends {
		ends[i].Event = b.rounds.event()
	}
	replies, _ := b.endTwice(ctx, storeTry, ends...) // each says for itself what it has come to
	_, err = b.finishUnsure(pendingEnd{actor: actor, address: address}, ends, replies)
	events := b.endEvents(replies, actor, address)
	b.record(ctx, events)
	return len(events), err
}

// refuseSource records what a source may not say, and returns the refusal.
func (b *Broker) refuseSource(by SourceRegistration, address string, e RefEnd, rule, why, what, missing string) error {
	d := Decision{ID: NewDecisionID(), Rule: rule, Detail: by.Name + ": " + why, Missing: map[string]string{what: missing}}
	refused := &Denied{Reason: ErrDenied, Decision: d}
	b.recordRefusal(Event{
		ID: NewEventID(), Kind: EventDenied, Time: b.Now(), Owner: by.Owner, Address: address, Actor: by.Actor(),
		Attributes: Attributes{Ref: TaskRef{Kind: e.Ref.Kind, ID: e.Ref.ID}}, Decision: d.ID, Rule: rule, Reason: cut(refused.Error(), MaxPurpose),
	})
	return refused
}
