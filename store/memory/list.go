package memory

import (
	"container/heap"
	"context"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
)

// List returns tasks or grants in the order of their places. It looks at all that there are, and so needs no
// index.
func (s *Store) List(_ context.Context, q broker.Query) (broker.Page, error) {
	q, after, err := q.Check()
	if err != nil {
		return broker.Page{}, err
	}
	now := s.enter()
	defer s.mu.Unlock()
	page := broker.Page{Now: now}
	places := s.selected(q, after)
	if len(places) > q.Limit {
		places = places[:q.Limit]
		page.Next = places[q.Limit-1].String()
	}
	for _, place := range places {
		sh := s.shards[place.Task.Shard()]
		p, err := sh.find(place.Task, spiffeid.ID{})
		switch {
		case err != nil: // it was selected just now
		case q.Grants:
			page.Grants = append(page.Grants, broker.Record{Task: p.asOf(now), Grant: sh.grants[place.Grant].Clone()})
		default:
			page.Tasks = append(page.Tasks, p.asOf(now))
		}
	}
	return page, nil
}

// selected returns the first places that a query means, in order: a page, and one more if there is one. It
// sorts no more than that, since a sweep looks at what is left again and again.
func (s *Store) selected(q broker.Query, after broker.Place) []broker.Place {
	var first lowest
	for _, sh := range s.shards {
		consider := func(place broker.Place) {
			if place.Compare(after) <= 0 || len(first) > q.Limit && place.Compare(first[0]) >= 0 {
				return // before finding it, which costs more
			}
			if p, err := sh.find(place.Task, q.Workload); err == nil && meant(q, p.task()) {
				first.keep(place, q.Limit+1)
			}
		}
		switch {
		case q.Grants:
			for _, g := range sh.grants {
				consider(broker.PlaceOf(g.Grant))
			}
		case q.Due:
			for id := range sh.due {
				consider(broker.Place{Task: id})
			}
		default:
			for id := range sh.tasks {
				consider(broker.Place{Task: id})
			}
		}
	}
	slices.SortFunc(first, broker.Place.Compare)
	return first
}

// meant reports whether a task is of those that a query names.
func meant(q broker.Query, t *task) bool {
	switch {
	case q.Of != "":
		return t.ID == q.Of
	case q.Below != "":
		return slices.Contains(t.Path, q.Below)
	case q.Ref != broker.TaskRef{}:
		return t.Ref.Kind == q.Ref.Kind && t.Ref.ID == q.Ref.ID
	case q.Ended != broker.EventRange{}:
		return t.receipt != nil && q.Ended.Has(t.receipt.Event)
	}
	return true
}

// lowest keeps the lowest places that it is given, the highest of them on top of its heap.
type lowest []broker.Place

func (l lowest) Len() int           { return len(l) }
func (l lowest) Less(i, j int) bool { return l[i].Compare(l[j]) > 0 }
func (l lowest) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }

// Push is called by container/heap alone.
func (l *lowest) Push(x any) { *l = append(*l, x.(broker.Place)) }

// Pop is called by container/heap alone.
func (l *lowest) Pop() any {
	last := len(*l) - 1
	place := (*l)[last]
	*l = (*l)[:last]
	return place
}

// keep takes a place in if it is among the lowest n so far.
func (l *lowest) keep(place broker.Place, n int) {
	switch {
	case len(*l) < n:
		heap.Push(l, place)
	case place.Compare((*l)[0]) < 0:
		(*l)[0] = place
		heap.Fix(l, 0)
	}
}
