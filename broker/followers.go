package broker

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// followers are those who follow their tasks now. The memory that they take is bounded by their number
// and MaxFollowed: news is a set of tasks that they have named, so a slow one has no queue.
type followers struct {
	size atomic.Int64 // of all; spares everybody mu while there is nobody

	mu     sync.Mutex // guards what follows; held for memory work only
	all    map[*follower]struct{}
	of     map[spiffeid.ID]int
	index  map[TaskID]map[*follower]struct{} // who must hear of the end of a task
	closed bool
}

// follower is one running Follow. Its tasks are its goroutine's alone.
type follower struct {
	workload spiffeid.ID
	tasks    map[TaskID]Task // that have not ended, as they were
	holders  map[TaskID]int  // as whom they are followed; none for whoever holds them
	stream   StreamID
	bound    []Beat        // of the tasks that are bound to the stream
	news     chan struct{} // has an element when there is something in hit
	gone     chan struct{} // closed when the replica goes

	hit    map[TaskID]bool // of the tasks that it listens to; guarded by the followers' mu, as is listens
	listen map[TaskID]bool
}

func newFollowers() followers {
	return followers{all: map[*follower]struct{}{}, of: map[spiffeid.ID]int{}, index: map[TaskID]map[*follower]struct{}{}}
}

func (q *followers) join(w spiffeid.ID, stream StreamID, most, perWorkload int) (*follower, error) {
	f := &follower{
		workload: w, stream: stream, tasks: map[TaskID]Task{}, holders: map[TaskID]int{}, news: make(chan struct{}, 1), gone: make(chan struct{}),
		hit: map[TaskID]bool{}, listen: map[TaskID]bool{},
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return nil, ErrLeaving
	case len(q.all) >= most || q.of[w] >= perWorkload:
		return nil, fmt.Errorf("%w: %d of this workload, %d in all", ErrCrowded, q.of[w], len(q.all))
	}
	q.all[f] = struct{}{}
	q.of[w]++
	q.size.Store(int64(len(q.all)))
	return f, nil
}

// hold notes as whom the tasks are followed.
func (f *follower) hold(tasks []Followed) ([]TaskID, error) {
	ids := make([]TaskID, len(tasks))
	for i, t := range tasks {
		ids[i] = t.Task
		if known, ok := f.holders[t.Task]; ok && known != t.Holder {
			return nil, invalid("task", "names %s with two holders; name it once", t.Task)
		}
		f.holders[t.Task] = t.Holder
	}
	return ids, nil
}

// fate is what there is to tell of a task that is over for the follower. One that is unknown has no state, and is.
func (f *follower) fate(t Task) (Fate, bool) {
	switch {
	case t.State != Active:
		return Fate{Task: t.ID, State: t.State, Cause: t.Cause}, true
	case t.HeldByOther(f.holders[t.ID]):
		return Fate{Task: t.ID, Adopted: true}, true
	}
	return Fate{}, false
}

func (q *followers) leave(f *follower) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.all, f)
	q.size.Store(int64(len(q.all)))
	if q.of[f.workload]--; q.of[f.workload] == 0 {
		delete(q.of, f.workload)
	}
	for id := range f.listen {
		if delete(q.index[id], f); len(q.index[id]) == 0 {
			delete(q.index, id)
		}
	}
}

// listen has a follower hear of the ends of these.
func (q *followers) listen(f *follower, ids ...TaskID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range ids {
		if q.index[id] == nil {
			q.index[id] = map[*follower]struct{}{}
		}
		q.index[id][f] = struct{}{}
		f.listen[id] = true
	}
}

// mark has a follower look at these again.
func (q *followers) mark(f *follower, ids []TaskID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range ids {
		f.hit[id] = true
	}
}

// take returns what there is news of.
func (q *followers) take(f *follower) map[TaskID]bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	hit := f.hit
	f.hit = map[TaskID]bool{}
	return hit
}

// tell says that a task may be over.
func (q *followers) tell(id TaskID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for f := range q.index[id] {
		f.hit[id] = true
		select {
		case f.news <- struct{}{}:
		default:
		}
	}
}

// entries tells of what the store's feed has.
func (q *followers) entries(entries ...Entry) {
	if q.size.Load() == 0 {
		return
	}
	for _, e := range entries {
		if e.Denial.Kind == DenyTask {
			q.tell(e.Denial.Task)
		}
	}
}

// ended tells of what this replica has ended, which has no entry when nothing had to be denied.
func (q *followers) ended(replies []EndReply) {
	if q.size.Load() == 0 {
		return
	}
	for _, r := range replies {
		if r.Err == nil && r.Receipt.Task != "" && r.Receipt.State.Final() {
			q.tell(r.Receipt.Task)
		}
	}
}

// reset sends all followers elsewhere, and, when the replica goes, those who come yet.
func (q *followers) reset(going bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = q.closed || going
	for f := range q.all {
		select {
		case <-f.gone:
		default:
			close(f.gone)
		}
	}
}
