package main

import (
	"context"
	"sync"

	"github.com/errandhq/errand/sdk"
)

// standing is what is known of an end.
type standing int

const (
	waiting standing = iota // it is in the queue, or being told
	told                    // and its object is still there
	leaving                 // as waiting, and its object is gone
)

// queue has the ends that are to be told, each once. It holds so many at most; of more it only remembers that
// there were some.
type queue struct {
	most int

	mu    sync.Mutex // guards what follows
	ends  []end
	known map[sdk.Ref]standing
	lost  bool
	wake  chan struct{} // has an element when something was added
}

func newQueue(most int) *queue {
	return &queue{most: most, known: map[sdk.Ref]standing{}, wake: make(chan struct{}, 1)}
}

// add takes in an end, unless it is known. over says that its object is gone: nothing more will be heard of it, and
// false that there is no room for it, so that it is told by nobody.
func (q *queue) add(e end, over bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	is, known := q.known[e.ref]
	switch {
	case known && over && is == told:
		delete(q.known, e.ref)
	case known && over:
		q.known[e.ref] = leaving
	case known:
	case len(q.ends) >= q.most && over:
		return false
	case len(q.ends) >= q.most:
		q.lost = true
		q.nudge()
	default:
		q.known[e.ref] = waiting
		if over {
			q.known[e.ref] = leaving
		}
		q.ends = append(q.ends, e)
		q.nudge()
	}
	return true
}

// nudge is called with mu held.
func (q *queue) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// next takes the oldest end out, and waits for one. With none left, and some lost, it calls again first.
func (q *queue) next(ctx context.Context, again func()) (end, error) {
	for {
		q.mu.Lock()
		if len(q.ends) > 0 {
			e := q.ends[0]
			q.ends[0] = end{}
			q.ends = q.ends[1:]
			if len(q.ends) > 0 {
				q.nudge() // for who waits beside
			}
			q.mu.Unlock()
			return e, ctx.Err()
		}
		lost := q.lost
		q.lost = false
		q.mu.Unlock()
		if lost {
			again()
			continue
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return end{}, ctx.Err()
		}
	}
}

// retry puts an end back that was taken out, behind all others.
func (q *queue) retry(e end) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ends = append(q.ends, e)
	q.nudge()
}

// settle notes that an end was told, or never will be.
func (q *queue) settle(e end) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.known[e.ref] == leaving {
		delete(q.known, e.ref)
		return
	}
	q.known[e.ref] = told
}

func (q *queue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.ends)
}
