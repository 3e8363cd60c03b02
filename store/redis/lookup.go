package redis

import (
	"cmp"
	"context"
	"time"

	"github.com/errandhq/errand/broker"
)

// Lookup returns a task, or a grant with its task. A grant stays visible for Margin after it has
// expired.
func (s *Store) Lookup(ctx context.Context, ref broker.Ref) (broker.Record, error) {
	id, ok := bareTask(ref.Task)
	c := call{script: s.scripts.lookup, shard: ref.Task.Shard(), echo: id}
	if ref.Grant != "" {
		id, ok = bareGrant(ref.Grant)
		c.shard, c.echo = ref.Grant.Shard(), id
	}
	if !ok || !s.has(c.shard) {
		return broker.Record{}, broker.ErrNotFound
	}
	if ref.Grant != "" {
		c.keys = []string{s.grantKey(c.shard, id)}
	}
	r := s.run(ctx, s.lookups, c)[0]
	if r.err != nil {
		return broker.Record{}, r.err
	}
	if r.status != "ok" {
		return broker.Record{}, r.refusal()
	}
	record := r.record(time.Time{})
	if err := cmp.Or(r.err, s.spoilt(&r)); err != nil {
		return broker.Record{}, err
	}
	return record, nil
}

// record reads what a look-up has found, as of a moment, or as of the answer's own when that is zero.
func (r *reply) record(as time.Time) broker.Record {
	record := broker.Record{Now: r.moment(), Control: uint64(r.number())}
	if as.IsZero() {
		as = record.Now
	}
	record.Task = r.task(as)
	record.Grant = r.grant(record.Task)
	return record
}
