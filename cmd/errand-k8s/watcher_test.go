package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"go.uber.org/goleak"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// teller is a broker that keeps what it is told, and can fail.
type teller struct {
	mu    sync.Mutex // guards what follows
	heard map[string]int
	fail  error
	tried int
}

func (b *teller) EndRef(_ context.Context, ref sdk.Ref, outcome sdk.State, reason string) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tried++
	if b.fail != nil {
		return 0, b.fail
	}
	if b.heard == nil {
		b.heard = map[string]int{}
	}
	b.heard[fmt.Sprintf("%s %s %s (%s)", ref.Kind, ref.ID, outcome, reason)]++
	return 1, nil
}

func (b *teller) failing(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = err
}

func (b *teller) all() (heard map[string]int, tried int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.heard), b.tried
}

// named has what every object here has.
func named(name string, labels ...string) meta.ObjectMeta {
	m := meta.ObjectMeta{Namespace: "jobs", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"errand/task": ""}}
	for _, l := range labels {
		m.Labels[l] = ""
	}
	return m
}

func job(name string, conditions ...batch.JobCondition) *batch.Job {
	return &batch.Job{ObjectMeta: named(name), Status: batch.JobStatus{Conditions: conditions}}
}

func pod(name string, phase core.PodPhase) *core.Pod {
	return &core.Pod{ObjectMeta: named(name), Status: core.PodStatus{Phase: phase}}
}

var (
	complete  = batch.JobCondition{Type: batch.JobComplete, Status: core.ConditionTrue}
	failed    = batch.JobCondition{Type: batch.JobFailed, Status: core.ConditionTrue, Reason: "BackoffLimitExceeded"}
	notYet    = batch.JobCondition{Type: batch.JobFailed, Status: core.ConditionFalse}
	suspended = batch.JobCondition{Type: batch.JobSuspended, Status: core.ConditionTrue}
)

var byLabel = options{selector: "errand/task"}

// watch runs a watcher of a cluster until the test is over.
func watch(t *testing.T, b ender, o options, edit func(*watcher), objects ...runtime.Object) (*fake.Clientset, *watcher) {
	t.Helper()
	cluster := fake.NewClientset(objects...)
	selecting(cluster, o.selector)
	w := newWatcher(cluster, b, slog.New(slog.DiscardHandler), o)
	w.pause = time.Millisecond
	if edit != nil {
		edit(w)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); w.run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	eventually(t, "everything is listed", w.synced)
	return cluster, w
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// hears wants the broker to be told these things, each once, and nothing else.
func (b *teller) hears(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, "the broker is told", func() bool { heard, _ := b.all(); return len(heard) >= len(want) })
	heard, _ := b.all()
	for _, each := range want {
		if heard[each] != 1 {
			t.Errorf("%q was told %d times", each, heard[each])
		}
	}
	if len(heard) != len(want) {
		t.Errorf("told were %v", heard)
	}
}

// TestWhatHasEndedBefore is told at the start, and what goes on is not.
func TestWhatHasEndedBefore(t *testing.T) {
	b := &teller{}
	other := pod("other", core.PodSucceeded)
	other.Labels = nil
	watch(t, b, byLabel, nil, job("a", complete), job("b", suspended, failed), job("c", notYet), job("d"), job("e", suspended),
		pod("f", core.PodSucceeded), pod("g", core.PodFailed), pod("h", core.PodRunning), pod("i", core.PodPending), pod("j", core.PodUnknown), other)
	b.hears(t, "k8s/job uid-a completed (k8s/job jobs/a: complete)", "k8s/job uid-b failed (k8s/job jobs/b: failed, BackoffLimitExceeded)",
		"k8s/pod uid-f completed (k8s/pod jobs/f: succeeded)", "k8s/pod uid-g failed (k8s/pod jobs/g: failed)")
}

// TestWhatEnds is told as it happens, once, however often it is seen; what is deleted while it runs is
// canceled.
func TestWhatEnds(t *testing.T) {
	b := &teller{}
	cluster, w := watch(t, b, byLabel, nil, job("a"), job("b"), job("c"), pod("d", core.PodRunning), pod("e", core.PodRunning))
	jobs, pods, ctx := cluster.BatchV1().Jobs("jobs"), cluster.CoreV1().Pods("jobs"), t.Context()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		done := job("a", complete)
		done.Annotations = map[string]string{"again": fmt.Sprint(i)}
		must(jobs.UpdateStatus(ctx, done, meta.UpdateOptions{}))
	}
	must(jobs.UpdateStatus(ctx, job("b", failed), meta.UpdateOptions{}))
	must(pods.UpdateStatus(ctx, pod("d", core.PodFailed), meta.UpdateOptions{}))
	must(nil, jobs.Delete(ctx, "c", meta.DeleteOptions{}))
	must(nil, pods.Delete(ctx, "e", meta.DeleteOptions{}))
	want := []string{
		"k8s/job uid-a completed (k8s/job jobs/a: complete)", "k8s/job uid-b failed (k8s/job jobs/b: failed, BackoffLimitExceeded)",
		"k8s/pod uid-d failed (k8s/pod jobs/d: failed)", "k8s/job uid-c canceled (k8s/job jobs/c: deleted)", "k8s/pod uid-e canceled (k8s/pod jobs/e: deleted)",
	}
	b.hears(t, want...)
	// What had ended is not told once more when it goes, and then takes no room.
	must(nil, jobs.Delete(ctx, "a", meta.DeleteOptions{}))
	must(nil, jobs.Delete(ctx, "b", meta.DeleteOptions{}))
	must(nil, pods.Delete(ctx, "d", meta.DeleteOptions{}))
	eventually(t, "what is gone is forgotten", func() bool { w.queue.mu.Lock(); defer w.queue.mu.Unlock(); return len(w.queue.known) == 0 })
	b.hears(t, want...)
}

// TestTheBrokerIsAway: what ends meanwhile is told when it is back.
func TestTheBrokerIsAway(t *testing.T) {
	b := &teller{fail: sdk.ErrUnavailable}
	cluster, _ := watch(t, b, byLabel, nil, job("a", complete), job("b"))
	eventually(t, "it is tried again", func() bool { _, tried := b.all(); return tried > 3 })
	if err := cluster.BatchV1().Jobs("jobs").Delete(t.Context(), "b", meta.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.failing(nil)
	b.hears(t, "k8s/job uid-a completed (k8s/job jobs/a: complete)", "k8s/job uid-b canceled (k8s/job jobs/b: deleted)")
}

// TestTheBrokerRefuses: that is not tried again, and others are told.
func TestTheBrokerRefuses(t *testing.T) {
	b := &teller{fail: fmt.Errorf("no: %w", sdk.ErrDenied)}
	cluster, w := watch(t, b, byLabel, nil, job("a", complete), job("b"))
	eventually(t, "it is refused", func() bool {
		w.queue.mu.Lock()
		defer w.queue.mu.Unlock()
		return w.queue.known[sdk.Ref{Kind: kindJob, ID: "uid-a"}] == told
	})
	b.failing(nil)
	if _, err := cluster.BatchV1().Jobs("jobs").UpdateStatus(t.Context(), job("b", complete), meta.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.hears(t, "k8s/job uid-b completed (k8s/job jobs/b: complete)")
}

// TestAFullQueue holds no more than it may, and what found no room is told all the same.
func TestAFullQueue(t *testing.T) {
	const n, most = 200, 5
	b := &teller{fail: errors.New("away")}
	var objects []runtime.Object
	var want []string
	for i := range n {
		name := fmt.Sprint("j", i)
		objects = append(objects, job(name, complete))
		want = append(want, fmt.Sprintf("k8s/job uid-%s completed (k8s/job jobs/%s: complete)", name, name))
	}
	_, w := watch(t, b, byLabel, func(w *watcher) { w.queue.most = most }, objects...)
	eventually(t, "it is full", func() bool { w.queue.mu.Lock(); defer w.queue.mu.Unlock(); return w.queue.lost })
	if waiting := w.queue.len(); waiting > most+tellers {
		t.Errorf("%d wait, of %d", waiting, most)
	}
	b.failing(nil)
	b.hears(t, want...)
}

// TestWhatGoesWhileTheQueueIsFull is logged, since nobody will tell the broker; what had room is told.
func TestWhatGoesWhileTheQueueIsFull(t *testing.T) {
	var log bytes.Buffer
	w := newWatcher(fake.NewClientset(), &teller{}, slog.New(slog.NewTextHandler(&log, nil)), byLabel)
	w.queue.most = 1
	w.deleted(job("a", complete))
	w.deleted(job("a", complete))
	if log.Len() > 0 {
		t.Errorf("logged: %s", log.String())
	}
	w.deleted(job("b", failed))
	if w.queue.len() != 1 || !strings.Contains(log.String(), "uid-b") {
		t.Errorf("%d wait; logged: %s", w.queue.len(), log.String())
	}
}

// TestNamespaces: only those that are named are looked at.
func TestNamespaces(t *testing.T) {
	b := &teller{}
	elsewhere := job("b", complete)
	elsewhere.Namespace = "elsewhere"
	watch(t, b, options{namespaces: []string{"jobs", "more"}}, nil, job("a", complete), elsewhere)
	b.hears(t, "k8s/job uid-a completed (k8s/job jobs/a: complete)")
}

// TestARealBroker ends the task of a Job that fails, and no other.
func TestARealBroker(t *testing.T) {
	file := filepath.Join(t.TempDir(), "inventory.yaml")
	if err := os.WriteFile(file, []byte(`
audiences:
  - {name: orders, owner: team-shop, scopes: ["orders:read"]}
workloads:
  - {id: spiffe://test/export, owner: team-fin, purpose: exports, ceiling: {orders: ["orders:read"]}}
sources:
  - {name: cluster, owner: team-platform, id: spiffe://test/errand-k8s, kinds: [k8s/job, k8s/pod], workloads: [spiffe://test/export]}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	b := brokertest.New(t, brokertest.WithInventory(file), brokertest.AllowLeaks())
	export := b.Client("export")
	begin := func(name string) *sdk.Task {
		task, err := export.Begin(t.Context(), sdk.TaskSpec{Name: "export", Purpose: "p", Ref: sdk.Ref{Kind: kindJob, ID: "uid-" + name}})
		if err != nil {
			t.Fatal(err)
		}
		return task
	}
	first, second := begin("a"), begin("b")
	cluster, _ := watch(t, b.Client("errand-k8s"), byLabel, nil, job("a"), job("b"))
	if _, err := cluster.BatchV1().Jobs("jobs").UpdateStatus(t.Context(), job("a", failed), meta.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-first.Context().Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the task goes on")
	}
	if first.State() != sdk.Failed || second.State() != sdk.Active {
		t.Errorf("the tasks are %s and %s", first.State(), second.State())
	}
}

// TestHealth: it is ready when all was listed and there is an identity.
func TestHealth(t *testing.T) {
	w := newWatcher(fake.NewClientset(), &teller{}, slog.New(slog.DiscardHandler), byLabel)
	get := func(w *watcher, path string, identity error) int {
		rec := httptest.NewRecorder()
		health(w, func() error { return identity }).ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		return rec.Code
	}
	_, running := watch(t, &teller{}, byLabel, nil)
	if get(w, "/healthz", nil) != 200 || get(w, "/readyz", nil) != 503 || get(running, "/readyz", nil) != 200 || get(running, "/readyz", sdk.ErrNoIdentity) != 503 {
		t.Error("it says something else")
	}
}

func TestCommandLine(t *testing.T) {
	o, err := parse([]string{"--namespaces", "a, b", "--selector", "team=x"}, io.Discard)
	if err != nil || len(o.namespaces) != 2 || o.namespaces[1] != "b" || o.selector != "team=x" {
		t.Errorf("%+v, %v", o, err)
	}
	for name, args := range map[string][]string{"an argument": {"x"}, "a selector": {"--selector", "a in"}, "an unknown flag": {"--all"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if err := run(t.Context(), []string{"--kubeconfig", filepath.Join(t.TempDir(), "none")}, io.Discard); err == nil || !strings.Contains(err.Error(), "no way to the cluster") {
		t.Error(err)
	}
}
