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

	"golang.org/x/sync/errgroup"
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
	met        bool // a task or a grant that it has named, whether or not that had ended before
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
	replies, _, err := r.b.endTwice(ctx, withdrawCall, all...)
	if err != nil {
		r.b.recordUnsure(ctx, err, r.sign(events)...)
		return err
	}
	for i, reply := range replies {
		if reply.Err != nil {
			return reply.Err
		}
		events[i].Time = reply.Receipt.Ended
		r.take(reply.Receipt)
		r.Entries++
		if audience := all[i].Selector.Audience; audience != "" {
			r.audiences.add([]string{audience})
		} else {
			r.audiences.add(nil)
		}
	}
	r.hand(ctx, events)
	return nil
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

// errTime says that a request has ended as much as it may take on.
var errTime = errors.New("the time for one request is over")

// endAll ends tasks or grants by their IDs.
func (r *running) endAll(ctx context.Context) error {
	until := r.b.Now().Add(massTime)
	if ends := r.named(); ends != nil {
		return r.endNamed(ctx, r.topmost(ctx, ends))
	}
	if r.What == WhatTasks {
		return r.endTasks(ctx, until)
	}
	return r.b.scan(ctx, r.Filter, true, func(found []GrantStatus) error {
		var ends []Ending
		for _, s := range found {
			if s.Live {
				ends = append(ends, Ending{Kind: TargetGrant, Grant: s.Grant.ID})
			}
		}
		return r.endChunks(ctx, ends, until)
	})
}

// endTasks ends the tasks that have none of the others above them: these go with it, in the same write. Whether one has can
// be said of a root at once, and of the rest when all have been found.
func (r *running) endTasks(ctx context.Context, until time.Time) error {
	ended := map[TaskID]bool{}
	var below [][]TaskID // their paths
	err := r.b.scan(ctx, r.Filter, false, func(found []GrantStatus) error {
		var ends []Ending
		for _, s := range found {
			switch path := s.Task.Path; {
			case s.Task.State.Final():
			case len(path) > 1:
				below = append(below, path)
			default:
				ended[s.Task.ID] = true
				ends = append(ends, Ending{Kind: TargetTask, Task: s.Task.ID})
			}
		}
		if err := r.endChunks(ctx, ends, until); err != nil {
			return err
		}
		if len(below) > 0 && r.b.Now().After(until) {
			return errTime
		}
		return nil
	})
	if err != nil && !errors.Is(err, errTime) {
		return err
	}
	slices.SortFunc(below, func(p, q []TaskID) int { return cmp.Compare(len(p), len(q)) }) // who is above comes first
	var ends []Ending
	for _, path := range below {
		if id := path[len(path)-1]; !slices.ContainsFunc(path, func(id TaskID) bool { return ended[id] }) {
			ended[id] = true
			ends = append(ends, Ending{Kind: TargetTask, Task: id})
		}
	}
	return cmp.Or(r.endChunks(ctx, ends, until), err)
}

// endChunks is end for as many as there are, while there is time: for one chunk at least.
func (r *running) endChunks(ctx context.Context, ends []Ending, until time.Time) error {
	for chunk := range slices.Chunk(ends, massChunk) {
		if _, err := r.end(ctx, chunk); err != nil {
			return err
		}
		if r.b.Now().After(until) {
			return errTime
		}
	}
	return nil
}

// named are the endings of a filter that names tasks, or grants, by their IDs and says nothing else: nobody has to
// be asked which these are. nil for any other.
func (r *running) named() []Ending {
	f := r.Filter
	var ends []Ending
	switch {
	case r.What == WhatTasks && f.same(Filter{Tasks: f.Tasks}):
		for _, id := range f.Tasks {
			ends = append(ends, Ending{Kind: TargetTask, Task: id})
		}
	case r.What == WhatTasks && f.same(Filter{Root: f.Root}):
		ends = append(ends, Ending{Kind: TargetTask, Task: f.Root})
	case r.What == WhatGrants && f.same(Filter{Grants: f.Grants}):
		for _, id := range f.Grants {
			ends = append(ends, Ending{Kind: TargetGrant, Grant: id})
		}
	}
	return ends
}

// topmost leaves out tasks below others of them. One that the store does not have, or cannot say anything of in time, stays:
// to end it too does no harm.
func (r *running) topmost(ctx context.Context, ends []Ending) []Ending {
	if len(ends) < 2 || r.What != WhatTasks {
		return ends
	}
	ctx, cancel := context.WithTimeout(ctx, storeTry)
	defer cancel()
	named := map[TaskID]bool{}
	for _, e := range ends {
		named[e.Task] = true
	}
	below := make([]bool, len(ends))
	var all errgroup.Group
	all.SetLimit(treeReads)
	for i, e := range ends {
		all.Go(func() error {
			record, err := r.b.Store.Lookup(ctx, Ref{Task: e.Task})
			path := record.Task.Path
			below[i] = err == nil && slices.ContainsFunc(path[:len(path)-1], func(id TaskID) bool { return named[id] })
			return nil
		})
	}
	_ = all.Wait() // none returns any
	var out []Ending
	for i, e := range ends {
		if !below[i] {
			out = append(out, e)
		}
	}
	return out
}

// endNamed is end for what an operator has named: what is not there is said. While the store is away these are in force
// on this replica alone, which brings them into the store.
func (r *running) endNamed(ctx context.Context, ends []Ending) error {
	round := r.b.rounds.enter()
	defer r.b.rounds.leave(round)
	away, err := r.end(ctx, ends)
	if isAway(err) {
		return r.endHere(away, err)
	}
	if err == nil && !r.met {
		return ErrNotFound
	}
	return err
}

// endHere is end without the store.
func (r *running) endHere(ends []Ending, away error) error {
	for i, e := range ends {
		p := r.pending()
		p.Ending, p.until = e, r.b.Now().Add(longest(e.Kind))
		receipt, err := r.b.endHere(&p, true, away)
		if err != nil {
			for _, rest := range ends[i:] {
				r.b.rounds.lose(rest.Event)
			}
			return err
		}
		r.count(receipt)
		r.audiences.add(nil)
	}
	return nil
}

// pending is what any of its ends is that the store does not have.
func (r *running) pending() pendingEnd {
	return pendingEnd{actor: r.Actor, address: r.address, revocation: r.ID, ticket: r.Ticket}
}

// end ends one chunk, and records each end. Beside an error that says that the store is away it returns those that it was
// away for.
func (r *running) end(ctx context.Context, ends []Ending) (away []Ending, err error) {
	round := r.b.rounds.enter()
	defer r.b.rounds.leave(round)
	for i := range ends {
		ends[i].State, ends[i].Cause, ends[i].Reason, ends[i].Event = Revoked, CauseOperator, r.Reason, r.b.rounds.event()
	}
	replies, _, err := r.b.endTwice(ctx, withdrawCall, ends...)
	if err != nil {
		if errors.Is(err, ErrUnconfirmed) && r.named() == nil {
			r.b.finish(r.pending(), ends...)
		}
		return ends, err
	}
	for i, reply := range replies {
		switch {
		case isAway(reply.Err):
			away, err = append(away, ends[i]), reply.Err
		case reply.Err != nil: // it is not there any more
		default:
			r.count(reply.Receipt)
			r.audiences.add(reply.Audiences)
		}
	}
	r.hand(ctx, r.b.endEvents(replies, r.Actor, r.address))
	return away, err
}

// count takes in the receipt of a task or a grant.
func (r *running) count(receipt Receipt) {
	r.take(receipt)
	r.met = true
	if !receipt.First {
		return
	}
	r.Entries++
	if receipt.Grant != "" {
		r.Grants++
	} else {
		r.Tasks++
	}
}

// seen waits a moment until this replica has read the feed up to a position, so that what it says next has that.
func (b *Broker) seen(ctx context.Context, p Position) {
	_ = b.view.reach(ctx, p) // what is newer than this replica's view is said a moment later
}
