package sdk_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// part is the spec of a child.
var part = sdk.TaskSpec{Name: "upload", Tokens: []sdk.TokenRequest{}}

func beginChild(tb testing.TB, parent *sdk.Task, spec sdk.TaskSpec) *sdk.Task {
	tb.Helper()
	return must(parent.Child(tb.Context(), spec))(tb)
}

// wentAlong wants a task to have ended with its parent.
func wentAlong(tb testing.TB, task *sdk.Task) {
	tb.Helper()
	if cause := context.Cause(task.Context()); task.State() != sdk.Canceled || cause != sdk.ErrParentEnded {
		tb.Errorf("the %v is %s; its context says %v", task, task.State(), cause)
	}
	if _, err := task.Token(tb.Context(), ordersRead); !errors.Is(err, sdk.ErrTaskEnded) || !errors.Is(err, sdk.ErrParentEnded) {
		tb.Errorf("Token: %v", err)
	}
}

// TestChildAsksForLess: what its spec leaves empty of the ceiling is left to the broker, also where the
// client has defaults, and its purpose is its parent's.
func TestChildAsksForLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f, sdk.WithDefaults(sdk.TaskSpec{
			Purpose: "the default", Audiences: []string{"orders"}, Scopes: []string{"orders:read"}, Details: []json.RawMessage{[]byte(`{"type":"a"}`)}, Lease: time.Minute,
		}))
		root := begin(t, client, sdk.TaskSpec{Name: "n", Purpose: "why"})
		child := beginChild(t, root, sdk.TaskSpec{Name: "upload"})
		grandchild := beginChild(t, child, sdk.TaskSpec{Name: "part", Purpose: "else", Audiences: []string{"files"}, Scopes: []string{"files:write"}})
		if child.Parent() != root.ID() || grandchild.Parent() != child.ID() || root.Parent() != "" || grandchild.Root() != root.ID() {
			t.Errorf("parents %q, %q, %q; root %q", child.Parent(), grandchild.Parent(), root.Parent(), grandchild.Root())
		}
		var got []wire.BeginRequest
		for _, c := range f.got(children) {
			var req wire.BeginRequest
			f.read(c.body, &req)
			got = append(got, req)
		}
		if c := got[0]; c.Purpose != "why" || c.Audiences != nil || c.Scopes != nil || c.AuthorizationDetails != nil || c.Tokens != nil || *c.LeaseSeconds != 60 {
			t.Errorf("the child asks for %+v", c)
		}
		if c := got[1]; c.Purpose != "else" || len(c.Tokens) != 1 {
			t.Errorf("the grandchild asks for %+v", c)
		}
		if _, err := grandchild.Token(t.Context(), sdk.TokenRequest{Audience: "files", Scopes: []string{"files:write"}}); err != nil || len(f.got(tokens)) != 0 {
			t.Errorf("its first token: %v, %d requests", err, len(f.got(tokens)))
		}
	})
}

// TestParentTakesItsChildren: whatever ends it, they are over here at once, before its own context and
// with a cause that says so, and no request is made for any of them.
func TestParentTakesItsChildren(t *testing.T) {
	for name, end := range map[string]func(*testing.T, *fake, *sdk.Task){
		"Complete": func(t *testing.T, _ *fake, root *sdk.Task) { must(root.Complete(t.Context()))(t) },
		"Close": func(t *testing.T, _ *fake, root *sdk.Task) {
			if err := root.Close(); err != nil {
				t.Error(err)
			}
		},
		"with the store away": func(t *testing.T, f *fake, root *sdk.Task) {
			f.on(end, away)
			if _, err := root.Complete(t.Context()); !errors.Is(err, sdk.ErrEndUnconfirmed) {
				t.Error(err)
			}
			f.on(end, nil)
		},
		"an operator": func(_ *testing.T, f *fake, root *sdk.Task) {
			f.set(root.ID(), wire.StateRevoked)
			time.Sleep(11 * time.Second)
		},
		"a lease that is lost": func(_ *testing.T, f *fake, _ *sdk.Task) {
			f.on(heartbeats, hang)
			time.Sleep(21 * time.Second)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				client, _ := inBubble(t, f)
				root, bystander := begin(t, client, spec), begin(t, client, spec)
				child, sibling := beginChild(t, root, part), beginChild(t, root, part)
				grandchild := beginChild(t, child, part)
				first := make(chan error, 1)
				context.AfterFunc(grandchild.Context(), func() { first <- root.Context().Err() })
				end(t, f, root)
				for _, task := range []*sdk.Task{child, sibling, grandchild} {
					if name != "a lease that is lost" { // its end is this client's view of it alone
						wentAlong(t, task)
					} else if cause := context.Cause(task.Context()); cause != sdk.ErrParentEnded && cause != sdk.ErrLeaseLost {
						t.Errorf("the cause is %v", cause)
					}
				}
				<-first
				if name == "a lease that is lost" {
					return
				}
				for _, task := range []*sdk.Task{child, sibling, grandchild} {
					if err := task.Close(); err != nil {
						t.Error(err)
					}
				}
				for _, c := range f.got("POST end") {
					if c.task != root.ID() {
						t.Errorf("an end of %s was asked for", c.task)
					}
				}
				if bystander.State() != sdk.Active {
					t.Error("another task has ended")
				}
			})
		})
	}
}

// TestChildEndsAlone: it leaves its parent and siblings, and a spec that is refused leaves nothing.
func TestChildEndsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		root := begin(t, client, spec)
		child, sibling := beginChild(t, root, part), beginChild(t, root, part)
		below := beginChild(t, child, part)
		must(child.Complete(t.Context()))(t)
		wentAlong(t, below)
		if root.State() != sdk.Active || sibling.State() != sdk.Active || root.Context().Err() != nil || sibling.Context().Err() != nil {
			t.Error("the end of a child has ended others")
		}
		if _, err := child.Child(t.Context(), part); !errors.Is(err, sdk.ErrTaskEnded) {
			t.Errorf("a child of a task that is over: %v", err)
		}
		if n := len(f.got(children)); n != 3 {
			t.Errorf("%d children were asked for", n)
		}
	})
}

// TestHeartbeatsOfATree go in one request, and what the broker says in any order of it is understood.
func TestHeartbeatsOfATree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		root := begin(t, client, spec)
		var tree []*sdk.Task
		for at := root; len(tree) < 7; at = tree[len(tree)-1] {
			tree = append(tree, beginChild(t, at, part))
		}
		time.Sleep(25 * time.Second)
		beats := f.got(heartbeats)
		for _, c := range beats {
			var req wire.HeartbeatRequest
			f.read(c.body, &req)
			if len(req.Tasks) != 8 {
				t.Errorf("a heartbeat of %d tasks; want 8", len(req.Tasks))
			}
		}
		if len(beats) < 2 || len(beats) > 4 {
			t.Errorf("%d heartbeats in 25 s of a lease of 30", len(beats))
		}
		f.set(root.ID(), wire.StateRevoked)
		time.Sleep(11 * time.Second)
		if cause := context.Cause(root.Context()); cause != sdk.ErrRevoked {
			t.Errorf("the root's cause: %v", cause)
		}
		for _, task := range tree {
			wentAlong(t, task)
		}
	})
}

// TestParentThatHasEndedElsewhere: a refusal of a child is how this client learns of it.
func TestParentThatHasEndedElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		root := begin(t, client, spec)
		child := beginChild(t, root, part)
		f.set(root.ID(), wire.StateRevoked)
		if _, err := child.Child(t.Context(), part); !errors.Is(err, sdk.ErrTaskEnded) || !errors.Is(err, sdk.ErrParentEnded) {
			t.Errorf("below a child of a revoked task: %v", err)
		}
		wentAlong(t, child)
		if _, err := root.Child(t.Context(), part); !errors.Is(err, sdk.ErrTaskEnded) || !errors.Is(err, sdk.ErrRevoked) {
			t.Errorf("below a revoked task: %v", err)
		}
		if context.Cause(root.Context()) != sdk.ErrRevoked {
			t.Errorf("the root's cause: %v", context.Cause(root.Context()))
		}
	})
}

// TestDoChild is Do below a task: its end is made by what fn does, and that of its parent ends its context.
func TestDoChild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		var ids []string
		err := client.Do(t.Context(), spec, func(ctx context.Context, root *sdk.Task) error {
			if err := root.DoChild(ctx, part, func(ctx context.Context, child *sdk.Task) error {
				ids = append(ids, child.ID())
				if found, ok := sdk.FromContext(ctx); !ok || found != child {
					t.Error("the context has another task")
				}
				return nil
			}); err != nil {
				t.Errorf("a child that returns nil: %v", err)
			}
			failure := errors.New("no")
			if err := root.DoChild(ctx, part, func(_ context.Context, child *sdk.Task) error { ids = append(ids, child.ID()); return failure }); err != failure {
				t.Errorf("a child that fails: %v", err)
			}
			func() {
				defer func() { recover() }()
				_ = root.DoChild(ctx, part, func(_ context.Context, child *sdk.Task) error { ids = append(ids, child.ID()); panic("x") })
			}()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		for i, want := range []string{wire.StateCompleted, wire.StateFailed, wire.StateFailed} {
			if got := f.state(ids[i]); got != want {
				t.Errorf("child %d is %s; want %s", i, got, want)
			}
		}
	})
}

// TestDoChildOutlivedByNothing: children that still run when their parent returns are told why, and say
// so themselves.
func TestDoChildOutlivedByNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		var wg sync.WaitGroup
		results := make([]error, 3)
		err := client.Do(t.Context(), spec, func(ctx context.Context, root *sdk.Task) error {
			for i, parentOf := range []context.Context{ctx, t.Context(), context.WithoutCancel(ctx)} {
				wg.Go(func() {
					results[i] = root.DoChild(parentOf, part, func(ctx context.Context, _ *sdk.Task) error {
						<-ctx.Done()
						if cause := context.Cause(ctx); cause != sdk.ErrParentEnded {
							t.Errorf("%d: the cause is %v", i, cause)
						}
						return ctx.Err()
					})
				})
			}
			synctest.Wait()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		wg.Wait()
		for i, err := range results {
			if !errors.Is(err, sdk.ErrParentEnded) || !errors.Is(err, sdk.ErrTaskEnded) || !errors.Is(err, context.Canceled) {
				t.Errorf("%d: %v", i, err)
			}
		}
		if ends := f.got(end); len(ends) != 1 {
			t.Errorf("%d ends were asked for; want that of the parent", len(ends))
		}
	})
}

// TestContextOfTheParentEnds without its task, as when the caller of Do gives up: the child's ends, too,
// and the child is over when its function has returned.
func TestContextOfTheParentEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		why := errors.New("the caller has left")
		ctx, cancel := context.WithCancelCause(t.Context())
		var id string
		err := client.Do(ctx, spec, func(_ context.Context, root *sdk.Task) error {
			child := beginChild(t, root, part)
			err := root.DoChild(t.Context(), part, func(ctx context.Context, child *sdk.Task) error {
				id = child.ID()
				cancel(why)
				<-ctx.Done()
				if context.Cause(ctx) != why || child.State() != sdk.Active {
					t.Errorf("the cause is %v, and the child %s", context.Cause(ctx), child.State())
				}
				return ctx.Err()
			})
			synctest.Wait()
			if context.Cause(child.Context()) != why || child.State() != sdk.Active {
				t.Errorf("of Child, the cause is %v", context.Cause(child.Context()))
			}
			return err
		})
		if !errors.Is(err, context.Canceled) || f.state(id) == wire.StateActive {
			t.Errorf("%v; the child is %s", err, f.state(id))
		}
	})
}

// TestCloseEndsTreesByTheirRoots.
func TestCloseEndsTreesByTheirRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		var want []string
		var all []*sdk.Task
		for range 3 {
			root := begin(t, client, spec)
			child := beginChild(t, root, part)
			all = append(all, root, child, beginChild(t, child, part))
			want = append(want, root.ID())
		}
		if err := client.Close(t.Context()); err != nil {
			t.Error(err)
		}
		var got []string
		for _, c := range f.got(end) {
			got = append(got, c.task)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("ends of %v; want %v", got, want)
		}
		for _, task := range all {
			if task.State() != sdk.Canceled || task.Context().Err() == nil {
				t.Errorf("%v is %s", task, task.State())
			}
		}
	})
}

// TestLeaksInATree: a child that is dropped is reported; while somebody has it, its parent is not, and
// then both are.
func TestLeaksInATree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		var mu sync.Mutex
		var leaks []string
		client, _ := inBubble(t, f, sdk.WithHooks(sdk.Hooks{
			OnLeak: func(_ context.Context, task string) { mu.Lock(); leaks = append(leaks, task); mu.Unlock() },
		}))
		reported := func() []string {
			collect()
			time.Sleep(11 * time.Second)
			mu.Lock()
			defer mu.Unlock()
			slices.Sort(leaks)
			return slices.Clone(leaks)
		}
		var ids []string
		child := func() *sdk.Task {
			root := begin(t, client, spec)
			dropped := beginChild(t, root, part)
			child := beginChild(t, root, part)
			ids = []string{root.ID(), dropped.ID(), child.ID()}
			return child
		}()
		if got := reported(); !slices.Equal(got, ids[1:2]) {
			t.Errorf("reported: %v; want %v", got, ids[1:2])
		}
		if child.State() != sdk.Active {
			t.Errorf("the child that is in use is %s", child.State())
		}
		child = nil
		if got := reported(); !slices.Equal(got, ids) {
			t.Errorf("reported: %v; want %v", got, ids)
		}
	})
}

// TestManyChildrenAtOnce against the end of their parent: none is left, and nothing is left behind.
func TestManyChildrenAtOnce(t *testing.T) {
	w := newWorld(t)
	client := w.client(t)
	for range 20 {
		root := begin(t, client, spec)
		begun := make(chan *sdk.Task, 100)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 10 {
					child, err := root.Child(t.Context(), part)
					if err != nil {
						if !errors.Is(err, sdk.ErrTaskEnded) {
							t.Errorf("Child: %v", err)
						}
						return
					}
					begun <- child
				}
			})
		}
		first := <-begun
		must(root.Complete(t.Context()))(t)
		wg.Wait()
		close(begun)
		wentAlong(t, first)
		for child := range begun {
			wentAlong(t, child)
		}
	}
	for _, c := range w.got(end) {
		if w.fake.above[c.task] != "" {
			t.Errorf("the end of a child was asked for")
		}
	}
}

// TestAbandonedChild: one that may have begun for a caller who has left is ended.
func TestAbandonedChild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		root := begin(t, client, spec)
		f.on(children, func(_ http.ResponseWriter, r *http.Request) {
			f.on(children, nil)
			recorded(f.answer, r) // it happens, and nobody is told
			<-r.Context().Done()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := root.Child(ctx, part); err == nil {
			t.Fatal("a child without an answer")
		}
		synctest.Wait()
		ends := f.got(end)
		if len(ends) != 1 || f.above[ends[0].task] != root.ID() || root.State() != sdk.Active {
			t.Errorf("ends: %+v; the parent is %s", ends, root.State())
		}
	})
}

// TestParentOfAnotherProcess is named by its ID, and its end is heard of as any other.
func TestParentOfAnotherProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		elsewhere, _ := inBubble(t, f)
		client, _ := inBubble(t, f)
		root := begin(t, elsewhere, spec)
		inside := spec
		inside.Parent = root.ID()
		child := begin(t, client, inside)
		if child.Parent() != root.ID() || child.Root() != root.ID() || f.above[child.ID()] != root.ID() {
			t.Errorf("its parent is %q, and its root %q", child.Parent(), child.Root())
		}
		if _, err := child.Child(t.Context(), inside); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("a child with another parent: %v", err)
		}
		must(root.Complete(t.Context()))(t)
		time.Sleep(11 * time.Second)
		wentAlong(t, child)
		if _, err := client.Begin(t.Context(), inside); !errors.Is(err, sdk.ErrTaskEnded) {
			t.Errorf("below a task that is over: %v", err)
		}
	})
}
