package storetest

import (
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

// End answers one target.
func (m *model) End(e broker.Ending, now time.Time) broker.EndReply {
	switch e.Kind {
	case broker.TargetTask:
		return m.endTask(e, now)
	case broker.TargetGrant:
		return m.endGrant(e, now)
	case broker.TargetLock:
		return m.lock(e, now)
	case broker.TargetLift:
		return m.lift(e, now)
	case broker.TargetKey:
		return m.deny(e, broker.Denial{Kind: broker.DenyKey, Key: e.Key}, now)
	case broker.TargetSelector:
		return m.deny(e, broker.Denial{Kind: broker.DenySelector, Selector: e.Selector}, now)
	}
	return m.deny(e, broker.Denial{Kind: broker.DenyAll}, now)
}

func (m *model) endTask(e broker.Ending, now time.Time) broker.EndReply {
	t := m.task(e.Task)
	if t == nil && !e.Lost.IsZero() {
		return m.bury(e, now)
	}
	if t == nil || !e.Workload.IsZero() && t.Workload != e.Workload {
		return broker.EndReply{Err: broker.ErrNotFound}
	}
	if t.end != nil {
		return broker.EndReply{Receipt: repeated(t.end), Task: m.view(t, now), Audiences: m.audiences(t)}
	}
	if e.IfDue && !m.self(t, now) {
		return broker.EndReply{Receipt: broker.Receipt{Task: t.Task, State: broker.Active}, Task: m.view(t, now)}
	}
	if e.Holder != 0 && e.Holder != t.holder && m.ended(t, now) == nil {
		return broker.EndReply{Err: broker.ErrAdopted}
	}
	r := broker.Receipt{Event: e.Event, Task: t.Task, Reason: e.Reason, First: true}
	if r.State, r.Cause, r.Ended = m.fate(t, now); r.State == broker.Active {
		r.State, r.Cause, r.Ended = e.State, e.Cause, now
	}
	m.announceTask(t, now)
	for i := range m.tasks {
		if other := m.tasks[i].Task; other != t.Task && m.under(other, t.Task) {
			r.SubTasks++
		}
	}
	for _, g := range m.grants {
		if m.under(g.Task, t.Task) {
			r.Grants++
		}
	}
	r.Feed = m.position()
	t.end = &r
	return broker.EndReply{Receipt: r, Task: m.view(t, now), Audiences: m.audiences(t)}
}

// audiences are those of all grants in the tree of a task, and nil when its root is lost.
func (m *model) audiences(t *modelTask) []string {
	root := m.path(t.Task)[0]
	if m.task(root).lost {
		return nil
	}
	out := []string{}
	for _, g := range m.grants {
		if m.under(g.Task, root) {
			out = append(out, g.Audience)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// bury ends a task that the model has never had.
func (m *model) bury(e broker.Ending, now time.Time) broker.EndReply {
	until := broker.MaxTokenLife
	if left := e.Lost.Sub(now); left < until {
		until = left
	}
	switch {
	case e.Workload.IsZero():
		return broker.EndReply{Err: broker.ErrInvalid}
	case until+broker.Margin <= 0:
		return broker.EndReply{Err: broker.ErrNotFound}
	}
	m.announce(e.Task.Shard(), broker.Entry{Denial: ofTask(broker.Task{ID: e.Task}), Until: now.Add(until + broker.Margin)})
	r := broker.Receipt{Event: e.Event, Task: e.Task, State: e.State, Cause: e.Cause, Reason: e.Reason, Ended: now, Feed: m.position(), First: true}
	m.tasks = append(m.tasks, modelTask{
		GrantRequest: broker.GrantRequest{Workload: e.Workload, Task: e.Task, Begin: &broker.Beginning{}},
		deadline:     e.Lost, end: &r, lost: true,
	})
	return broker.EndReply{Receipt: r, Task: m.view(m.task(e.Task), now)}
}

// announceTask writes the entry of a task that is about to end, if it needs one.
func (m *model) announceTask(t *modelTask, now time.Time) {
	for _, above := range m.path(t.Begin.Parent) {
		if m.task(above).end != nil {
			return
		}
	}
	var last time.Time
	for _, g := range m.grants {
		if m.under(g.Task, t.Task) && g.Expires.After(last) {
			last = g.Expires
		}
	}
	if until := last.Add(broker.Margin); !last.IsZero() && now.Before(until) {
		m.announce(t.Task.Shard(), broker.Entry{Denial: ofTask(broker.Task{ID: t.Task}), Audiences: m.audiences(t), Until: until})
	}
}

func (m *model) endGrant(e broker.Ending, now time.Time) broker.EndReply {
	g := m.grant(e.Grant)
	if g == nil || !e.Workload.IsZero() && g.Workload != e.Workload {
		return broker.EndReply{Err: broker.ErrNotFound}
	}
	task := m.view(m.task(g.Task), now)
	if g.end != nil {
		return broker.EndReply{Receipt: repeated(g.end), Task: task, Grant: g.Grant, Audiences: []string{g.Audience}}
	}
	g.Revoked = true
	m.announce(g.ID.Shard(), broker.Entry{
		Denial: ofGrant(g.Grant), Audiences: []string{g.Audience}, Until: g.Expires.Add(broker.Margin),
	})
	g.end = &broker.Receipt{
		Event: e.Event, Task: g.Task, Grant: g.ID, State: broker.Revoked, Cause: e.Cause, Reason: e.Reason,
		Ended: now, Feed: m.position(), First: true,
	}
	return broker.EndReply{Receipt: *g.end, Task: task, Grant: g.Grant, Audiences: []string{g.Audience}}
}

func (m *model) deny(e broker.Ending, denial broker.Denial, now time.Time) broker.EndReply {
	for shard := range m.feeds {
		m.announce(shard, broker.Entry{Denial: denial, Until: now.Add(broker.MaxTokenLife + broker.Margin)})
	}
	return broker.EndReply{Receipt: m.changed(e, now)}
}

func (m *model) lock(e broker.Ending, now time.Time) broker.EndReply {
	if l := m.standing(e.Lock.ID, now); l != nil {
		return broker.EndReply{Receipt: repeated(l.locked)}
	}
	for shard := range m.feeds {
		m.feeds[shard] = append(m.feeds[shard], modelChange{control: true})
	}
	r := m.changed(e, now)
	l := modelLock{Lock: e.Lock, locked: &r}
	l.Since = now
	m.locks = append(m.locks, l)
	return broker.EndReply{Receipt: r}
}

func (m *model) lift(e broker.Ending, now time.Time) broker.EndReply {
	l := m.standing(e.Lock.ID, now)
	if l == nil {
		return broker.EndReply{Err: broker.ErrNotFound}
	}
	if l.lifted != nil {
		return broker.EndReply{Receipt: repeated(l.lifted)}
	}
	for shard := range m.feeds {
		m.feeds[shard] = append(m.feeds[shard], modelChange{control: true})
	}
	r := m.changed(e, now)
	l.lifted = &r
	return broker.EndReply{Receipt: r}
}

// standing is a lock that has not expired, lifted or not.
func (m *model) standing(id broker.LockID, now time.Time) *modelLock {
	for i := range m.locks {
		if m.locks[i].ID == id && now.Before(m.locks[i].Expires) {
			return &m.locks[i]
		}
	}
	return nil
}

// changed is the receipt of something that is neither a task nor a grant.
func (m *model) changed(e broker.Ending, now time.Time) broker.Receipt {
	return broker.Receipt{Event: e.Event, Cause: e.Cause, Reason: e.Reason, Ended: now, Feed: m.position(), First: true}
}

func repeated(r *broker.Receipt) broker.Receipt {
	out := *r
	out.First = false
	return out
}
