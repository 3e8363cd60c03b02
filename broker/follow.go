package broker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
)

// Bounds of those who follow their tasks.
const (
	MaxFollowed                 = 256  // tasks of one follower
	DefaultFollowers            = 4096 // on a replica
	DefaultFollowersPerWorkload = 1024 // of these, of one workload: it must not take the others' places

	// FollowBeat is the longest that a follower hears nothing.
	FollowBeat = time.Second

	// losePause is the pause between tries to say that a stream is lost.
	losePause = 250 * time.Millisecond

	// followReads is how many tasks of one follower are looked up at once.
	followReads = 16
)

// Errors of those who follow their tasks. Both say: ask another replica.
var (
	// ErrLeaving: this replica is going away, or the connection has reached its age. It is also the
	// cause of a context that ends for that.
	ErrLeaving = errors.New("this replica sends its followers elsewhere")
	// ErrCrowded: there are as many followers as allowed.
	ErrCrowded = errors.New("too many followers of tasks")
)

// Fate says that a task is over, and how.
type Fate struct {
	Task  TaskID
	State State // "" for a task that is unknown, or somebody else's
	Cause Cause
}

// Follow tells a workload of the ends of the tasks that it names, as they happen: emit gets each once,
// those that are over already at once, and nothing at least every FollowBeat. An end of a task above is
// an end of the task. What is told comes from the store's feed, from what this replica ends itself, and
// from what is in force here alone; so another replica's end of a task that has no tokens is not: its
// next heartbeat has that.
//
// A task with Presence is bound to the stream that named it last, and counts as beaten when it is named. When
// Follow ends for another reason than ErrLeaving, those that are bound to it have PresenceGrace left to be
// named by another one, wherever that is.
//
// Follow returns ctx's error, what emit has returned, ErrInvalid, ErrCrowded, ErrLeaving or those of the
// store.
func (b *Broker) Follow(ctx context.Context, w Workload, ids []TaskID, emit func([]Fate) error) error {
	if len(ids) == 0 || len(ids) > MaxFollowed {
		return invalid("task", "is named %d times; 1 to %d tasks can be followed", len(ids), MaxFollowed)
	}
	f, err := b.followers.join(w.ID, b.MaxFollowers, b.MaxFollowersPerWorkload)
	if err != nil {
		return err
	}
	defer b.followers.leave(f)
	defer b.lose(ctx, w, f)
	fates, err := b.beginFollow(ctx, w, f, ids)
	if err != nil {
		return err
	}
	tick := time.NewTicker(FollowBeat)
	defer tick.Stop()
	for {
		if err := emit(fates); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-f.gone:
			return ErrLeaving
		case <-f.news:
		case <-tick.C: // which also tries again what could not be looked up
		}
		fates = b.look(ctx, w, f)
	}
}

// beginFollow looks the tasks up. Each is looked up after whatever can end it is listened to, so that no
// end falls in between.
func (b *Broker) beginFollow(ctx context.Context, w Workload, f *follower, ids []TaskID) ([]Fate, error) {
	b.followers.listen(f, ids...)
	found, err := b.lookupAll(ctx, w, ids)
	if err != nil {
		return nil, err
	}
	var fates []Fate
	var below []TaskID
	if err := b.bind(ctx, w, f, found); err != nil {
		return nil, err
	}
	for i, task := range found {
		if task.State.Final() {
			fates = append(fates, Fate{ids[i], task.State, task.Cause})
			continue
		}
		f.tasks[task.ID] = task
		if len(task.Path) > 1 {
			below = append(below, task.ID)
			b.followers.listen(f, task.Path...)
		}
	}
	b.followers.mark(f, below)
	return append(fates, b.look(ctx, w, f)...), nil
}

// bind binds those of the tasks that have Presence to the stream, and brings them up to date.
func (b *Broker) bind(ctx context.Context, w Workload, f *follower, found []Task) error {
	var beats []Beat
	var at []int
	for i, task := range found {
		if task.Presence && !task.State.Final() {
			beats, at = append(beats, Beat{Task: task.ID, Stream: f.stream}), append(at, i)
		}
	}
	if len(beats) == 0 {
		return nil
	}
	f.bound = beats // also if it is not known whether it has happened
	pulses, err := b.Heartbeat(ctx, w, beats)
	if err != nil {
		return err
	}
	for n, pulse := range pulses {
		found[at[n]] = pulse.Task // none when it is not there any more
	}
	return nil
}

// lose cuts the leases of the tasks that are bound to a stream which is over, unless the replica has ended it
// itself. While the store is away it tries for as long as they would have, or until the replica goes.
func (b *Broker) lose(ctx context.Context, w Workload, f *follower) {
	if len(f.bound) == 0 || context.Cause(ctx) == ErrLeaving {
		return
	}
	longest := MinLease
	for i := range f.bound {
		f.bound[i].Lost = true
		longest = max(longest, f.tasks[f.bound[i].Task].Lease)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), longest)
	defer cancel()
	pause := time.NewTicker(losePause)
	defer pause.Stop()
	for {
		select {
		case <-f.gone:
			return
		case <-ctx.Done():
			return
		default:
		}
		if _, err := b.Heartbeat(ctx, w, f.bound); err == nil {
			return
		}
		select {
		case <-f.gone:
		case <-ctx.Done():
		case <-pause.C:
		}
	}
}

// lookupAll returns the tasks in the order of their IDs; one that is not there has no state.
func (b *Broker) lookupAll(ctx context.Context, w Workload, ids []TaskID) ([]Task, error) {
	ctx, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	found := make([]Task, len(ids))
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(followReads)
	for i, id := range ids {
		all.Go(func() (err error) {
			if found[i], err = b.Task(ctx, w, id); errors.Is(err, ErrNotFound) {
				err = nil
			}
			return err
		})
	}
	return found, all.Wait()
}

// look returns the fates of the tasks about which there was news. What is in force here needs no store;
// while that cannot say, the rest stays to be looked up.
func (b *Broker) look(ctx context.Context, w Workload, f *follower) (fates []Fate) {
	hit := b.followers.take(f)
	if len(hit) == 0 {
		return nil
	}
	over := func(task Task) bool {
		if task.State.Final() {
			fates = append(fates, Fate{task.ID, task.State, task.Cause})
			delete(f.tasks, task.ID)
		}
		return task.State.Final()
	}
	var ids []TaskID
	for id, task := range f.tasks {
		if slices.ContainsFunc(task.Path, func(id TaskID) bool { return hit[id] }) && !over(b.pending.task(task)) {
			ids = append(ids, id)
		}
	}
	found, err := b.lookupAll(ctx, w, ids)
	if err != nil {
		b.followers.mark(f, ids)
		return fates
	}
	for i, task := range found {
		task.ID = ids[i] // also of one that is not there any more
		over(task)
	}
	return fates
}

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

func (q *followers) join(w spiffeid.ID, most, perWorkload int) (*follower, error) {
	f := &follower{
		workload: w, stream: StreamID(rand.Text()), tasks: map[TaskID]Task{}, news: make(chan struct{}, 1), gone: make(chan struct{}),
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

// Followers is how many follow their tasks now.
func (b *Broker) Followers() int { return int(b.followers.size.Load()) }

// Dismiss sends all who follow their tasks elsewhere, and refuses new ones: the replica is going away.
func (b *Broker) Dismiss() { b.followers.reset(true) }

// early tells of a denial that the store's feed does not have yet.
func (b *Broker) early(e Entry) {
	b.Announcer.Early(e)
	b.followers.entries(e)
}
