package redis

import (
	"context"
	"fmt"

	"github.com/errandhq/errand/broker"
)

// Lookup returns a task, or a grant with its task. A grant stays visible for Margin after it has
// expired.
func (s *Store) Lookup(ctx context.Context, ref broker.Ref) (broker.Record, error) {
	id, shard := string(ref.Task), ref.Task.Shard()
	if ref.Grant != "" {
		id, shard = string(ref.Grant), ref.Grant.Shard()
	}
	if !s.has(shard) {
		return broker.Record{}, broker.ErrNotFound
	}
	r := s.run(ctx, call{s.scripts.lookup, shard, id, []any{id}})[0]
	if r.err != nil {
		return broker.Record{}, r.err
	}
	if r.status != "ok" {
		return broker.Record{}, r.refusal()
	}
	record := broker.Record{Now: r.moment(), Control: uint64(r.number())}
	record.Task = r.task(record.Now)
	record.Grant = r.grant()
	if r.err != nil {
		return broker.Record{}, r.err
	}
	return record, nil
}

// List returns tasks in the order of their IDs, which is that of the shards and then that in each.
// All are shown as of one moment, the first one's: the clocks of the shards may differ a little.
func (s *Store) List(ctx context.Context, q broker.Query) (broker.Page, error) {
	if q.Limit == 0 {
		q.Limit = broker.MaxPage
	}
	if q.Limit < 1 || q.Limit > broker.MaxPage {
		return broker.Page{}, &broker.Invalid{Field: "limit", Detail: fmt.Sprintf("is %d; it must be 1 to %d", q.Limit, broker.MaxPage)}
	}
	var page broker.Page
	for shard := range s.keys {
		last := fmt.Sprintf("tsk_%02d\xff", shard) // no ID of the shard is behind it
		if string(q.After) > last && shard < len(s.keys)-1 {
			continue
		}
		if err := s.listShard(ctx, shard, q, &page); err != nil {
			return broker.Page{}, err
		}
		if page.More {
			break
		}
	}
	return page, nil
}

// listShard adds the tasks of one shard to the page.
func (s *Store) listShard(ctx context.Context, shard int, q broker.Query, page *broker.Page) error {
	workload, due := "", "0"
	if !q.Workload.IsZero() {
		workload = q.Workload.String()
	}
	if q.Due {
		due = "1"
	}
	after := string(q.After)
	for more := true; more; {
		want := q.Limit + 1 - len(page.Tasks)
		r := s.run(ctx, call{s.scripts.list, shard, "list", []any{after, want, workload, due}})[0]
		if r.err == nil && r.status == "again" {
			continue
		}
		if r.err == nil && r.status != "ok" {
			r.err = r.refusal()
		}
		now := r.moment()
		if page.Now.IsZero() {
			page.Now = now
		}
		r.each(func(item *reply) {
			task := item.taskFields(page.Now)
			if at, _, _ := task.Due(); q.Due && page.Now.Before(at) {
				return
			}
			page.Tasks = append(page.Tasks, task)
		})
		after, more = r.text(), r.flag()
		if r.err != nil {
			return r.err
		}
		if len(page.Tasks) > q.Limit {
			page.Tasks, page.More = page.Tasks[:q.Limit], true
			return nil
		}
	}
	return nil
}
