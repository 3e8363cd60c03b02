package sdk_test

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// sizes returns how many tasks each heartbeat had.
func (f *fake) sizes() (out []int) {
	for _, c := range f.got(heartbeats) {
		var req wire.HeartbeatRequest
		f.read(c.body, &req)
		out = append(out, len(req.Tasks))
	}
	return out
}

func TestOneHeartbeatRequestForAllTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var hooked atomic.Int32
		client, _ := inBubble(t, f, sdk.WithHooks(sdk.Hooks{
			OnHeartbeat: func(_ context.Context, tasks int, _ time.Duration, err error) {
				if tasks != 5 || err != nil {
					t.Errorf("the hook got %d, %v", tasks, err)
				}
				hooked.Add(1)
			},
		}))
		long := spec
		long.Lease = 10 * time.Minute
		var all []*sdk.Task
		for range 4 {
			all = append(all, begin(t, client, long))
		}
		begun := time.Now()
		all = append(all, begin(t, client, spec)) // 30 s: the shortest decides
		time.Sleep(10 * time.Minute)
		beats := f.got(heartbeats)
		last := begun
		for i, beat := range beats {
			if gap := beat.at.Sub(last); gap < 9*time.Second || gap > 11*time.Second {
				t.Errorf("heartbeat %d comes %s after the one before", i, gap)
			}
			last = beat.at
		}
		if n := len(beats); n < 54 || n > 66 || int(hooked.Load()) != n {
			t.Errorf("%d heartbeats in 10 minutes, %d calls of the hook", n, hooked.Load())
		}
		for _, size := range f.sizes() {
			if size != 5 {
				t.Errorf("a heartbeat of %d tasks", size)
			}
		}
		for _, task := range all {
			if task.State() != sdk.Active || task.Context().Err() != nil {
				t.Errorf("%s is %s", task.ID(), task.State())
			}
		}
	})
}

func TestNoTasksNoHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		time.Sleep(time.Hour)
		must(begin(t, client, spec).Complete(t.Context()))(t)
		time.Sleep(time.Hour)
		if n := len(f.got(heartbeats)); n != 0 {
			t.Errorf("%d heartbeats", n)
		}
	})
}

// The broker takes a bounded number of tasks in one request.
func TestHeartbeatBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		var held []*sdk.Task
		for range wire.MaxHeartbeat + 1 {
			held = append(held, begin(t, client, spec))
		}
		time.Sleep(12 * time.Second)
		defer runtime.KeepAlive(held)
		if sizes := f.sizes(); len(sizes) != 2 || sizes[0] != wire.MaxHeartbeat || sizes[1] != 1 {
			t.Errorf("the heartbeats had %v tasks", sizes)
		}
	})
}

func TestAnswerOfAHeartbeatEndsTheTask(t *testing.T) {
	for state, want := range map[string]error{
		wire.StateRevoked: sdk.ErrRevoked, wire.StateLapsed: sdk.ErrLeaseLost, wire.StateExpired: sdk.ErrDeadline,
		wire.StateCompleted: sdk.ErrTaskEnded, wire.StateCanceled: sdk.ErrTaskEnded, wire.StateUnknown: sdk.ErrTaskEnded,
	} {
		t.Run(state, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				var reported []error
				var first string
				client, _ := inBubble(t, f, sdk.WithHooks(sdk.Hooks{
					OnEnd: func(_ context.Context, id string, s sdk.State, _ sdk.Receipt, err error) {
						if s == sdk.State(state) && id == first {
							reported = append(reported, err)
						}
					},
				}))
				task, other := begin(t, client, spec), begin(t, client, spec)
				first = task.ID()
				must(task.Token(t.Context(), ordersRead))(t)
				f.set(task.ID(), state)
				<-task.Context().Done()
				synctest.Wait()
				if cause := context.Cause(task.Context()); cause != want {
					t.Errorf("the cause is %v; want %v", cause, want)
				}
				if _, err := task.Token(t.Context(), ordersRead); !errors.Is(err, sdk.ErrTaskEnded) || !errors.Is(err, want) {
					t.Errorf("a token afterwards: %v", err)
				}
				if task.State() != sdk.State(state) || len(reported) != 1 || reported[0] != want {
					t.Errorf("the state is %s, the hook got %v", task.State(), reported)
				}
				if err := task.Close(); err != nil || len(f.got(end)) != 0 {
					t.Errorf("Close: %v, %d ends", err, len(f.got(end)))
				}
				time.Sleep(time.Minute)
				if other.State() != sdk.Active {
					t.Errorf("the other task is %s", other.State())
				}
				sizes := f.sizes()
				if last := sizes[len(sizes)-1]; last != 1 {
					t.Errorf("the last heartbeat has %d tasks", last)
				}
			})
		})
	}
}

// At two thirds of the lease, counted from the start of the last good heartbeat's request.
func TestLeaseIsLostAtTwoThirds(t *testing.T) {
	for name, outage := range map[string]http.HandlerFunc{
		"down": down, "away": away, "hang": hang,
		"refuses":    func(w http.ResponseWriter, _ *http.Request) { refuse(w, 401, wire.Problem{Type: "x/unauthenticated"}) },
		"leaves out": func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, wire.HeartbeatResponse{}) },
		"garbles":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				task := begin(t, client, spec)
				// Slow answers: the lease counts from the question.
				f.on(heartbeats, func(w http.ResponseWriter, r *http.Request) {
					time.Sleep(2 * time.Second)
					f.answer(w, r)
				})
				time.Sleep(15 * time.Second)
				good := f.got(heartbeats)
				f.on(heartbeats, outage)
				<-task.Context().Done()
				if after := time.Since(good[len(good)-1].at); after != 20*time.Second {
					t.Errorf("lost after %s; want 20 s", after)
				}
				if context.Cause(task.Context()) != sdk.ErrLeaseLost || task.State() != sdk.Lapsed {
					t.Errorf("cause %v, state %s", context.Cause(task.Context()), task.State())
				}
				if n := len(f.got(heartbeats)) - len(good); n < 1 || n > 25 {
					t.Errorf("%d tries to save the lease", n)
				}
			})
		})
	}
}

// A short outage costs nothing.
func TestLeaseSurvivesAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		for range 20 {
			f.on(heartbeats, away)
			time.Sleep(7 * time.Second)
			f.on(heartbeats, nil)
			time.Sleep(5 * time.Second)
		}
		if task.State() != sdk.Active {
			t.Errorf("the task is %s", task.State())
		}
	})
}

func TestDeadlineIsLocal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, _ := inBubble(t, newFake(t))
		s := spec
		s.Deadline = 45 * time.Second
		start := time.Now()
		task := begin(t, client, s)
		<-task.Context().Done()
		if context.Cause(task.Context()) != sdk.ErrDeadline || task.State() != sdk.Expired || time.Since(start) != 45*time.Second {
			t.Errorf("after %s: %v, %s", time.Since(start), context.Cause(task.Context()), task.State())
		}
	})
}

// clocks are those of a process that is stopped, or of a machine that sleeps or whose clock is set.
type clocks struct{ steady, wall atomic.Int64 }

func (c *clocks) option() sdk.Option {
	return sdk.WithClocks(
		func() time.Time { return time.Now().Add(time.Duration(c.steady.Load())) },
		func() time.Time { return time.Now().Add(time.Duration(c.wall.Load())) },
	)
}

// The process was stopped: its timers have not run yet when the first thing that it does is to take
// a token out of memory.
func TestWakeComparesTheGapWithTheLeaseBeforeAnyTokenLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.life = 10 * time.Minute
		c := &clocks{}
		client, _ := inBubble(t, f, c.option())
		task := begin(t, client, spec)
		must(task.Token(t.Context(), ordersRead))(t)
		c.steady.Add(int64(20*time.Second - 1))
		must(task.Token(t.Context(), ordersRead))(t)
		c.steady.Add(1)
		if _, err := task.Token(t.Context(), ordersRead); !errors.Is(err, sdk.ErrLeaseLost) || !errors.Is(err, sdk.ErrTaskEnded) {
			t.Errorf("got %v", err)
		}
		if n := len(f.got(tokens)) + len(f.got(heartbeats)); n != 1 {
			t.Errorf("the broker was asked %d times; want once, for the first token", n)
		}
	})
}

// The machine slept, and its steady clock with it: only the broker knows whether the task lives.
func TestWakeOfAMachineAsksTheBrokerBeforeAnyTokenLeaves(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(f *fake, task string)
		want    error
	}{
		"alive":    {func(*fake, string) {}, nil},
		"lapsed":   {func(f *fake, task string) { f.set(task, wire.StateLapsed) }, sdk.ErrLeaseLost},
		"no reply": {func(f *fake, _ string) { f.on(heartbeats, down) }, sdk.ErrUnavailable},
		"no word": {func(f *fake, _ string) {
			f.on(heartbeats, func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, wire.HeartbeatResponse{}) })
		}, sdk.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				f.life = 10 * time.Minute
				clock := &clocks{}
				client, _ := inBubble(t, f, clock.option())
				task := begin(t, client, spec)
				must(task.Token(t.Context(), ordersRead))(t)
				c.prepare(f, task.ID())
				clock.wall.Add(int64(25 * time.Second))
				if _, err := task.Token(t.Context(), ordersRead); !errors.Is(err, c.want) {
					t.Errorf("got %v; want %v", err, c.want)
				}
				if n := len(f.got(heartbeats)); n != 1 {
					t.Errorf("%d heartbeats; want one before the token is handed out", n)
				}
				if c.want == nil {
					must(task.Token(t.Context(), ordersRead))(t)
					if n := len(f.got(heartbeats)); n != 1 {
						t.Errorf("%d heartbeats after the second token", n)
					}
				}
			})
		})
	}
}
