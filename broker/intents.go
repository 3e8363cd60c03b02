package broker

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

const (
	intentKind = "intent" // of notes on the Board: what operators are about to have changed

	// intentLife is how long one is known: until others have recorded it if the process that was to do so is gone.
	intentLife = 2 * RecordBound
)

// intent is the event of a change that the store keeps no receipt of: a denial by a property, a lock or its lifting.
type intent struct {
	ID         EventID      `json:"id"`
	Kind       EventKind    `json:"k"`
	Time       time.Time    `json:"t"`
	Actor      string       `json:"a"`
	Address    string       `json:"p,omitempty"`
	Thumbprint string       `json:"x,omitempty"`
	Cause      Cause        `json:"c,omitempty"`
	Reason     string       `json:"r,omitempty"`
	Ticket     string       `json:"n,omitempty"`
	Key        string       `json:"y,omitempty"`
	Selector   Selector     `json:"s,omitzero"`
	Lock       LockID       `json:"l,omitempty"`
	Expires    time.Time    `json:"e,omitzero"`
	Revocation RevocationID `json:"m,omitempty"`
}

func newIntent(e Event, now time.Time) intent {
	return intent{
		ID: e.ID, Kind: e.Kind, Time: now.UTC(), Actor: e.Actor, Address: e.Address, Thumbprint: e.Thumbprint, Cause: e.Cause, Reason: e.Reason, Ticket: e.Ticket,
		Key: e.Key, Selector: e.Selector, Lock: e.Lock, Expires: e.Expires, Revocation: e.Revocation,
	}
}

// event is what another process records of it. Nobody can tell whether it has come so far.
func (i intent) event() Event {
	return Event{
		ID: i.ID, Kind: i.Kind, Time: i.Time, Actor: i.Actor, Address: i.Address, Thumbprint: i.Thumbprint, Cause: i.Cause, Reason: i.Reason, Attributes: Attributes{Ticket: i.Ticket},
		Key: i.Key, Selector: i.Selector, Lock: i.Lock, Expires: i.Expires, Revocation: i.Revocation, Unsure: true, Reconciled: true,
	}
}

// intend tells the other replicas what is about to be changed, for the case that this process is killed before it has recorded
// it. When they cannot be told it is changed all the same: neither a lock nor a revocation waits for records.
func (b *Broker) intend(ctx context.Context, events ...Event) {
	var notes []BoardNote
	now := b.Now()
	for _, e := range events {
		notes = append(notes, BoardNote{Kind: intentKind, ID: string(e.ID), Text: plainJSON(newIntent(e, now)), Life: intentLife})
	}
	if err := b.post(ctx, notes...); err != nil {
		b.Logger.Warn("the other replicas could not be told of a change of the control list; if this one is killed right now, no audit log has it", "error", err)
	}
}

// intents records those of the process.
func (c *completion) intents(ctx context.Context) error {
	notes, err := c.notes(ctx, intentKind)
	if err != nil {
		return err
	}
	var found []Event
	for _, note := range notes {
		var i intent
		if c.events.Has(EventID(note.ID)) && json.Unmarshal(note.Text, &i) == nil && string(i.ID) == note.ID {
			found = append(found, i.event())
		}
	}
	slices.SortFunc(found, func(d, e Event) int { return strings.Compare(string(d.ID), string(e.ID)) })
	for part := range slices.Chunk(found, maxRecord) {
		if err := c.claim(ctx); err != nil {
			return err
		}
		if err := c.record(ctx, part); err != nil {
			return err
		}
	}
	return nil
}
