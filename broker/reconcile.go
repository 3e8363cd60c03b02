package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"
)

// RecordBound is within what time of an end that the store has its event is in the audit log of some replica, whatever
// becomes of the one that has written the end, as long as another one runs, or it again, with a log that takes
// events. After that the store may have forgotten the end.
const RecordBound = Margin

const (
	// goneAfter is how long a process may say nothing, or be late with an event, until others record for it.
	goneAfter = 10 * time.Second
	// turnTime is how much longer each of the others waits than the one whose turn is before.
	turnTime = 3 * time.Second
	// lookInterval is how often each looks for what is to be completed.
	lookInterval = 2 * time.Second

	completingKind = "completing" // of notes on the Board: who completes what
	completeTime   = 20 * time.Second
)

// completing is a note about who records the ends of a process that has not.
type completing struct {
	By   string `json:"b"`           // the process that does
	Upto uint32 `json:"u,omitempty"` // before this round it is done, while the other one still runs; 0 while it is under way
}

// lookout is what a replica knows of the others' progress.
type lookout struct {
	*Broker
	late   map[string]lateness // by process
	blind  time.Time           // when the Board was last away, or took nothing: nobody could tell anything
	failed time.Time           // when something could not be completed
}

// lateness is of a process that runs and does not record: since when it has had the same open round, and which one it
// was in by then.
type lateness struct {
	open, round uint32
	since       time.Time
}

// unrecorded are ends of a process that it was to record and perhaps has not.
type unrecorded struct {
	maker  string
	events EventRange
	upto   uint32        // the round after them, of a process that still runs; 0 of one that is gone
	over   time.Duration // since others were to record them
}

// reconcile records what other processes have left unrecorded, until ctx ends: a process that was killed between an end and its
// record, or whose audit log takes nothing.
func (b *Broker) reconcile(ctx context.Context) error {
	l := lookout{Broker: b, late: map[string]lateness{}}
	away := fault{logger: b.Logger, what: "ends that another process has left unrecorded cannot be recorded here; it is tried again", over: "what other processes leave unrecorded is recorded again"}
	for {
		switch err := l.look(ctx); {
		case err == nil:
			away.ended(b.Now())
		case ctx.Err() == nil:
			away.met(b.Now(), err)
		}
		if pause(ctx, lookInterval); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// look reads what all have told, and completes what it is this replica's turn to.
func (l *lookout) look(ctx context.Context) error {
	notes, err := l.notes(ctx, recordingKind)
	if err != nil {
		l.blind = l.Now()
		clear(l.late)
		return err
	}
	for _, u := range l.due(notes, l.Now()) {
		if l.Now().Sub(l.failed) < goneAfter/2 {
			return nil
		}
		if err := l.complete(ctx, u); err != nil {
			l.failed = l.Now()
			return err
		}
	}
	return nil
}

// due is what it is this replica's turn to complete.
func (l *lookout) due(notes []BoardNote, now time.Time) (all []unrecorded) {
	ages := map[string]time.Duration{}
	told := map[string]progress{}
	for _, note := range notes {
		var p progress
		if json.Unmarshal(note.Text, &p) == nil && len(note.ID) == makerChars { // else it is of a replica of another version
			told[note.ID], ages[note.ID] = p, progressLife-note.Life
		}
	}
	if ages[l.rounds.maker] >= goneAfter/2 {
		l.blind = now
	}
	own := progress{} // what it still knows of it records itself
	own.Open, own.Round = l.rounds.lostSince()
	told[l.rounds.maker] = own
	makers := []string{l.rounds.maker}
	for maker, p := range told {
		if u, ok := l.judge(maker, p, ages[maker], now); ok {
			all = append(all, u)
		} else if maker != l.rounds.maker {
			makers = append(makers, maker)
		}
	}
	maps.DeleteFunc(l.late, func(maker string, _ lateness) bool { _, ok := told[maker]; return !ok })
	return slices.DeleteFunc(all, func(u unrecorded) bool { return u.over < turnTime*time.Duration(l.turn(u.maker, makers)) })
}

// judge reports whether others must record for a process that has told its progress so long ago.
func (l *lookout) judge(maker string, p progress, age time.Duration, now time.Time) (unrecorded, bool) {
	gone := p.Closed || age >= goneAfter && now.Sub(l.blind) >= goneAfter
	if gone && maker != l.rounds.maker {
		if !p.Closed {
			age -= goneAfter
		}
		return unrecorded{maker: maker, events: eventsFrom(maker, min(p.Open, p.Pending)), over: age}, true
	}
	was, ok := l.late[maker]
	if p.Open == p.Round {
		delete(l.late, maker)
		return unrecorded{}, false
	}
	if !ok || was.open != p.Open {
		l.late[maker] = lateness{p.Open, p.Round, now}
		return unrecorded{}, false
	}
	u := unrecorded{maker: maker, events: eventsOf(maker, was.open, was.round), upto: was.round + 1, over: now.Sub(was.since) - goneAfter}
	return u, u.over >= 0
}

// turn is how many of the others come before this replica to complete what a process has left, which differs from
// process to process.
func (l *lookout) turn(maker string, makers []string) int {
	before := func(m string) int { // those that come behind it come first
		if m < maker {
			return 1
		}
		return 0
	}
	order := func(x, y string) int { return cmp.Or(cmp.Compare(before(x), before(y)), cmp.Compare(x, y)) }
	return slices.Index(slices.SortedFunc(slices.Values(makers), order), l.rounds.maker)
}

// complete records the ends that a process has left, unless another one does.
func (l *lookout) complete(ctx context.Context, u unrecorded) error {
	notes, err := l.notes(ctx, completingKind)
	if err != nil {
		return err
	}
	for _, note := range notes {
		var c completing
		switch {
		case note.ID != u.maker || json.Unmarshal(note.Text, &c) != nil:
		case c.Upto == 0 && c.By != l.rounds.maker:
			return nil // it is under way
		case c.Upto >= u.upto && u.upto != 0:
			l.completed(u)
			return nil
		case u.upto != 0:
			u.events.From = max(u.events.From, EventID(roundPrefix(u.maker, c.Upto)))
		}
	}
	if l.backlog.age(l.Now()) > staleAudit {
		return nil // it could not record anything, and is late itself
	}
	if err := l.claim(ctx, u.maker, 0, completeTime); err != nil {
		return err
	}
	began := l.Now()
	n, err := l.completeAll(ctx, u.events)
	if err != nil {
		return err
	}
	l.Logger.Warn("a process has stopped recording its ends; those whose events may be missing in its audit log are in this one", "process", u.maker, "runs", u.upto != 0, "events", n, "took", l.Now().Sub(began))
	if u.upto == 0 {
		return l.post(ctx, progress{Closed: true}.note(u.maker, time.Millisecond)) // there is nothing left to know of it
	}
	l.completed(u)
	return l.claim(ctx, u.maker, u.upto, progressLife)
}

// completed has the ends of a process that still runs looked at from later rounds on.
func (l *lookout) completed(u unrecorded) {
	if u.maker == l.rounds.maker {
		l.rounds.found(u.upto - 1)
	}
	delete(l.late, u.maker)
}

// claim tells the others who completes what.
func (l *lookout) claim(ctx context.Context, maker string, upto uint32, life time.Duration) error {
	text, err := json.Marshal(completing{By: l.rounds.maker, Upto: upto})
	if err != nil {
		panic("broker: a note of plain values must marshal: " + err.Error())
	}
	return l.post(ctx, BoardNote{Kind: completingKind, ID: maker, Text: text, Life: life})
}

func (l *lookout) notes(ctx context.Context, kind string) ([]BoardNote, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTry)
	defer cancel()
	return l.Board.Notes(ctx, kind)
}

// completeAll records every end that has one of the events and that the store still has, and returns how many.
func (b *Broker) completeAll(ctx context.Context, events EventRange) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, completeTime)
	defer cancel()
	for query := (Query{Ended: events, Limit: maxRecord}); ; {
		began := b.Now()
		page, err := b.Store.List(ctx, query)
		if err != nil {
			return n, err
		}
		ends := make([]Ending, len(page.Tasks))
		for i, task := range page.Tasks {
			ends[i] = Ending{Kind: TargetTask, Task: task.ID, IfDue: true}
		}
		done, err := b.completeEnds(ctx, events, ends)
		if n += done; err != nil {
			return n, err
		}
		if query.After = page.Next; query.After == "" {
			done, err := b.completeGrants(ctx, events)
			return n + done, err
		}
		pause(ctx, b.Now().Sub(began)) // it takes no more than half of what the store can do
	}
}

// errRead says that the feed has been read far enough.
var errRead = errors.New("the feed is read")

// completeGrants records those of grants that were revoked by themselves. Each is in the store's feed for as long as
// the grant is there, and nothing else says which they are.
func (b *Broker) completeGrants(ctx context.Context, events EventRange) (n int, err error) {
	b.view.mu.Lock()
	until := b.view.position.Clone()
	b.view.mu.Unlock()
	if until.IsZero() {
		return 0, notReady("the store's feed has not been read yet")
	}
	err = b.Store.Watch(ctx, Position{}, func(u Update) error {
		var ends []Ending
		for _, e := range u.Entries {
			if e.Denial.Kind == DenyGrant {
				ends = append(ends, Ending{Kind: TargetGrant, Grant: e.Denial.Grant, State: Revoked, Cause: CauseOperator})
			}
		}
		for part := range slices.Chunk(ends, maxRecord) {
			done, err := b.completeEnds(ctx, events, part)
			if n += done; err != nil {
				return err
			}
		}
		if u.Position.covers(until) {
			return errRead
		}
		return nil
	})
	if errors.Is(err, errRead) {
		err = nil
	}
	return n, err
}

// completeEnds records those of some ends, all of which the store has, that have one of the events. To ask for an end again
// is to ask for its receipt.
func (b *Broker) completeEnds(ctx context.Context, events EventRange, ends []Ending) (int, error) {
	if len(ends) == 0 {
		return 0, nil
	}
	replies, err := b.Store.End(ctx, ends)
	if err != nil {
		return 0, err
	}
	var found []EndReply
	for _, r := range replies {
		if isAway(r.Err) {
			return 0, r.Err
		}
		if r.Err == nil && events.Has(r.Receipt.Event) {
			r.Receipt.First = true // as it was told to the one that has not recorded it
			found = append(found, r)
		}
	}
	missing := b.endEvents(found, "", "")
	for i, r := range found {
		missing[i].Actor, missing[i].Reconciled = actorOf(r), true
	}
	if len(missing) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	return len(missing), b.Auditor.Record(ctx, missing...)
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
