package verify

import (
	"context"
	"sync"
)

// running are the requests that are served on the strength of a grant, so that they can be ended
// when it dies.
type running struct {
	max int

	mu   sync.Mutex // guards all below
	all  map[*run]struct{}
	byID map[string]map[*run]struct{} // by the grant's ID and those of its task path
}

type run struct {
	grant  *Grant
	cancel context.CancelCauseFunc
}

func newRunning(limit int) *running {
	return &running{max: limit, all: map[*run]struct{}{}, byID: map[string]map[*run]struct{}{}}
}

// join returns false if there are too many.
func (r *running) join(one *run) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.all) >= r.max {
		return false
	}
	r.all[one] = struct{}{}
	for id := range one.ids {
		if r.byID[id] == nil {
			r.byID[id] = map[*run]struct{}{}
		}
		r.byID[id][one] = struct{}{}
	}
	return true
}

func (r *running) leave(one *run) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.all, one)
	for id := range one.ids {
		delete(r.byID[id], one)
		if len(r.byID[id]) == 0 {
			delete(r.byID, id)
		}
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

// Watch returns a context that ends with the cause ErrRevoked when the grant dies before it
// expires: its task, the grant itself or its key was ended or revoked. Call cancel when the work is
// done. It is what Require does for each request; use it for work that outlives one, and for
// streams. The error is ErrBusy when too many are watched already.
func (v *Verifier) Watch(ctx context.Context, g *Grant) (context.Context, context.CancelFunc, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	one := &run{grant: g, cancel: cancel}
	if !v.running.join(one) {
		cancel(ErrBusy)
		return nil, nil, ErrBusy
	}
	// It may have died since it was verified, unseen by whoever ends those that have joined.
	if v.view.dead(g) {
		cancel(ErrRevoked)
	}
	return ctx, func() {
		v.running.leave(one)
		cancel(context.Canceled)
	}, nil
}
