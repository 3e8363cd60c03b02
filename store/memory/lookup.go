package memory

import (
	"context"
	"fmt"
	"slices"
	"strings"

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
			page.More = true
			break
		}
		page.Tasks = append(page.Tasks, p.asOf(now))
	}
	return page, nil
}

// selected returns the paths to all tasks that a query means, in order.
func (s *Store) selected(q broker.Query) []path {
	var paths []path
	for _, sh := range s.shards {
		tasks := sh.tasks
		if q.Due {
			tasks = sh.due
		}
		for id := range tasks {
			if id <= q.After {
				continue
			}
			if p, err := sh.find(id, q.Workload); err == nil {
				paths = append(paths, p)
			}
		}
	}
	slices.SortFunc(paths, func(a, b path) int {
		return strings.Compare(string(a.task().ID), string(b.task().ID))
	})
	return paths
}
