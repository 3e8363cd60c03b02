package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"time"
)

const (
	completingKind = "completing" // of notes on the Board: who completes what

	// claimLife is how long a process is known to complete something, and claimAgain how often it says so.
	claimLife  = 5 * time.Second
	claimAgain = time.Second

	// completeTime bounds it. What is in the store longer than RecordBound may be there by accident.
	completeTime = time.Minute
)

// completing is a note about who records the ends of a process that has not.
type completing struct {
	By   string `json:"b"`           // the process that does
	Upto uint32 `json:"u,omitempty"` // before this round it is done, while the other one still runs; 0 while it is under way
}

// completion is what is being recorded for another process.
type completion struct {
	*lookout
	unrecorded
	claimed time.Time
	done    int   // events
	failed  error // of ends that the store cannot tell of
}

// complete records the ends that a process has left, unless another one does.
func (l *lookout) complete(ctx context.Context, u unrecorded) error {
	isNext, err := l.isNext(ctx, &u)
	if err != nil || !isNext || l.backlog.age(l.Now()) > staleAudit { // who is late as well could not record it
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	c := completion{lookout: l, unrecorded: u}
	began := l.Now()
	if err = c.all(ctx); err != nil {
		_ = l.tellCompleting(ctx, u.maker, 0, time.Millisecond) // the next one need not wait
		return err
	}
	l.Logger.Warn("a process has not recorded its ends; what its audit log may lack is in this one", "process", u.maker, "runs", u.upto != 0, "events", c.done, "took", l.Now().Sub(began))
	if u.upto == 0 {
		return l.post(ctx, progress{Closed: true}.note(u.maker, time.Millisecond)) // there is nothing left to know of it
	}
	l.completed(u.maker, u.upto)
	l.runs[u.maker].rest = l.Now()
	return l.tellCompleting(ctx, u.maker, u.upto, progressLife)
}

// isNext reports whether nobody else records the ends, or has done so. Those of earlier rounds that were recorded are left out.
func (l *lookout) isNext(ctx context.Context, u *unrecorded) (bool, error) {
	notes, err := l.notes(ctx, completingKind)
	if err != nil {
		return false, err
	}
	for _, note := range notes {
		var c completing
		switch {
		case note.ID != u.maker || json.Unmarshal(note.Text, &c) != nil:
		case c.Upto == 0 && c.By != l.rounds.maker:
			return u.over >= lastTurn, nil // it is under way, or they were killed, too
		case u.upto != 0 && c.Upto > 0:
			l.completed(u.maker, c.Upto)
			u.events.From = max(u.events.From, EventID(roundPrefix(u.maker, c.Upto)))
			return c.Upto < u.upto, nil
		}
	}
	return true, nil
}

// completed notes that all ends of a process that runs are recorded, by whomever, up to a round.
func (l *lookout) completed(maker string, upto uint32) {
	if maker == l.rounds.maker {
		l.rounds.found(upto - 1)
	}
	l.runs[maker].upto = max(l.runs[maker].upto, upto)
}

func (l *lookout) tellCompleting(ctx context.Context, maker string, upto uint32, life time.Duration) error {
	text := plainJSON(completing{By: l.rounds.maker, Upto: upto})
	return l.post(ctx, BoardNote{Kind: completingKind, ID: maker, Text: text, Life: life})
}

// claim tells the others that this replica is at it.
func (c *completion) claim(ctx context.Context) error {
	if c.Now().Sub(c.claimed) < claimAgain {
		return nil
	}
	c.claimed = c.Now()
	return c.tellCompleting(ctx, c.maker, 0, claimLife)
}

// all records everything that the process has left.
func (c *completion) all(ctx context.Context) error {
	for _, record := range []func(context.Context) error{c.intents, c.tasks, c.grants} {
		if err := record(ctx); err != nil {
			return err
		}
	}
	return c.failed
}

// record waits until the events are durable.
func (c *completion) record(ctx context.Context, events []Event) error {
	if len(events) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	c.done += len(events)
	return c.Auditor.Record(ctx, events...)
}

// tasks records the ends of tasks.
func (c *completion) tasks(ctx context.Context) error {
	for query := (Query{Ended: c.events, Limit: maxRecord}); ; {
		if err := c.claim(ctx); err != nil {
			return err
		}
		began := c.Now()
		page, err := c.Store.List(ctx, query)
		if err != nil {
			return err
		}
		ends := make([]Ending, len(page.Tasks))
		for i, task := range page.Tasks {
			ends[i] = Ending{Kind: TargetTask, Task: task.ID, IfDue: true}
		}
		if err := c.ends(ctx, ends); err != nil {
			return err
		}
		if query.After = page.Next; query.After == "" {
			return nil
		}
		pause(ctx, c.Now().Sub(began)) // it takes no more than half of what the store can do
	}
}

// errRead says that the feed has been read far enough.
var errRead = errors.New("the feed is read")

// grants records those of grants that were revoked by themselves. Each is in the store's feed for as long as the grant
// is there, and nothing else says which they are.
func (c *completion) grants(ctx context.Context) error {
	until := c.view.reached()
	err := c.Store.Watch(ctx, Position{}, func(u Update) error {
		var ends []Ending
		for _, e := range u.Entries {
			if e.Denial.Kind == DenyGrant {
				ends = append(ends, Ending{Kind: TargetGrant, Grant: e.Denial.Grant})
			}
		}
		for part := range slices.Chunk(ends, maxRecord) {
			if err := c.ends(ctx, part); err != nil {
				return err
			}
		}
		if u.Position.covers(until) {
			return errRead
		}
		return nil
	})
	if errors.Is(err, errRead) {
		return nil
	}
	return err
}

// ends records those that have one of the events, of ends all of which the store has: to ask for one again is to ask for its
// receipt.
func (c *completion) ends(ctx context.Context, ends []Ending) error {
	if err := c.claim(ctx); err != nil || len(ends) == 0 {
		return err
	}
	replies, err := c.Store.End(ctx, ends)
	if err != nil && len(ends) == 1 { // it may be at fault itself, and not the store
		c.failed = cmp.Or(c.failed, err)
		return nil
	}
	if err != nil {
		return err
	}
	var found []EndReply
	for _, r := range replies {
		if isAway(r.Err) { // the others do not wait for it
			c.failed = cmp.Or(c.failed, r.Err)
		}
		if r.Err == nil && c.events.Has(r.Receipt.Event) {
			r.Receipt.First = true // as it was told to the process that has not recorded it
			found = append(found, r)
		}
	}
	missing := c.endEvents(found, "", "")
	for i, r := range found {
		missing[i].Actor, missing[i].Reconciled = actorOf(r), true
	}
	return c.record(ctx, missing)
}

// actorOf is who has asked for an end, as far as its receipt tells: "" when it may have been one of several.
func actorOf(r EndReply) string {
	switch r.Receipt.Cause {
	case CauseLease, CauseDeadline, CausePresence, CauseParent, CauseIdentity:
		return sweeper
	case CauseAudit, CauseSigning:
		return r.Task.Workload.String()
	}
	return ""
}
