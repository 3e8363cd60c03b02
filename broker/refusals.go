package broker

import (
	"cmp"
	"context"
	"sync"
	"time"
)

// How refusals are recorded: the first of a workload in a minute each by itself, and what comes beyond
// them as one event for each rule, so that nobody who may knock can fill the audit log by knocking. Who
// has no owner in the inventory may come under any number of names, as many as a federated trust domain
// cares to make, and so shares the number of the first ones, and of names, with all the others of that
// kind.
const (
	refusalPeriod   = time.Minute
	singleRefusals  = 60     // events of one workload in a period
	singleStrangers = 600    // events of all workloads without an owner in a period
	maxRefused      = 10_000 // workloads without an owner that are counted by themselves at the same time
	maxRefusedFor   = 32     // rules that are counted by themselves for one workload
	tellRefusals    = time.Second
)

// otherRules stands for the rules beyond maxRefusedFor.
const otherRules = "other"

// refusals counts what was refused. The zero value is ready.
type refusals struct {
	mu        sync.Mutex
	of        map[string]*refused // by workload; "" has those beyond maxRefused
	strangers int                 // of these, those without an owner
	since     time.Time           // when the strangers' period began
	single    int                 // their events in it
}

// refused is a workload's period, which begins with its first refusal.
type refused struct {
	since    time.Time
	stranger bool
	single   int
	more     map[string]*Event // by rule
}

// take reports whether a refusal is to be recorded by itself. If not it is counted.
func (r *refusals) take(e Event) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := r.period(&e)
	if of.single < singleRefusals && (!of.stranger || r.spend(e.Time)) {
		of.single++
		return true
	}
	of.count(e)
	return false
}

// spend takes one of the strangers' events. It is called with mu held.
func (r *refusals) spend(now time.Time) bool {
	if age := now.Sub(r.since); age >= refusalPeriod || age < 0 {
		r.since, r.single = now, 0
	}
	r.single++
	return r.single <= singleStrangers
}

// count counts refusals that found no room in the log: one, or as many as were counted before.
func (r *refusals) count(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.period(&e).count(e)
}

// period is called with mu held. An event that has no period of its own loses what is only its own.
func (r *refusals) period(e *Event) *refused {
	if r.of == nil {
		r.of = map[string]*refused{}
	}
	key := cmp.Or(e.Workload, e.Actor) // a source of ends may have no SPIFFE ID
	of := r.of[key]
	if of == nil && e.Owner == "" && r.strangers >= maxRefused {
		e.Workload, e.Actor, e.Address, e.Reason = "", "", "", "by workloads too many to be named"
		key = ""
		of = r.of[""]
	}
	if of == nil {
		of = &refused{since: e.Time, stranger: e.Owner == "", more: map[string]*Event{}}
		r.of[key] = of
		if of.stranger {
			r.strangers++
		}
	}
	return of
}

func (r *refused) count(e Event) {
	if r.more[e.Rule] == nil && len(r.more) >= maxRefusedFor {
		e.Rule = otherRules
	}
	more := r.more[e.Rule]
	if more == nil {
		more = &Event{ID: NewEventID(), Kind: EventDeniedMore, Workload: e.Workload, Owner: e.Owner, Actor: e.Actor, Rule: e.Rule, First: e.Time}
		if !e.First.IsZero() {
			more.First = e.First
		}
		r.more[e.Rule] = more
	}
	more.Count += max(1, e.Count)
	more.Time, more.Address, more.Reason, more.Revision = e.Time, e.Address, e.Reason, e.Revision
}

// due takes out the events of the periods that are over, or of all.
func (r *refusals) due(now time.Time, all bool) (events []Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for workload, of := range r.of {
		if age := now.Sub(of.since); all || age >= refusalPeriod || age < 0 {
			for _, e := range of.more {
				events = append(events, *e)
			}
			if delete(r.of, workload); of.stranger {
				r.strangers--
			}
		}
	}
	return events
}

// recordRefusal does not wait for the audit log: the answer is no whether or not it can be recorded.
func (b *Broker) recordRefusal(e Event) {
	if b.refusals.take(e) && !b.backlog.addMinor(e, b.Now()) {
		b.refusals.count(e)
	}
}

// recordRefusals hands over what was counted, minute by minute, until ctx ends.
func (b *Broker) recordRefusals(ctx context.Context) error {
	tick := time.NewTicker(tellRefusals)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		for _, e := range b.refusals.due(b.Now(), false) {
			// Like a refusal by itself it takes no room from what somebody waits for.
			if !b.backlog.addMinor(e, b.Now()) {
				b.refusals.count(e)
			}
		}
	}
}
