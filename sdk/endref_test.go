package sdk_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/wire"
)

const watched = `
audiences:
  - {name: orders, owner: team-shop, scopes: ["orders:read"]}
workloads:
  - {id: spiffe://test/export, owner: team-fin, purpose: exports, ceiling: {orders: ["orders:read"]}}
  - {id: spiffe://test/other, owner: team-fin, purpose: exports, ceiling: {orders: ["orders:read"]}}
sources:
  - {name: cluster, owner: team-platform, id: spiffe://test/watcher, kinds: [k8s/job], workloads: [spiffe://test/export]}
`

// TestEndRef: a client that is a source and no workload ends what carries the reference, and can do nothing
// else.
func TestEndRef(t *testing.T) {
	file := filepath.Join(t.TempDir(), "inventory.yaml")
	if err := os.WriteFile(file, []byte(watched), 0o600); err != nil {
		t.Fatal(err)
	}
	b := brokertest.New(t, brokertest.WithInventory(file), brokertest.AllowLeaks())
	watcher, export, other := b.Client("watcher"), b.Client("export"), b.Client("other")
	job := sdk.Ref{Kind: "k8s/job", ID: "uid-1"}
	carrying := sdk.TaskSpec{Name: "export", Purpose: "p", Audiences: []string{"orders"}, Ref: job}
	mine, foreign := begin(t, export, carrying), begin(t, other, carrying)
	if n, err := watcher.EndRef(t.Context(), job, sdk.Failed, "OOMKilled"); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	select {
	case <-mine.Context().Done():
	case <-time.After(30 * time.Second):
		t.Error("its task does not hear of it")
	}
	if foreign.State() != sdk.Active {
		t.Errorf("another workload's task is %s", foreign.State())
	}
	for name, test := range map[string]struct {
		by      *sdk.Client
		ref     sdk.Ref
		outcome sdk.State
		want    error
	}{
		"another's task":    {watcher, job, sdk.Failed, sdk.ErrDenied},
		"another kind":      {watcher, sdk.Ref{Kind: "ci/run", ID: "1"}, sdk.Failed, sdk.ErrDenied},
		"no reference":      {watcher, sdk.Ref{}, sdk.Failed, sdk.ErrInvalid},
		"an operator's end": {watcher, job, wire.StateRevoked, sdk.ErrInvalid},
		"no source":         {export, job, sdk.Failed, sdk.ErrDenied},
	} {
		if n, err := test.by.EndRef(t.Context(), test.ref, test.outcome, ""); n != 0 || !errors.Is(err, test.want) {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	if _, err := watcher.Begin(t.Context(), carrying); !errors.Is(err, sdk.ErrUnregistered) {
		t.Errorf("a begin of the source: %v", err)
	}
	if n, err := watcher.EndRef(t.Context(), sdk.Ref{Kind: "k8s/job", ID: "uid-2"}, sdk.Completed, ""); n != 0 || err != nil {
		t.Errorf("one that nobody carries: %d, %v", n, err)
	}
	if err := watcher.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := watcher.EndRef(t.Context(), job, sdk.Failed, ""); !errors.Is(err, sdk.ErrClosed) {
		t.Errorf("when it is closed: %v", err)
	}
}
