package memory

import (
	"context"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
)

// Grant begins a task, issues grants in one, or both, in one step. Nothing is written before
// everything has been checked.
func (s *Store) Grant(_ context.Context, req broker.GrantRequest) (broker.GrantReply, error) {
	now := s.enter()
	defer s.mu.Unlock()
	sh, err := s.shard(req.Task.Shard())
	if err != nil {
		return broker.GrantReply{}, err
	}
	first, err := sh.madeBefore(req)
	if err != nil {
		return broker.GrantReply{}, err
	}
	if first != nil {
		return sh.replay(first, now)
	}
	above, err := sh.admit(req, now)
	if err != nil {
		return broker.GrantReply{}, err
	}
	p := above
	if req.Begin != nil {
		p = append(slices.Clone(above), newTask(req, above, now))
	}
	grants, err := s.draft(sh, req, p.task(), now)
	if err != nil {
		return broker.GrantReply{}, err
	}
	if req.Begin != nil {
		s.begin(sh, p, grants)
		if join := req.Begin.Join; join != nil {
			s.markUsed(sh, *join, req.Task, now)
		}
	}
	s.issue(sh, p, grants)
	return reply(sh, p, grants, now), nil
}

// repetition is the call that another one repeats: its task and the grants that it issued.
type repetition struct {
	req    broker.GrantRequest
	grants []broker.GrantID
}

// madeBefore recognizes a call that has been made already, by its idempotency key or by the IDs that
// it brings, and returns nil for a new one. Nothing that is there is ever written over.
func (sh *shard) madeBefore(req broker.GrantRequest) (*repetition, error) {
	if req.Begin != nil {
		t, ok := sh.keys[key{req.Workload, req.Begin.Key}]
		if !ok {
			t, ok = sh.tasks[req.Task]
		}
		if ok && t.lost {
			return nil, &broker.Ended{Task: t.ID, State: t.State, Cause: t.Cause, At: t.Ended}
		}
		if ok && (t.Workload != req.Workload || t.digest != req.Begin.Digest) {
			return nil, broker.ErrMismatch
		}
		if ok {
			req.Task = t.ID
			return &repetition{req, t.first}, nil
		}
	}
	var ids []broker.GrantID
	for _, ask := range req.Grants {
		if g, ok := sh.grants[ask.ID]; ok && g.Task == req.Task {
			ids = append(ids, ask.ID)
		} else if ok {
			return nil, broker.ErrMismatch
		}
	}
	switch len(ids) {
	case 0:
		return nil, nil
	case len(req.Grants):
		return &repetition{req, ids}, nil
	}
	return nil, broker.ErrMismatch
}

// replay answers a repetition: as the first time, less what has expired since.
func (sh *shard) replay(first *repetition, now time.Time) (broker.GrantReply, error) {
	p, err := sh.live(first.req.Task, first.req.Workload, now)
	if err != nil {
		return broker.GrantReply{}, err
	}
	var grants []*grant
	for _, id := range first.grants {
		if g, ok := sh.grants[id]; ok && now.Before(g.Expires) {
			grants = append(grants, g)
		}
	}
	out := reply(sh, p, grants, now)
	out.Replayed = true
	return out, nil
}

func reply(sh *shard, p path, grants []*grant, now time.Time) broker.GrantReply {
	out := broker.GrantReply{Task: p.asOf(now), Now: now, Control: sh.version}
	for _, g := range grants {
		out.Grants = append(out.Grants, g.Clone())
	}
	return out
}

// admit returns the path that the request builds on: to its task, or to its parent when it begins
// one, which is empty for a root. The order of the checks is the contract's.
func (sh *shard) admit(req broker.GrantRequest, now time.Time) (path, error) {
	on, whose := req.Task, req.Workload
	if req.Begin != nil {
		on = req.Begin.Parent
	}
	join := joinOf(req)
	if join != nil {
		whose = join.Delegator
		if whose.IsZero() { // which would be anybody
			return nil, broker.ErrNotFound
		}
	}
	var p path
	if on != "" || req.Begin == nil || join != nil {
		var err error
		if p, err = sh.live(on, whose, now); err != nil {
			return nil, err
		}
	}
	for i, ask := range req.Grants {
		if ask.ID.Shard() != sh.index { // nobody could find it there
			return nil, broker.ErrNotFound
		}
		if slices.ContainsFunc(req.Grants[:i], func(other broker.Asked) bool { return other.ID == ask.ID }) {
			return nil, broker.ErrMismatch
		}
	}
	if join != nil && sh.isUsed(join.Delegation, now) {
		return nil, broker.ErrUsed
	}
	if req.Begin != nil && len(p) >= broker.MaxDepth {
		return nil, &broker.Invalid{Field: "parent", Detail: "is as deep as tasks may be; begin this one further up"}
	}
	if sh.version > req.Control {
		return nil, &broker.Behind{Shard: sh.index, Version: sh.version}
	}
	return p, sh.quota(req, p)
}

// live returns the path to a task of a workload that has not ended.
func (sh *shard) live(id broker.TaskID, workload spiffeid.ID, now time.Time) (path, error) {
	p, err := sh.find(id, workload)
	if err != nil {
		return nil, err
	}
	if t := p.asOf(now); t.State.Final() {
		return nil, &broker.Ended{Task: t.ID, State: t.State, Cause: t.Cause, At: t.Ended}
	}
	return p, nil
}

// quota reports whether the request would go over one of its bounds.
func (sh *shard) quota(req broker.GrantRequest, above path) error {
	used := usage{}
	if u, ok := sh.usage[req.Workload]; ok {
		used = *u
	}
	over := func(n, limit int) bool { return limit > 0 && n > limit }
	begins := req.Begin != nil
	switch {
	case begins && over(used.tasks+1, req.Quota.Tasks):
		return &broker.QuotaExceeded{What: "live tasks", Limit: req.Quota.Tasks}
	case begins && len(above) > 0 && over(above.task().children+1, req.Quota.Children):
		return &broker.QuotaExceeded{What: "live children", Limit: req.Quota.Children}
	case len(req.Grants) > 0 && over(used.grants+len(req.Grants), req.Quota.Grants):
		return &broker.QuotaExceeded{What: "live grants", Limit: req.Quota.Grants}
	}
	return nil
}

func newTask(req broker.GrantRequest, above path, now time.Time) *task {
	b := req.Begin
	t := &task{digest: b.Digest, key: key{req.Workload, b.Key}}
	t.Task = broker.Task{
		ID: req.Task, Workload: req.Workload, Name: b.Name, Purpose: b.Purpose, Ceiling: b.Ceiling, Attributes: b.Attributes,
		Begun: now, Lease: b.Lease, LeaseEnd: now.Add(b.FirstLease()), Deadline: now.Add(b.Deadline),
		State: broker.Active, Presence: b.Presence, Holder: 1, Delegators: b.Delegators,
	}
	if len(above) > 0 {
		t.Path = above.task().Path
		t.Deadline = earlier(t.Deadline, above.task().Deadline)
	} else {
		t.audiences = map[string]bool{}
	}
	t.Task = t.Clone()
	t.Path = append(t.Path, t.ID)
	return t
}

// draft makes the records of the grants that are asked for.
func (s *Store) draft(sh *shard, req broker.GrantRequest, t *task, now time.Time) ([]*grant, error) {
	issued := now.Truncate(time.Second)
	grants := make([]*grant, 0, len(req.Grants))
	for _, ask := range req.Grants {
		expires := earlier(issued.Add(ask.Life), t.Deadline)
		if !ask.NotAfter.IsZero() {
			expires = earlier(expires, ask.NotAfter)
		}
		expires = expires.UTC().Truncate(time.Second)
		if expires.Sub(issued) < broker.MinTokenLife {
			return nil, broker.ErrTooShort
		}
		g := broker.Grant{
			ID: ask.ID, Task: t.ID, Workload: t.Workload, Audience: ask.Audience, Scopes: ask.Scopes, Details: ask.Details,
			Binding: ask.Binding, Thumbprint: ask.Thumbprint, Decision: ask.Decision,
			Issued: issued, Expires: expires, Epoch: s.epoch, Number: sh.number,
		}
		grants = append(grants, &grant{Grant: g.Clone()})
	}
	return grants, nil
}

// begin writes the last task of the path.
func (s *Store) begin(sh *shard, p path, grants []*grant) {
	t := p.task()
	for _, g := range grants {
		t.first = append(t.first, g.ID)
	}
	sh.tasks[t.ID] = t
	if t.key.text != "" {
		sh.keys[t.key] = t
	}
	t.counts = true
	sh.use(t.Workload).tasks++
	for _, a := range p.above() {
		a.subTasks++
	}
	if above := p.above(); len(above) > 0 {
		above.task().children++
	}
	due, _, _ := t.Due()
	t.alarm.ring = func() { s.taskAlarm(sh, t) }
	s.alarms.set(&t.alarm, due)
}

// issue writes grants in the last task of the path.
func (s *Store) issue(sh *shard, p path, grants []*grant) {
	for _, g := range grants {
		sh.grants[g.ID] = g
		g.counts = true
		sh.use(g.Workload).grants++
		p[0].audiences[g.Audience] = true
		for _, t := range p {
			t.grants++
			t.lastExp = later(t.lastExp, g.Expires)
		}
		g.alarm.ring = func() { s.grantAlarm(sh, g) }
		s.alarms.set(&g.alarm, g.Expires)
	}
}
