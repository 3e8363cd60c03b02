package storetest

import (
	"errors"
	"time"

	"github.com/errandhq/errand/broker"
)

func controlCases() []testCase {
	return []testCase{
		{"control/behind", controlBehind},
		{"control/what is a control change", controlKinds},
		{"control/entries of every shard", controlEveryShard},
		{"control/selector and the grants before it", controlSelector},
		{"control/lock", controlLock},
		{"control/lock repeated", controlLockRepeated},
		{"control/lock expires", controlLockExpires},
		{"control/numbers without a gap", controlNumbers},
	}
}

// locking locks what a selector matches.
func (b *bench) locking(selector broker.Selector, d time.Duration) broker.Ending {
	return broker.Ending{
		Kind: broker.TargetLock, Reason: "suspect", Event: broker.NewEventID(),
		Lock: broker.Lock{
			ID: broker.NewLockID(), Selector: selector, Reason: "suspect", Actor: "operator",
			Expires: b.list(broker.Query{}).Now.Add(d),
		},
	}
}

func lifting(id broker.LockID) broker.Ending {
	return broker.Ending{Kind: broker.TargetLift, Lock: broker.Lock{ID: id}, Reason: "cleared", Event: broker.NewEventID()}
}

func denying(kind broker.TargetKind) broker.Ending {
	return broker.Ending{
		Kind: kind, Key: "kid", Selector: broker.Selector{Audience: "a", Scope: "read"}, Cause: broker.CauseOperator,
		Reason: "leaked", Event: broker.NewEventID(),
	}
}

func controlBehind(b *bench) {
	task := b.begin()
	b.end(b.locking(broker.Selector{Audience: "a"}, time.Hour))
	version := b.control
	if got := b.lookup(broker.Ref{Task: task.ID}).Control; got != version || version == 0 {
		b.Fatalf("Lookup says version %d, Watch says %d; want one that is not 0", got, version)
	}
	for _, req := range []broker.GrantRequest{b.root(), b.issuing(task, b.ask("b", time.Minute))} {
		req.Control = version - 1
		b.same("the error", b.refused(req, broker.ErrBehind), error(&broker.Behind{Shard: b.shard, Version: version}))
		req.Control = version
		b.must(req)
	}
}

func controlKinds(b *bench) {
	task := b.begin(asking(b.ask("a", time.Minute), b.ask("b", time.Minute)))
	grant := b.issue(task, "a", time.Minute)
	lock := b.locking(broker.Selector{Scope: "write"}, time.Hour)
	for _, test := range []struct {
		e       broker.Ending
		control bool
	}{
		{lock, true}, {revoking(grant), false}, {denying(broker.TargetSelector), true}, {denying(broker.TargetKey), false},
		{lifting(lock.Lock.ID), true}, {completing(task), false}, {denying(broker.TargetAll), true},
	} {
		before := b.feed()
		reply := b.end(test.e)
		after := b.feed()
		if !reply.Receipt.First || reply.Receipt.Event != test.e.Event || reply.Receipt.Ended.IsZero() {
			b.Errorf("%s: the receipt is %+v", test.e.Kind, reply.Receipt)
		}
		b.same("the receipt's position after a "+string(test.e.Kind), reply.Receipt.Feed, after.Position)
		for shard := range b.shards {
			number, was := after.Position.Numbers[shard], before.Position.Numbers[shard]
			mine := shard == b.shard || test.control || test.e.Kind == broker.TargetKey
			if want := was + map[bool]uint64{true: 1}[mine]; number != want {
				b.Errorf("%s: shard %d is at %d; want %d", test.e.Kind, shard, number, want)
			}
			want := before.Controls[shard].Version
			if test.control {
				want = number
			}
			if got := after.Controls[shard].Version; got != want {
				b.Errorf("%s: the control list of shard %d has version %d; want %d", test.e.Kind, shard, got, want)
			}
		}
	}
	// Locks are not for verifiers, keys not for brokers.
	update := b.feed()
	kinds := map[broker.DenialKind]int{}
	for _, e := range update.Entries {
		kinds[e.Denial.Kind]++
	}
	n := b.shards
	b.same("the entries", kinds, map[broker.DenialKind]int{
		broker.DenyGrant: 1, broker.DenyTask: 1, broker.DenySelector: n, broker.DenyKey: n, broker.DenyAll: n,
	})
	for _, control := range update.Controls {
		if len(control.Locks) != 0 || len(control.Denials) != 2 ||
			control.Denials[0].Denial.Kind != broker.DenySelector || control.Denials[1].Denial.Kind != broker.DenyAll {
			b.Errorf("the control list is %+v; want a selector and everything", control)
		}
	}
}

func controlEveryShard(b *bench) {
	for _, kind := range []broker.TargetKind{broker.TargetSelector, broker.TargetKey, broker.TargetAll} {
		before := b.feed()
		e := denying(kind)
		receipt := b.end(e).Receipt
		after := b.feed()
		want := broker.Denial{Kind: broker.DenialKind(kind)}
		switch kind {
		case broker.TargetSelector:
			want.Selector = e.Selector
		case broker.TargetKey:
			want.Key = e.Key
		}
		var entries []broker.Entry
		for _, entry := range after.Entries {
			if entry.Number > before.Position.Numbers[entry.Shard] {
				entries = append(entries, entry)
			}
		}
		if len(entries) != b.shards {
			b.Fatalf("%s: got %d entries; want one in each of %d shards", kind, len(entries), b.shards)
		}
		seen := map[int]bool{}
		for _, entry := range entries {
			seen[entry.Shard] = true
			b.same("the denial", entry.Denial, want)
			if entry.Audiences != nil || !entry.For("anybody") {
				b.Errorf("%s: addressed to %q; want nil, which is everybody", kind, entry.Audiences)
			}
			if until := receipt.Ended.Add(broker.MaxTokenLife + broker.Margin); entry.Until.Before(until) || entry.Until.After(until.Add(time.Second)) {
				b.Errorf("%s: kept until %s; want %s", kind, entry.Until, until)
			}
		}
		if len(seen) != b.shards {
			b.Errorf("%s: the entries are in %d shards; want %d", kind, len(seen), b.shards)
		}
	}
}

func controlSelector(b *bench) {
	task := b.begin()
	before := b.issue(task, "a", time.Minute)
	other := b.issue(task, "b", time.Minute)
	e := broker.Ending{Kind: broker.TargetSelector, Selector: broker.Selector{Subject: alice().String(), Audience: "a"}, Event: broker.NewEventID()}
	b.end(e)
	after := b.issue(task, "a", time.Minute)
	control := b.feed().Controls[b.shard]
	for _, test := range []struct {
		name   string
		grant  broker.Grant
		denied bool
	}{{"before", before, true}, {"at another audience", other, false}, {"after", after, false}} {
		if got := control.Denies(test.grant, task); got != test.denied {
			b.Errorf("the grant %s: denied %v; want %v (its number is %d, the list %+v)", test.name, got, test.denied, test.grant.Number, control)
		}
	}
	if after.Number != control.Version {
		b.Errorf("the grant carries number %d; want the shard's, %d", after.Number, control.Version)
	}
	// The same selector again kills what came since.
	if r := b.end(e).Receipt; !r.First {
		b.Errorf("a second denial by selector: got %+v; want one of its own", r)
	}
	if !b.feed().Controls[b.shard].Denies(after, task) {
		b.Error("the second denial does not kill what was issued after the first")
	}
	b.end(denying(broker.TargetAll))
	if control := b.feed().Controls[b.shard]; !control.Denies(other, task) || control.Denies(b.issue(task, "b", time.Minute), task) {
		b.Error("the denial of everything must kill what came before it, and nothing after")
	}
}

func controlLock(b *bench) {
	b.same("the locks of an empty store", b.feed().Controls[b.shard], broker.Control{})
	one, two := b.locking(broker.Selector{Subject: alice().String()}, time.Hour), b.locking(broker.Selector{Scope: "write"}, time.Hour)
	one.Lock.Since = time.Unix(1, 0) // is the store's to set
	first := b.end(one).Receipt
	second := b.end(two).Receipt
	one.Lock.Since, two.Lock.Since = first.Ended, second.Ended
	for shard, control := range b.feed().Controls {
		b.same("the control list", control, broker.Control{
			Version: second.Feed.Numbers[shard], Locks: []broker.Lock{one.Lock, two.Lock},
		})
	}
	b.end(lifting(one.Lock.ID))
	for _, control := range b.feed().Controls {
		b.same("the locks after one was lifted", control.Locks, []broker.Lock{two.Lock})
	}
	if n := len(b.feed().Entries); n != 0 {
		b.Errorf("locks have made %d entries; want none", n)
	}
}

// controlLockRepeated repeats both calls, as one who was not told what happened does.
func controlLockRepeated(b *bench) {
	e := b.locking(broker.Selector{Scope: "write"}, time.Hour)
	locked := b.end(e).Receipt
	locked.First = false
	b.same("the repeated lock", b.end(e).Receipt, locked)
	b.same("the number of locks", len(b.feed().Controls[b.shard].Locks), 1)
	lift := lifting(e.Lock.ID)
	lifted := b.end(lift).Receipt
	lifted.First = false
	before := b.feed().Position
	b.same("the repeated lift", b.end(lift).Receipt, lifted)
	b.same("a late repetition of the lock", b.end(e).Receipt, locked)
	b.same("the number of locks after it", len(b.feed().Controls[b.shard].Locks), 0)
	b.same("the feed's position", b.feed().Position, before)
}

func controlLockExpires(b *bench) {
	short, long := b.locking(broker.Selector{Scope: "read"}, 400*time.Millisecond), b.locking(broker.Selector{Scope: "write"}, time.Hour)
	b.end(short)
	long.Lock.Since = b.end(long).Receipt.Ended
	b.Advance(400 * time.Millisecond)
	update := b.feed()
	b.same("the locks", update.Controls[b.shard].Locks, []broker.Lock{long.Lock})
	// An expiry is not a change: a decision against the list with the lock is still good.
	b.same("the version", update.Controls[b.shard].Version, b.control)
	b.begin()
	if reply := b.ends(lifting(short.Lock.ID))[0]; !errors.Is(reply.Err, broker.ErrNotFound) {
		b.Fatalf("lifting an expired lock: got %+v; want ErrNotFound", reply)
	}
}

func controlNumbers(b *bench) {
	want := make([][]uint64, b.shards)
	numbers := make([]uint64, b.shards)
	for i := range 24 {
		e := []broker.Ending{
			b.locking(broker.Selector{Scope: "read"}, time.Hour), denying(broker.TargetKey), denying(broker.TargetSelector), {},
		}[i%4]
		shards := make([]int, 0, b.shards)
		for shard := range b.shards {
			shards = append(shards, shard)
		}
		if e.Kind == "" {
			b.shard = i / 4 % b.shards
			shards = []int{b.shard}
			b.control = b.feed().Controls[b.shard].Version
			e = completing(b.begin(asking(b.ask("a", time.Minute))))
		}
		receipt := b.end(e).Receipt
		for _, shard := range shards {
			numbers[shard]++
			if e.Kind != broker.TargetLock {
				want[shard] = append(want[shard], numbers[shard])
			}
		}
		b.same("the receipt's position", receipt.Feed.Numbers, numbers)
	}
	got := make([][]uint64, b.shards)
	for _, e := range b.feed().Entries {
		got[e.Shard] = append(got[e.Shard], e.Number)
	}
	b.same("the numbers of the entries, less those that locks took", got, want)
}
