package memory

import (
	"container/heap"
	"context"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
)

// Lookup returns a task, or a grant with its task. A grant stays visible for Margin after it has
// expired.
func (s *Store) Lookup(_ context.Context, ref broker.Ref) (broker.Record, error) {
	now := s.enter()
	defer s.mu.Unlock()
	index := ref.Task.Shard()
	if ref.Grant != "" {
		index = ref.Grant.Shard()
	}
	sh, err := s.shard(index)
	if err != nil {
		return broker.Record{}, err
	}
	record := broker.Record{Now: now, Control: sh.version}
	if ref.Grant != "" {
		g, ok := sh.grants[ref.Grant]
		if !ok {
			return broker.Record{}, broker.ErrNotFound
		}
		ref.Task, record.Grant = g.Task, g.Clone()
	}
	p, err := sh.find(ref.Task, spiffeid.ID{})
	if err != nil {
		return broker.Record{}, err
	}
	record.Task = p.asOf(now)
	return record, nil
}

// List returns tasks in the order of their IDs.
func (s *Store) List(_ context.Context, q broker.Query) (broker.Page, error) {
	if q.Limit == 0 {
		q.Limit = broker.MaxPage
	}
	if q.Limit < 1 || q.Limit > broker.MaxPage {
		return broker.Page{}, &broker.Invalid{Field: "limit", Detail: fmt.Sprintf("is %d; it must be 1 to %d", q.Limit, broker.MaxPage)}
	}
	now := s.enter()
	defer s.mu.Unlock()
	page := broker.Page{Now: now}
	for _, p := range s.selected(q) {
		if len(page.Tasks) == q.Limit {
			page.Next = string(page.Tasks[q.Limit-1].ID)
			break
		}
		page.Tasks = append(page.Tasks, p.asOf(now))
	}
	return page, nil
}

// lowest keeps the lowest IDs that it is given, the highest of them on top of its heap.
type lowest []broker.TaskID

func (l lowest) Len() int           { return len(l) }
func (l lowest) Less(i, j int) bool { return l[i] > l[j] }
func (l lowest) Swap(i, j int)      { l[i], l[j] = l[j], l[i] }

// Push is called by container/heap alone.
func (l *lowest) Push(x any) { *l = append(*l, x.(broker.TaskID)) }

// Pop is called by container/heap alone.
func (l *lowest) Pop() any {
	last := len(*l) - 1
	id := (*l)[last]
	*l = (*l)[:last]
	return id
}

// keep takes an ID in if it is among the lowest n so far.
func (l *lowest) keep(id broker.TaskID, n int) {
	switch {
	case len(*l) < n:
		heap.Push(l, id)
	case id < (*l)[0]:
		(*l)[0] = id
		heap.Fix(l, 0)
	}
}

// selected returns the paths to the first tasks that a query means, in order: a page, and one more
// if there is one. It sorts no more than that, since a sweep looks at what is left again and again.
func (s *Store) selected(q broker.Query) []path {
	var first lowest
	for _, sh := range s.shards {
		tasks := sh.tasks
		if q.Due {
			tasks = sh.due
		}
		for id := range tasks {
			if string(id) <= q.After || len(first) > q.Limit && id >= first[0] {
				continue // before finding it, which costs more
			}
			if _, err := sh.find(id, q.Workload); err == nil {
				first.keep(id, q.Limit+1)
			}
		}
	}
	slices.Sort(first)
	paths := make([]path, 0, len(first))
	for _, id := range first {
		if p, err := s.shards[id.Shard()].find(id, q.Workload); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}
