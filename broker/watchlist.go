package broker

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Bounds of those who watch a list.
const (
	MaxWatched             = 2000 // tasks or grants of one list
	MaxWatchers            = 32   // on a replica; one more is ErrCrowded
	MaxWatchersPerOperator = 8

	// WatchEvery is how often a watched list is looked at, at the most: it rests as long as a look took.
	WatchEvery = time.Second

	// watchBeat is how long a watcher hears nothing: with the call of the store that is under way then, less than FollowBeat
	// and a half.
	watchBeat = 500 * time.Millisecond
)

// WatchTasks looks at the tasks that a filter means again and again, whoever changes them at which replica: emit gets
// all of them after each look, and beat and nothing when there is no news for a while. It returns ctx's error, what emit
// has returned, ErrInvalid, also when they are more than MaxWatched, ErrCrowded, ErrLeaving or those of the store.
func (b *Broker) WatchTasks(ctx context.Context, o Operator, req ListRequest, emit func(found []Task, beat bool) error) error {
	if err := req.normalizeTasks(); err != nil {
		return err
	}
	return b.watchList(ctx, o, req, false, func(found []GrantStatus, beat bool) error { return emit(tasksOf(found), beat) })
}

// WatchGrants is WatchTasks for grants.
func (b *Broker) WatchGrants(ctx context.Context, o Operator, req ListRequest, emit func(found []GrantStatus, beat bool) error) error {
	if err := req.normalizeGrants(); err != nil {
		return err
	}
	return b.watchList(ctx, o, req, true, emit)
}

func (b *Broker) watchList(ctx context.Context, o Operator, req ListRequest, grants bool, emit func([]GrantStatus, bool) error) error {
	if err := b.watchers.join(o.Name); err != nil {
		return err
	}
	defer b.watchers.leave(o.Name)
	var told time.Time
	tell := func(found []GrantStatus, beat bool) error {
		told = b.Now()
		return emit(found, beat)
	}
	for {
		began := b.Now()
		var found []GrantStatus
		if err := b.scan(ctx, req.Filter, grants, func(some []GrantStatus) error {
			for _, s := range some {
				if req.wants(s) {
					found = append(found, s)
				}
			}
			if len(found) > MaxWatched {
				return invalid("watch", "has more than %d items; name what is of interest, as a workload, an audience, a task or a state", MaxWatched)
			}
			if told.IsZero() || b.Now().Sub(told) < watchBeat {
				return nil
			}
			return tell(nil, true)
		}); err != nil {
			return err
		}
		if err := tell(found, false); err != nil {
			return err
		}
		took := b.Now().Sub(began)
		for rest := max(WatchEvery-took, took); rest > 0; rest -= watchBeat {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-b.watchers.gone:
				return ErrLeaving
			case <-time.After(min(rest, watchBeat)):
			}
			if rest > watchBeat {
				if err := tell(nil, true); err != nil {
					return err
				}
			}
		}
	}
}

// watchers are those who watch lists now.
type watchers struct {
	gone chan struct{} // closed when the replica goes

	mu     sync.Mutex // guards what follows
	of     map[string]int
	all    int
	closed bool
}

func newWatchers() watchers { return watchers{gone: make(chan struct{}), of: map[string]int{}} }

func (q *watchers) join(name string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return ErrLeaving
	case q.all >= MaxWatchers || q.of[name] >= MaxWatchersPerOperator:
		return fmt.Errorf("%w: %d lists are watched, %d of them by %s", ErrCrowded, q.all, q.of[name], name)
	}
	q.all++
	q.of[name]++
	return nil
}

func (q *watchers) leave(name string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.all--
	if q.of[name]--; q.of[name] == 0 {
		delete(q.of, name)
	}
}

// dismiss sends all elsewhere, and those who come yet.
func (q *watchers) dismiss() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		q.closed = true
		close(q.gone)
	}
}
