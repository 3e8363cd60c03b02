package sdk_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// limited is a broker that takes no request of this kind for so many seconds.
func limited(seconds string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", seconds)
		refuse(w, http.StatusTooManyRequests, wire.Problem{Type: "https://broker/problems/rate-limited", Title: "Too many requests"})
	}
}

// limit refuses the first requests to a route, and then goes by the book.
func (f *fake) limit(route string, n int, seconds string) {
	f.on(route, func(w http.ResponseWriter, r *http.Request) {
		if n--; n >= 0 {
			limited(seconds)(w, r)
			return
		}
		f.answer(w, r)
	})
}

// TestRateLimitedIsWaitedFor: what the broker does not take yet is sent again when it does, and not
// before, for each kind of request.
func TestRateLimitedIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		f.limit(tasks, 6, "2")
		f.limit(tokens, 3, "2")
		f.limit(end, 2, "2")
		start := time.Now()
		task := begin(t, client, spec)
		if took := time.Since(start); took < 12*time.Second || len(f.got(tasks)) != 7 || f.tasks != 1 {
			t.Errorf("begun after %s and %d requests", took, len(f.got(tasks)))
		}
		if _, err := task.Token(t.Context(), ordersRead); err != nil || len(f.got(tokens)) != 4 {
			t.Errorf("a token: %v, after %d requests", err, len(f.got(tokens)))
		}
		if receipt, err := task.Complete(t.Context()); err != nil || receipt.State != sdk.Completed || len(f.got(end)) != 3 {
			t.Errorf("an end: %+v, %v, after %d requests", receipt, err, len(f.got(end)))
		}
		for _, route := range []string{tasks, tokens, end} {
			last := time.Time{}
			for _, c := range f.got(route) {
				if gap := c.at.Sub(last); gap < 2*time.Second {
					t.Errorf("%s again after %s", route, gap)
				}
				last = c.at
			}
		}
	})
}

// TestRateLimitedEndsWithPatience: when the caller has no more time the error says what it was, and
// nothing that never began is looked for.
func TestRateLimitedEndsWithPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		f.on(tasks, limited("1"))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := client.Begin(ctx, spec)
		var e *sdk.Error
		if !errors.Is(err, sdk.ErrRateLimited) || errors.Is(err, sdk.ErrUnavailable) || errors.Is(err, sdk.ErrQuota) ||
			!errors.As(err, &e) || e.Status != http.StatusTooManyRequests || e.RetryAfter != time.Second {
			t.Errorf("got %v", err)
		}
		asked := len(f.got(tasks))
		if asked < 3 {
			t.Errorf("asked %d times in 10 s", asked)
		}
		time.Sleep(time.Minute)
		if n := len(f.got(tasks)); n != asked {
			t.Errorf("asked %d times after the caller has left", n-asked)
		}
	})
}

// TestRateLimitedEndIsConfirmedLater: an end is over for its caller in 5 s, and the client goes on.
func TestRateLimitedEndIsConfirmedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		f.on(end, limited("3"))
		if _, err := task.Complete(t.Context()); !errors.Is(err, sdk.ErrEndUnconfirmed) || !errors.Is(err, sdk.ErrRateLimited) {
			t.Errorf("got %v", err)
		}
		f.on(end, nil)
		time.Sleep(10 * time.Second)
		if s := f.state(task.ID()); s != wire.StateCompleted {
			t.Errorf("the broker thinks %q", s)
		}
	})
}

// TestRateLimitedHeartbeatKeepsTheTask: heartbeats that come when the broker takes them keep a lease.
func TestRateLimitedHeartbeatKeepsTheTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		n := 0
		f.on(heartbeats, func(w http.ResponseWriter, r *http.Request) {
			if n++; n%3 != 0 {
				limited("2")(w, r)
				return
			}
			f.answer(w, r)
		})
		time.Sleep(10 * time.Minute)
		if err := context.Cause(task.Context()); err != nil {
			t.Errorf("the task is over: %v", err)
		}
		beats := f.got(heartbeats)
		for i, c := range beats[1:] {
			if gap := c.at.Sub(beats[i].at); gap < 1800*time.Millisecond { // 2 s, and the jitter
				t.Errorf("a heartbeat again after %s", gap)
			}
		}
	})
}
