package storetest

import (
	"errors"
	"time"

	"github.com/errandhq/errand/broker"
)

// raceBeatEnd: no heartbeat revives what has ended, whichever of them was first.
func raceBeatEnd(b *bench) {
	for round := range b.share(raceRounds) {
		task := b.begin(asking(b.ask("a", time.Minute)))
		beat := broker.Beat{Task: task.ID, Workload: task.Workload, Note: "still at it"}
		var pulses []broker.Pulse
		var reply broker.EndReply
		var err error
		b.inTurn(round,
			func() { pulses, err = b.store.Heartbeat(b.Context(), []broker.Beat{beat}) },
			func() { reply = b.endsNow(completing(task)) },
		)
		if err != nil || pulses[0].Err != nil || reply.Err != nil || !reply.Receipt.First {
			b.Fatalf("round %d: Heartbeat: %+v, %v; End: %+v", round, pulses, err, reply)
		}
		after := b.beat(task).Task
		if after.State != broker.Completed || !after.Ended.Equal(reply.Receipt.Ended) {
			b.Fatalf("round %d: a heartbeat after the end has %+v; the receipt is %+v", round, after, reply.Receipt)
		}
		if beaten := pulses[0].Task; beaten.State == broker.Active && after.Note != beat.Note || beaten.State != broker.Active && after.Note != "" {
			b.Fatalf("round %d: the heartbeat was answered with %+v, and the task is %+v", round, beaten, after)
		}
	}
	b.same("the entries", len(b.feed().Entries), b.share(raceRounds))
}

// raceEndRevoke: one of them is the first, both get its receipt, and there is one entry.
func raceEndRevoke(b *bench) {
	for round := range b.share(raceRounds) {
		req := b.root(asking(b.ask("a", time.Minute)))
		task := b.must(req).Task
		revoked := broker.Ending{Kind: broker.TargetTask, Task: task.ID, State: broker.Revoked, Cause: broker.CauseOperator, Reason: "leaked", Event: broker.NewEventID()}
		var end, revoke broker.EndReply
		b.inTurn(round, func() { end = b.endsNow(completing(task)) }, func() { revoke = b.endsNow(revoked) })
		if end.Err != nil || revoke.Err != nil || end.Receipt.First == revoke.Receipt.First {
			b.Fatalf("round %d: the end has %+v, the revocation %+v", round, end, revoke)
		}
		want := broker.Completed
		if revoke.Receipt.First {
			want = broker.Revoked
		}
		end.Receipt.First, revoke.Receipt.First = false, false
		b.same("the receipts", end.Receipt, revoke.Receipt)
		if record := b.lookup(broker.Ref{Grant: req.Grants[0].ID}); end.Receipt.State != want || record.Task.State != want || record.Grant.Live(record.Now, record.Task) {
			b.Fatalf("round %d: the receipt is %+v; and there is %+v", round, end.Receipt, record)
		}
	}
	b.same("the entries", len(b.feed().Entries), b.share(raceRounds))
}

// raceBeginLock: a begin that was decided on before a lock is before it, or is nothing.
func raceBeginLock(b *bench) {
	before, expires := 0, b.begin().Begun.Add(time.Hour)
	for round := range b.share(raceRounds) {
		req := b.root(asking(b.ask("a", time.Minute)))
		lock := broker.Ending{Kind: broker.TargetLock, Reason: "suspect", Event: broker.NewEventID(), Lock: broker.Lock{
			ID: broker.NewLockID(), Selector: broker.Selector{Scope: "read"}, Reason: "suspect", Actor: "operator", Expires: expires,
		}}
		var begun broker.GrantReply
		var err error
		b.inTurn(round,
			func() { begun, err = b.store.Grant(b.Context(), req) },
			func() {
				if reply := b.endsNow(lock); reply.Err != nil {
					b.Errorf("round %d: the lock: %+v", round, reply)
				}
			},
		)
		switch {
		case err == nil:
			before++
			if begun.Control != req.Control {
				b.Fatalf("round %d: begun under the control list %d, and decided on %d", round, begun.Control, req.Control)
			}
		case !errors.Is(err, broker.ErrBehind):
			b.Fatalf("round %d: Grant: %v; want ErrBehind or none", round, err)
		default:
			if record, err := b.store.Lookup(b.Context(), broker.Ref{Grant: req.Grants[0].ID}); !errors.Is(err, broker.ErrNotFound) {
				b.Fatalf("round %d: of a begin that was refused there is %+v, error %v", round, record, err)
			}
		}
		late := b.root()
		if reply, err := b.store.Grant(b.Context(), late); !errors.Is(err, broker.ErrBehind) {
			b.Fatalf("round %d: a begin after the lock, decided on before it: %+v, %v", round, reply, err)
		}
		if reply := b.endsNow(lifting(lock.Lock.ID)); reply.Err != nil {
			b.Fatalf("round %d: the lift: %+v", round, reply)
		}
		newest := b.root()
		newest.Control = 1 << 40 // decided on whatever there is
		b.control = b.must(newest).Control
	}
	b.Logf("%d of %d began before the lock", before, b.share(raceRounds))
}

// inTurn makes two calls at once; which one has the better start changes from round to round.
func (b *bench) inTurn(round int, one, other func()) {
	if round%2 == 1 {
		one, other = other, one
	}
	atOnce(one, other)
}
