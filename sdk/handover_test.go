package sdk_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/verify"
)

// Here the broker is a real one.

// asks is what a server makes of a token: the status, and the grant.
func asks(t *testing.T, v *verify.Verifier, token *sdk.Token) (status int, grant *verify.Grant) {
	t.Helper()
	rec := httptest.NewRecorder()
	req := httptest.NewRequest(http.MethodGet, "http://orders/", nil)
	req.Header.Set("Authorization", token.Header())
	v.Require("orders:read")(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		grant, _ = verify.FromContext(r.Context())
	})).ServeHTTP(rec, req)
	return rec.Code, grant
}

func to(tb testing.TB, b *brokertest.Broker, workload string) spiffeid.ID {
	tb.Helper()
	return b.Client(workload).ID()
}

// TestHandOver: one workload joins the task of another, which is in its tokens; nobody else can, nor twice; and
// the end of the task above is that of the token.
func TestHandOver(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	v := b.Verifier("orders")
	export, index, thief := b.Client("export"), b.Client("index"), b.Client("thief")
	whole := sdk.TaskSpec{Name: "export", Purpose: "a test", Audiences: []string{"orders"}, Scopes: []string{"orders:read", "orders:write"}}
	root := begin(t, export, whole)
	handle := delegate(t, root, sdk.Delegation{To: to(t, b, "index"), Scopes: []string{"orders:read"}})
	if _, err := thief.Join(t.Context(), handle, sdk.TaskSpec{Name: "steal", Purpose: "p"}); !errors.Is(err, sdk.ErrNotDelegate) {
		t.Errorf("a thief: %v", err)
	}
	if _, err := export.Join(t.Context(), handle, sdk.TaskSpec{Name: "self", Purpose: "p"}); !errors.Is(err, sdk.ErrNotDelegate) {
		t.Errorf("who has delegated: %v", err)
	}
	if _, err := index.Join(t.Context(), handle[:len(handle)-1]+"~", sdk.TaskSpec{Name: "index", Purpose: "p"}); !errors.Is(err, sdk.ErrInvalid) {
		t.Errorf("one that was changed: %v", err)
	}
	if _, err := index.Join(t.Context(), handle, whole); !errors.Is(err, sdk.ErrScopeExceeded) {
		t.Errorf("for more: %v", err)
	}
	task := must(index.Join(t.Context(), handle, sdk.TaskSpec{Name: "index", Purpose: "for the export"}))(t)
	if task.Parent() != root.ID() || task.Root() != root.ID() {
		t.Errorf("it is below %s", task.Parent())
	}
	if _, err := index.Join(t.Context(), handle, sdk.TaskSpec{Name: "index", Purpose: "once more"}); !errors.Is(err, sdk.ErrHandleUsed) {
		t.Errorf("twice: %v", err)
	}
	child := must(task.Child(t.Context(), sdk.TaskSpec{Name: "page"}))(t)
	for _, of := range []*sdk.Task{task, child} {
		token := must(of.Token(t.Context(), ordersRead))(t)
		status, grant := asks(t, v, token)
		who := index.ID().String()
		if status != http.StatusOK || grant.Workload != export.ID().String() || grant.Client != who || !slices.Equal(grant.Actors, []string{who}) ||
			!slices.Equal(token.Scopes, []string{"orders:read"}) {
			t.Errorf("a token: %d, %+v", status, grant)
		}
		defer func() {
			if status, _ := asks(t, v, token); status != http.StatusUnauthorized {
				t.Errorf("the token after the end: %d", status)
			}
		}()
	}
	must(root.Complete(t.Context()))(t)
	b.Advance(11 * time.Second)
	wentAlong(t, task)
	wentAlong(t, child)
	late := begin(t, export, whole)
	handle = delegate(t, late, sdk.Delegation{To: to(t, b, "index"), For: 30 * time.Second})
	b.Advance(31 * time.Second)
	if _, err := index.Join(t.Context(), handle, sdk.TaskSpec{Name: "index", Purpose: "p"}); !errors.Is(err, sdk.ErrHandleExpired) {
		t.Errorf("too late: %v", err)
	}
	must(late.Complete(t.Context()))(t)
	b.Settle(t.Context())
}

// TestTakeOver: a task goes from one client to another and back while it is used, and a token of before is good
// until the task ends, whoever ends it.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	v := b.Verifier("orders")
	hands := []*sdk.Client{b.Client("export"), b.Client("export")}
	task := begin(t, hands[1], sdk.TaskSpec{Name: "export", Purpose: "a test", Audiences: []string{"orders"}, Scopes: []string{"orders:read"}})
	token := must(task.Token(t.Context(), ordersRead))(t)
	if _, err := b.Client("thief").Adopt(t.Context(), task.ID()); !errors.Is(err, sdk.ErrNotFound) {
		t.Errorf("another workload: %v", err)
	}
	for i := range 4 {
		next := must(hands[i%2].Adopt(t.Context(), task.ID()))(t)
		b.Advance(11 * time.Second)
		if cause := context.Cause(task.Context()); cause != sdk.ErrAdopted || next.State() != sdk.Active {
			t.Fatalf("%d: the one before says %v, and the next is %s", i, cause, next.State())
		}
		if _, err := task.Complete(t.Context()); !errors.Is(err, sdk.ErrAdopted) {
			t.Errorf("Complete: %v", err)
		}
		task = next
	}
	if status, _ := asks(t, v, token); status != http.StatusOK {
		t.Errorf("a token of the first holder: %d", status)
	}
	b.Advance(2 * time.Minute) // many leases
	if receipt := must(task.Complete(t.Context()))(t); receipt.State != sdk.Completed {
		t.Errorf("%+v", receipt)
	}
	b.Settle(t.Context())
	if status, _ := asks(t, v, token); status != http.StatusUnauthorized {
		t.Errorf("after the end: %d", status)
	}
}

// TestTakeOverIsHeardOfAtOnce by the stream, also of a task with presence, which does not end when the stream of
// the one before does.
func TestTakeOverIsHeardOfAtOnce(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t, brokertest.RealTime())
	for name, s := range map[string]sdk.TaskSpec{"presence": presentSpec, "lease": {Name: "export", Purpose: "a test", Audiences: []string{"orders"}, Lease: 5 * time.Minute}} {
		s.Tokens = []sdk.TokenRequest{}
		first, second := b.Client("export"), b.Client("export")
		task := begin(t, first, s)
		if s.Presence {
			bound(t, b, second, task.ID())
		}
		next := must(second.Adopt(t.Context(), task.ID()))(t)
		if cause := over(t, task); cause != sdk.ErrAdopted {
			t.Errorf("%s: the cause is %v", name, cause)
		}
		if err := first.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if s.Presence {
			bound(t, b, second, task.ID())
		}
		if got := look(t, b, second, task.ID()); got.State != "active" || got.Holder != 2 || next.State() != sdk.Active {
			t.Errorf("%s: it is %s, of holder %d", name, got.State, got.Holder)
		}
		must(next.Complete(t.Context()))(t)
	}
}

// TestTakeOverAgainstTheEnd for real: one of them, and the other one knows.
func TestTakeOverAgainstTheEnd(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	first, second := b.Client("export"), b.Client("export")
	for range 100 {
		task := begin(t, first, sdk.TaskSpec{Name: "export", Purpose: "a test"})
		var wg sync.WaitGroup
		var next *sdk.Task
		var adopting, ending error
		wg.Go(func() { next, adopting = second.Adopt(t.Context(), task.ID()) })
		wg.Go(func() { _, ending = task.Complete(t.Context()) })
		wg.Wait()
		if (adopting == nil) == (ending == nil) {
			t.Fatalf("adopted: %v; ended: %v", adopting, ending)
		}
		if adopting == nil {
			if !errors.Is(ending, sdk.ErrAdopted) {
				t.Errorf("Complete: %v", ending)
			}
			must(next.Complete(t.Context()))(t)
		} else if !errors.Is(adopting, sdk.ErrTaskEnded) {
			t.Errorf("Adopt: %v", adopting)
		}
	}
}
