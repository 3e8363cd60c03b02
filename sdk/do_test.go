package sdk_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// ends returns the end requests, decoded, less their end keys, which the fake has checked.
func (f *fake) ends() (out []wire.EndRequest) {
	for _, c := range f.got(end) {
		var req wire.EndRequest
		f.read(c.body, &req)
		req.EndKey, req.Holder = "", 0 // the fake has looked at them
		out = append(out, req)
	}
	return out
}

func TestDoEndsTheTask(t *testing.T) {
	boom := &fs.PathError{Op: "open", Path: "/secret/customer-4711", Err: fs.ErrNotExist}
	for name, c := range map[string]struct {
		fn   func(context.CancelFunc) error
		want wire.EndRequest
		err  error
	}{
		"nil":                {func(context.CancelFunc) error { return nil }, wire.EndRequest{Outcome: "completed"}, nil},
		"error":              {func(context.CancelFunc) error { return boom }, wire.EndRequest{Outcome: "failed", Reason: "*fs.PathError"}, boom},
		"canceled":           {func(cancel context.CancelFunc) error { cancel(); return boom }, wire.EndRequest{Outcome: "canceled", Reason: "context canceled"}, boom},
		"canceled, but done": {func(cancel context.CancelFunc) error { cancel(); return nil }, wire.EndRequest{Outcome: "completed"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var task *sdk.Task
				err := client.Do(ctx, spec, func(ctx context.Context, got *sdk.Task) error {
					if from, ok := sdk.FromContext(ctx); !ok || from != got {
						t.Error("the context has not the task")
					}
					task = got
					return c.fn(cancel)
				})
				if err != c.err {
					t.Errorf("Do returned %v; want %v", err, c.err)
				}
				if ends := f.ends(); len(ends) != 1 || ends[0] != c.want {
					t.Errorf("the broker got %+v; want %+v", ends, c.want)
				}
				if task.State() != sdk.State(c.want.Outcome) || task.Context().Err() == nil {
					t.Errorf("afterwards the task is %s, and its context %v", task.State(), task.Context().Err())
				}
				if _, err := task.Token(t.Context(), ordersRead); !errors.Is(err, sdk.ErrTaskEnded) {
					t.Errorf("a token after the end: %v", err)
				}
			})
		})
	}
}

func TestPanicFailsTheTaskAndContinues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		defer func() {
			if p := recover(); p != "the customer's name" {
				t.Errorf("recovered %v", p)
			}
			if ends := f.ends(); len(ends) != 1 || ends[0] != (wire.EndRequest{Outcome: "failed", Reason: "panic"}) {
				t.Errorf("the broker got %+v", ends)
			}
		}()
		_ = client.Do(t.Context(), spec, func(context.Context, *sdk.Task) error { panic("the customer's name") })
		t.Error("the panic did not continue")
	})
}

func TestGoexitEndsTheTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		var gone sync.WaitGroup
		gone.Go(func() {
			_ = client.Do(t.Context(), spec, func(context.Context, *sdk.Task) error { runtime.Goexit(); return nil })
			t.Error("Do returned")
		})
		gone.Wait()
		if ends := f.ends(); len(ends) != 1 || ends[0] != (wire.EndRequest{Outcome: "failed", Reason: "runtime.Goexit"}) {
			t.Errorf("the broker got %+v", ends)
		}
	})
}

func TestRunReturnsTheResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := inBubble(t, newFake(t))
		n, err := sdk.Run(t.Context(), client, spec, func(context.Context, *sdk.Task) (int, error) { return 42, fs.ErrExist })
		if n != 42 || err != fs.ErrExist {
			t.Errorf("got %d, %v", n, err)
		}
	})
}

// The end has 5 s and 3 tries. What it can't confirm is reported with the latest death, and told to
// the broker when that is back.
func TestDoEndsInFiveSecondsAndThreeTriesAndThenBehindItsCaller(t *testing.T) {
	for name, outage := range map[string]http.HandlerFunc{"down": down, "away": away, "hang": hang} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				var reported []error
				client, _ := inBubble(t, f, sdk.WithHooks(sdk.Hooks{
					OnEnd: func(_ context.Context, _ string, _ sdk.State, _ sdk.Receipt, err error) {
						reported = append(reported, err)
					},
				}))
				var task *sdk.Task
				var lastBeat, ended time.Time
				err := client.Do(t.Context(), spec, func(_ context.Context, got *sdk.Task) error {
					task = got
					time.Sleep(15 * time.Second)
					beats := f.got(heartbeats)
					lastBeat = beats[len(beats)-1].at
					f.on(end, outage)
					f.on(heartbeats, outage)
					ended = time.Now()
					return fs.ErrExist
				})
				if took := time.Since(ended); took > 5*time.Second {
					t.Errorf("the end took %s", took)
				}
				if n := len(f.got(end)); n != 3 {
					t.Errorf("%d tries; want 3", n)
				}
				var unconfirmed *sdk.EndError
				if !errors.As(err, &unconfirmed) || !errors.Is(err, sdk.ErrEndUnconfirmed) || !errors.Is(err, fs.ErrExist) {
					t.Fatalf("Do returned %v", err)
				}
				if unconfirmed.Task != task.ID() || !unconfirmed.By.Equal(lastBeat.Add(30*time.Second)) {
					t.Errorf("By is %s after the last heartbeat; want the lease, 30 s", unconfirmed.By.Sub(lastBeat))
				}
				f.on(end, nil)
				time.Sleep(time.Minute)
				if state := f.state(task.ID()); state != "failed" {
					t.Errorf("the broker was not told later: %s", state)
				}
				if receipt, err := task.Complete(t.Context()); err != nil || receipt.State != sdk.Failed {
					t.Errorf("the receipt is %+v, %v", receipt, err)
				}
				n := len(f.got(end))
				time.Sleep(time.Minute)
				if more := len(f.got(end)) - n; more != 0 {
					t.Errorf("%d more tries after the end was confirmed", more)
				}
				if len(reported) != 1 || !errors.Is(reported[0], sdk.ErrEndUnconfirmed) {
					t.Errorf("the hook got %v", reported)
				}
			})
		})
	}
}

func TestByIsNoLaterThanTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		s := spec
		s.Deadline = 10 * time.Second
		begun := time.Now()
		task := begin(t, client, s)
		f.on(end, down)
		_, err := task.Complete(t.Context())
		var unconfirmed *sdk.EndError
		if !errors.As(err, &unconfirmed) || !unconfirmed.By.Equal(begun.Add(10*time.Second)) {
			t.Errorf("got %v", err)
		}
	})
}

func TestSomebodyElseWasFirst(t *testing.T) {
	for name, c := range map[string]struct {
		state string
		want  error
	}{
		"revoked":  {wire.StateRevoked, sdk.ErrRevoked},
		"canceled": {wire.StateCanceled, sdk.ErrTaskEnded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				// Not noticed before the end, and noticed by a heartbeat.
				for _, wait := range []time.Duration{0, 12 * time.Second} {
					err := client.Do(t.Context(), spec, func(_ context.Context, task *sdk.Task) error {
						f.set(task.ID(), c.state)
						time.Sleep(wait)
						return nil
					})
					if !errors.Is(err, sdk.ErrTaskEnded) || !errors.Is(err, c.want) {
						t.Errorf("after %s: %v", wait, err)
					}
				}
			})
		})
	}
}

func TestFirstEndWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		first := must(task.Complete(t.Context()))(t)
		again := must(task.Cancel(t.Context(), "too late"))(t)
		if first.State != sdk.Completed || !reflect.DeepEqual(first, again) || first.Event == "" || !first.Durable {
			t.Errorf("the receipts are %+v and %+v", first, again)
		}
		if err := task.Close(); err != nil || len(f.got(end)) != 1 {
			t.Errorf("Close: %v; %d ends", err, len(f.got(end)))
		}
	})
}

func TestContextBoundsOnlyTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.on(end, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
			f.answer(w, r)
		})
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := task.Complete(ctx); !errors.Is(err, sdk.ErrEndUnconfirmed) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if receipt, err := task.Complete(t.Context()); err != nil || receipt.State != sdk.Completed {
			t.Errorf("the end did not go on: %+v, %v", receipt, err)
		}
	})
}

func TestCloseCancelsForDefer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		if err := task.Close(); err != nil || f.state(task.ID()) != "canceled" {
			t.Errorf("Close: %v, the task is %s", err, f.state(task.ID()))
		}
	})
}

// A task that the broker does not know has no tokens that live: there is nothing to repeat.
func TestEndOfAnUnknownTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		f.set(task.ID(), "")
		_, err := task.Complete(t.Context())
		if !errors.Is(err, sdk.ErrNotFound) || errors.Is(err, sdk.ErrEndUnconfirmed) {
			t.Errorf("got %v", err)
		}
		time.Sleep(time.Minute)
		if n := len(f.got(end)); n != 1 {
			t.Errorf("%d tries", n)
		}
	})
}

type classed struct{ error }

func (classed) Class() string { return "payment/declined" }

func TestFailSendsTheTypeOrClassAndNeverTheText(t *testing.T) {
	secret := errors.New("customer 4711 owes 12 EUR")
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"typed":            {&fs.PathError{Path: "/4711", Err: secret}, "*fs.PathError"},
		"wrapped":          {fmt.Errorf("4711: %w", fmt.Errorf("4711: %w", &fs.PathError{Err: secret})), "*fs.PathError"},
		"text":             {secret, "*errors.errorString"},
		"with a class":     {fmt.Errorf("4711: %w", classed{secret}), "payment/declined"},
		"nil":              {nil, ""},
		"several":          {errors.Join(secret, secret), "*errors.joinError"},
		"wrapped, no type": {fmt.Errorf("4711: %w", secret), "*errors.errorString"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := sdk.Class(c.err); got != c.want {
				t.Errorf("got %q; want %q", got, c.want)
			}
		})
	}
}

func TestFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		receipt := must(task.Fail(t.Context(), fmt.Errorf("4711: %w", fs.ErrPermission)))(t)
		if receipt.State != sdk.Failed || receipt.Reason != "*errors.errorString" || receipt.Task != task.ID() || task.Root() != task.ID() {
			t.Errorf("the receipt is %+v", receipt)
		}
		_, err := task.Token(t.Context(), ordersRead)
		if want := "task has ended: " + task.ID() + " is failed; begin a new one"; err == nil || err.Error() != want {
			t.Errorf("it says %q; want %q", err, want)
		}
	})
}

func TestEndErrorSaysByWhen(t *testing.T) {
	e := &sdk.EndError{Task: "tsk_1", By: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Err: sdk.ErrUnavailable}
	want := "end of task not confirmed by the broker: tsk_1: broker unavailable; its tokens are dead by 2026-01-02T03:04:05Z at the latest"
	if e.Error() != want || !errors.Is(e, sdk.ErrUnavailable) {
		t.Errorf("it says %q", e)
	}
}

func TestReasonIsCutAtItsLimit(t *testing.T) {
	for _, c := range []struct{ sent, want int }{{1024, 1024}, {1025, 1024}} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(t)
			client, _ := inBubble(t, f)
			reason := make([]byte, c.sent)
			for i := range reason {
				reason[i] = 'x'
			}
			must(begin(t, client, spec).Cancel(t.Context(), string(reason)))(t)
			if got := len(f.ends()[0].Reason); got != c.want {
				t.Errorf("%d bytes were sent as %d", c.sent, got)
			}
		})
	}
}

func TestBeginIsRepeatedAsOne(t *testing.T) {
	for name, outage := range map[string]http.HandlerFunc{"down": down, "away": away, "hang": hang} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				tries := 0
				f.on(tasks, func(w http.ResponseWriter, r *http.Request) {
					if tries++; tries <= 3 {
						outage(w, r)
						return
					}
					f.answer(w, r)
				})
				task := begin(t, client, spec)
				calls := f.got(tasks)
				for _, c := range calls {
					if c.key == "" || c.key != calls[0].key {
						t.Errorf("the keys are %q and %q", calls[0].key, c.key)
					}
				}
				if len(calls) != 4 {
					t.Errorf("%d tries", len(calls))
				}
				// The lease may be as old as the first try, so it is renewed at once.
				if len(f.got(heartbeats)) != 1 || task.State() != sdk.Active {
					t.Errorf("%d heartbeats; the task is %s", len(f.got(heartbeats)), task.State())
				}
				if other := begin(t, client, spec); other.ID() == task.ID() {
					t.Error("the next Begin has the same key")
				}
			})
		})
	}
}

func TestBeginGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		f.on(tasks, down)
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := client.Begin(ctx, spec); !errors.Is(err, sdk.ErrUnavailable) || time.Since(start) > 3*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		start = time.Now()
		if _, err := client.Begin(t.Context(), spec); !errors.Is(err, sdk.ErrUnavailable) || time.Since(start) > 30*time.Second {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
		// Once a pause of at most 2 s, not as fast as it goes.
		if n := len(f.got(tasks)); n > 60 {
			t.Errorf("%d tries in 33 s", n)
		}
	})
}

func TestBeginRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		want   error
		hook   int
	}{
		"denied":               {403, sdk.ErrDenied, 1},
		"unregistered":         {403, sdk.ErrUnregistered, 1},
		"quarantined":          {403, sdk.ErrQuarantined, 1},
		"scope-exceeded":       {403, sdk.ErrScopeExceeded, 1},
		"invalid":              {422, sdk.ErrInvalid, 0},
		"unauthenticated":      {401, sdk.ErrUnauthenticated, 0},
		"quota-exceeded":       {429, sdk.ErrQuota, 0},
		"idempotency-mismatch": {409, sdk.ErrInvalid, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				var denied []*sdk.Error
				client, _ := inBubble(t, f, sdk.WithHooks(sdk.Hooks{
					OnDenied: func(_ context.Context, e *sdk.Error) { denied = append(denied, e) },
				}))
				f.on(tasks, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Retry-After", "7")
					refuse(w, c.status, wire.Problem{
						Type: "https://broker/problems/" + name, Title: "No", Detail: "because", DecisionID: "dcs_1", Rule: "r1",
						Missing: map[string]string{"ticket": "CHG-1"}, Instead: []string{"orders:read"}, RequestID: "req_1",
					})
				})
				_, err := client.Begin(t.Context(), spec)
				var e *sdk.Error
				if !errors.Is(err, c.want) || !errors.As(err, &e) || errors.Is(err, sdk.ErrUnavailable) {
					t.Fatalf("got %v", err)
				}
				if e.Decision != "dcs_1" || e.Rule != "r1" || e.Missing["ticket"] != "CHG-1" || e.RetryAfter != 7*time.Second || e.Request != "req_1" {
					t.Errorf("got %+v", e)
				}
				want := fmt.Sprintf("broker: No: because (HTTP %d; rule r1; decision dcs_1; missing ticket: CHG-1; would be granted: orders:read; request req_1)", c.status)
				if e.Error() != want {
					t.Errorf("it says %q; want %q", e.Error(), want)
				}
				if len(denied) != c.hook || len(f.got(tasks)) != 1 {
					t.Errorf("%d calls of the hook, %d tries", len(denied), len(f.got(tasks)))
				}
			})
		})
	}
}

func TestSpecIsSentAsItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		s := spec
		s.Lease, s.Deadline = 10*time.Second, time.Minute
		begin(t, client, s)
		var req map[string]any
		if err := json.Unmarshal(f.got(tasks)[0].body, &req); err != nil {
			t.Fatal(err)
		}
		if req["lease_seconds"] != 10.0 || req["deadline_seconds"] != 60.0 || req["name"] != spec.Name || req["purpose"] != spec.Purpose {
			t.Errorf("the broker got %v", req)
		}
		for _, bad := range []sdk.TaskSpec{{Lease: 1500 * time.Millisecond}, {Deadline: -time.Second}} {
			if _, err := client.Begin(t.Context(), bad); !errors.Is(err, sdk.ErrInvalid) {
				t.Errorf("%+v: %v", bad, err)
			}
		}
	})
}

func TestTaskLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f, sdk.WithMaxTasks(2))
		first := begin(t, client, spec)
		begin(t, client, spec)
		if _, err := client.Begin(t.Context(), spec); !errors.Is(err, sdk.ErrQuota) {
			t.Errorf("one past the limit: %v", err)
		}
		must(first.Complete(t.Context()))(t)
		// A begin that fails gives its place back.
		f.on(tasks, func(w http.ResponseWriter, _ *http.Request) { refuse(w, 403, wire.Problem{Type: "x/denied"}) })
		for range 3 {
			if _, err := client.Begin(t.Context(), spec); !errors.Is(err, sdk.ErrDenied) {
				t.Errorf("got %v", err)
			}
		}
		f.on(tasks, nil)
		begin(t, client, spec)
	})
}

// TestABeginThatNobodyWaitedForIsEnded: it has happened at the broker, and nobody else would end it.
func TestABeginThatNobodyWaitedForIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		f.on(tasks, func(w http.ResponseWriter, r *http.Request) {
			f.on(tasks, nil)
			hang(w, r)
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := client.Begin(ctx, spec); err == nil {
			t.Fatal("begun")
		}
		time.Sleep(10 * time.Second)
		if n := len(f.got(end)); n != 1 {
			t.Errorf("%d ends", n)
		}
	})
}
