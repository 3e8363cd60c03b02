package broker

import (
	"context"
	"errors"
	"slices"
	"time"

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

// Errors that say: ask another replica.
var (
	// ErrLeaving: this replica is going away, or the connection has reached its age. It is also the
	// cause of a context that ends for that.
	ErrLeaving = errors.New("this replica sends its followers elsewhere")
	// ErrCrowded: there are as many followers as allowed, or watchers of lists, or as many who wait for verifiers, or verifiers.
	ErrCrowded = errors.New("too many at once on this replica")
)

// Followed is a task that somebody follows.
type Followed struct {
	Task   TaskID
	Holder int // as whom, as the task counts them; 0 for whoever it is
}

// Fate says that a task is over, and how, or that it is not the follower's any more.
type Fate struct {
	Task    TaskID
	State   State // "" for a task that is unknown, or somebody else's
	Cause   Cause
	Adopted bool // it goes on, and has another holder than the one that was named
}

// Follow tells a workload of the ends of the tasks that it names, as they happen: emit gets each once,
// those that are over already at once, and nothing at least every FollowBeat. An end of a task above is
// an end of the task. What is told comes from the store's feed, from what this replica ends itself, and
// from what is in force here alone; so another replica's end of a task that has no tokens is not: its
// next heartbeat has that, and that of an adoption at another replica.
//
// A task with Presence is bound to the stream that named it last, and counts as beaten when it is named; not by
// one that named another holder than it has. From then on its lease is extended by the heartbeats that name the
// stream, and no others. When Follow ends for another reason than ErrLeaving, those that are bound to it have
// PresenceGrace left to be named by another one, wherever that is; after ErrLeaving, or the death of the replica,
// what is left of the lease.
//
// stream is the name of this one, of NewStreamID, which its client must know for its heartbeats.
//
// Follow returns ctx's error, what emit has returned, ErrInvalid, ErrCrowded, ErrLeaving or those of the
// store.
func (b *Broker) Follow(ctx context.Context, w Workload, stream StreamID, tasks []Followed, emit func([]Fate) error) error {
	if len(tasks) == 0 || len(tasks) > MaxFollowed {
		return invalid("task", "is named %d times; 1 to %d tasks can be followed", len(tasks), MaxFollowed)
	}
	f, err := b.followers.join(w.ID, stream, b.MaxFollowers, b.MaxFollowersPerWorkload)
	if err != nil {
		return err
	}
	defer b.followers.leave(f)
	defer b.lose(ctx, w, f)
	ids, err := f.hold(tasks)
	if err != nil {
		return err
	}
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
		task.ID = ids[i] // also of one that is not there
		if fate, over := f.fate(task); over {
			fates = append(fates, fate)
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
			beats, at = append(beats, Beat{Task: task.ID, Stream: f.stream, Attach: true, Holder: f.holders[task.ID]}), append(at, i)
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
		f.bound[i].Attach, f.bound[i].Lost = false, true
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
		fate, over := f.fate(task)
		if over {
			fates = append(fates, fate)
			delete(f.tasks, task.ID)
		}
		return over
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

// Followers is how many follow their tasks now.
func (b *Broker) Followers() int { return int(b.followers.size.Load()) }

// Dismiss sends all who follow their tasks, or watch a list, elsewhere, and refuses new ones; who waits for verifiers is told
// how it stands: the replica is going away.
func (b *Broker) Dismiss() {
	b.followers.reset(true)
	b.watchers.dismiss()
	b.verifiers.dismiss()
}

// early tells of a denial that the store's feed does not have yet.
func (b *Broker) early(e Entry) {
	b.Announcer.Early(e)
	b.followers.entries(e)
}
