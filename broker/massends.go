package broker

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// errTime says that a request has ended as much as it may take on.
var errTime = errors.New("the time for one request is over")

// endAll ends tasks or grants by their IDs.
func (r *running) endAll(ctx context.Context) error {
	until := r.b.Now().Add(massTime)
	if ends := r.named(); ends != nil {
		return r.endNamed(ctx, r.topmost(ctx, ends))
	}
	end := r.endGrants
	if r.What == WhatTasks {
		end = r.endTasks
	}
	err := end(ctx, until)
	return cmp.Or(err, r.failed)
}

func (r *running) endGrants(ctx context.Context, until time.Time) error {
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
		away, err := r.end(ctx, chunk)
		if len(chunk) > 1 && len(away) == len(chunk) { // one alone may be at fault itself, and not the store
			return err
		}
		r.failed = cmp.Or(r.failed, err)
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
	replies, _ := r.b.endTwice(ctx, withdrawCall, ends...) // each says for itself what it has come to
	if r.named() == nil {
		r.b.finishUnsure(r.pending(), ends, replies)
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
