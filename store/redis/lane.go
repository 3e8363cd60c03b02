package redis

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/errandhq/errand/broker"
)

const (
	// maxBatch bounds the calls in one round trip, for which all others must wait.
	maxBatch = 64

	// maxWaiting bounds the calls that wait in a lane. Whoever comes with more is refused at once.
	maxWaiting = 2048
)

// lane sends calls of one kind. One that finds it idle goes at once. Those that come while it is under way make
// up the next flight. A flight is on a context of its own: who leaves takes nobody along, and need not wait for it.
// Before it leaves, whoever could run already does, and so comes along: that costs nothing where nobody waits for
// a processor, and saves round trips where many do.
// Lanes have nothing to do with each other, so ends go on while issuing is stuck.
type lane struct {
	send     func(context.Context, []call) []reply
	patience time.Duration   // of who waits
	runners  *sync.WaitGroup // has one more while the lane is flying

	mu      sync.Mutex // guards all below; held for memory work only
	flying  bool
	waiting []*job
	queued  int // calls of those who wait
	closed  bool
}

// job is what one caller waits for.
type job struct {
	calls   []call
	replies []reply
	done    chan struct{} // closed when the replies are there
}

// run makes the calls, at most maxBatch of them, and returns an answer for each.
func (l *lane) run(ctx context.Context, calls []call) []reply {
	if err := ctx.Err(); err != nil {
		return failures(calls, fmt.Errorf("%w: %w", broker.ErrUnavailable, err))
	}
	j, err := l.join(calls)
	if err != nil {
		return failures(calls, err)
	}
	if until, ok := ctx.Deadline(); !ok || time.Until(until) > l.patience {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, l.patience)
		defer cancel()
	}
	select {
	case <-j.done:
		return j.replies
	case <-ctx.Done():
		return l.leave(ctx, j)
	}
}

// join returns a job that waits, and begins a flight when there is none.
func (l *lane) join(calls []call) (*job, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("%w: the store is closed", broker.ErrUnavailable)
	}
	if l.queued+len(calls) > maxWaiting {
		return nil, fmt.Errorf("%w: %d calls wait for redis already", broker.ErrUnavailable, l.queued)
	}
	j := &job{calls: calls, done: make(chan struct{})}
	l.waiting = append(l.waiting, j)
	l.queued += len(calls)
	if !l.flying {
		l.flying = true
		l.runners.Add(1) // until the flying is over
		go l.fly()
	}
	return j, nil
}

// leave gives a job up. Nothing has happened unless it is under way.
func (l *lane) leave(ctx context.Context, j *job) []reply {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.waiting, j); i >= 0 {
		l.waiting = slices.Delete(l.waiting, i, i+1)
		l.queued -= len(j.calls)
		return failures(j.calls, fmt.Errorf("%w: redis is busy: %w", broker.ErrUnavailable, ctx.Err()))
	}
	select {
	case <-j.done:
		return j.replies
	default:
	}
	replies := make([]reply, len(j.calls))
	for i, c := range j.calls {
		replies[i].err = fmt.Errorf("%w: script %s is under way: %w", c.script.doubt(), c.script.name, ctx.Err())
	}
	return replies
}

func failures(calls []call, err error) []reply {
	replies := make([]reply, len(calls))
	for i := range replies {
		replies[i].err = err
	}
	return replies
}

// close lets nobody in any more. Those who wait still get an answer.
func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

// fly makes flights until nobody waits any more.
func (l *lane) fly() {
	for batch := l.board(); len(batch) > 0; batch = l.board() {
		var calls []call
		for _, j := range batch {
			calls = append(calls, j.calls...)
		}
		replies := l.send(context.Background(), calls)
		for _, j := range batch {
			j.replies, replies = replies[:len(j.calls)], replies[len(j.calls):]
			close(j.done)
		}
	}
}

// board takes the jobs of the next flight. When there are none, the flight is over.
func (l *lane) board() []*job {
	runtime.Gosched()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) == 0 {
		l.flying = false
		l.runners.Done()
		return nil
	}
	n, calls := 0, 0
	for n < len(l.waiting) && (n == 0 || calls+len(l.waiting[n].calls) <= maxBatch) {
		calls += len(l.waiting[n].calls)
		n++
	}
	batch := slices.Clone(l.waiting[:n])
	l.waiting = slices.Delete(l.waiting, 0, n)
	l.queued -= calls
	return batch
}

// lanes are of one kind: one, or on a cluster one for each shard, since they are on different nodes.
type lanes []*lane

func (s *Store) newLanes(shards int) lanes {
	n := 1
	if s.cluster {
		n = shards
	}
	var list lanes
	for range n {
		list = append(list, &lane{send: s.send, patience: s.limits.send, runners: &s.runners})
	}
	return list
}

// run makes calls, in few round trips, and returns an answer for each. Calls that make up batches by
// themselves, or go to several nodes, do not wait for others.
func (s *Store) run(ctx context.Context, in lanes, calls ...call) []reply {
	alone := len(calls) > maxBatch/2
	for _, c := range calls {
		alone = alone || len(in) > 1 && c.shard != calls[0].shard
	}
	if !alone && len(calls) > 0 {
		return in[calls[0].shard%len(in)].run(ctx, calls)
	}
	replies := make([]reply, 0, len(calls))
	for part := range slices.Chunk(calls, maxBatch) {
		replies = append(replies, s.send(ctx, part)...)
	}
	return replies
}
