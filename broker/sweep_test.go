package broker_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/store/memory"
)

// crowded is for newHarness: the inventory has a workload that may have many tasks.
func crowded(t *testing.T, more func(*broker.Config)) func(*broker.Config) {
	t.Helper()
	known, err := registry.Parse([]byte(crowd))
	if err != nil {
		t.Fatal(err)
	}
	return func(c *broker.Config) {
		c.Registry = known
		if more != nil {
			more(c)
		}
	}
}

// paused is a store for one replica, whose process can be stopped right before it writes what is due.
type paused struct {
	broker.Store
	mu   sync.Mutex
	gate chan struct{} // nil: it runs
}

func (p *paused) stop() (goOn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	gate := make(chan struct{})
	p.gate = gate
	return func() {
		p.mu.Lock()
		p.gate = nil
		p.mu.Unlock()
		close(gate)
	}
}

func (p *paused) End(ctx context.Context, ends []broker.Ending) ([]broker.EndReply, error) {
	p.mu.Lock()
	gate := p.gate
	p.mu.Unlock()
	if gate != nil {
		<-gate // a stopped process does not see its context end, either
	}
	return p.Store.End(context.WithoutCancel(ctx), ends)
}

// TestP5_ReplicasShareTheSweep: any number of replicas sweep one store without a lock. One of them is stopped
// after it has looked and before it writes, for longer than a lease; while it stands still some of what it has
// seen is ended by others. Each lapse is announced within a second, and recorded once.
func TestP5_ReplicasShareTheSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{Shards: 4})
		if err != nil {
			t.Fatal(err)
		}
		slow := &paused{Store: store}
		replicas := []*harness{newHarness(t, slow, crowded(t, nil)), newHarness(t, store, crowded(t, nil)), newHarness(t, store, crowded(t, nil))}
		const tasks = 600
		due := map[broker.TaskID]time.Time{}
		begin := func(lease time.Duration) {
			for i := range tasks {
				task := replicas[i%3].begin("crowd", func(r *broker.BeginRequest) { withToken(r); r.Lease = lease }).Task
				due[task.ID] = task.LeaseEnd
			}
		}
		begin(5 * time.Second)
		goOn := slow.stop()
		time.Sleep(5*time.Second + time.Second)
		announced(t, replicas[1:], due)
		begin(7 * time.Second)
		time.Sleep(3 * time.Second)
		goOn() // in the middle of other lives
		time.Sleep(4*time.Second + time.Second)
		announced(t, replicas, due)
		ends := map[broker.TaskID]int{}
		for _, h := range replicas {
			for _, e := range h.audit.of(broker.EventTaskEnded) {
				ends[e.Task]++
				if e.State != broker.Lapsed || !e.Time.Equal(due[e.Task]) {
					t.Errorf("%s is recorded as %s at %s; its lease was until %s", e.Task, e.State, e.Time, due[e.Task])
				}
			}
		}
		for id := range due {
			if ends[id] != 1 {
				t.Errorf("the end of %s is recorded %d times", id, ends[id])
			}
		}
	})
}

// announced wants every replica's feed to have all that is due.
func announced(t *testing.T, replicas []*harness, due map[broker.TaskID]time.Time) {
	t.Helper()
	for i, h := range replicas {
		there := map[string]bool{}
		for _, e := range h.denied("orders") {
			there[e.ID] = true
		}
		for id, at := range due {
			if !time.Now().Before(at.Add(time.Second)) && !there[string(id)] {
				t.Fatalf("replica %d does not announce %s, which was due %s ago", i, id, time.Since(at))
			}
		}
	}
}

// TestP5_NobodyDiesEarly: a task that is beaten each third of its lease lives, however the beats jitter, and
// also when two of three are lost; one that stops dies to the millisecond.
func TestP5_NobodyDiesEarly(t *testing.T) {
	inBubble(t, func(h *harness) {
		random := rand.New(rand.NewPCG(1, 2))
		const lease = 6 * time.Second
		beaten := h.begin(report, func(r *broker.BeginRequest) { withToken(r); r.Lease = lease })
		sparse := h.begin(report, func(r *broker.BeginRequest) { withToken(r); r.Lease = lease })
		beat := func(id broker.TaskID) time.Time {
			pulses, err := h.Heartbeat(ctx, workload(report), []broker.Beat{{Task: id}})
			if err != nil || pulses[0].Task.State != broker.Active {
				h.t.Fatalf("%+v, %v", pulses, err)
			}
			return pulses[0].Task.LeaseEnd
		}
		var until time.Time
		for n := range 60 {
			jitter := time.Duration(random.IntN(400)-200) * time.Millisecond
			time.Sleep(lease/3 + jitter)
			until = beat(beaten.Task.ID)
			if n%2 == 1 {
				beat(sparse.Task.ID)
			}
			if grant := beaten.Tokens[0].Grant; time.Now().Before(grant.Expires) && !h.live(report, grant.ID) {
				h.t.Fatal("a grant of a task that is beaten is dead")
			}
		}
		for _, before := range []time.Duration{5 * time.Millisecond, time.Millisecond} {
			time.Sleep(time.Until(until) - before)
			until = beat(beaten.Task.ID) // in time, if only just
		}
		time.Sleep(time.Until(until) + time.Millisecond)
		pulses, err := h.Heartbeat(ctx, workload(report), []broker.Beat{{Task: beaten.Task.ID}})
		if err != nil || pulses[0].Task.State != broker.Lapsed || !pulses[0].Task.Ended.Equal(until) {
			h.t.Errorf("beaten a millisecond too late: %+v, %v; its lease was until %s", pulses, err, until)
		}
	})
}

// TestP5_ManyLapseAtOnce: ten thousand leases that end within the same tenth of a second are announced within
// a second, and each once.
func TestP5_ManyLapseAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, err := memory.New(memory.Config{Shards: 4})
		if err != nil {
			t.Fatal(err)
		}
		h := newHarness(t, store, crowded(t, nil))
		const tasks = 10_000
		due := map[broker.TaskID]time.Time{}
		for i := range tasks {
			task := h.begin("crowd", func(r *broker.BeginRequest) {
				r.Lease = 10 * time.Second
				if i%10 == 0 {
					withToken(r) // only what has a token has anything to announce
				}
			}).Task
			if i%10 == 0 {
				due[task.ID] = task.LeaseEnd
			}
			if i%100 == 99 {
				time.Sleep(time.Millisecond)
			}
		}
		time.Sleep(10*time.Second + time.Second)
		announced(t, []*harness{h}, due)
		if n := len(h.audit.of(broker.EventTaskEnded)); n != tasks {
			t.Errorf("%d lapses are recorded; want %d", n, tasks)
		}
	})
}
