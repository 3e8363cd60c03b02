package storetest

import (
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
)

// Races lets two or three calls meet, a thousand times each, or the backend's share of that.
func Races(t *testing.T, b Backend) {
	runCases(t, b, []testCase{
		{"race/heartbeat against end", raceBeatEnd},
		{"race/child against the end of its parent", raceChildEnd},
		{"race/end against revoke", raceEndRevoke},
		{"race/begin against lock", raceBeginLock},
		{"race/join against join", raceJoins},
		{"race/join against the end of the parent", raceJoinEnd},
		{"race/adoption against the holder before", raceAdopt},
		{"race/adoption against adoption", raceAdopts},
	})
}

const raceRounds = 1000

// atOnce makes calls at the same time.
func atOnce(calls ...func()) {
	var wg sync.WaitGroup
	var ready atomic.Int64
	for _, call := range calls {
		wg.Go(func() {
			for ready.Add(1); ready.Load() < int64(len(calls)); {
				runtime.Gosched()
			}
			call()
		})
	}
	wg.Wait()
}

// raceJoins: one of two has the delegation, and the other nothing; with the same key, both have the same.
func raceJoins(b *bench) {
	parent := b.begin()
	for round := range b.share(raceRounds) {
		var requests [2]broker.GrantRequest
		var replies [2]broker.GrantReply
		var errs [2]error
		delegation := broker.NewDelegationID()
		for i := range requests {
			requests[i] = b.root(joining(parent, delegation), asking(b.ask("a", time.Minute)))
			if round%2 == 1 {
				key(string(delegation), 1)(&requests[i])
			}
		}
		atOnce(
			func() { replies[0], errs[0] = b.store.Grant(b.Context(), requests[0]) },
			func() { replies[1], errs[1] = b.store.Grant(b.Context(), requests[1]) },
		)
		if round%2 == 1 {
			if errs[0] != nil || errs[1] != nil || replies[0].Task.ID != replies[1].Task.ID || replies[0].Replayed == replies[1].Replayed {
				b.Fatalf("round %d: got %+v, %v and %+v, %v; want one task, and its replay", round, replies[0], errs[0], replies[1], errs[1])
			}
			continue
		}
		loser := slices.IndexFunc(errs[:], func(err error) bool { return errors.Is(err, broker.ErrUsed) })
		if loser < 0 || errs[1-loser] != nil {
			b.Fatalf("round %d: got the errors %v; want one ErrUsed", round, errs)
		}
		for _, ref := range []broker.Ref{{Task: requests[loser].Task}, {Grant: requests[loser].Grants[0].ID}} {
			if record, err := b.store.Lookup(b.Context(), ref); !errors.Is(err, broker.ErrNotFound) {
				b.Fatalf("round %d: of the one that was refused there is %+v, error %v", round, record, err)
			}
		}
	}
	b.same("the tasks below", b.end(completing(parent)).Receipt.SubTasks, b.share(raceRounds))
}

// raceJoinEnd: a task that has joined is gone with its parent, and one that has not has left nothing.
func raceJoinEnd(b *bench) {
	b.raceBelowEnd(func(parent broker.Task) option { return joining(parent, broker.NewDelegationID()) })
}

// raceChildEnd: so it is with a child of the same workload.
func raceChildEnd(b *bench) { b.raceBelowEnd(below) }

func (b *bench) raceBelowEnd(below func(parent broker.Task) option) {
	joined := 0
	for round := range b.share(raceRounds) {
		parent := b.begin()
		req := b.root(below(parent), asking(b.ask("a", time.Minute)))
		var joinErr, endErr error
		var replies []broker.EndReply
		atOnce(
			func() { _, joinErr = b.store.Grant(b.Context(), req) },
			func() { replies, endErr = b.store.End(b.Context(), []broker.Ending{completing(parent)}) },
		)
		if endErr != nil || replies[0].Err != nil {
			b.Fatalf("round %d: End: %v, %+v", round, endErr, replies)
		}
		record, err := b.store.Lookup(b.Context(), broker.Ref{Grant: req.Grants[0].ID})
		switch receipt := replies[0].Receipt; {
		case joinErr == nil:
			joined++
			if err != nil || record.Task.State != broker.Canceled || record.Grant.Live(record.Now, record.Task) || receipt.SubTasks != 1 || receipt.Grants != 1 {
				b.Fatalf("round %d: begun, and after the end there is %+v, error %v, and a receipt %+v", round, record, err, receipt)
			}
		case !errors.Is(joinErr, broker.ErrEnded) || !errors.Is(err, broker.ErrNotFound) || receipt.SubTasks != 0:
			b.Fatalf("round %d: refused with %v, and there is %+v, error %v, and a receipt %+v", round, joinErr, record, err, receipt)
		}
	}
	b.same("the entries", len(b.feed().Entries), joined)
}

// raceAdopt: the end of the holder before is first, or it is nothing; and so is its heartbeat.
func raceAdopt(b *bench) {
	for round := range b.share(raceRounds) {
		task := b.begin()
		old := noting(task, "of the holder before")
		old.Holder = 1
		var adopted, beat []broker.Pulse
		var ended []broker.EndReply
		var errs [3]error
		calls := []func(){
			func() { adopted, errs[0] = b.store.Heartbeat(b.Context(), []broker.Beat{adopting(task)}) },
			func() { beat, errs[1] = b.store.Heartbeat(b.Context(), []broker.Beat{old}) },
			func() { ended, errs[2] = b.store.End(b.Context(), []broker.Ending{held(completing(task), 1)}) },
		}
		if round%2 == 1 {
			slices.Reverse(calls)
		}
		atOnce(calls...)
		if err := errors.Join(errs[:]...); err != nil || adopted[0].Err != nil || beat[0].Err != nil {
			b.Fatalf("round %d: %v, %+v, %+v", round, err, adopted, beat)
		}
		now := b.now(task)
		want := broker.Task{Holder: 2, State: broker.Active}
		if ended[0].Err == nil {
			want = broker.Task{Holder: 1, State: broker.Completed}
		} else if !errors.Is(ended[0].Err, broker.ErrAdopted) {
			b.Fatalf("round %d: End: %+v", round, ended[0])
		}
		if beat[0].Task.Holder == 1 && beat[0].Task.State == broker.Active {
			want.Note = old.Note
		}
		for _, got := range []broker.Task{now, adopted[0].Task} {
			if got.Holder != want.Holder || got.State != want.State {
				b.Fatalf("round %d: got %+v after the end's %+v", round, got, ended[0])
			}
		}
		if now.Note != want.Note {
			b.Fatalf("round %d: the note is %q after the beat's %+v", round, now.Note, beat[0].Task)
		}
	}
}

// raceAdopts: each has a number of its own, and the last one holds the task.
func raceAdopts(b *bench) {
	for round := range b.share(raceRounds) {
		task := b.begin()
		var calls []func()
		var holders [3]int
		for i := range holders {
			calls = append(calls, func() {
				pulses, err := b.store.Heartbeat(b.Context(), []broker.Beat{adopting(task)})
				if err != nil || pulses[0].Err != nil {
					b.Errorf("Heartbeat: %v, %+v", err, pulses)
					return
				}
				holders[i] = pulses[0].Task.Holder
			})
		}
		atOnce(calls...)
		if sorted := slices.Sorted(slices.Values(holders[:])); !slices.Equal(sorted, []int{2, 3, 4}) {
			b.Fatalf("round %d: the holders are %v; want 2, 3 and 4", round, sorted)
		}
		for holder := 1; holder < 4; holder++ {
			if reply := b.endsNow(held(completing(task), holder)); !errors.Is(reply.Err, broker.ErrAdopted) {
				b.Fatalf("round %d: an end by the holder %d: got %+v", round, holder, reply)
			}
		}
		if reply := b.endsNow(held(completing(task), 4)); reply.Err != nil || !reply.Receipt.First {
			b.Fatalf("round %d: an end by the last holder: got %+v", round, reply)
		}
	}
}

// endsNow ends one target, and asks for nothing else.
func (b *bench) endsNow(e broker.Ending) broker.EndReply {
	b.Helper()
	replies, err := b.store.End(b.Context(), []broker.Ending{e})
	if err != nil || len(replies) != 1 {
		b.Fatalf("End: %+v, %v", replies, err)
	}
	return replies[0]
}
