package sdk_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

// toOrders is a delegation to another workload.
var toOrders = sdk.Delegation{To: ordersID}

func delegate(tb testing.TB, task *sdk.Task, d sdk.Delegation) sdk.Handle {
	tb.Helper()
	return must(task.Delegate(tb.Context(), d))(tb)
}

// TestDelegate: the broker is asked for what the delegation says, and the purpose is the task's where that
// says none.
func TestDelegate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		delegate(t, task, toOrders)
		delegate(t, task, sdk.Delegation{
			To: ordersID, Purpose: "enrich", Audiences: []string{"crm"}, Scopes: []string{"crm:read"}, For: time.Minute,
		})
		var got []wire.DelegationRequest
		for _, c := range f.got(delegations) {
			var req wire.DelegationRequest
			f.read(c.body, &req)
			if got = append(got, req); c.task != task.ID() {
				t.Errorf("it was asked for at %s", c.task)
			}
		}
		if d := got[0]; d.To != ordersID.String() || d.Purpose != spec.Purpose || d.Audiences != nil || d.Scopes != nil || d.ExpiresIn != nil {
			t.Errorf("the first asks for %+v", d)
		}
		if d := got[1]; d.Purpose != "enrich" || d.Audiences[0] != "crm" || d.Scopes[0] != "crm:read" || *d.ExpiresIn != 60 {
			t.Errorf("the second asks for %+v", d)
		}
		for name, bad := range map[string]sdk.Delegation{
			"nobody": {}, "half a second": {To: ordersID, For: time.Second / 2}, "details that are none": {To: ordersID, Details: []json.RawMessage{[]byte("{")}},
		} {
			if _, err := task.Delegate(t.Context(), bad); !errors.Is(err, sdk.ErrInvalid) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if n := len(f.got(delegations)); n != 2 {
			t.Errorf("%d requests", n)
		}
	})
}

// TestDelegateOfATaskThatIsOver is how this client learns of that.
func TestDelegateOfATaskThatIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		task := begin(t, client, spec)
		f.set(task.ID(), wire.StateRevoked)
		if _, err := task.Delegate(t.Context(), toOrders); !errors.Is(err, sdk.ErrRevoked) || context.Cause(task.Context()) != sdk.ErrRevoked {
			t.Errorf("%v; its context says %v", err, context.Cause(task.Context()))
		}
		if _, err := task.Delegate(t.Context(), toOrders); !errors.Is(err, sdk.ErrTaskEnded) || len(f.got(delegations)) != 1 {
			t.Errorf("once more: %v", err)
		}
	})
}

// TestJoin begins a task below another client's, and is told of that one's end.
func TestJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		elsewhere, _ := inBubble(t, f)
		client, _ := inBubble(t, f, sdk.WithDefaults(sdk.TaskSpec{Purpose: "the default", Audiences: []string{"files"}, Scopes: []string{"a", "b"}, Lease: time.Minute}))
		root := begin(t, elsewhere, spec)
		handle := must(sdk.ParseHandle(" " + string(delegate(t, root, toOrders)) + "\n"))(t)
		task := must(client.Join(t.Context(), handle, sdk.TaskSpec{Name: "pick"}))(t)
		if task.Parent() != root.ID() || task.Root() != root.ID() || f.above[task.ID()] != root.ID() {
			t.Errorf("its parent is %q, and its root %q", task.Parent(), task.Root())
		}
		var req wire.JoinRequest
		f.read(f.got(joins)[0].body, &req)
		if req.Handle != string(handle) || req.Name != "pick" || req.Purpose != "the default" || req.Audiences != nil || req.Scopes != nil || *req.LeaseSeconds != 60 {
			t.Errorf("it was asked for %+v", req)
		}
		must(task.Token(t.Context(), ordersRead))(t)
		child := beginChild(t, task, part)
		if _, err := client.Join(t.Context(), handle, sdk.TaskSpec{Name: "pick"}); !errors.Is(err, sdk.ErrHandleUsed) {
			t.Errorf("once more: %v", err)
		}
		must(root.Complete(t.Context()))(t)
		time.Sleep(23 * time.Second) // a third of its lease, and some more
		wentAlong(t, task)
		wentAlong(t, child)
		if _, err := client.Join(t.Context(), "hdl_x.y", sdk.TaskSpec{Name: "pick"}); !errors.Is(err, sdk.ErrTaskEnded) {
			t.Errorf("of a task that is over: %v", err)
		}
	})
}

// TestJoinIsSafeToRepeat: however often its answer is lost, one task joins.
func TestJoinIsSafeToRepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		root := begin(t, client, spec)
		handle := delegate(t, root, toOrders)
		lost := 0
		f.on(joins, func(w http.ResponseWriter, r *http.Request) {
			if lost++; lost <= 3 {
				recorded(f.answer, r)
				down(w, r)
			}
			f.answer(w, r)
		})
		task := must(client.Join(t.Context(), handle, part))(t)
		if f.tasks != 2 || lost != 4 || task.State() != sdk.Active {
			t.Errorf("%d tasks after %d tries", f.tasks, lost)
		}
		// A caller who has left leaves no task behind.
		handle = delegate(t, root, toOrders)
		f.on(joins, func(_ http.ResponseWriter, r *http.Request) {
			f.on(joins, nil)
			recorded(f.answer, r)
			<-r.Context().Done()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := client.Join(ctx, handle, part); err == nil {
			t.Fatal("a task without an answer")
		}
		if synctest.Wait(); len(f.got(end)) != 1 || f.got(end)[0].task == task.ID() {
			t.Errorf("ends: %+v", f.got(end))
		}
	})
}

// TestJoinIsRefused in the words of the broker, of which the hook hears, or without asking it.
func TestJoinIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		denied := 0
		client, _ := inBubble(t, f, sdk.WithHooks(sdk.Hooks{OnDenied: func(context.Context, *sdk.Error) { denied++ }}))
		for name, want := range map[string]error{
			wire.ProblemNotDelegate: sdk.ErrNotDelegate, wire.ProblemHandleUsed: sdk.ErrHandleUsed, wire.ProblemInvalid: sdk.ErrInvalid, wire.ProblemHandleExpired: sdk.ErrHandleExpired,
			wire.ProblemScopeExceeded: sdk.ErrScopeExceeded, wire.ProblemQuota: sdk.ErrQuota,
		} {
			f.on(joins, func(w http.ResponseWriter, _ *http.Request) {
				refuse(w, http.StatusConflict, wire.Problem{Type: "https://broker/problems/" + name})
			})
			if _, err := client.Join(t.Context(), "hdl_x.y", part); !errors.Is(err, want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if denied != 2 {
			t.Errorf("the hook heard of %d", denied)
		}
		before := len(f.got(joins))
		inside := part
		inside.Parent = "tsk_x"
		if _, err := client.Join(t.Context(), "hdl_x.y", inside); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("with a parent: %v", err)
		}
		if _, err := client.Join(t.Context(), "tsk_x", part); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("without a handle: %v", err)
		}
		if n := len(f.got(joins)) - before; n != 0 {
			t.Errorf("%d requests", n)
		}
	})
}

// TestDoJoin is Do by a handle.
func TestDoJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client, _ := inBubble(t, f)
		root := begin(t, client, spec)
		var joined *sdk.Task
		failure := errors.New("no")
		err := client.DoJoin(t.Context(), delegate(t, root, toOrders), part, func(ctx context.Context, task *sdk.Task) error {
			if found, ok := sdk.FromContext(ctx); !ok || found != task {
				t.Error("the context has another task")
			}
			joined = task
			return failure
		})
		if err != failure || f.state(joined.ID()) != wire.StateFailed || root.State() != sdk.Active {
			t.Errorf("%v; it is %s, and the one above %s", err, f.state(joined.ID()), root.State())
		}
		if err := client.DoJoin(t.Context(), "hdl_", part, nil); !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("without a handle: %v", err)
		}
	})
}

var handles = map[string]bool{
	"hdl_a.b": true, " hdl_aA0-_.bB1-_\n": true, "hdl_" + strings.Repeat("a", sdk.MaxHandle-6) + ".b": true,
	"hdl_" + strings.Repeat("a", sdk.MaxHandle-5) + ".b": false,
	"": false, "hdl_": false, "hdl_.": false, "hdl_a.": false, "hdl_.b": false, "hdl_a": false, "hdl_a.b.c": false, "hdl_a.b=": false,
	"HDL_a.b": false, "hdl_a .b": false, "hdl_a.b\nhdl_c.d": false, "hdl_é.b": false, "tsk_00aaaaaaaaaaaaaaaaaaaaaaaaaa": false,
}

func TestParseHandle(t *testing.T) {
	for text, good := range handles {
		h, err := sdk.ParseHandle(text)
		if good != (err == nil) || err != nil && !errors.Is(err, sdk.ErrInvalid) {
			t.Errorf("%.40q: %v", text, err)
		}
		if err == nil && string(h) != strings.TrimSpace(text) {
			t.Errorf("%q became %q", text, h)
		}
	}
}

// FuzzParseHandle: what is taken is short, and nothing in it is special in a header, a URL or a shell.
func FuzzParseHandle(f *testing.F) {
	for text := range handles {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := sdk.ParseHandle(text)
		if err != nil {
			return
		}
		if len(h) > sdk.MaxHandle || strings.Trim(string(h), "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" {
			t.Errorf("%q was taken", h)
		}
		if again, err := sdk.ParseHandle(string(h)); again != h || err != nil {
			t.Errorf("%q is %q the second time, %v", h, again, err)
		}
	})
}
