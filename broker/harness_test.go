package broker_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/feed"
	"github.com/errandhq/errand/broker/policy"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/token"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/memory"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const inventory = `
audiences:
  - {name: orders, owner: team-shop, hosts: [orders.internal], scopes: ["orders:read", "orders:write"], details: [customer, payment], servers: [spiffe://prod/orders]}
  - {name: files, owner: team-shop, scopes: ["files:write"], servers: [spiffe://prod/files], max_life: 10s}
  - {name: mesh, owner: team-shop, scopes: ["mesh:call"], binding: identity}
sources:
  - {name: cluster, owner: team-platform, id: spiffe://prod/watcher, kinds: [k8s/job, k8s/pod], workloads: [spiffe://prod/report, spiffe://prod/batch/*]}
workloads:
  - {id: spiffe://prod/report, owner: team-fin, purpose: exports, ceiling: {orders: ["orders:read"], files: ["files:write"], mesh: ["mesh:call"]}}
  - {id: spiffe://prod/batch/night, owner: team-fin, purpose: batches, ceiling: {orders: ["orders:read"]}}
  - {id: spiffe://prod/small, owner: team-fin, purpose: quotas, max_tasks: 2, max_grants: 3, ceiling: {orders: ["orders:read"]}}
`

func workload(name string) broker.Workload {
	return broker.Workload{
		ID: spiffeid.RequireFromString("spiffe://prod/" + name), Thumbprint: "thumb-" + name,
		NotAfter: time.Now().Add(time.Hour), Address: "192.0.2.1:4711",
	}
}

var report, night, small = "report", "batch/night", "small"

// recorder is an audit log in memory that can be made to fail.
type recorder struct {
	mu     sync.Mutex
	events []broker.Event
	fail   error
}

func (r *recorder) Record(_ context.Context, events ...broker.Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	r.events = append(r.events, events...)
	return nil
}

func (r *recorder) break_(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// of returns the events of a kind.
func (r *recorder) of(kind broker.EventKind) []broker.Event {
	synctest.Wait() // some are recorded behind the answer
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []broker.Event
	for _, e := range r.events {
		if e.Kind == kind {
			out = append(out, e)
		}
	}
	return out
}

// harness is a broker on real parts, with a recorder for its audit log.
type harness struct {
	*broker.Broker
	t        *testing.T
	store    broker.Store
	audit    *recorder
	feed     *feed.Feed
	ring     *keys.Ring
	registry *registry.Registry
}

// inBubble runs f with a broker in a synctest bubble, once for each number of shards.
func inBubble(t *testing.T, f func(h *harness)) {
	t.Helper()
	for _, shards := range []int{1, 4} {
		t.Run(map[int]string{1: "one shard", 4: "four shards"}[shards], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, err := memory.New(memory.Config{Shards: shards})
				if err != nil {
					t.Fatal(err)
				}
				f(newHarness(t, store, nil))
			})
		})
	}
}

// newHarness starts a replica on a store; edit may change its configuration.
func newHarness(t *testing.T, store broker.Store, edit func(*broker.Config)) *harness {
	t.Helper()
	h, stop := startHarness(t, store, edit)
	t.Cleanup(stop)
	return h
}

// startHarness is newHarness for one that stops before its test does.
func startHarness(t *testing.T, store broker.Store, edit func(*broker.Config)) (_ *harness, stop func()) {
	t.Helper()
	h, stop := runHarness(t, store, edit)
	synctest.Wait()
	return h, stop
}

// newFreeHarness is newHarness outside of a bubble.
func newFreeHarness(t *testing.T, store broker.Store) *harness {
	t.Helper()
	h, stop := runHarness(t, store, nil)
	t.Cleanup(stop)
	for deadline := time.Now().Add(30 * time.Second); h.Ready() != nil; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal(h.Ready())
		}
	}
	return h
}

func runHarness(t *testing.T, store broker.Store, edit func(*broker.Config)) (_ *harness, stop func()) {
	t.Helper()
	h := &harness{t: t, store: store, audit: &recorder{}, feed: feed.New(feed.Config{})}
	var err error
	if h.registry, err = registry.Parse([]byte(inventory)); err != nil {
		t.Fatal(err)
	}
	if h.ring, err = keys.New(keys.Config{Type: wire.TokenType, Life: broker.MaxTokenLife}); err != nil {
		t.Fatal(err)
	}
	minter, err := token.NewMinter("https://issuer.test", h.ring)
	if err != nil {
		t.Fatal(err)
	}
	config := broker.Config{
		Store: store, Registry: h.registry, Policy: policy.Ceiling{Revision: h.registry.Revision}, Minter: minter,
		Auditor: h.audit, Announcer: h.feed,
	}
	if edit != nil {
		edit(&config)
	}
	if h.Broker, err = broker.New(config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	return h, func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	}
}

func (h *harness) begin(w string, edit func(*broker.BeginRequest)) broker.Begun {
	h.t.Helper()
	begun, err := h.tryBegin(w, edit)
	if err != nil {
		h.t.Fatalf("begin: %v", err)
	}
	return begun
}

func (h *harness) tryBegin(w string, edit func(*broker.BeginRequest)) (broker.Begun, error) {
	req := broker.BeginRequest{Name: "export", Purpose: "FIN-212"}
	if edit != nil {
		edit(&req)
	}
	return h.Begin(context.Background(), workload(w), req)
}

// withToken begins a task with one token for orders.
func withToken(req *broker.BeginRequest) {
	req.Tokens = []broker.TokenRequest{{Audience: "orders"}}
}

func (h *harness) issue(w string, id broker.TaskID) broker.Issued {
	h.t.Helper()
	issued, err := h.Issue(context.Background(), workload(w), id, broker.TokenRequest{Audience: "orders"})
	if err != nil {
		h.t.Fatalf("issue: %v", err)
	}
	return issued
}

func (h *harness) end(w string, id broker.TaskID) broker.Receipt {
	h.t.Helper()
	receipt, err := h.tryEnd(w, id, broker.EndKey{})
	if err != nil {
		h.t.Fatalf("end: %v", err)
	}
	return receipt
}

func (h *harness) tryEnd(w string, id broker.TaskID, key broker.EndKey) (broker.Receipt, error) {
	return h.End(context.Background(), workload(w), id, broker.EndRequest{State: broker.Completed, Key: key})
}

func (h *harness) live(w string, id broker.GrantID) bool {
	h.t.Helper()
	status, err := h.Grant(context.Background(), workload(w), id)
	if err != nil {
		h.t.Fatalf("grant: %v", err)
	}
	return status.Live
}

// denied returns what the feed says to an audience.
func (h *harness) denied(audience string) []wire.FeedEntry {
	h.t.Helper()
	synctest.Wait()
	s, err := h.feed.Snapshot(audience)
	if err != nil {
		h.t.Fatal(err)
	}
	return s.Entries
}

func (h *harness) names(audience string, id string) bool {
	return slices.ContainsFunc(h.denied(audience), func(e wire.FeedEntry) bool { return e.ID == id })
}

func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("got %v, want %v", err, target)
	}
}
