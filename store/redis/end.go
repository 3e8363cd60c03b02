package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/errandhq/errand/broker"
)

// End puts each target into its final state: one script for each task and grant, all in one round
// trip, and one in each shard for what concerns every shard. Each has its own error.
func (s *Store) End(ctx context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	if len(ends) > 1 { // in several round trips, perhaps
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.limits.send)
		defer cancel()
	}
	replies := make([]broker.EndReply, len(ends))
	var calls []call
	var whose []int
	flush := func() {
		for n, r := range s.run(ctx, s.ends, calls...) {
			replies[whose[n]] = s.endReply(r)
		}
		calls, whose = nil, nil
	}
	everywhere := 0 // how many of the last ones concern every shard
	flushEverywhere := func(until int) {
		for n, c := range s.endEverywhere(ctx, ends[until-everywhere:until]) {
			if replies[until-everywhere+n] = c.reply; c.err != nil {
				replies[until-everywhere+n] = broker.EndReply{Err: c.err}
			}
		}
		everywhere = 0
	}
	for i, e := range ends { // those that are not alike go one after the other, so that they end in their order
		switch e.Kind {
		case broker.TargetTask, broker.TargetGrant:
			flushEverywhere(i)
			c, ok := s.endCall(e)
			if !ok {
				replies[i].Err = broker.ErrNotFound
				continue
			}
			calls = append(calls, c)
			whose = append(whose, i)
		default:
			flush()
			everywhere++
		}
	}
	flushEverywhere(len(ends))
	flush()
	if err := ofAll(replies); err != nil {
		return nil, err
	}
	return replies, nil
}

// ofAll is the error of an End that can tell of none of its targets.
func ofAll(replies []broker.EndReply) (failure error) {
	for _, r := range replies {
		unsure := errors.Is(r.Err, broker.ErrUnconfirmed)
		if !unsure && !errors.Is(r.Err, broker.ErrUnavailable) {
			return nil
		}
		if failure == nil || unsure {
			failure = r.Err
		}
	}
	return failure
}

// endCall is the call for a task or a grant; there is none for one that cannot be.
func (s *Store) endCall(e broker.Ending) (call, bool) {
	id, ok := bareTask(e.Task)
	c := call{script: s.scripts.end, shard: e.Task.Shard(), echo: id}
	if e.Kind == broker.TargetGrant {
		id, ok = bareGrant(e.Grant)
		c.shard, c.echo = e.Grant.Shard(), id
	}
	if !ok || !s.has(c.shard) {
		return call{}, false
	}
	if e.Kind == broker.TargetGrant {
		c.keys = []string{s.grantKey(c.shard, id)}
	}
	workload, ifDue := "", "0"
	if !e.Workload.IsZero() {
		workload = e.Workload.String()
	}
	if e.IfDue {
		ifDue = "1"
	}
	lost, static := any(""), ""
	if !e.Lost.IsZero() {
		lost, static = max(1, e.Lost.UnixMilli()), packTask(&broker.Beginning{})
	}
	before, after := s.around(c.shard)
	c.args = []any{workload, string(e.State), string(e.Cause), e.Reason, string(e.Event), ifDue, before, after, lost, static}
	if e.Holder != 0 {
		c.args = append(c.args, e.Holder)
	}
	return c, true
}

// endReply reads what became of a task or a grant.
func (s *Store) endReply(r reply) broker.EndReply {
	if r.err != nil {
		return broker.EndReply{Err: r.err}
	}
	if r.status != "ok" && r.status != "active" {
		return broker.EndReply{Err: r.refusal()}
	}
	now, first := r.moment(), r.flag()
	out := broker.EndReply{Task: r.task(now)}
	if r.status == "active" {
		out.Receipt = broker.Receipt{Task: out.Task.ID, State: broker.Active}
		if out.Err = s.spoilt(&r); r.err != nil {
			return broker.EndReply{Err: r.err}
		}
		return out
	}
	l := r.list()
	out.Receipt = broker.Receipt{
		Event: broker.EventID(l.text()), Task: out.Task.ID, State: broker.State(l.text()), Cause: broker.Cause(l.text()),
		Reason: l.text(), Ended: l.moment(), Grants: int(l.number()), SubTasks: int(l.number()),
		Durable: true, First: first,
	}
	numbers := l.text()
	r.join(l)
	out.Grant = r.grant(out.Task)
	out.Receipt.Grant = out.Grant.ID
	out.Audiences = r.audiences()
	position, err := parseNumbers(numbers, s.shards)
	if err != nil {
		r.fail(err.Error())
	}
	if r.err != nil {
		return broker.EndReply{Err: r.err}
	}
	s.reached(r.epoch, r.shard, position[r.shard])
	if err := s.spoilt(&r); err != nil {
		return broker.EndReply{Err: err}
	}
	out.Receipt.Feed = broker.Position{Epoch: r.epoch, Numbers: position}
	return out
}

// audiences reads a list of them, sorted; nil stands for every audience.
func (r *reply) audiences() []string {
	if r.flag() {
		return nil
	}
	l, out := r.list(), []string{}
	for l.left > 0 {
		out = append(out, l.text())
	}
	r.join(l)
	slices.Sort(out)
	return out
}

// parseNumbers reads "n0.n1…".
func parseNumbers(text string, shards int) ([]uint64, error) {
	parts := strings.Split(text, ".")
	if len(parts) != shards {
		return nil, fmt.Errorf("a position of %d shards instead of %d", len(parts), shards)
	}
	numbers := make([]uint64, shards)
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("a position that is no list of numbers: %q", text)
		}
		numbers[i] = n
	}
	return numbers, nil
}
