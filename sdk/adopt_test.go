package sdk_test

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

func adoptTask(tb testing.TB, c *sdk.Client, id string) *sdk.Task {
	tb.Helper()
	return must(c.Adopt(tb.Context(), id))(tb)
}

// holder is who holds a task at the fake.
func (f *fake) holder(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held[id]
}

// takeAway has a process that is not there adopt a task.
func (f *fake) takeAway(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held[id]++
}

// isElsewhere wants a task to be over here, and to go on: no end of it was asked for, and none is.
func isElsewhere(t *testing.T, f *fake, task *sdk.Task) {
	t.Helper()
	before := len(f.got(end))
	if cause := context.Cause(task.Context()); cause != sdk.ErrAdopted || task.State() != sdk.Adopted {
		t.Errorf("it is %s; its context says %v", task.State(), cause)
	}
	if _, err := task.Token(t.Context(), ordersRead); !errors.Is(err, sdk.ErrAdopted) || errors.Is(err, sdk.ErrTaskEnded) {
		t.Errorf("a token: %v", err)
	}
	if _, err := task.Child(t.Context(), part); !errors.Is(err, sdk.ErrAdopted) {
		t.Errorf("a child: %v", err)
	}
	if _, err := task.Delegate(t.Context(), toOrders); !errors.Is(err, sdk.ErrAdopted) {
		t.Errorf("a delegation: %v", err)
	}
	if _, err := task.Complete(t.Context()); !errors.Is(err, sdk.ErrAdopted) {
		t.Errorf("Complete: %v", err)
	}
	if err := task.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if f.state(task.ID()) != wire.StateActive || len(f.got(end)) != before {
		t.Errorf("at the broker it is %s, after %d ends", f.state(task.ID()), len(f.got(end))-before)
	}
}

// TestTwoClientsPassATask back and forth: each holds it as any task, until the other one does.
func TestTwoClientsPassATask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var hands [2]*sdk.Client
		for i := range hands {
			hands[i], _ = inBubble(t, f)
		}
		task := begin(t, hands[1], spec)
		for i := range 6 {
			next := adoptTask(t, hands[i%2], task.ID())
			if next.ID() != task.ID() || next.Root() != task.Root() || next.State() != sdk.Active || next.EndKey() == task.EndKey() {
				t.Fatalf("%d: it is %v of %s, %s", i, next, next.Root(), next.State())
			}
			must(next.Token(t.Context(), ordersRead))(t)
			time.Sleep(11 * time.Second)
			isElsewhere(t, f, task)
			task = next
		}
		time.Sleep(5 * time.Minute)
		must(beginChild(t, task, part).Complete(t.Context()))(t)
		receipt := must(task.Complete(t.Context()))(t)
		if receipt.State != sdk.Completed || f.state(task.ID()) != wire.StateCompleted || f.holder(task.ID()) != 7 {
			t.Errorf("the end is %+v, of holder %d", receipt, f.holder(task.ID()))
		}
		if _, err := hands[0].Adopt(t.Context(), task.ID()); !errors.Is(err, sdk.ErrTaskEnded) {
			t.Errorf("of a task that is over: %v", err)
		}
	})
}

// TestAdoptionIsLearntFromTheStream, at once.
func TestAdoptionIsLearntFromTheStream(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	says := make(chan string)
	w.on(events, streaming(says))
	task := begin(t, w.client(t), spec)
	says <- ended("tsk_0000000000000000000000000000", wire.StateAdopted, "") // a stranger's
	w.takeAway(task.ID())
	says <- ended(task.ID(), wire.StateAdopted, "")
	if cause := over(t, task); cause != sdk.ErrAdopted {
		t.Errorf("the cause is %v", cause)
	}
	isElsewhere(t, w.fake, task)
	if n := len(w.got(heartbeats)); n != 0 {
		t.Errorf("%d heartbeats", n)
	}
}

// TestDoOfAnAdoptedTask ends nothing, and says so, whether it learns of the adoption before it returns or by
// its return.
func TestDoOfAnAdoptedTask(t *testing.T) {
	boom := errors.New("boom")
	for name, fn := range map[string]func(context.Context) error{
		"it has heard of it, and returns nil": func(ctx context.Context) error { <-ctx.Done(); return nil },
		"it returns its context's error":      func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"it returns nil":                      func(context.Context) error { return nil },
		"it fails":                            func(context.Context) error { return boom },
		"it panics":                           func(context.Context) error { panic(boom) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				var mu sync.Mutex
				var told []sdk.State
				client, _ := inBubble(t, f, sdk.WithHooks(sdk.Hooks{
					OnEnd: func(_ context.Context, _ string, s sdk.State, _ sdk.Receipt, err error) {
						mu.Lock()
						defer mu.Unlock()
						if told = append(told, s); !errors.Is(err, sdk.ErrAdopted) {
							t.Errorf("the hook was told %v", err)
						}
					},
				}))
				var task *sdk.Task
				var err error
				func() {
					defer func() { recover() }()
					err = client.Do(t.Context(), spec, func(ctx context.Context, got *sdk.Task) error {
						task = got
						f.takeAway(task.ID())
						return fn(ctx)
					})
				}()
				if name != "it panics" && !errors.Is(err, sdk.ErrAdopted) || name == "it fails" && !errors.Is(err, boom) {
					t.Errorf("Do returned %v", err)
				}
				if errors.Is(err, sdk.ErrTaskEnded) || errors.Is(err, sdk.ErrEndUnconfirmed) {
					t.Errorf("the task has not ended: %v", err)
				}
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				if f.state(task.ID()) != wire.StateActive || task.State() != sdk.Adopted || !slices.Equal(told, []sdk.State{sdk.Adopted}) {
					t.Errorf("at the broker it is %s, and here %s; the hook was told %s", f.state(task.ID()), task.State(), told)
				}
				if err := client.Close(t.Context()); err != nil || f.state(task.ID()) != wire.StateActive {
					t.Errorf("Close: %v; it is %s", err, f.state(task.ID()))
				}
			})
		})
	}
}

// TestCloseEndsNoAdoptedTask, whether or not this client has heard of it.
func TestCloseEndsNoAdoptedTask(t *testing.T) {
	for name, wait := range map[string]time.Duration{"at once": 0, "when it has heard": 11 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				task, own := begin(t, client, spec), begin(t, client, spec)
				f.takeAway(task.ID())
				time.Sleep(wait)
				if err := client.Close(t.Context()); err != nil {
					t.Errorf("Close: %v", err)
				}
				if f.state(task.ID()) != wire.StateActive || f.state(own.ID()) != wire.StateCanceled {
					t.Errorf("it is %s, and another one %s", f.state(task.ID()), f.state(own.ID()))
				}
			})
		})
	}
}

// TestQueuedEndOfAnAdoptedTask: an end that is still to be confirmed comes to nothing when the task was adopted
// meanwhile, in the background and in Close.
func TestQueuedEndOfAnAdoptedTask(t *testing.T) {
	for name, settle := range map[string]func(*sdk.Client){
		"in the background": func(*sdk.Client) { time.Sleep(time.Minute) },
		"in Close":          func(c *sdk.Client) { _ = c.Close(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				task := begin(t, client, spec)
				child := beginChild(t, task, part)
				f.on(end, away)
				if _, err := task.Complete(t.Context()); !errors.Is(err, sdk.ErrEndUnconfirmed) {
					t.Fatal(err)
				}
				f.takeAway(task.ID())
				f.on(end, nil)
				settle(client)
				if f.state(task.ID()) != wire.StateActive || task.State() != sdk.Adopted {
					t.Errorf("at the broker it is %s, and here %s", f.state(task.ID()), task.State())
				}
				if f.state(child.ID()) != wire.StateCanceled {
					t.Errorf("the child, which was to end with it, is %s", f.state(child.ID()))
				}
				asked := len(f.got(end))
				if err := client.Close(t.Context()); err != nil || len(f.got(end)) != asked {
					t.Errorf("Close: %v, with %d further ends", err, len(f.got(end))-asked)
				}
			})
		})
	}
}

// TestEndThatMeetsAPulse: a heartbeat that brings the adoption while an end is being asked for stops that.
func TestEndThatMeetsAPulse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		answer := make(chan struct{})
		f.on(heartbeats, func(w http.ResponseWriter, r *http.Request) { <-answer; f.answer(w, r) })
		time.Sleep(12 * time.Second) // one is on its way
		f.on(end, down)
		f.takeAway(task.ID())
		result := make(chan error)
		go func() { _, err := task.Complete(t.Context()); result <- err }()
		synctest.Wait()
		tried := len(f.got(end))
		close(answer)
		if err := <-result; !errors.Is(err, sdk.ErrAdopted) || errors.Is(err, sdk.ErrEndUnconfirmed) {
			t.Errorf("Complete: %v", err)
		}
		if n := len(f.got(end)); n != tried || f.state(task.ID()) != wire.StateActive {
			t.Errorf("%d ends after it was known", n-tried)
		}
	})
}

// TestChildrenOfAnAdoptedTask are this process's as before: they go on, their contexts do not end, and their
// ends are asked for one by one; with the task above they end wherever that ends.
func TestChildrenOfAnAdoptedTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		other, _ := inBubble(t, f)
		root := begin(t, client, spec)
		child, sibling := beginChild(t, root, part), beginChild(t, root, part)
		below := beginChild(t, child, part)
		there := adoptTask(t, other, root.ID())
		time.Sleep(11 * time.Second)
		isElsewhere(t, f, root)
		for _, task := range []*sdk.Task{child, sibling, below} {
			if task.State() != sdk.Active || task.Context().Err() != nil {
				t.Fatalf("%v is %s, and its context says %v", task, task.State(), context.Cause(task.Context()))
			}
			must(task.Token(t.Context(), ordersRead))(t)
		}
		must(sibling.Complete(t.Context()))(t)
		if f.state(sibling.ID()) != wire.StateCompleted {
			t.Errorf("the sibling is %s", f.state(sibling.ID()))
		}
		must(beginChild(t, child, part).Complete(t.Context()))(t)
		time.Sleep(time.Minute)
		must(there.Complete(t.Context()))(t)
		time.Sleep(11 * time.Second)
		wentAlong(t, child)
		wentAlong(t, below)
	})
}

// TestChildThatBeginsMeanwhile, while its parent is adopted, goes on; unless this client had wanted to end the
// parent, and it with that: then it is ended by itself.
func TestChildThatBeginsMeanwhile(t *testing.T) {
	for name, meanwhile := range map[string]func(*sdk.Task){
		"adopted":                    func(*sdk.Task) { time.Sleep(4 * time.Second) }, // a heartbeat says so
		"adopted, not ended":         func(root *sdk.Task) { _, _ = root.Complete(context.Background()) },
		"adopted before it is ended": func(root *sdk.Task) { go root.Complete(context.Background()); synctest.Wait() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				root := begin(t, client, spec)
				time.Sleep(8 * time.Second)
				f.on(end, func(w http.ResponseWriter, r *http.Request) {
					if name == "adopted before it is ended" {
						time.Sleep(time.Second)
					}
					f.answer(w, r)
				})
				f.on(children, func(w http.ResponseWriter, r *http.Request) {
					f.takeAway(root.ID())
					meanwhile(root)
					f.answer(w, r)
				})
				child, err := root.Child(t.Context(), part)
				time.Sleep(time.Minute)
				if root.State() != sdk.Adopted {
					t.Fatalf("the parent is %s", root.State())
				}
				if name != "adopted" {
					for id, parent := range f.above {
						if parent == root.ID() && f.state(id) != wire.StateCanceled {
							t.Errorf("it is %s", f.state(id))
						}
					}
					if err == nil {
						t.Error("a child of a task that was to end")
					}
					return
				}
				if child.State() != sdk.Active || child.Context().Err() != nil {
					t.Errorf("it is %s", child.State())
				}
				if err := child.Close(); err != nil || f.state(child.ID()) != wire.StateCanceled {
					t.Errorf("%v; it is %s", err, f.state(child.ID()))
				}
			})
		})
	}
}

// TestCloseEndsTheChildrenOfAnAdoptedTask, and the task not.
func TestCloseEndsTheChildrenOfAnAdoptedTask(t *testing.T) {
	for name, wait := range map[string]time.Duration{"at once": 0, "when it has heard": 11 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				root := begin(t, client, spec)
				child := beginChild(t, root, part)
				grandchild := beginChild(t, child, part)
				f.takeAway(root.ID())
				time.Sleep(wait)
				if err := client.Close(t.Context()); err != nil {
					t.Error(err)
				}
				if f.state(root.ID()) != wire.StateActive || f.state(child.ID()) != wire.StateCanceled {
					t.Errorf("the root is %s, and the child %s", f.state(root.ID()), f.state(child.ID()))
				}
				for _, c := range f.got(end) {
					if c.task == grandchild.ID() {
						t.Error("the end of the grandchild was asked for")
					}
				}
			})
		})
	}
}

// TestDoChildOfAnAdoptedTask: work that was given the context of the task ends with that, and work that was
// not goes on.
func TestDoChildOfAnAdoptedTask(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		var inside, outside *sdk.Task
		var wg sync.WaitGroup
		err := client.Do(t.Context(), spec, func(ctx context.Context, root *sdk.Task) error {
			wg.Go(func() {
				if err := root.DoChild(t.Context(), part, func(ctx context.Context, child *sdk.Task) error {
					outside = child
					select {
					case <-ctx.Done():
						t.Errorf("it was told to end: %v", context.Cause(ctx))
					case <-time.After(time.Minute):
					}
					return nil
				}); err != nil {
					t.Errorf("the one that goes on: %v", err)
				}
			})
			synctest.Wait()
			f.takeAway(root.ID())
			return root.DoChild(ctx, part, func(ctx context.Context, child *sdk.Task) error {
				inside = child
				<-ctx.Done()
				if cause := context.Cause(ctx); cause != sdk.ErrAdopted {
					t.Errorf("the cause is %v", cause)
				}
				return ctx.Err()
			})
		})
		wg.Wait()
		if !errors.Is(err, sdk.ErrAdopted) || !errors.Is(err, context.Canceled) {
			t.Errorf("Do returned %v", err)
		}
		if f.state(inside.ID()) != wire.StateCanceled || f.state(outside.ID()) != wire.StateCompleted {
			t.Errorf("they are %s and %s", f.state(inside.ID()), f.state(outside.ID()))
		}
	})
}

// TestAdoptFromItself: a client may adopt a task that it has, and has then one of them.
func TestAdoptFromItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		next := adoptTask(t, client, task.ID())
		isElsewhere(t, f, task)
		var wg sync.WaitGroup
		all := make([]*sdk.Task, 10)
		for i := range all {
			wg.Go(func() { all[i], _ = client.Adopt(t.Context(), task.ID()) })
		}
		wg.Wait()
		time.Sleep(time.Minute)
		isElsewhere(t, f, next)
		var active []*sdk.Task
		for _, task := range all {
			if task != nil && task.State() == sdk.Active {
				active = append(active, task)
			}
		}
		if len(active) != 1 {
			t.Fatalf("%d of them are active", len(active))
		}
		must(active[0].Complete(t.Context()))(t)
		runtime.KeepAlive(all)
	})
}

// TestStreamOfTheHolderBefore: what it says of an adoption is not about who has adopted, should that be the same
// client; an end is, for whoever it was said.
func TestStreamOfTheHolderBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	says := make(chan string)
	w.on(events, streaming(says))
	client := w.client(t)
	task := begin(t, client, spec)
	other := begin(t, client, spec)
	says <- beat // it follows them
	next := adoptTask(t, client, task.ID())
	says <- ended(task.ID(), wire.StateAdopted, "")
	says <- ended(other.ID(), wire.StateRevoked, "operator")
	if cause := over(t, other); cause != sdk.ErrRevoked || next.State() != sdk.Active {
		t.Errorf("%v; the task is %s", cause, next.State())
	}
	says <- ended(task.ID(), wire.StateRevoked, "operator")
	if cause := over(t, next); cause != sdk.ErrRevoked {
		t.Errorf("the cause is %v", cause)
	}
}

// TestAdoptedTaskHasItsOwnTime: its deadline is the task's, which began before, and its lease begins now.
func TestAdoptedTaskHasItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		// With a clock that is half an hour off, 50 minutes after a begin with a deadline of an hour.
		answer := func(presence bool, lease time.Duration) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				now := time.Now().Add(30 * time.Minute)
				begun := now.Add(-50 * time.Minute)
				reply(w, http.StatusOK, wire.BeginResponse{EndKey: "k", Task: wire.Task{
					ID: "tsk_x", Root: "tsk_r", Path: []string{"tsk_r", "tsk_p", "tsk_x"}, State: wire.StateActive, Holder: 2, BegunAt: begun,
					Deadline: begun.Add(time.Hour), LeaseSeconds: 60, LeaseExpiresAt: now.Add(lease), Presence: presence,
				}})
			}
		}
		f.on(heartbeats, func(w http.ResponseWriter, r *http.Request) {
			reply(w, http.StatusOK, wire.HeartbeatResponse{Tasks: []wire.Pulse{{ID: "tsk_x", State: wire.StateActive}}})
		})
		f.on(events, func(w http.ResponseWriter, r *http.Request) { streaming(nil)(w, ending(r)) })
		for _, presence := range []bool{false, true} {
			lease := map[bool]time.Duration{false: time.Minute, true: 5 * time.Second}[presence]
			f.on(adopt, answer(presence, lease))
			start := time.Now()
			task := adoptTask(t, client, "tsk_x")
			if task.Parent() != "tsk_p" || task.Root() != "tsk_r" || task.EndKey() != "k" {
				t.Errorf("it is below %s and %s", task.Parent(), task.Root())
			}
			<-task.Context().Done()
			if took := time.Since(start); context.Cause(task.Context()) != sdk.ErrDeadline || took != 10*time.Minute {
				t.Errorf("presence %t: after %s, %v", presence, took, context.Cause(task.Context()))
			}
		}
	})
}

// TestAdoptIsRefused, and takes no place then.
func TestAdoptIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f, sdk.WithMaxTasks(1))
		if _, err := client.Adopt(t.Context(), ""); !errors.Is(err, sdk.ErrInvalid) || len(f.got(adopt)) != 0 {
			t.Errorf("without an ID: %v", err)
		}
		for name, want := range map[string]error{wire.ProblemNotFound: sdk.ErrNotFound, wire.ProblemQuarantined: sdk.ErrQuarantined, wire.ProblemTaskEnded: sdk.ErrTaskEnded} {
			f.on(adopt, func(w http.ResponseWriter, _ *http.Request) {
				refuse(w, http.StatusConflict, wire.Problem{Type: "https://broker/problems/" + name})
			})
			if _, err := client.Adopt(t.Context(), "tsk_x"); !errors.Is(err, want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name, w := range map[string]wire.Task{
			"another task": {ID: "tsk_y", Holder: 2, LeaseSeconds: 30}, "the first holder": {ID: "tsk_x", Holder: 1, LeaseSeconds: 30}, "no holder": {ID: "tsk_x", LeaseSeconds: 30},
		} {
			f.on(adopt, func(rw http.ResponseWriter, _ *http.Request) { reply(rw, http.StatusOK, wire.BeginResponse{Task: w}) })
			if _, err := client.Adopt(t.Context(), "tsk_x"); !errors.Is(err, sdk.ErrUnavailable) {
				t.Errorf("%s: %v", name, err)
			}
		}
		f.on(adopt, nil)
		task := begin(t, client, spec)
		if _, err := client.Adopt(t.Context(), task.ID()); !errors.Is(err, sdk.ErrQuota) || f.holder(task.ID()) != 1 {
			t.Errorf("one more than there may be: %v", err)
		}
		must(task.Complete(t.Context()))(t)
	})
}

// TestAdoptTriesAgain: a lost answer costs nothing, since the last adoption is the one that counts.
func TestAdoptTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		other, _ := inBubble(t, f)
		client, _ := inBubble(t, f)
		task := begin(t, other, spec)
		lost := 0
		f.on(adopt, func(w http.ResponseWriter, r *http.Request) {
			if lost++; lost <= 3 {
				recorded(f.answer, r)
				down(w, r)
			}
			f.answer(w, r)
		})
		next := adoptTask(t, client, task.ID())
		time.Sleep(time.Minute)
		if next.State() != sdk.Active || f.holder(task.ID()) != 5 {
			t.Errorf("it is %s, of holder %d", next.State(), f.holder(task.ID()))
		}
		must(next.Complete(t.Context()))(t)
	})
}

// TestPlacesOfAdoptedTasks: of those with presence there are as many as of others that were begun here.
func TestPlacesOfAdoptedTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.on(events, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNotFound) })
		client, _ := inBubble(t, f)
		other, _ := inBubble(t, f)
		present := presentSpec
		present.Tokens = []sdk.TokenRequest{}
		for range wire.MaxFollowed + 3 { // these have none, and take no place
			task := begin(t, other, spec)
			must(adoptTask(t, client, task.ID()).Complete(t.Context()))(t)
		}
		var held []*sdk.Task
		for range wire.MaxFollowed {
			held = append(held, begin(t, client, present))
		}
		f.takeAway(held[0].ID())
		if _, err := client.Begin(t.Context(), present); !errors.Is(err, sdk.ErrQuota) {
			t.Errorf("one more: %v", err)
		}
		time.Sleep(11 * time.Second)
		must(begin(t, client, present).Complete(t.Context()))(t)
		runtime.KeepAlive(held)
	})
}

// TestAdoptedTaskIsNoLeak where it was, and is one where it is dropped.
func TestAdoptedTaskIsNoLeak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var mu sync.Mutex
		leaks := map[string][]string{}
		named := func(name string) sdk.Option {
			return sdk.WithHooks(sdk.Hooks{OnLeak: func(_ context.Context, task string) { mu.Lock(); leaks[name] = append(leaks[name], task); mu.Unlock() }})
		}
		first, _ := inBubble(t, f, named("first"))
		second, _ := inBubble(t, f, named("second"))
		id := func() string {
			task := begin(t, first, spec)
			next := adoptTask(t, second, task.ID())
			time.Sleep(11 * time.Second)
			return next.ID()
		}()
		for range 4 {
			collect()
			time.Sleep(11 * time.Second)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(leaks["first"]) != 0 || !slices.Equal(leaks["second"], []string{id}) {
			t.Errorf("reported: %v", leaks)
		}
	})
}

// TestAdoptionAgainstTheEnd: whichever comes first, the other one is told, and the task is never ended for one
// who does not hold it.
func TestAdoptionAgainstTheEnd(t *testing.T) {
	w := newWorld(t)
	first, second := w.client(t), w.client(t)
	adopted := 0
	for range 200 {
		begun, release := make(chan *sdk.Task, 1), make(chan struct{})
		result := make(chan error, 1)
		go func() {
			result <- first.Do(t.Context(), spec, func(_ context.Context, task *sdk.Task) error {
				begun <- task
				<-release
				return nil
			})
		}()
		task := <-begun
		close(release)
		next, err := second.Adopt(t.Context(), task.ID())
		done := <-result
		switch {
		case err == nil:
			adopted++
			if !errors.Is(done, sdk.ErrAdopted) || w.state(task.ID()) != wire.StateActive || next.State() != sdk.Active {
				t.Fatalf("adopted; Do returned %v, and it is %s", done, w.state(task.ID()))
			}
			must(next.Complete(t.Context()))(t)
		case !errors.Is(err, sdk.ErrTaskEnded) || done != nil || w.state(task.ID()) != wire.StateCompleted:
			t.Fatalf("not adopted: %v; Do returned %v, and it is %s", err, done, w.state(task.ID()))
		}
	}
	t.Logf("%d of 200 were adopted", adopted)
}
