package broker_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/memory"
)

// following is a running Follow, with what it was told.
type following struct {
	stream broker.StreamID
	done   chan error
	stop   context.CancelFunc

	mu    sync.Mutex // guards what follows
	fates []broker.Fate
	beats int
}

// hear follows tasks.
func (h *harness) hear(w string, ids ...broker.TaskID) *following {
	var tasks []broker.Followed
	for _, id := range ids {
		tasks = append(tasks, broker.Followed{Task: id})
	}
	return h.hearAs(w, tasks...)
}

// hearAs follows tasks as holders.
func (h *harness) hearAs(w string, tasks ...broker.Followed) *following {
	ctx, stop := context.WithCancel(context.Background())
	l := &following{stream: broker.NewStreamID(), done: make(chan error, 1), stop: stop}
	go func() {
		l.done <- h.Follow(ctx, workload(w), l.stream, tasks, func(fates []broker.Fate) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.fates = append(l.fates, fates...)
			if len(fates) == 0 {
				l.beats++
			}
			return nil
		})
	}()
	h.t.Cleanup(stop)
	synctest.Wait()
	return l
}

// take returns what a following was told since the last time.
func (l *following) take() []broker.Fate {
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	fates := l.fates
	l.fates = nil
	return fates
}

// told checks it.
func (l *following) told(t *testing.T, want ...broker.Fate) {
	t.Helper()
	if got := l.take(); !slices.Equal(got, want) {
		t.Errorf("told %v; want %v", got, want)
	}
}

// TestFollowTellsEveryEndAtOnce, whoever has ended the task, at this replica or at another one, and without
// a moment going by. Nobody hears of somebody else's.
func TestFollowTellsEveryEndAtOnce(t *testing.T) {
	inBubble(t, func(h *harness) {
		other := newHarness(h.t, h.store, nil)
		time.Sleep(time.Second)
		root := h.begin(report, withToken).Task.ID
		child := h.begin(report, func(r *broker.BeginRequest) { r.Parent = root }).Task.ID
		grandchild := h.begin(report, func(r *broker.BeginRequest) { r.Parent = child }).Task.ID
		revoked, foreign, kept := h.begin(report, withToken).Task.ID, h.begin(night, withToken).Task.ID, h.begin(report, withToken).Task.ID
		plain := h.begin(report, nil).Task.ID // without a token, so its end has no entry in the feed
		here, there := h.hear(report, root, grandchild, revoked, foreign, plain, kept), other.hear(report, grandchild, revoked, kept)
		here.told(h.t, broker.Fate{Task: foreign})
		before := time.Now()
		if _, err := other.Revoke(context.Background(), broker.Revocation{Task: revoked, Actor: "alice", Reason: "a test"}); err != nil {
			h.t.Fatal(err)
		}
		end := broker.Fate{Task: revoked, State: broker.Revoked, Cause: broker.CauseOperator}
		here.told(h.t, end)
		there.told(h.t, end)
		h.end(report, root)
		there.told(h.t, broker.Fate{Task: grandchild, State: broker.Canceled, Cause: broker.CauseParent})
		if got := here.take(); len(got) != 2 {
			h.t.Errorf("told %v; want the root and the grandchild", got)
		}
		h.end(night, foreign)
		h.end(report, plain)
		here.told(h.t, broker.Fate{Task: plain, State: broker.Completed, Cause: broker.CauseCaller})
		there.told(h.t)
		if took := time.Since(before); took != 0 {
			h.t.Errorf("it took %s", took)
		}
		h.hear(report, root, kept).told(h.t, broker.Fate{Task: root, State: broker.Completed, Cause: broker.CauseCaller})
		time.Sleep(31 * time.Second) // the lease, and the sweeper
		lapse := broker.Fate{Task: kept, State: broker.Lapsed, Cause: broker.CauseLease}
		here.told(h.t, lapse)
		there.told(h.t, lapse)
	})
}

// TestFollowBeats: at least once a second something is heard.
func TestFollowBeats(t *testing.T) {
	inBubble(t, func(h *harness) {
		l := h.hear(report, h.begin(report, nil).Task.ID)
		time.Sleep(10*broker.FollowBeat + time.Millisecond)
		l.take()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.beats < 11 {
			h.t.Errorf("%d beats in ten seconds", l.beats)
		}
	})
}

// TestFollowWithTheStoreAway: what is in force here alone is told all the same, and what the store cannot
// tell follows when it is back.
func TestFollowWithTheStoreAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newFaulty(t)
		h := newHarness(t, store, nil)
		keyed, plain := h.begin(report, withToken), h.begin(report, withToken)
		l := h.hear(report, keyed.Task.ID, plain.Task.ID)
		store.all(away)
		if _, err := h.tryEnd(report, keyed.Task.ID, keyed.EndKey); err != nil {
			t.Fatal(err)
		}
		l.told(t, broker.Fate{Task: keyed.Task.ID, State: broker.Completed, Cause: broker.CauseCaller})
		store.all(works)
		store.reads.Store(away)
		h.end(report, plain.Task.ID)
		l.told(t)
		store.reads.Store(works)
		time.Sleep(broker.FollowBeat)
		l.told(t, broker.Fate{Task: plain.Task.ID, State: broker.Completed, Cause: broker.CauseCaller})
	})
}

// TestFollowWithinItsLimits: the last one that has a place gets it, one more is refused, and a place that
// was given up is free again.
func TestFollowWithinItsLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, func(c *broker.Config) { c.MaxFollowers, c.MaxFollowersPerWorkload = 3, 2 })
		mine, theirs := h.begin(report, nil).Task.ID, h.begin(night, nil).Task.ID
		first := h.hear(report, mine)
		h.hear(report, mine)
		want(t, <-h.hear(report, mine).done, broker.ErrCrowded)
		h.hear(night, theirs)
		want(t, <-h.hear(night, theirs).done, broker.ErrCrowded)
		if n := h.Followers(); n != 3 {
			t.Errorf("%d followers", n)
		}
		first.stop()
		want(t, <-first.done, context.Canceled)
		h.hear(night, theirs)
		if n := h.Followers(); n != 3 {
			t.Errorf("%d followers after one has left and another has come", n)
		}
		many := slices.Repeat([]broker.TaskID{mine}, broker.MaxFollowed+1)
		want(t, <-h.hear(small, many...).done, broker.ErrInvalid)
		want(t, <-h.hear(small).done, broker.ErrInvalid)
		want(t, <-h.hear(small, many[1:]...).done, broker.ErrCrowded) // no mistake, but no place
	})
}

// TestFollowEndsWithTheReplica: who follows is sent elsewhere at once, and so is who comes yet.
func TestFollowEndsWithTheReplica(t *testing.T) {
	inBubble(t, func(h *harness) {
		id := h.begin(report, nil).Task.ID
		l := h.hear(report, id)
		h.Dismiss()
		want(h.t, <-l.done, broker.ErrLeaving)
		want(h.t, <-h.hear(report, id).done, broker.ErrLeaving)
	})
}

// betweenStore calls between after each look-up, before it answers.
type betweenStore struct {
	broker.Store
	between func(broker.Ref)
}

func (s *betweenStore) Lookup(ctx context.Context, ref broker.Ref) (broker.Record, error) {
	record, err := s.Store.Lookup(ctx, ref)
	if s.between != nil {
		s.between(ref)
	}
	return record, err
}

// TestFollowMissesNoEndWhileItBegins: a task above ends after the task below was looked up, and before it is
// known what is above it.
func TestFollowMissesNoEndWhileItBegins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept, err := memory.New(memory.Config{})
		if err != nil {
			t.Fatal(err)
		}
		store := &betweenStore{Store: kept}
		h := newHarness(t, store, nil)
		root := h.begin(report, withToken).Task.ID
		child := h.begin(report, func(r *broker.BeginRequest) { r.Parent = root }).Task.ID
		var once sync.Once
		store.between = func(ref broker.Ref) {
			if ref.Task == child {
				once.Do(func() {
					h.end(report, root)
					time.Sleep(time.Second) // everybody has heard of it
				})
			}
		}
		l := h.hear(report, child)
		time.Sleep(time.Second)
		l.told(t, broker.Fate{Task: child, State: broker.Canceled, Cause: broker.CauseParent})
	})
}
