package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/errandhq/errand/sdk"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"
)

// Bounds of making sure that an object is gone.
const (
	maxDoubts    = 10_000           // objects at once
	checkers     = 4                // that ask at once
	checkTimeout = 10 * time.Second // for one answer
	maxTries     = 30
	// checksPerSecond bounds what the API server is asked, together with lists and watches.
	checksPerSecond = 50
	// checkFor is the longest lease that a task can have: what was alive in an object that is gone has lapsed by then.
	checkFor = 10 * time.Minute
)

// doubt is an object that ran when it was last seen, and that the watch calls deleted. That may only mean that it is
// selected no more: its label was taken off, or a list was older than the object.
type doubt struct {
	end             end // if it is gone
	namespace, name string
	since           time.Time
}

// newDoubt is about an object that was last seen so, and false if it is none that is watched.
func newDoubt(object any) (doubt, bool) {
	var e end
	switch o := object.(type) {
	case *batch.Job:
		e = newEnd(kindJob, o, sdk.Canceled, "deleted")
	case *core.Pod:
		e = newEnd(kindPod, o, sdk.Canceled, "deleted")
	default:
		return doubt{}, false
	}
	o := object.(meta.Object)
	return doubt{end: e, namespace: o.GetNamespace(), name: o.GetName(), since: time.Now()}, true
}

// doubts has the objects that the cluster is still to be asked about, each once, and so many at most.
type doubts struct {
	most  int
	queue workqueue.TypedRateLimitingInterface[sdk.Ref]

	mu  sync.Mutex // guards what follows
	all map[sdk.Ref]doubt
}

// newDoubts needs an end, by queue.ShutDown.
func newDoubts(most int, pause time.Duration) *doubts {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[sdk.Ref](pause, maxPause)
	return &doubts{most: most, queue: workqueue.NewTypedRateLimitingQueue(limiter), all: map[sdk.Ref]doubt{}}
}

// add takes an object in, unless it is there, and reports false when there is no room for it.
func (s *doubts) add(d doubt) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.all[d.end.ref]; !there {
		if len(s.all) >= s.most {
			return false
		}
		s.all[d.end.ref] = d
	}
	s.queue.Add(d.end.ref)
	return true
}

// take takes one out, so that what is added while it is asked about is asked about again.
func (s *doubts) take(ref sdk.Ref) (doubt, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d, there := s.all[ref]
	delete(s.all, ref)
	return d, there
}

// retry puts one back that was taken out, for later.
func (s *doubts) retry(d doubt) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.all[d.end.ref]; !there {
		s.all[d.end.ref] = d
	}
	s.queue.AddRateLimited(d.end.ref)
}

// check asks the cluster about one object after another, until the queue is shut down.
func (w *watcher) check(ctx context.Context) {
	for {
		ref, over := w.doubts.queue.Get()
		if over || ctx.Err() != nil {
			return
		}
		if d, there := w.doubts.take(ref); there {
			w.checkOne(ctx, d)
		}
		w.doubts.queue.Done(ref)
	}
}

// checkOne puts an end to a doubt, or has it asked about again. While the cluster does not say that an object is gone
// nothing is ended: if it is, its tasks end with their leases.
func (w *watcher) checkOne(ctx context.Context, d doubt) {
	e, over, err := d.ask(ctx, w.cluster)
	tries := w.doubts.queue.NumRequeues(d.end.ref) + 1
	switch {
	case err == nil && over:
		w.tellLast(e)
	case err == nil:
		w.log.Info("an object is there and has not ended, and is selected no more: its tasks are left alone", w.about(d)...)
	case ctx.Err() != nil:
		return
	case tries < maxTries && time.Since(d.since) < checkFor:
		w.log.Warn("it is not known whether an object is gone; the cluster is asked again", append(w.about(d), "error", err)...)
		w.doubts.retry(d)
		return
	default:
		w.log.Error("it is still not known whether an object is gone, and nothing is ended; if it is, its tasks end with their leases",
			append(w.about(d), "tries", tries, "error", err)...)
	}
	w.doubts.queue.Forget(d.end.ref)
}

func (w *watcher) about(d doubt) []any {
	return []any{"kind", d.end.ref.Kind, "namespace", d.namespace, "name", d.name, "uid", d.end.ref.ID}
}

// ask asks the API server itself, which answers for the present. over is whether the object has ended, or is gone; one
// of the same name and another UID is another one.
func (d doubt) ask(ctx context.Context, cluster kubernetes.Interface) (e end, over bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var now meta.Object
	switch d.end.ref.Kind {
	case kindJob:
		now, err = cluster.BatchV1().Jobs(d.namespace).Get(ctx, d.name, meta.GetOptions{})
	case kindPod:
		now, err = cluster.CoreV1().Pods(d.namespace).Get(ctx, d.name, meta.GetOptions{})
	default:
		return end{}, false, fmt.Errorf("nothing is known of the kind %s", d.end.ref.Kind)
	}
	switch {
	case apierrors.IsNotFound(err) && !apierrors.IsUnexpectedServerError(err): // and no 404 of something before the API server
		return d.end, true, nil
	case err != nil:
		return end{}, false, err
	case string(now.GetUID()) != d.end.ref.ID:
		return d.end, true, nil
	}
	e, over = endOf(now)
	return e, over, nil
}
