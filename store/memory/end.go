package memory

import (
	"context"
	"time"

	"github.com/errandhq/errand/broker"
)

// End puts each target into its final state. It can tell of each.
func (s *Store) End(_ context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	now := s.enter()
	defer s.mu.Unlock()
	replies := make([]broker.EndReply, len(ends))
	for i, e := range ends {
		replies[i] = s.end(e, now)
	}
	return replies, nil
}

func (s *Store) end(e broker.Ending, now time.Time) broker.EndReply {
	switch e.Kind {
	case broker.TargetTask:
		return s.endTask(e, now)
	case broker.TargetGrant:
		return s.endGrant(e, now)
	case broker.TargetKey:
		return s.deny(e, broker.Denial{Kind: broker.DenyKey, Key: e.Key}, now)
	case broker.TargetSelector:
		return s.deny(e, broker.Denial{Kind: broker.DenySelector, Selector: e.Selector}, now)
	case broker.TargetAll:
		return s.deny(e, broker.Denial{Kind: broker.DenyAll}, now)
	case broker.TargetLock:
		return s.addLock(e, now)
	case broker.TargetLift:
		return s.lift(e, now)
	}
	return broker.EndReply{Err: &broker.Invalid{Field: "kind", Detail: "is " + string(e.Kind) + "; it names no kind of target"}}
}

func (s *Store) endTask(e broker.Ending, now time.Time) broker.EndReply {
	sh, err := s.shard(e.Task.Shard())
	if err != nil {
		return broker.EndReply{Err: err}
	}
	p, err := sh.find(e.Task, e.Workload)
	if err != nil && !e.Lost.IsZero() {
		return s.bury(sh, e, now)
	}
	if err != nil {
		return broker.EndReply{Err: err}
	}
	t := p.task()
	if t.receipt != nil {
		return broker.EndReply{Receipt: again(t.receipt), Task: p.asOf(now), Audiences: p.audiences()}
	}
	if at, _, _ := t.Due(); e.IfDue && now.Before(at) {
		return broker.EndReply{Receipt: broker.Receipt{Task: t.ID, State: broker.Active}, Task: p.asOf(now)}
	}
	was := p.asOf(now)
	if !was.State.Final() {
		if e.Holder != 0 && e.Holder != t.Holder {
			return broker.EndReply{Err: broker.ErrAdopted}
		}
		if e.State == "" || !e.State.Final() {
			return broker.EndReply{Err: notFinal()}
		}
		was.State, was.Cause, was.Ended = e.State, e.Cause, now
	}
	s.closeTask(sh, p, was, now)
	if (t.Cause == broker.CauseAudit || t.Cause == broker.CauseSigning) && sh.keys[t.key] == t {
		delete(sh.keys, t.key)
	}
	receipt := s.receipt(e, t.Ended)
	receipt.Task, receipt.State, receipt.Cause = t.ID, t.State, t.Cause
	receipt.Grants, receipt.SubTasks = t.grants, t.subTasks
	t.receipt = &receipt
	return broker.EndReply{Receipt: cloneReceipt(receipt), Task: p.asOf(now), Audiences: p.audiences()}
}

// closeTask writes how a task ended, and announces it unless nothing is left to kill.
func (s *Store) closeTask(sh *shard, p path, as broker.Task, now time.Time) {
	t := p.task()
	t.State, t.Cause, t.Ended = as.State, as.Cause, as.Ended
	sh.retire(t)
	delete(sh.due, t.ID)
	s.alarms.set(&t.alarm, later(now, t.lastExp).Add(broker.Margin))
	until := t.lastExp.Add(broker.Margin)
	if t.lastExp.IsZero() || !now.Before(until) || p.covered() {
		return
	}
	s.announce(sh, broker.Entry{
		Denial:    broker.Denial{Kind: broker.DenyTask, Task: t.ID},
		Audiences: p.audiences(),
		Until:     until,
	})
}

func (s *Store) endGrant(e broker.Ending, now time.Time) broker.EndReply {
	sh, err := s.shard(e.Grant.Shard())
	if err != nil {
		return broker.EndReply{Err: err}
	}
	g, ok := sh.grants[e.Grant]
	if !ok {
		return broker.EndReply{Err: broker.ErrNotFound}
	}
	p, err := sh.find(g.Task, e.Workload)
	if err != nil {
		return broker.EndReply{Err: err}
	}
	if g.receipt != nil {
		return broker.EndReply{Receipt: again(g.receipt), Task: p.asOf(now), Grant: g.Clone(), Audiences: []string{g.Audience}}
	}
	g.Revoked = true
	s.announce(sh, broker.Entry{
		Denial:    broker.Denial{Kind: broker.DenyGrant, Grant: g.ID},
		Audiences: []string{g.Audience},
		Until:     g.Expires.Add(broker.Margin),
	})
	receipt := s.receipt(e, now)
	receipt.Task, receipt.Grant, receipt.State, receipt.Cause = g.Task, g.ID, broker.Revoked, e.Cause
	g.receipt = &receipt
	return broker.EndReply{Receipt: cloneReceipt(receipt), Task: p.asOf(now), Grant: g.Clone(), Audiences: []string{g.Audience}}
}

// receipt is the statement about an end that this call makes. What it announces is announced
// already, so the position has it.
func (s *Store) receipt(e broker.Ending, ended time.Time) broker.Receipt {
	return broker.Receipt{
		Event: e.Event, Reason: e.Reason, Cause: e.Cause, Ended: ended,
		Feed: s.position(), Durable: true, First: true,
	}
}

// again is the receipt of an end that was there before.
func again(r *broker.Receipt) broker.Receipt {
	out := cloneReceipt(*r)
	out.First = false
	return out
}

func cloneReceipt(r broker.Receipt) broker.Receipt {
	r.Feed = r.Feed.Clone()
	return r
}
