package brokertest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/verify"
)

// TestTree: a child has what its parent has, its token is good as long as both are, and one that goes with
// its parent is no leak.
func TestTree(t *testing.T) {
	t.Parallel()
	b := brokertest.New(t)
	v := b.Verifier("orders")
	client := b.Client("export")
	root := begin(t, client)
	read := func(task *sdk.Task) *sdk.Token {
		t.Helper()
		token, err := task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	below := func(parent *sdk.Task, spec sdk.TaskSpec) *sdk.Task {
		t.Helper()
		child, err := parent.Child(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		return child
	}
	good := func(token *sdk.Token) error {
		_, err := v.Verify(t.Context(), token.Secret(), &verify.Peer{Certificate: token.SVID().Certificates[0]}, verify.Scope("orders:read"))
		return err
	}
	child := below(root, sdk.TaskSpec{Name: "part", Deadline: 24 * time.Hour})
	grandchild, sibling := below(child, sdk.TaskSpec{Name: "page"}), below(root, sdk.TaskSpec{Name: "other"})
	tokens := []*sdk.Token{read(root), read(sibling), read(child), read(grandchild)}
	if _, err := child.Child(t.Context(), sdk.TaskSpec{Name: "more", Scopes: []string{"orders:write"}}); !errors.Is(err, sdk.ErrScopeExceeded) {
		t.Errorf("a child with more than its parent: %v", err)
	}
	b.Revoke(child.ID())
	for i, token := range tokens {
		if err := good(token); (i > 1) != errors.Is(err, verify.ErrRevoked) || i <= 1 && err != nil {
			t.Errorf("token %d: %v", i, err)
		}
	}
	b.Advance(11 * time.Second) // a heartbeat
	if a, c := context.Cause(child.Context()), context.Cause(grandchild.Context()); a != sdk.ErrRevoked || c != sdk.ErrParentEnded {
		t.Errorf("the causes are %v and %v", a, c)
	}
	if root.State() != sdk.Active || sibling.State() != sdk.Active {
		t.Errorf("the root is %s, and a sibling %s", root.State(), sibling.State())
	}
	last := below(root, sdk.TaskSpec{Name: "late", Deadline: 24 * time.Hour})
	b.Advance(time.Hour) // the root's deadline
	for _, task := range []*sdk.Task{root, sibling, last} {
		if task.State() == sdk.Active {
			t.Errorf("%v is %s beyond the root's deadline", task, task.State())
		}
	}
}
