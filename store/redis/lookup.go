package redis

import (
	"context"
	"fmt"
	"strings"

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
	record := broker.Record{Now: r.moment(), Control: uint64(r.number())}
	record.Task = r.task(record.Now)
	record.Grant = r.grant(record.Task)
	if r.err != nil {
		return broker.Record{}, r.err
	}
	return record, nil
}

// List returns tasks in the order of their IDs, which is that of the shards and then that in each.
// All are shown as of one moment, the first one's: the clocks of the shards may differ a little.
func (s *Store) List(ctx context.Context, q broker.Query) (broker.Page, error) {
	q, _, err := q.Check()
	if err != nil {
		return broker.Page{}, err
	}
	if q.Grants || q.Of != "" || q.Below != "" || q.Ref != (broker.TaskRef{}) {
		return broker.Page{}, fmt.Errorf("%w: redis lists all tasks, or those that are due", broker.ErrUnavailable)
	}
	var page broker.Page
	for shard := range s.shards {
		prefix := fmt.Sprintf("tsk_%02d", shard)
		after, here := strings.CutPrefix(q.After, prefix)
		switch {
		case here:
		case q.After < prefix:
			after = ""
		case shard < s.shards-1:
			continue
		default:
			after = "\xff" // behind every ID; but the page has the store's time
		}
		if err := s.listShard(ctx, shard, q, after, &page); err != nil {
			return broker.Page{}, err
		}
		if page.Next != "" {
			break
		}
	}
	return page, nil
}

// listShard adds the tasks of one shard to the page.
func (s *Store) listShard(ctx context.Context, shard int, q broker.Query, after string, page *broker.Page) error {
	workload, due := "", "0"
	if !q.Workload.IsZero() {
		workload = q.Workload.String()
	}
	if q.Due {
		due = "1"
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.send)
	defer cancel()
	for more := true; more; {
		want := q.Limit + 1 - len(page.Tasks)
		r := s.send(ctx, []call{{script: s.scripts.list, shard: shard, echo: "list", args: []any{after, want, workload, due}}})[0]
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
			page.Tasks, page.Next = page.Tasks[:q.Limit], string(page.Tasks[q.Limit-1].ID)
			return nil
		}
	}
	return nil
}
