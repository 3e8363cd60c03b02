package verify

import (
	"context"
	"sync"
	"time"
)

// running are the requests that are served on the strength of a grant, so that they can be ended
// when it dies or expires.
type running struct {
	max int

	mu     sync.Mutex // guards all below
	all    map[*run]struct{}
	byID   map[string]map[*run]struct{} // by the grant's ID and those of its task path
	byTime map[int64]map[*run]struct{}  // by the Unix second at which the grant ends by itself
	closed bool
}

type run struct {
	grant  *Grant
	until  int64 // the Unix second
	cancel context.CancelCauseFunc
}

func newRunning(limit int) *running {
	return &running{
		max: limit,
		all: map[*run]struct{}{}, byID: map[string]map[*run]struct{}{}, byTime: map[int64]map[*run]struct{}{},
	}
}

// join returns false if there are too many. Once the verifier is closed, nobody would end what joins,
// so that it ends at once.
func (r *running) join(one *run) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) >= r.max {
		return false
	}
	if r.closed {
		one.cancel(ErrStale)
		return true
	}
	r.all[one] = struct{}{}
	put(r.byTime, one.until, one)
	for id := range one.ids {
		put(r.byID, id, one)
	}
	return true
}

func (r *running) leave(one *run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, one)
	take(r.byTime, one.until, one)
	for id := range one.ids {
		take(r.byID, id, one)
	}
}

func put[K comparable](m map[K]map[*run]struct{}, key K, one *run) {
	if m[key] == nil {
		m[key] = map[*run]struct{}{}
	}
	m[key][one] = struct{}{}
}

func take[K comparable](m map[K]map[*run]struct{}, key K, one *run) {
	delete(m[key], one)
	if len(m[key]) == 0 {
		delete(m, key)
	}
}

// ids yields what can be denied by name.
func (one *run) ids(yield func(string) bool) {
	if !yield(one.grant.ID) {
		return
	}
	for _, id := range one.grant.Task.Path {
		if !yield(id) {
			return
		}
	}
}

// end ends the requests whose grant or task has one of the IDs.
func (r *running) end(ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		for one := range r.byID[id] {
			one.cancel(ErrRevoked)
		}
	}
}

// endIf ends the requests whose grant is dead.
func (r *running) endIf(dead func(*Grant) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for one := range r.all {
		if dead(one.grant) {
			one.cancel(ErrRevoked)
		}
	}
}

// expire ends the requests whose grant has expired. There are at most as many seconds to look at as
// a token lives.
func (r *running) expire(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for second, all := range r.byTime {
		if now.Unix() < second {
			continue
		}
		for one := range all {
			one.cancel(ErrExpired)
		}
	}
}

// close ends all requests, since nobody will know any more whether their grants have died.
func (r *running) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for one := range r.all {
		one.cancel(ErrStale)
	}
}

func (r *running) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// Watch returns a context that ends with the cause ErrRevoked when the grant dies: its task, the
// grant itself or its key was ended or revoked. It ends with ErrExpired when the token has expired,
// and the leeway on top, since the end of its task is not told to anybody after that; and with
// ErrStale when the verifier is closed. Call cancel when the work is done.
//
// It is what Middleware does for each request; use it for work that outlives one, and for streams.
// The error is ErrBusy when too many are watched already.
func (v *Verifier) Watch(ctx context.Context, g *Grant) (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	until := g.Expires.Add(v.config.Leeway)
	one := &run{grant: g, until: until.Unix(), cancel: cancel}
	if !v.running.join(one) {
		cancel(ErrBusy)
		return nil, nil, ErrBusy
	}
	// It may have ended since it was verified, unseen by whoever ends those that have joined.
	switch {
	case v.view.dead(g):
		cancel(ErrRevoked)
	case !v.config.Now().Before(until):
		cancel(ErrExpired)
	}
	return ctx, func() {
		v.running.leave(one)
		cancel(context.Canceled)
	}, nil
}
