package broker_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
)

func (h *harness) adopt(w string, id broker.TaskID) broker.Begun {
	h.t.Helper()
	adopted, err := h.Adopt(ctx, workload(w), id)
	if err != nil {
		h.t.Fatalf("adopt: %v", err)
	}
	return adopted
}

// beat sends one heartbeat as a holder.
func (h *harness) beat(w string, id broker.TaskID, holder int) broker.Pulse {
	h.t.Helper()
	pulses, err := h.Heartbeat(ctx, workload(w), []broker.Beat{{Task: id, Holder: holder}})
	if err != nil {
		h.t.Fatalf("heartbeat: %v", err)
	}
	return pulses[0]
}

// endAs ends a task as a holder.
func (h *harness) endAs(w string, id broker.TaskID, holder int, key broker.EndKey) (broker.Receipt, error) {
	return h.End(context.Background(), workload(w), id, broker.EndRequest{State: broker.Completed, Holder: holder, Key: key})
}

// TestAdopt: the task goes on in other hands, and what earlier holders say of it counts for nothing.
func TestAdopt(t *testing.T) {
	inBubble(t, func(h *harness) {
		begun := h.begin(report, withToken)
		id := begun.Task.ID
		time.Sleep(20 * time.Second)
		adopted := h.adopt(report, id)
		if adopted.Task.Holder != 2 || adopted.EndKey != begun.EndKey || !adopted.Task.LeaseEnd.Equal(time.Now().Add(begun.Task.Lease)) || !h.live(report, begun.Tokens[0].Grant.ID) {
			h.t.Errorf("got %+v", adopted.Task)
		}
		told := h.audit.of(broker.EventTaskAdopted)
		if len(told) != 1 || told[0].Task != id || told[0].Holder != 2 || told[0].Actor != "spiffe://prod/report" || told[0].Owner != "team-fin" || told[0].Address == "" {
			h.t.Errorf("recorded: %+v", told)
		}
		time.Sleep(10 * time.Second)
		if p := h.beat(report, id, 1); p.Err != broker.ErrAdopted || !p.Task.LeaseEnd.Equal(adopted.Task.LeaseEnd) {
			h.t.Errorf("the beat of the first holder: %+v", p)
		}
		if p := h.beat(report, id, 3); p.Err != broker.ErrAdopted {
			h.t.Errorf("the beat of one who is not yet: %+v", p)
		}
		if p := h.beat(report, id, 2); p.Err != nil || !p.Task.LeaseEnd.Equal(time.Now().Add(begun.Task.Lease)) {
			h.t.Errorf("the beat of the second: %+v", p)
		}
		_, err := h.endAs(report, id, 1, begun.EndKey)
		want(h.t, err, broker.ErrAdopted)
		if h.at(report, id).State != broker.Active {
			h.t.Error("the first has ended it")
		}
		if last := h.adopt(report, id); last.Task.Holder != 3 {
			h.t.Errorf("the third is number %d", last.Task.Holder)
		}
		_, err = h.endAs(report, id, 2, begun.EndKey)
		want(h.t, err, broker.ErrAdopted)
		receipt, err := h.endAs(report, id, 3, adopted.EndKey)
		if err != nil || !receipt.First {
			h.t.Errorf("%+v, %v", receipt, err)
		}
		// What is over is over for all of them.
		if again, err := h.endAs(report, id, 1, begun.EndKey); err != nil || again.Event != receipt.Event {
			h.t.Errorf("%+v, %v", again, err)
		}
		if p := h.beat(report, id, 1); p.Err != nil || p.Task.State != broker.Completed {
			h.t.Errorf("a beat afterwards: %+v", p)
		}
		_, err = h.Adopt(ctx, workload(report), id)
		if over := (*broker.Ended)(nil); !errors.As(err, &over) || over.State != broker.Completed {
			h.t.Errorf("to adopt what is over: %v", err)
		}
		for whose, of := range map[string]broker.TaskID{night: h.begin(report, nil).Task.ID, report: broker.NewTaskID(0)} {
			_, err := h.Adopt(ctx, workload(whose), of)
			want(h.t, err, broker.ErrNotFound)
		}
		_, err = h.Heartbeat(ctx, workload(report), []broker.Beat{{Task: id}, {Task: id, Holder: -1}})
		if bad := (*broker.Invalid)(nil); !errors.As(err, &bad) || bad.Field != "tasks[1].holder" {
			h.t.Errorf("%v", err)
		}
		_, err = h.endAs(report, id, -1, broker.EndKey{})
		want(h.t, err, broker.ErrInvalid)
	})
}

// TestAdoptedIsToldAtOnce to whoever follows the task as another holder, at this replica, and binds no presence.
func TestAdoptedIsToldAtOnce(t *testing.T) {
	inBubble(t, func(h *harness) {
		other := newHarness(h.t, h.store, nil)
		task := h.begin(report, both).Task
		h.hearAs(report, broker.Followed{Task: task.ID, Holder: 1})
		anybody := h.hear(report, task.ID)
		first := h.hearAs(report, broker.Followed{Task: task.ID, Holder: 1}) // which has the presence now
		h.beats(report, first.stream, 20*time.Second, task.ID)
		first.told(h.t)
		h.adopt(report, task.ID)
		first.told(h.t, broker.Fate{Task: task.ID, Adopted: true})
		anybody.told(h.t)
		second := other.hearAs(report, broker.Followed{Task: task.ID, Holder: 2})
		h.hearAs(report, broker.Followed{Task: task.ID, Holder: 1}).told(h.t, broker.Fate{Task: task.ID, Adopted: true})
		other.hearAs(report, broker.Followed{Task: task.ID, Holder: 1}).told(h.t, broker.Fate{Task: task.ID, Adopted: true})
		first.stop() // its presence is nobody's any more
		synctest.Wait()
		for range 60 {
			h.beats(report, second.stream, time.Second, task.ID)
			if p := h.beat(report, task.ID, 2); p.Err != nil || p.Task.State != broker.Active {
				h.t.Fatalf("the second's: %+v", p)
			}
		}
		second.told(h.t)
		second.stop()
		time.Sleep(broker.PresenceGrace)
		if got := h.at(report, task.ID); got.State != broker.Lapsed || got.Cause != broker.CausePresence {
			h.t.Errorf("without the second it is %s by %s", got.State, got.Cause)
		}
		err := h.Follow(ctx, workload(report), broker.NewStreamID(), []broker.Followed{{Task: task.ID, Holder: 1}, {Task: task.ID, Holder: 2}}, nil)
		want(h.t, err, broker.ErrInvalid)
	})
}

// TestNobodyAttachesToAnAdoptedTask but its new holder, who has as long as with a new one.
func TestNobodyAttachesToAnAdoptedTask(t *testing.T) {
	inBubble(t, func(h *harness) {
		task := h.begin(report, both).Task
		h.hearAs(report, broker.Followed{Task: task.ID, Holder: 1})
		h.adopt(report, task.ID)
		old := h.hearAs(report, broker.Followed{Task: task.ID, Holder: 1})
		h.beats(report, old.stream, broker.AttachTime-time.Second, task.ID)
		if state := h.at(report, task.ID).State; state != broker.Active {
			h.t.Errorf("it is %s", state)
		}
		time.Sleep(time.Second)
		if got := h.at(report, task.ID); got.State != broker.Lapsed || got.Cause != broker.CausePresence {
			h.t.Errorf("nobody has attached, and it is %s by %s", got.State, got.Cause)
		}
	})
}

// TestAnEarlierHoldersEndWithTheStoreAway: a replica that knows of the adoption, however it has heard, lets it do
// nothing. One that cannot know takes it for what its key proves it to be, and then it holds for good: what
// verifiers have been told to be dead must not come back.
func TestAnEarlierHoldersEndWithTheStoreAway(t *testing.T) {
	for name, test := range map[string]struct {
		hear   func(h *harness, id broker.TaskID) // of the adoption
		knows  bool
		holder int
	}{
		"it has adopted it":           {func(h *harness, id broker.TaskID) { h.adopt(report, id) }, true, 1},
		"it has heard the new holder": {func(h *harness, id broker.TaskID) { h.elsewhere(id); h.beat(report, id, 2) }, true, 1},
		"it has told the old holder":  {func(h *harness, id broker.TaskID) { h.elsewhere(id); h.beat(report, id, 1) }, true, 1},
		"it has heard nothing":        {func(h *harness, id broker.TaskID) { h.elsewhere(id) }, false, 1},
		"it is the new holder":        {func(h *harness, id broker.TaskID) { h.adopt(report, id) }, false, 2},
		"nobody says who it is":       {func(h *harness, id broker.TaskID) { h.adopt(report, id) }, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newFaulty(t)
				h := newHarness(t, store, nil)
				begun := h.begin(report, withToken)
				id := begun.Task.ID
				test.hear(h, id)
				store.all(away)
				receipt, err := h.endAs(report, id, test.holder, begun.EndKey)
				if test.knows {
					want(t, err, broker.ErrAdopted)
				} else if err != nil || receipt.Durable {
					t.Errorf("%+v, %v", receipt, err)
				}
				if h.names("orders", string(id)) == test.knows {
					t.Errorf("told to verifiers: %t", !test.knows)
				}
				store.all(works)
				time.Sleep(2 * time.Second)
				state := map[bool]broker.State{true: broker.Active, false: broker.Completed}[test.knows]
				if got := h.at(report, id); got.State != state {
					t.Errorf("when the store is back it is %s; want %s", got.State, state)
				}
				if h.live(report, begun.Tokens[0].Grant.ID) != test.knows || h.names("orders", string(id)) == test.knows || h.PendingEnds() != 0 {
					t.Errorf("then its token is live: %t; %d ends wait", !test.knows, h.PendingEnds())
				}
				ends := h.audit.of(broker.EventTaskEnded)
				if !test.knows && (len(ends) != 1 || ends[0].ID != receipt.Event || ends[0].State != broker.Completed) || test.knows && len(ends) != 0 {
					t.Errorf("recorded: %+v", ends)
				}
			})
		})
	}
}

// TestAdoptionsThatAreOverTakeNoRoom: however many tasks were adopted and have ended, the next adoption is known.
func TestAdoptionsThatAreOverTakeNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		for range 10_001 {
			id := h.begin(night, nil).Task.ID
			h.adopt(night, id)
			h.end(night, id)
		}
		begun := h.begin(report, withToken)
		h.adopt(report, begun.Task.ID)
		store.all(away)
		_, err := h.endAs(report, begun.Task.ID, 1, begun.EndKey)
		want(t, err, broker.ErrAdopted)
	})
}

// elsewhere adopts a task of report at another replica.
func (h *harness) elsewhere(id broker.TaskID) {
	h.t.Helper()
	newHarness(h.t, h.store, nil).adopt(report, id)
}

// TestAnUnsureEndOfAnEarlierHolderDoesNothing: it may have happened, and if it has not it never will.
func TestAnUnsureEndOfAnEarlierHolderDoesNothing(t *testing.T) {
	for _, fault := range []int32{hangs, away} {
		synctest.Test(t, func(t *testing.T) {
			store := newFaulty(t)
			h := newHarness(t, store, nil)
			begun := h.begin(report, withToken)
			id := begun.Task.ID
			h.adopt(report, id)
			store.ends.Store(fault)
			_, err := h.endAs(report, id, 1, begun.EndKey)
			want(t, err, broker.ErrAdopted)
			_, err = h.endAs(report, id, 1, broker.EndKey{})
			want(t, err, broker.ErrAdopted)
			store.ends.Store(works)
			time.Sleep(2 * time.Second)
			if got := h.at(report, id); got.State != broker.Active || h.PendingEnds() != 0 || len(h.audit.of(broker.EventTaskEnded)) != 0 {
				t.Errorf("it is %s; %d ends wait", got.State, h.PendingEnds())
			}
		})
	}
}

// TestAdoptWithTheStoreAway is refused, and one whose answer was lost is made again.
func TestAdoptWithTheStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		begun := h.begin(report, nil)
		store.beats.Store(away)
		_, err := h.Adopt(ctx, workload(report), begun.Task.ID)
		want(t, err, broker.ErrUnavailable)
		store.beats.Store(hangs)
		before := time.Now()
		_, err = h.Adopt(ctx, workload(report), begun.Task.ID)
		want(t, err, broker.ErrUnconfirmed)
		if took := time.Since(before); took > time.Second {
			t.Errorf("it took %s", took)
		}
		store.beats.Store(losesOnce)
		adopted, err := h.Adopt(ctx, workload(report), begun.Task.ID)
		if err != nil || adopted.Task.Holder != 3 {
			t.Errorf("%+v, %v", adopted.Task, err)
		}
		if p := h.beat(report, begun.Task.ID, adopted.Task.Holder); p.Err != nil {
			t.Errorf("its beat: %v", p.Err)
		}
		// An end that is in force here alone is one for who would adopt.
		store.ends.Store(away)
		if _, err := h.endAs(report, begun.Task.ID, 3, begun.EndKey); err != nil {
			t.Fatal(err)
		}
		_, err = h.Adopt(ctx, workload(report), begun.Task.ID)
		want(t, err, broker.ErrEnded)
		store.ends.Store(works)
		time.Sleep(2 * time.Second)
		if got := h.at(report, begun.Task.ID); got.State != broker.Completed {
			t.Errorf("it is %s", got.State)
		}
	})
}

// TestOneHolderAtATime: however many adopt at once, one number is the last, and it alone holds the task.
func TestOneHolderAtATime(t *testing.T) {
	inBubble(t, func(h *harness) {
		id := h.begin(report, nil).Task.ID
		const adopters = 50
		got := make(chan int, adopters)
		for range adopters {
			go func() {
				adopted, err := h.Adopt(ctx, workload(report), id)
				if err != nil {
					h.t.Error(err)
				}
				got <- adopted.Task.Holder
			}()
		}
		seen := map[int]bool{}
		for range adopters {
			seen[<-got] = true
		}
		if len(seen) != adopters || !seen[adopters+1] {
			h.t.Errorf("%d numbers", len(seen))
		}
		for holder := range seen {
			if p := h.beat(report, id, holder); (p.Err == nil) != (holder == adopters+1) {
				h.t.Errorf("%d: %v", holder, p.Err)
			}
		}
	})
}
