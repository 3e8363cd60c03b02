package sdk_test

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// collect has the runtime find out what nobody has any more.
func collect() {
	for range 3 {
		runtime.GC()
	}
}

// A task that nobody has any more and that was not ended is reported once, and gets no heartbeats, so
// that it lapses.
func TestDroppedTaskIsReportedOnceAndLapses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var mu sync.Mutex
		var leaks, ends []string
		client, _ := inBubble(t, f, sdk.WithHooks(sdk.Hooks{
			OnLeak: func(_ context.Context, task string) { mu.Lock(); leaks = append(leaks, task); mu.Unlock() },
			OnEnd: func(_ context.Context, task string, s sdk.State, _ sdk.Receipt, _ error) {
				mu.Lock()
				ends = append(ends, task+string(s))
				mu.Unlock()
			},
		}))
		kept := begin(t, client, spec)
		heldByClient := begin(t, client, spec).HTTPClient("orders")
		ended := begin(t, client, spec)
		must(ended.Complete(t.Context()))(t)
		dropped, ctx := func() (string, context.Context) {
			task := begin(t, client, spec)
			must(task.Token(t.Context(), ordersRead))(t)
			return task.ID(), task.Context()
		}()
		ended = nil
		for range 6 {
			collect()
			time.Sleep(10 * time.Second)
		}
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(leaks, []string{dropped}) {
			t.Errorf("reported: %v; want %v", leaks, dropped)
		}
		if want := dropped + string(sdk.Lapsed); len(ends) != 2 || ends[1] != want {
			t.Errorf("OnEnd was told %v", ends)
		}
		if context.Cause(ctx) != sdk.ErrLeaseLost {
			t.Errorf("its context says %v", context.Cause(ctx))
		}
		beats := 0
		for _, c := range f.got(heartbeats) {
			var req wire.HeartbeatRequest
			f.read(c.body, &req)
			if slices.Contains(req.Tasks, wire.HeartbeatTask{ID: dropped, Holder: 1}) {
				beats++
			}
		}
		if beats > 1 {
			t.Errorf("it got %d heartbeats", beats)
		}
		if kept.State() != sdk.Active {
			t.Error("a task that is in use has ended")
		}
		runtime.KeepAlive(kept)
		runtime.KeepAlive(heldByClient)
	})
}

// Close ends what nobody has any more, too.
func TestCloseEndsDroppedTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		dropped := func() string { return begin(t, client, spec).ID() }()
		for range 2 {
			collect()
			time.Sleep(6 * time.Second)
		}
		if err := client.Close(t.Context()); err != nil || f.state(dropped) != wire.StateCanceled {
			t.Errorf("%v; the task is %s", err, f.state(dropped))
		}
	})
}
