package redis

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

// change is a denial by a property, a lock, or the lifting of one, on its way into every shard.
type change struct {
	target  string
	expires int64
	static  string
	reply   broker.EndReply
	err     error
	lifted  string // what the first shard has decided
	epoch   uint64
	done    bool // the first shard has refused it, or could not be asked
}

// endEverywhere writes changes to every shard. The first one decides when each is and whether it is new; then the
// others follow: two round trips, however many changes. A call that failed half way is completed by repeating it.
func (s *Store) endEverywhere(ctx context.Context, ends []broker.Ending) []change {
	changes := make([]change, len(ends))
	write := func(i, shard int, at any) call {
		e, c := &ends[i], &changes[i]
		return call{script: s.scripts.control, shard: shard, echo: fmt.Sprintf("%s %d %s", e.Kind, shard, c.target), args: []any{
			c.target, c.expires, c.static, string(e.Event), e.Reason, string(e.Cause), at, c.lifted,
		}}
	}
	var calls []call
	var whose []int
	for i, e := range ends {
		if changes[i].aim(e); !changes[i].done {
			calls, whose = append(calls, write(i, 0, "")), append(whose, i)
		}
	}
	decided := s.run(ctx, s.ends, calls...)
	calls = nil
	for n, i := range whose {
		c := &changes[i]
		if c.decide(decided[n]); c.done {
			continue
		}
		for shard := 1; shard < s.shards; shard++ {
			calls = append(calls, write(i, shard, c.reply.Receipt.Ended.UnixMilli()))
		}
	}
	others := s.run(ctx, s.ends, calls...)
	for i := range changes {
		c := &changes[i]
		if c.done {
			continue
		}
		for _, r := range others[:s.shards-1] {
			c.follow(r)
		}
		others = others[s.shards-1:]
		if c.err == nil {
			for shard, n := range c.reply.Receipt.Feed.Numbers {
				s.reached(c.epoch, shard, n)
			}
		}
	}
	return changes
}

// aim says what a change is about.
func (c *change) aim(e broker.Ending) {
	switch e.Kind {
	case broker.TargetKey:
		c.target = e.Key
	case broker.TargetSelector:
		c.target = packSelector(e.Selector)
	case broker.TargetAll:
	case broker.TargetLift:
		c.target = string(e.Lock.ID)
	case broker.TargetLock:
		c.target, c.expires = string(e.Lock.ID), max(1, e.Lock.Expires.UnixMilli())
		c.static = packLock(e.Lock)
	default:
		c.done = true
		c.reply.Err = &broker.Invalid{Field: "kind", Detail: "is " + string(e.Kind) + "; it names no kind of target"}
	}
}

// decide takes in what the first shard says.
func (c *change) decide(r reply) {
	if r.err == nil && (r.status == "not found" || r.status == "expired") {
		c.reply.Err, c.done = r.refusal(), true
		return
	}
	first := r.controlled()
	if c.err, c.done = r.err, r.err != nil; c.done {
		return
	}
	if c.lifted = "0"; first.lifted {
		c.lifted = "1"
	}
	c.epoch = r.epoch
	c.reply.Receipt = first.receipt
	c.reply.Receipt.Feed = broker.Position{Epoch: r.epoch, Numbers: []uint64{first.number}}
}

// follow takes in what the next shard says. The first one has it, so something has happened.
func (c *change) follow(r reply) {
	other := r.controlled()
	switch {
	case c.err != nil:
		return
	case r.err != nil:
		c.reply, c.err = broker.EndReply{}, unconfirmed(r.err)
		return
	}
	c.reply.Receipt.Feed.Numbers = append(c.reply.Receipt.Feed.Numbers, other.number)
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

// control reads a shard's whole control list, in the order in which it was made. denials is the key of a part of it.
func (r *reply) control(version uint64, denials string) broker.Control {
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
		if e, ok := item.entry(denials); ok {
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
