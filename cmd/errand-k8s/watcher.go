package main

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/errandhq/errand/sdk"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Bounds of the telling.
const (
	maxWaiting  = 10_000           // ends in the queue
	tellers     = 4                // that are told at once
	tellTimeout = 10 * time.Second // for one
	firstPause  = 500 * time.Millisecond
	maxPause    = 30 * time.Second // between tries while the broker is away
)

// ender ends tasks by reference. *sdk.Client is one.
type ender interface {
	EndRef(ctx context.Context, ref sdk.Ref, outcome sdk.State, reason string) (ended int, err error)
}

// watcher tells a broker of what has ended in a cluster.
type watcher struct {
	cluster   kubernetes.Interface
	broker    ender
	log       *slog.Logger
	queue     *queue
	doubts    *doubts // while it runs
	factories []informers.SharedInformerFactory
	informers []cache.SharedIndexInformer
	handlers  []cache.ResourceEventHandlerRegistration
	pause     time.Duration // the first after a failure
}

func newWatcher(cluster kubernetes.Interface, broker ender, log *slog.Logger, o options) *watcher {
	w := &watcher{cluster: cluster, broker: broker, log: log, queue: newQueue(maxWaiting), pause: firstPause}
	namespaces := o.namespaces
	if len(namespaces) == 0 {
		namespaces = []string{meta.NamespaceAll}
	}
	for _, namespace := range namespaces {
		f := informers.NewSharedInformerFactoryWithOptions(cluster, 0, informers.WithNamespace(namespace), informers.WithTransform(slim),
			informers.WithTweakListOptions(func(l *meta.ListOptions) { l.LabelSelector = o.selector }))
		w.factories = append(w.factories, f)
		w.informers = append(w.informers, f.Batch().V1().Jobs().Informer(), f.Core().V1().Pods().Informer())
	}
	return w
}

// run lists all that is there, follows it, and tells the broker, until ctx ends.
func (w *watcher) run(ctx context.Context) {
	for _, informer := range w.informers {
		handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: w.seen, UpdateFunc: w.changed, DeleteFunc: w.deleted,
		})
		if err != nil { // it has been stopped: the program is about to end
			w.log.Error("nothing is watched", "error", err)
			return
		}
		w.handlers = append(w.handlers, handler)
	}
	w.doubts = newDoubts(maxDoubts, w.pause)
	defer w.doubts.queue.ShutDown()
	for _, f := range w.factories {
		f.Start(ctx.Done())
		defer f.Shutdown()
	}
	var all sync.WaitGroup
	all.Go(func() { <-ctx.Done(); w.doubts.queue.ShutDown() })
	for range tellers {
		all.Go(func() { w.tell(ctx) })
	}
	for range checkers {
		all.Go(func() { w.check(ctx) })
	}
	all.Wait()
}

// synced reports whether everything that was there has been listed.
func (w *watcher) synced() bool {
	for _, informer := range w.informers {
		if !informer.HasSynced() {
			return false
		}
	}
	return true
}

// seen looks at an object that is there.
func (w *watcher) seen(object any) {
	if e, ok := endOf(object); ok {
		w.queue.add(e, false)
	}
}

// changed looks at an object that was there. One with another UID has come in the place of the first while nobody
// watched, and the end of that is told by nothing else.
func (w *watcher) changed(before, now any) {
	old, isObject := before.(meta.Object)
	if current, ok := now.(meta.Object); isObject && ok && old.GetUID() != current.GetUID() {
		w.deleted(before)
	}
	w.seen(now)
}

// deleted looks at one that the watch has no more, as it was last seen. If it had ended, that is so; if not, the
// cluster is asked.
func (w *watcher) deleted(object any) {
	if last, ok := object.(cache.DeletedFinalStateUnknown); ok {
		object = last.Obj
	}
	if e, ok := endOf(object); ok {
		w.tellLast(e)
		return
	}
	d, ok := newDoubt(object)
	if ok && !w.doubts.add(d) {
		w.log.Error("too many objects may be gone to ask the cluster about another one; if it is, its tasks end with their leases", w.about(d)...)
	}
}

// tellLast has an end told after which nothing more is heard of its object.
func (w *watcher) tellLast(e end) {
	if !w.queue.add(e, true) {
		w.log.Error("too many ends wait for the broker to be told of another one; its tasks end with their leases", "reason", e.reason, "uid", e.ref.ID)
	}
}

// look adds what has ended and is still there: some of it found no room.
func (w *watcher) look() {
	for _, informer := range w.informers {
		for _, object := range informer.GetStore().List() {
			w.seen(object)
		}
	}
}

// tell tells the broker what is in the queue. While that does not answer it waits longer and longer.
func (w *watcher) tell(ctx context.Context) {
	pause := w.pause
	for {
		e, err := w.queue.next(ctx, w.look)
		if err != nil {
			return
		}
		switch n, err := w.tellOne(ctx, e); {
		case err == nil:
			pause = w.pause
			w.queue.settle(e)
			w.log.Debug("told", "kind", e.ref.Kind, "uid", e.ref.ID, "outcome", e.outcome, "tasks", n)
		case ctx.Err() != nil:
			return
		case errors.Is(err, sdk.ErrDenied) || errors.Is(err, sdk.ErrInvalid):
			w.queue.settle(e)
			w.log.Error("the broker refuses an end; its tasks end with their leases", "reason", e.reason, "uid", e.ref.ID, "error", err)
		default:
			w.queue.retry(e)
			w.log.Warn("the broker could not be told; it is tried again", "reason", e.reason, "in", pause, "error", err)
			select {
			case <-time.After(pause/2 + rand.N(pause/2+1)):
			case <-ctx.Done():
				return
			}
			pause = min(2*pause, maxPause)
		}
	}
}

func (w *watcher) tellOne(ctx context.Context, e end) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	return w.broker.EndRef(ctx, e.ref, e.outcome, e.reason)
}
