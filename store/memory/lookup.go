package memory

import (
	"context"

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
