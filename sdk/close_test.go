package sdk_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
)

func TestCloseEndsOpenTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		var all []*sdk.Task
		for range 40 {
			all = append(all, begin(t, client, spec))
		}
		if err := client.Healthy(); err != nil {
			t.Errorf("Healthy: %v", err)
		}
		for range 2 {
			if err := client.Close(t.Context()); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		for _, task := range all {
			if f.state(task.ID()) != "canceled" || context.Cause(task.Context()) != sdk.ErrTaskEnded {
				t.Errorf("%s is %s, its cause %v", task.ID(), f.state(task.ID()), context.Cause(task.Context()))
			}
		}
		if len(f.got(end)) != len(all) {
			t.Errorf("%d ends", len(f.got(end)))
		}
		if _, err := client.Begin(t.Context(), spec); !errors.Is(err, sdk.ErrClosed) {
			t.Errorf("Begin: %v", err)
		}
		if err := client.Healthy(); !errors.Is(err, sdk.ErrClosed) {
			t.Errorf("Healthy: %v", err)
		}
		if err := all[0].Close(); err != nil {
			t.Errorf("Close of a task: %v", err)
		}
	})
}

func TestCloseWithoutABroker(t *testing.T) {
	for name, outage := range map[string]http.HandlerFunc{"down": down, "hang": hang} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				begin(t, client, spec)
				begin(t, client, spec)
				f.on(end, outage)
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				start := time.Now()
				err := client.Close(ctx)
				if took := time.Since(start); !errors.Is(err, sdk.ErrEndUnconfirmed) || took > 2*time.Second {
					t.Errorf("after %s: %v", took, err)
				}
			})
		})
	}
}

// An end that was not confirmed is tried once more, and so is one that is on its way.
func TestCloseSettlesWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task, slow := begin(t, client, spec), begin(t, client, spec)
		f.on(end, down)
		if _, err := task.Complete(t.Context()); !errors.Is(err, sdk.ErrEndUnconfirmed) {
			t.Errorf("got %v", err)
		}
		f.on(end, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			f.answer(w, r)
		})
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		_, _ = slow.Complete(canceled)
		if err := client.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
		if f.state(task.ID()) != "completed" || f.state(slow.ID()) != "completed" {
			t.Errorf("the tasks are %s and %s", f.state(task.ID()), f.state(slow.ID()))
		}
	})
}

func TestCloseDuringABegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.on(tasks, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			f.answer(w, r)
		})
		client, _ := inBubble(t, f)
		got := make(chan error)
		go func() {
			_, err := client.Begin(t.Context(), spec)
			got <- err
		}()
		synctest.Wait()
		f.on(end, func(w http.ResponseWriter, r *http.Request) { t.Error("after Close") })
		if err := client.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-got; !errors.Is(err, sdk.ErrClosed) {
			t.Errorf("Begin: %v", err)
		}
	})
}
