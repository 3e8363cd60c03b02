package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"
)

// RecordBound is within what time of an end that the store has its event is in the audit log of some replica, whatever
// becomes of the one that has written the end, as long as another one runs with a log that takes events, or that one
// again after 20 s at most. After that the store may have forgotten the end.
const RecordBound = Margin

const (
	// goneAfter is how long a process may say nothing, or be late with an event, until others record for it.
	goneAfter = 10 * time.Second
	// turnTime is how much longer each of the others waits than the one whose turn is before, and lastTurn how
	// long at most: from then on they do without asking who else does. Who is before may be gone, too.
	turnTime = 3 * time.Second
	lastTurn = 6 * time.Second
	// againAfter is how often the ends of a process that runs and cannot record are looked for.
	againAfter = 4 * time.Second
	// maxSeen bounds the moments that are remembered of each.
	maxSeen = 16
	// lookInterval is how often each looks for what is to be completed.
	lookInterval = 2 * time.Second
)

// lookout is what a replica knows of the others' progress.
type lookout struct {
	*Broker
	runs   map[string]*rounder // by process
	blind  time.Time           // when the Board was last away, or took nothing: nobody could tell anything
	failed time.Time           // when something could not be completed
}

// rounder is a process that runs: which rounds it had behind itself, and when. Of long ago it should have recorded
// them.
type rounder struct {
	seen []seenRound // the oldest first
	upto uint32      // before this round all ends are recorded, by whomever
	rest time.Time   // when it was last completed here
}

type seenRound struct {
	last uint32 // that was over
	at   time.Time
}

// see notes which rounds are over, and forgets those before one.
func (r *rounder) see(last, from uint32, now time.Time) {
	r.seen = slices.DeleteFunc(r.seen, func(s seenRound) bool { return s.last < from })
	if last < from || len(r.seen) > 0 && r.seen[len(r.seen)-1].last == last {
		return
	}
	if r.seen = append(r.seen, seenRound{last, now}); len(r.seen) > maxSeen {
		r.seen = slices.Delete(r.seen, maxSeen/2, maxSeen/2+1) // since when it is late stays true
	}
}

// late returns the last of the rounds that it should have recorded by now, and for how long.
func (r *rounder) late(now time.Time) (last uint32, over time.Duration, ok bool) {
	for _, s := range r.seen {
		if age := now.Sub(s.at) - goneAfter; age >= 0 {
			last, over, ok = s.last, max(over, age), true
		}
	}
	return last, over, ok
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
	l := lookout{Broker: b, runs: map[string]*rounder{}}
	away := Fault{Logger: b.Logger, What: "ends that another process has left unrecorded cannot be recorded here; it is tried again", Over: "what other processes leave unrecorded is recorded again"}
	for {
		switch err := l.look(ctx); {
		case err == nil:
			away.Ended(b.Now())
		case ctx.Err() == nil:
			away.Met(b.Now(), err)
		}
		if pause(ctx, lookInterval); ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// look reads what all have told, and completes what it is this replica's turn to.
func (l *lookout) look(ctx context.Context) error {
	if l.view.reached().IsZero() {
		return nil // the feed, which tells of grants, has not been read yet
	}
	notes, err := l.notes(ctx, recordingKind)
	if err != nil {
		l.blind = l.Now()
		return err
	}
	for _, u := range l.due(notes, l.Now()) {
		if l.Now().Sub(l.failed) < goneAfter/2 {
			return nil // others come first
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
		if json.Unmarshal(note.Text, &p) != nil || len(note.ID) != makerChars {
			continue // of a replica of another version
		}
		if p.Round > 0 && !(p.Closed && p.done()) {
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
	maps.DeleteFunc(l.runs, func(maker string, _ *rounder) bool { _, ok := told[maker]; return !ok })
	return slices.DeleteFunc(all, func(u unrecorded) bool {
		return u.over < min(lastTurn, turnTime*time.Duration(l.turn(u.maker, makers)))
	})
}

// judge reports whether others must record for a process that has told its progress so long ago.
func (l *lookout) judge(maker string, p progress, age time.Duration, now time.Time) (unrecorded, bool) {
	if !p.Closed && now.Sub(l.blind) < goneAfter {
		delete(l.runs, maker)
		return unrecorded{}, false
	}
	if (p.Closed || age >= goneAfter) && maker != l.rounds.maker {
		if !p.Closed {
			age -= goneAfter
		}
		return unrecorded{maker: maker, events: eventsFrom(maker, min(p.Open, p.Pending)), over: age}, true
	}
	r := l.runs[maker]
	if r == nil {
		r = &rounder{}
		l.runs[maker] = r
	}
	from := max(p.Open, r.upto)
	r.see(p.Round-1, from, now)
	last, over, ok := r.late(now)
	if !ok || now.Sub(r.rest) < againAfter {
		return unrecorded{}, false
	}
	return unrecorded{maker: maker, events: eventsOf(maker, from, last), upto: last + 1, over: over}, true
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

func (l *lookout) notes(ctx context.Context, kind string) ([]BoardNote, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTry)
	defer cancel()
	return l.Board.Notes(ctx, kind)
}
