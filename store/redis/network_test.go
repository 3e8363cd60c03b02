package redis_test

import (
	"cmp"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/store/redis"
	"github.com/errandhq/errand/store/redistest"
)

// TestBadNetworks begins and ends tasks through networks that are slow, narrow or broken. What is answered has
// happened, what is refused as unavailable has not, and an end that was answered is one for good.
func TestBadNetworks(t *testing.T) {
	for name, network := range map[string]struct {
		fault redistest.Fault
		reset time.Duration // between resets of all connections; 0 for none
	}{
		"200 ms late":         {fault: redistest.Fault{Latency: 200 * time.Millisecond}},
		"0 to 800 ms late":    {fault: redistest.Fault{Jitter: 800 * time.Millisecond}},
		"8 kB a second":       {fault: redistest.Fault{Rate: 8 << 10}},
		"byte by byte":        {fault: redistest.Fault{Slice: 1}},
		"resets":              {reset: 30 * time.Millisecond},
		"half open":           {fault: redistest.Fault{Silent: true}},
		"answers do not come": {fault: redistest.Fault{Deaf: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			proxy := redistest.Between(t, s.Addr())
			w := &traveller{T: t, store: s.open(t, redis.Config{URL: proxy.URL()}), ended: map[broker.TaskID]bool{}, begun: map[broker.TaskID]bool{}, never: map[broker.TaskID]bool{}}
			w.task() // before there is a fault
			proxy.Set(network.fault)
			stop := make(chan struct{})
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
							w.task()
						}
					}
				})
			}
			for until := time.Now().Add(2 * time.Second); time.Now().Before(until); {
				time.Sleep(max(network.reset, 10*time.Millisecond))
				if network.reset > 0 {
					proxy.Reset()
				}
			}
			close(stop)
			all.Wait()
			proxy.Set(redistest.Fault{})
			w.check(s.open(t, redis.Config{}))
		})
	}
}

// TestSeveralRoundTripsInTime has a network on which each round trip is in time and all that a call needs are not.
func TestSeveralRoundTripsInTime(t *testing.T) {
	t.Parallel()
	s := start(t)
	proxy := redistest.Between(t, s.Addr())
	store, patient := openSoon(t, redis.Config{URL: proxy.URL()}), s.open(t, redis.Config{}.Patient())
	task, other := begin(t, patient).Task, begin(t, patient).Task
	s.Must("SCRIPT", "FLUSH")
	proxy.Set(redistest.Fault{Latency: 200 * time.Millisecond})
	wants := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrUnconfirmed) {
			t.Errorf("%s: %v; want an error after 0.9 s", what, err)
		}
	}
	_, err := store.Lookup(t.Context(), broker.Ref{Task: task.ID})
	wants("a look-up, loading its script, and a look-up", err)
	_, _, _, err = store.Record("keys").Read(t.Context())
	wants("the same with a record", err)
	proxy.Set(redistest.Fault{})
	end(t, patient, completing(begin(t, patient).Task.ID)) // so that the server knows the scripts
	end(t, patient, broker.Ending{Kind: broker.TargetKey, Key: "one"})
	proxy.Set(redistest.Fault{Latency: 200 * time.Millisecond})
	key := broker.Ending{Kind: broker.TargetKey, Key: "another"}
	replies, err := store.End(t.Context(), []broker.Ending{completing(task.ID), key, completing(other.ID), key})
	for _, r := range replies {
		err = cmp.Or(err, r.Err)
	}
	wants("ends that go one after the other", err)
}

// traveller notes what it was told.
type traveller struct {
	*testing.T
	store broker.Store

	mu    sync.Mutex             // guards the rest
	begun map[broker.TaskID]bool // by an answer
	ended map[broker.TaskID]bool // by an answer
	never map[broker.TaskID]bool // did not begin, by an answer
}

// task begins a task, and ends it.
func (w *traveller) task() {
	req := beginning()
	began := time.Now()
	_, err := w.store.Grant(w.Context(), req)
	w.known(err, began)
	switch {
	case errors.Is(err, broker.ErrUnavailable):
		w.note(w.never, req.Task)
		return
	case err != nil:
		return
	}
	w.note(w.begun, req.Task)
	began = time.Now()
	replies, err := w.store.End(w.Context(), []broker.Ending{completing(req.Task)})
	if err == nil {
		err = replies[0].Err
	}
	w.known(err, began)
	if err == nil {
		w.note(w.ended, req.Task)
	}
}

func (w *traveller) note(in map[broker.TaskID]bool, id broker.TaskID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	in[id] = true
}

// known wants an error that says what has happened. That one comes within a second is promised of a machine
// that has time for it.
func (w *traveller) known(err error, began time.Time) {
	if err != nil && !errors.Is(err, broker.ErrUnavailable) && !errors.Is(err, broker.ErrUnconfirmed) {
		w.Errorf("got %v; want ErrUnavailable, ErrUnconfirmed or none", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		w.Errorf("%v after %s", err, took)
	}
}

// check compares what was told with what there is.
func (w *traveller) check(store broker.Store) {
	state := func(id broker.TaskID) (state broker.State) {
		eventually(w, "a look-up over a good network", func() bool {
			record, err := store.Lookup(w.Context(), broker.Ref{Task: id})
			state = record.Task.State
			return err == nil || errors.Is(err, broker.ErrNotFound)
		})
		return state
	}
	for id := range w.begun {
		if got := state(id); got == "" || w.ended[id] && got != broker.Completed {
			w.Errorf("a task that was begun, and ended: %t, is %q", w.ended[id], got)
		}
	}
	for id := range w.never {
		if got := state(id); got != "" {
			w.Errorf("a task that never began is %s", got)
		}
	}
	w.Logf("%d begun, %d ended, %d refused", len(w.begun), len(w.ended), len(w.never))
}
