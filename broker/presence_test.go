package broker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

func present(req *broker.BeginRequest) { req.Presence = true }

// both is for one task that has a token and presence.
func both(req *broker.BeginRequest) {
	withToken(req)
	present(req)
}

func (h *harness) at(w string, id broker.TaskID) broker.Task {
	h.t.Helper()
	task, err := h.Task(ctx, workload(w), id)
	if err != nil {
		h.t.Fatal(err)
	}
	return task
}

// beats keeps tasks alive for a while, as a client does that has a stream open, or none.
func (h *harness) beats(w string, stream broker.StreamID, d time.Duration, ids ...broker.TaskID) {
	h.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(time.Second) {
		for _, id := range ids {
			if _, err := h.Heartbeat(ctx, workload(w), []broker.Beat{{Task: id, Stream: stream}}); err != nil {
				h.t.Fatal(err)
			}
		}
	}
}

// TestP6_ALostStreamEndsItsTasks within two seconds, for look-ups and in the feed, with heartbeats that come
// yet or without, and no others. What is below goes along.
func TestP6_ALostStreamEndsItsTasks(t *testing.T) {
	inBubble(t, func(h *harness) {
		task, plain := h.begin(report, both).Task.ID, h.begin(report, withToken).Task.ID
		child := h.begin(report, func(r *broker.BeginRequest) { r.Parent = task }).Task.ID
		l, other := h.hear(report, task, plain), h.hear(report, plain, child)
		h.beats(report, l.stream, time.Minute, task, plain, child)
		if state := h.at(report, task).State; state != broker.Active {
			h.t.Fatalf("with its stream it is %s", state)
		}
		lost := time.Now()
		l.stop()
		synctest.Wait()
		h.beats(report, l.stream, time.Second, task, plain, child) // these were on their way
		if got := h.at(report, task); got.State != broker.Lapsed || got.Cause != broker.CausePresence || got.Ended.Sub(lost) > 2*time.Second {
			h.t.Errorf("%s after the loss: %s by %s at %s", time.Since(lost), got.State, got.Cause, got.Ended)
		}
		time.Sleep(broker.DefaultSweep)
		if took := time.Since(lost); !h.names("orders", string(task)) || took > 2*time.Second {
			h.t.Errorf("it is not in the feed after %s", took)
		}
		other.told(h.t, broker.Fate{Task: child, State: broker.Canceled, Cause: broker.CauseParent})
		h.beats(report, "", time.Minute, plain)
		if state := h.at(report, plain).State; state != broker.Active {
			h.t.Errorf("the task without presence is %s", state)
		}
		ends := h.audit.of(broker.EventTaskEnded)
		if len(ends) == 0 || ends[0].Task != task || ends[0].Cause != broker.CausePresence {
			h.t.Errorf("recorded: %+v", ends)
		}
	})
}

// TestP6_AReplicaThatGoesEndsNothing: its clients have as long as their leases last to go elsewhere, and one
// whose stream is lost has a second.
func TestP6_AReplicaThatGoesEndsNothing(t *testing.T) {
	inBubble(t, func(h *harness) {
		other := newHarness(h.t, h.store, nil)
		task := h.begin(report, both).Task.ID
		first := h.hear(report, task)
		lease := h.at(report, task).LeaseEnd
		h.Dismiss()
		want(h.t, <-first.done, broker.ErrLeaving)
		time.Sleep(5 * time.Second)
		if got := h.at(report, task); got.State != broker.Active || !got.LeaseEnd.Equal(lease) {
			h.t.Errorf("five seconds later it is %s until %s; want %s", got.State, got.LeaseEnd, lease)
		}
		second := other.hear(report, task)
		second.stop()
		<-second.done
		time.Sleep(broker.PresenceGrace - time.Millisecond)
		third := other.hear(report, task) // in time
		fourth := other.hear(report, task)
		third.stop() // which is not the last any more
		<-third.done
		other.beats(report, fourth.stream, time.Minute, task)
		if state := other.at(report, task).State; state != broker.Active {
			h.t.Errorf("it is %s", state)
		}
		fourth.stop()
		<-fourth.done
		time.Sleep(broker.PresenceGrace)
		if state := other.at(report, task).State; state != broker.Lapsed {
			h.t.Errorf("after the last stream it is %s", state)
		}
	})
}

// TestP6_WithoutAStreamNothingIsExtended: when the replica that had the stream has gone, with a word or without,
// heartbeats keep the task for a lease after the last one that named the stream, and no longer.
func TestP6_WithoutAStreamNothingIsExtended(t *testing.T) {
	for _, ending := range []string{"shutdown", "crash"} {
		t.Run(ending, func(t *testing.T) {
			inBubble(t, func(h *harness) {
				store := newFaulty(h.t)
				store.Store = h.store
				other := newHarness(h.t, store, nil) // which goes
				task := other.begin(report, both).Task.ID
				l := other.hear(report, task)
				h.beats(report, l.stream, time.Minute, task)
				if ending == "shutdown" {
					other.Dismiss()
					want(h.t, <-l.done, broker.ErrLeaving)
				} else {
					store.all(away) // so that it says nothing any more
					l.stop()
				}
				was := h.at(report, task)
				for _, stream := range []broker.StreamID{"", broker.NewStreamID()} {
					h.beats(report, stream, 14*time.Second, task)
				}
				if got := h.at(report, task); got.State != broker.Active || !got.LeaseEnd.Equal(was.LeaseEnd) {
					h.t.Errorf("it is %s until %s; want %s", got.State, got.LeaseEnd, was.LeaseEnd)
				}
				h.beats(report, "", 2*time.Second, task)
				if got := h.at(report, task); got.State != broker.Lapsed || !got.Ended.Equal(was.LeaseEnd) {
					h.t.Errorf("it is %s since %s; want it to have lapsed at %s", got.State, got.Ended, was.LeaseEnd)
				}
			})
		})
	}
}

// TestP6_NobodyComes: a presence task that is never followed ends soon, whatever its lease is.
func TestP6_NobodyComes(t *testing.T) {
	inBubble(t, func(h *harness) {
		task := h.begin(report, present).Task.ID
		h.beats(report, broker.NewStreamID(), broker.AttachTime, task)
		if got := h.at(report, task); got.State != broker.Lapsed || got.Cause != broker.CausePresence {
			h.t.Errorf("it is %s by %s", got.State, got.Cause)
		}
	})
}

// TestP6_WhileTheStoreIsAway: the loss is written when the store is back, and holds up neither the replica's
// end nor, for longer than the lease, anything else.
func TestP6_WhileTheStoreIsAway(t *testing.T) {
	for _, ending := range []string{"it comes back", "the replica goes", "the lease is over"} {
		t.Run(ending, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				kept, err := memory.New(memory.Config{})
				if err != nil {
					t.Fatal(err)
				}
				store := newFaulty(t)
				store.Store = kept
				h := newHarness(t, store, nil)
				task := h.begin(report, present).Task.ID
				l := h.hear(report, task)
				store.all(away)
				l.stop()
				time.Sleep(3 * time.Second)
				if n := h.Followers(); n != 1 {
					t.Fatalf("%d followers", n)
				}
				switch ending {
				case "the replica goes":
					h.Dismiss()
					synctest.Wait()
				case "the lease is over":
					time.Sleep(broker.DefaultLease)
				default:
					store.all(works)
					time.Sleep(time.Second)
					if got := h.at(report, task); got.Stream != "" || got.LeaseEnd.After(time.Now().Add(broker.PresenceGrace)) {
						t.Errorf("got %+v; want a lease that was cut", got)
					}
				}
				if n := h.Followers(); n != 0 {
					t.Errorf("%d followers", n)
				}
			})
		})
	}
}
