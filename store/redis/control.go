package redis

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

// endEverywhere writes a denial by a property, a lock, or the lifting of one to every shard. The
// first one decides when it is and whether it is new; then the others follow, in one round trip. A
// call that failed half way is completed by repeating it.
func (s *Store) endEverywhere(ctx context.Context, e broker.Ending) (broker.EndReply, error) {
	target, expires, static := "", int64(0), ""
	switch e.Kind {
	case broker.TargetKey:
		target = e.Key
	case broker.TargetSelector:
		target = packSelector(e.Selector)
	case broker.TargetAll:
	case broker.TargetLift:
		target = string(e.Lock.ID)
	case broker.TargetLock:
		target, expires = string(e.Lock.ID), max(1, e.Lock.Expires.UnixMilli())
		static = packLock(e.Lock)
	default:
		return broker.EndReply{Err: &broker.Invalid{Field: "kind", Detail: "is " + string(e.Kind) + "; it names no kind of target"}}, nil
	}
	write := func(shard int, at any, lifted string) call {
		return call{script: s.scripts.control, shard: shard, echo: string(e.Kind), args: []any{
			target, expires, static, string(e.Event), e.Reason, string(e.Cause), at, lifted,
		}}
	}
	decided := s.run(ctx, s.ends, write(0, "", ""))[0]
	if decided.err == nil && (decided.status == "not found" || decided.status == "expired") {
		return broker.EndReply{Err: decided.refusal()}, nil
	}
	c := decided.controlled()
	if decided.err != nil {
		return broker.EndReply{}, decided.err
	}
	lifted := "0"
	if c.lifted {
		lifted = "1"
	}
	var calls []call
	for shard := 1; shard < s.shards; shard++ {
		calls = append(calls, write(shard, c.receipt.Ended.UnixMilli(), lifted))
	}
	c.receipt.Feed = broker.Position{Epoch: decided.epoch, Numbers: []uint64{c.number}}
	for _, r := range s.run(ctx, s.ends, calls...) {
		other := r.controlled()
		if r.err != nil {
			// The first shard has it, so something has happened.
			return broker.EndReply{}, unconfirmed(r.err)
		}
		c.receipt.Feed.Numbers = append(c.receipt.Feed.Numbers, other.number)
	}
	for shard, n := range c.receipt.Feed.Numbers {
		s.reached(decided.epoch, shard, n)
	}
	return broker.EndReply{Receipt: c.receipt}, nil
}

// controlled is what one shard says of a change.
type controlled struct {
	receipt broker.Receipt
	number  uint64
	lifted  bool
}

func (r *reply) controlled() controlled {
	if r.err == nil && r.status != "ok" {
		r.err = r.refusal()
	}
	_ = r.moment()
	c := controlled{receipt: broker.Receipt{First: r.flag(), Durable: true}}
	c.number = uint64(r.number())
	c.receipt.Ended, c.receipt.Event = r.moment(), broker.EventID(r.text())
	c.receipt.Reason, c.receipt.Cause = r.text(), broker.Cause(r.text())
	c.lifted = r.flag()
	return c
}

// control reads a shard's whole control list, in the order in which it was made.
func (r *reply) control(version uint64) broker.Control {
	type numbered struct {
		broker.Lock
		number int64
	}
	var locks []numbered
	r.each(func(item *reply) {
		l := numbered{number: item.number()}
		l.Lock = readLock(item.strings(6))
		l.Since, l.Expires = item.moment(), item.moment()
		locks = append(locks, l)
	})
	c := broker.Control{Version: version}
	r.each(func(item *reply) {
		item.shard = r.shard
		if e, ok := item.entry(); ok {
			c.Denials = append(c.Denials, e)
		}
	})
	slices.SortFunc(locks, func(a, b numbered) int { return cmp.Compare(a.number, b.number) })
	for _, l := range locks {
		c.Locks = append(c.Locks, l.Lock)
	}
	slices.SortFunc(c.Denials, func(a, b broker.Entry) int { return cmp.Compare(a.Number, b.Number) })
	return c
}

// at returns what of a control list stands at a moment.
func at(c broker.Control, now time.Time) broker.Control {
	out := broker.Control{Version: c.Version}
	for _, l := range c.Locks {
		if now.Before(l.Expires) {
			out.Locks = append(out.Locks, l)
		}
	}
	for _, e := range c.Denials {
		if now.Before(e.Until) {
			out.Denials = append(out.Denials, e)
		}
	}
	return out
}
