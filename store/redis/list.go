package redis

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/errandhq/errand/broker"
)

// List returns tasks or grants in the order of their places, which is that of the shards and then that in each.
// All are shown as of one moment, the first one's: the clocks of the shards may differ a little.
func (s *Store) List(ctx context.Context, q broker.Query) (broker.Page, error) {
	q, after, err := q.Check()
	if err != nil {
		return broker.Page{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.limits.send)
	defer cancel()
	l := &listing{store: s, query: q, until: time.Now().Add(s.limits.send / 2)}
	first, last := after.Task.Shard(), s.shards-1
	if after == endOf(first) {
		first++
	}
	if id := q.Of + q.Below; id != "" { // one of them
		first, last = max(first, id.Shard()), min(last, id.Shard())
	}
	for shard := first; shard <= last && l.page.Next == ""; shard++ {
		from := ""
		if after.Task != "" && after.Task.Shard() == shard {
			from = barePlace(after)
		}
		if err := l.add(ctx, shard, from); err != nil {
			return broker.Page{}, err
		}
	}
	if l.page.Now.IsZero() { // there is nothing in a shard that is not there; but the page has the store's time
		err = l.add(ctx, 0, behindAll)
	}
	return l.page, err
}

// behindAll is after every place.
const behindAll = "\xff"

// endOf is the place after all of a shard.
func endOf(shard int) broker.Place {
	r := reply{shard: shard}
	return broker.Place{Task: r.taskID(strings.Repeat("z", bareLength))}
}

// barePlace is a place in a shard as Redis has it.
func barePlace(p broker.Place) string {
	task, _ := bareTask(p.Task)
	grant, ok := bareGrant(p.Grant)
	if !ok {
		return task
	}
	return string(binary.BigEndian.AppendUint32([]byte(task), uint32(p.Expires.Unix()))) + grant
}

// placeIn reads a place in a shard.
func (r *reply) placeIn(bare string) broker.Place {
	switch len(bare) {
	case bareLength:
		return broker.Place{Task: r.taskID(bare)}
	case 2*bareLength + 4:
		expires := binary.BigEndian.Uint32([]byte(bare[bareLength:]))
		return broker.Place{
			Task: r.taskID(bare[:bareLength]), Expires: time.Unix(int64(expires), 0).UTC(), Grant: r.grantID(bare[bareLength+4:]),
		}
	case 0, len(behindAll): // nothing comes after what it was given
		return broker.Place{}
	}
	r.fail("a place that is none")
	return broker.Place{}
}

// listing is a List that is under way.
type listing struct {
	store  *Store
	query  broker.Query
	page   broker.Page
	rounds int          // so far
	until  time.Time    // when it takes too long
	last   broker.Place // that was looked at
}

// args are those of the script, but for the place and how many are wanted.
func (l *listing) args() []any {
	kind, which, what, workload := "tasks", "all", "", ""
	q := &l.query
	switch {
	case q.Of != "":
		which, what = "of", bareOr(q.Of)
	case q.Below != "":
		which, what = "below", bareOr(q.Below)
	case q.Ref != broker.TaskRef{}:
		which, what = "ref", refKey(q.Ref)
	case q.Due:
		which = "due"
	case q.Ended != broker.EventRange{}:
		which, what = "ended", string(q.Ended.From)+" "+string(q.Ended.Until)
	}
	if q.Grants {
		kind = "grants"
	}
	if !q.Workload.IsZero() {
		workload = q.Workload.String()
	}
	return []any{kind, which, what, workload}
}

// echo is what the answer of a shard about what comes after a place repeats.
func (l *listing) echo(shard int, after string) string {
	args := l.args()
	return fmt.Sprintf("list %d %s %s %s", shard, args[1], args[2], after)
}

// bareOr is the ID of a task as Redis has it, or of one that there cannot be.
func bareOr(id broker.TaskID) string {
	if bare, ok := bareTask(id); ok {
		return bare
	}
	return elsewhere
}

// add adds what one shard has after a place, until the page is full, or it takes a long search.
func (l *listing) add(ctx context.Context, shard int, after string) error {
	for more := true; more; {
		if l.rounds >= l.store.limits.rounds || l.rounds > 0 && !time.Now().Before(l.until) {
			l.page.Next = l.last.String()
			return nil
		}
		want := l.query.Limit + 1 - len(l.page.Tasks) - len(l.page.Grants)
		args := append(l.args(), after, want)
		if l.query.Due {
			args = append(args, l.store.rounds[shard].Load())
		}
		r := l.store.send(ctx, []call{{script: l.store.scripts.list, shard: shard, echo: l.echo(shard, after), args: args}})[0]
		if r.err == nil && r.status == "again" {
			continue
		}
		if r.err == nil && r.status != "ok" {
			r.err = r.refusal()
		}
		l.rounds++
		if now := r.moment(); l.page.Now.IsZero() {
			l.page.Now = now
		}
		found := l.take(&r)
		after = r.text()
		l.last, more = r.placeIn(after), r.flag()
		if l.query.Due {
			r.round(&l.store.rounds[shard])
		}
		if r.err != nil {
			return r.err
		}
		if err := l.lookUp(ctx, shard, found); err != nil {
			return err
		}
		if l.cut() {
			return nil
		}
		if !more {
			l.last = endOf(shard)
		}
	}
	return nil
}

// round keeps where the round through the tasks of a shard goes on.
func (r *reply) round(at *atomic.Uint64) {
	n, err := strconv.ParseUint(r.text(), 10, 64)
	if err != nil {
		r.fail("a place in a round that is none")
		return
	}
	at.Store(n)
}

// take adds the tasks of an answer to the page, or returns the bare IDs of its grants.
func (l *listing) take(r *reply) (grants []string) {
	if l.query.Grants {
		list := r.list()
		for list.left > 0 {
			grants = append(grants, list.text())
		}
		r.join(list)
		return grants
	}
	r.each(func(item *reply) {
		task := item.taskFields(l.page.Now)
		if l.store.spoilt(item) != nil {
			return
		}
		if at, _, _ := task.Due(); l.query.Due && l.page.Now.Before(at) {
			return
		}
		l.page.Tasks = append(l.page.Tasks, task)
	})
	return nil
}

// lookUp adds grants to the page, each with its task and as one look-up finds them. Some may have gone since
// they were found.
func (l *listing) lookUp(ctx context.Context, shard int, found []string) error {
	s := l.store
	for part := range slices.Chunk(found, maxBatch) {
		var calls []call
		for _, id := range part {
			calls = append(calls, call{script: s.scripts.lookup, shard: shard, echo: id, keys: []string{s.grantKey(shard, id)}})
		}
		for _, r := range s.send(ctx, calls) {
			if r.err == nil && r.status == "not found" {
				continue
			}
			if r.err == nil && r.status != "ok" {
				r.err = r.refusal()
			}
			record := r.record(l.page.Now)
			if r.err != nil {
				return r.err
			}
			if s.spoilt(&r) != nil {
				continue
			}
			record.Now, record.Control = time.Time{}, 0
			l.page.Grants = append(l.page.Grants, record)
		}
	}
	return nil
}

// cut ends a page that has become too long, and reports whether it had.
func (l *listing) cut() bool {
	limit := l.query.Limit
	switch {
	case len(l.page.Tasks) > limit:
		l.page.Tasks = l.page.Tasks[:limit]
		l.page.Next = broker.Place{Task: l.page.Tasks[limit-1].ID}.String()
	case len(l.page.Grants) > limit:
		l.page.Grants = l.page.Grants[:limit]
		l.page.Next = broker.PlaceOf(l.page.Grants[limit-1].Grant).String()
	}
	return l.page.Next != ""
}
