package broker

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds of a mass revocation.
const (
	// MinReason is how many characters the reason of one has at least, and of a lock.
	MinReason = 10

	// RevocationLife is how long the record of one is kept.
	RevocationLife = 24 * time.Hour

	// massTime is how long one request goes on ending tasks and grants by ID. It is to be repeated for the rest.
	massTime = 8 * time.Second

	// massChunk is how many end in one call of the store.
	massChunk = 200

	revocationKind = "revocation" // of notes on the Board
)

// Mass is an operator's word that everything which a filter means is over.
type Mass struct {
	Filter Filter
	What   What   // WhatTasks when empty and the filter names tasks, else WhatGrants
	Plan   string // of PlanRevocation, in the place of Filter and What

	Actor      string // who says so
	Address    string // the peer's
	Thumbprint string // of the actor's certificate
	Reason     string // why; MinReason characters at least
	Ticket     string

	// MaxAffected refuses the whole when it would hit more live grants, or end more tasks, by a count right before; nil does
	// not count.
	MaxAffected *int

	// MayAll says that the actor may revoke everything.
	MayAll bool

	// Wait has RevokeAll also Await what the verifiers of the audiences say; at most MaxWait.
	Wait time.Duration
}

// MassRevocation is the record of one, and what it has done.
type MassRevocation struct {
	ID      RevocationID
	Event   EventID // of EventApplied
	Filter  Filter
	What    What
	Reason  string
	Ticket  string
	Actor   string
	At      time.Time
	Counted *int // live grants, as counted right before
	Tasks   int  // that it ended by ID; all below them are dead as well, and not counted
	Grants  int  // that it ended by ID
	Entries int  // that it wrote, as Plan.Entries; of a task without tokens that could still be good the feed has none
	Took    time.Duration
	Feed    Position // everything about it is in the feed up to here
	Durable bool

	// Left says what is not done, when the store went away in between, or the time for one request was over. To repeat
	// it is safe. "" when all of it is done.
	Left string

	Propagation *Propagation `json:"-"` // as of the answer, when it was waited for
}

// ErrAll: to revoke everything needs another role.
var ErrAll = errors.New("revoking everything needs the role " + RoleAdmin.String())

// RevokeAll is Revoke for everything that a filter means. What the control list can say is dead first, by one write
// for each shard; then tasks end by their IDs, in chunks, and so do grants that no entry can name. When it returns nil and
// nothing is Left, all that was there when it was called is dead for every look-up. Tasks that begin while it runs may
// escape; lock first what must not. A ctx that ends does not undo it.
//
// Errors: ErrInvalid, ErrAll, ErrPlanChanged, ErrPlanExpired, ErrNotFound when it names tasks or grants that are not
// there and nothing else, and those of the store: then nothing has happened, or of ErrUnconfirmed all of it may have.
func (b *Broker) RevokeAll(ctx context.Context, m Mass) (MassRevocation, error) {
	if err := checkMass(m.Actor, m.Reason, m.Ticket); err != nil {
		return MassRevocation{}, err
	}
	if err := checkWait(m.Wait); err != nil {
		return MassRevocation{}, err
	}
	planned := sealedPlan{Grants: -1, Tasks: -1}
	if m.Plan != "" {
		if !m.Filter.IsZero() || m.What != "" {
			return MassRevocation{}, invalid("plan", "goes in the place of selector and what; leave these out")
		}
		var err error
		if planned, err = b.openPlan(m.Plan, m.Actor); err != nil {
			return MassRevocation{}, err
		}
		m.Filter, m.What = planned.Filter, planned.What
	}
	what, selectors, err := b.aim(&m.Filter, m.What)
	if err != nil {
		return MassRevocation{}, err
	}
	if m.Filter.All && !m.MayAll {
		return MassRevocation{}, ErrAll
	}
	if err := b.checkRoot(ctx, m.Filter); err != nil {
		return MassRevocation{}, err
	}
	m.What = what
	now := b.Now()
	r := &running{b: b, began: now, selectors: selectors, MassRevocation: MassRevocation{
		ID: NewRevocationID(), Event: NewEventID(), Filter: m.Filter, What: what, Reason: m.Reason, Ticket: m.Ticket, Actor: m.Actor,
		At: now.UTC().Truncate(time.Millisecond), Durable: true,
	}, address: m.Address, thumbprint: m.Thumbprint}
	if m.Plan != "" || m.MaxAffected != nil {
		if err := r.agree(ctx, m.MaxAffected, planned); err != nil {
			return MassRevocation{}, err
		}
	}
	done, err := r.run(context.WithoutCancel(ctx))
	if err == nil && m.Wait > 0 {
		done.Propagation = b.propagated(ctx, m.Actor, done.Feed, r.audiences.list(), m.Wait)
	}
	return done, err
}

// checkMass is checkOperator for what hits many.
func checkMass(actor, reason, ticket string) error {
	if err := checkOperator(actor, reason); err != nil {
		return err
	}
	if n := utf8.RuneCountInString(strings.TrimSpace(reason)); n < MinReason || !utf8.ValidString(reason) {
		return invalid("reason", "has %d characters; say why in %d at least, for the audit log and whoever meets the effect", n, MinReason)
	}
	return checkLine("ticket", ticket, MaxTicket)
}

// running is a mass revocation that is being applied.
type running struct {
	MassRevocation
	b          *Broker
	began      time.Time
	address    string
	thumbprint string
	selectors  []Selector
	audiences  reached
	failed     error // of some that it was to end, for which the others have not waited
	met        bool  // a task or a grant that it has named, whether or not that had ended before
}

// reached are the audiences whose verifiers must know.
type reached struct {
	all  bool
	some map[string]bool
}

// add takes in those of one end; nil means all.
func (r *reached) add(audiences []string) {
	if r.all = r.all || audiences == nil; r.some == nil {
		r.some = map[string]bool{}
	}
	for _, a := range audiences {
		r.some[a] = true
	}
}

// list has them as Await takes them.
func (r *reached) list() []string {
	if r.all {
		return nil
	}
	return append([]string{}, slices.Sorted(maps.Keys(r.some))...) // not nil for none
}

// agree counts, and refuses what is much more than was agreed to.
func (r *running) agree(ctx context.Context, most *int, planned sealedPlan) error {
	stop := 0
	if most != nil {
		if *most < 0 {
			return invalid("max_affected", "is %d; it is a number of live grants, or of tasks", *most)
		}
		stop = *most
		for _, n := range []int{planned.Grants, planned.Tasks} {
			stop = max(stop, n+n/10+spare)
		}
		stop++
	}
	count, err := r.b.count(ctx, r.Filter, r.What, stop)
	if err != nil {
		return err
	}
	r.Counted = &count.Grants
	numbers := []PlanChanged{{What: WhatGrants, Planned: planned.Grants, Now: count.Grants}}
	if r.What == WhatTasks {
		numbers = append(numbers, PlanChanged{What: WhatTasks, Planned: planned.Tasks, Now: count.Tasks})
	}
	unknown := !count.Complete && (most != nil || planned.Grants >= 0 && planned.Complete)
	for i, n := range numbers {
		n.Most, n.Complete = -1, count.Complete
		grown := n.Now - n.Planned
		switch last := i == len(numbers)-1; {
		case most != nil && (n.Now > *most || unknown && last):
			n.Planned, n.Most = -1, *most
			return &n
		case n.Planned >= 0 && planned.Complete && grown > spare && grown*10 > n.Planned, unknown && last:
			return &n
		}
	}
	return nil
}

// run writes the entries, then ends what has to end by ID, and records the whole.
func (r *running) run(ctx context.Context) (MassRevocation, error) {
	err := r.deny(ctx)
	r.Took = r.b.Now().Sub(r.began)
	if err == nil && (r.What == WhatTasks || !r.Filter.isPure()) {
		err = r.endAll(ctx)
		if len(r.selectors) == 0 && !r.Filter.All {
			r.Took = r.b.Now().Sub(r.began)
		}
	}
	if err != nil && r.Entries == 0 {
		return MassRevocation{}, err
	}
	r.left(err)
	r.record(ctx)
	r.b.seen(ctx, r.Feed)
	return r.MassRevocation, nil
}

// left says what an error has left to do.
func (r *running) left(err error) {
	what := "tasks"
	if r.What == WhatGrants {
		what = "grants"
	}
	switch {
	case err == nil:
	case errors.Is(err, errTime):
		r.Left = "some of the " + what + ", since the time for one request was over; repeat it to go on"
	case isAway(err):
		r.Left = "some of the " + what + ", since the store went away; repeat it when that is back"
	default:
		r.Left = "some of the " + what + "; repeat it, and if that does not help see the broker's log"
	}
	if err != nil {
		r.b.Logger.Error("a revocation is not complete", "revocation", string(r.ID), "left", r.Left, "error", err)
	}
}

// deny writes what the control list can say, in one call of the store.
func (r *running) deny(ctx context.Context) error {
	round := r.b.rounds.enter()
	defer r.b.rounds.leave(round)
	var all []Ending
	var events []Event
	event := func(e Ending) {
		e.State, e.Cause, e.Reason, e.Event = Revoked, CauseOperator, r.Reason, r.b.rounds.event()
		all = append(all, e)
		events = append(events, Event{ID: e.Event, Kind: EventRevoked, Cause: CauseOperator, Selector: e.Selector})
	}
	if r.Filter.All {
		event(Ending{Kind: TargetAll})
	}
	for _, s := range r.selectors {
		event(Ending{Kind: TargetSelector, Selector: s})
	}
	if len(all) == 0 {
		return nil
	}
	r.b.intend(ctx, r.sign(events)...)
	replies, err := r.b.endTwice(ctx, withdrawCall, all...)
	if err != nil {
		r.b.recordUnsure(ctx, err, r.sign(events)...)
		return err
	}
	var done, unsure []Event
	for i, reply := range replies {
		if reply.Err != nil {
			if err = cmp.Or(err, reply.Err); errors.Is(reply.Err, ErrUnconfirmed) {
				unsure = append(unsure, events[i])
			}
			continue
		}
		events[i].Time = reply.Receipt.Ended
		done = append(done, events[i])
		r.take(reply.Receipt)
		r.Entries++
		if audience := all[i].Selector.Audience; audience != "" {
			r.audiences.add([]string{audience})
		} else {
			r.audiences.add(nil)
		}
	}
	r.hand(ctx, done)
	r.b.recordUnsure(ctx, ErrUnconfirmed, r.sign(unsure)...)
	return err
}

// take sums up the receipts.
func (r *running) take(receipt Receipt) {
	r.Durable = r.Durable && receipt.Durable
	r.Feed = r.Feed.union(receipt.Feed)
}

// hand records events of this revocation, and waits a moment for that.
func (r *running) hand(ctx context.Context, events []Event) {
	r.b.record(ctx, r.sign(events))
}

// sign says in events whose they are.
func (r *running) sign(events []Event) []Event {
	for i := range events {
		e := &events[i]
		e.Actor, e.Address, e.Reason, e.Revocation = r.Actor, r.address, r.Reason, r.ID
		if e.Ticket == "" {
			e.Ticket = r.Ticket
		}
		if e.Grant == "" { // that of a grant is what its token is bound to
			e.Thumbprint = r.thumbprint
		}
	}
	return events
}

// seen waits a moment until this replica has read the feed up to a position, so that what it says next has that.
func (b *Broker) seen(ctx context.Context, p Position) {
	_ = b.view.reach(ctx, p) // what is newer than this replica's view is said a moment later
}
