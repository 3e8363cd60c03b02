package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
)

// selecting makes the watches of a cluster those of an API server: to whoever watches with a selector, an object that
// matches it no more is deleted, as it was when it matched.
func selecting(cluster *fake.Clientset, selector string) {
	matching, err := labels.Parse(selector)
	if err != nil {
		panic(err)
	}
	cluster.PrependWatchReactor("*", func(action k8stesting.Action) (bool, apiwatch.Interface, error) {
		all, err := cluster.Tracker().Watch(action.GetResource(), action.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		matched := map[types.UID]runtime.Object{}
		return true, apiwatch.Filter(all, func(e apiwatch.Event) (apiwatch.Event, bool) {
			o, ok := e.Object.(meta.Object)
			switch {
			case !ok || e.Type == apiwatch.Deleted:
				return e, true
			case matching.Matches(labels.Set(o.GetLabels())):
				matched[o.GetUID()] = e.Object
				return e, true
			}
			before, was := matched[o.GetUID()]
			if !was {
				before = e.Object
			}
			delete(matched, o.GetUID())
			return apiwatch.Event{Type: apiwatch.Deleted, Object: before}, true
		}), nil
	})
}

// lines is a log that can be read while it is written.
type lines struct {
	mu   sync.Mutex // guards what follows
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

func (l *lines) of(w *watcher) { w.log = slog.New(slog.NewTextHandler(l, nil)) }

const leftAlone = "its tasks are left alone"

// TestSelectedNoMore: that an object's label is taken off ends nothing. It is followed again when it has it back.
func TestSelectedNoMore(t *testing.T) {
	b, log := &teller{}, &lines{}
	cluster, _ := watch(t, b, byLabel, log.of, job("a"), pod("b", core.PodRunning), pod("c", core.PodRunning))
	jobs, pods, ctx := cluster.BatchV1().Jobs("jobs"), cluster.CoreV1().Pods("jobs"), t.Context()
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	bareJob, barePod, over := job("a"), pod("b", core.PodRunning), pod("c", core.PodFailed)
	bareJob.Labels, barePod.Labels, over.Labels = nil, nil, nil
	must(jobs.Update(ctx, bareJob, meta.UpdateOptions{}))
	must(pods.Update(ctx, barePod, meta.UpdateOptions{}))
	must(pods.Update(ctx, over, meta.UpdateOptions{})) // it has ended in between
	eventually(t, "both are looked at", func() bool { return log.count(leftAlone) == 2 })
	b.hears(t, "k8s/pod uid-c failed (k8s/pod jobs/c: failed)")

	must(jobs.Update(ctx, job("a"), meta.UpdateOptions{}))
	must(jobs.UpdateStatus(ctx, job("a", complete), meta.UpdateOptions{}))
	b.hears(t, "k8s/pod uid-c failed (k8s/pod jobs/c: failed)", "k8s/job uid-a completed (k8s/job jobs/a: complete)")
}

// TestAListThatLagsBehind leaves out an object that is there.
func TestAListThatLagsBehind(t *testing.T) {
	b, log := &teller{}, &lines{}
	_, w := watch(t, b, byLabel, log.of, job("a"))
	w.deleted(cache.DeletedFinalStateUnknown{Key: "jobs/a", Obj: job("a")})
	eventually(t, "it is looked at", func() bool { return log.count(leftAlone) == 1 })
	b.hears(t)
}

// TestAnotherOfTheSameName has taken the place of one, which so has ended; its own tasks go on.
func TestAnotherOfTheSameName(t *testing.T) {
	b := &teller{}
	another := func(name string) *core.Pod {
		p := pod(name, core.PodRunning)
		p.UID = "uid-other-" + p.UID
		return p
	}
	unselected := another("b")
	unselected.Labels = nil
	cluster, w := watch(t, b, byLabel, nil, pod("a", core.PodRunning), unselected)
	if _, err := cluster.CoreV1().Pods("jobs").Update(t.Context(), another("a"), meta.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.deleted(pod("b", core.PodRunning))
	b.hears(t, "k8s/pod uid-a canceled (k8s/pod jobs/a: deleted)", "k8s/pod uid-b canceled (k8s/pod jobs/b: deleted)")
}

// failing makes a cluster answer nothing by name while there is an error.
func failing(cluster *fake.Clientset) (fail func(error)) {
	var mu sync.Mutex
	var now error
	cluster.PrependReactor("get", "*", func(k8stesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		return now != nil, nil, now
	})
	return func(err error) {
		mu.Lock()
		defer mu.Unlock()
		now = err
	}
}

// TestTheClusterIsAway: what is gone is told when that can be known.
func TestTheClusterIsAway(t *testing.T) {
	jobs := schema.GroupResource{Group: "batch", Resource: "jobs"}
	for name, err := range map[string]error{
		"away": errors.New("connection refused"), "forbidden": apierrors.NewForbidden(jobs, "a", nil),
		"a 404 of something else": apierrors.NewGenericServerResponse(http.StatusNotFound, "get", jobs, "a", "", 0, true),
	} {
		t.Run(name, func(t *testing.T) {
			b, log := &teller{}, &lines{}
			cluster, _ := watch(t, b, byLabel, log.of, job("a"), job("b"))
			fail := failing(cluster)
			fail(err)
			if err := cluster.BatchV1().Jobs("jobs").Delete(t.Context(), "a", meta.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is asked again", func() bool { return log.count("it is not known whether an object is gone") > 3 })
			if _, err := cluster.BatchV1().Jobs("jobs").UpdateStatus(t.Context(), job("b", complete), meta.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			b.hears(t, "k8s/job uid-b completed (k8s/job jobs/b: complete)") // and nothing waits for it
			fail(nil)
			b.hears(t, "k8s/job uid-b completed (k8s/job jobs/b: complete)", "k8s/job uid-a canceled (k8s/job jobs/a: deleted)")
		})
	}
}

// TestTheClusterStaysAway: in the end nothing is told, the log says what is not known, and nothing more is asked.
func TestTheClusterStaysAway(t *testing.T) {
	for name, pause := range map[string]time.Duration{"for so long": firstPause, "so often": time.Nanosecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b, log := &teller{}, &lines{}
				cluster := fake.NewClientset(job("a"))
				w := newWatcher(cluster, b, slog.New(slog.NewTextHandler(log, nil)), byLabel)
				w.pause = pause
				failing(cluster)(errors.New("connection refused"))
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { defer close(done); w.run(ctx) }()
				time.Sleep(time.Minute)
				if err := cluster.BatchV1().Jobs("jobs").Delete(ctx, "a", meta.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(checkFor + maxPause)
				again, over := log.count("the cluster is asked again"), log.count("it is still not known whether an object is gone")
				if again < 15 || again >= maxTries || over != 1 || log.count("uid=uid-a") != again+over {
					t.Errorf("it was asked again %d times, and given up %d times", again, over)
				}
				time.Sleep(time.Hour)
				if log.count("asked again") != again || len(w.doubts.all) != 0 {
					t.Error("it does not give up")
				}
				b.hears(t)
				stop()
				<-done
			})
		})
	}
}

// TestTooManyDoubts: of more than there is room for the log says so.
func TestTooManyDoubts(t *testing.T) {
	log := &lines{}
	w := newWatcher(fake.NewClientset(), &teller{}, nil, byLabel)
	log.of(w)
	w.doubts = newDoubts(1, firstPause)
	defer w.doubts.queue.ShutDown()
	w.deleted(job("a"))
	w.deleted(job("a"))
	if log.count("") > 1 {
		t.Errorf("logged: %s", log.text.String())
	}
	w.deleted(job("b"))
	if log.count("too many objects") != 1 || log.count("uid-b") != 1 {
		t.Errorf("logged: %s", log.text.String())
	}
}
