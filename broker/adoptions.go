package broker

import (
	"sync"
	"time"
)

// maxAdoptions bounds what a replica knows of adopted tasks.
const maxAdoptions = 10_000

// adoptions is what this replica knows of who holds the tasks that were adopted, for the time when it cannot ask
// its store. What another replica has been told, and what finds no room, it does not know: then an end that has
// the right key is in force, whoever held the task, since it cannot be told from one of the holder's.
type adoptions struct {
	mu    sync.Mutex // guards what follows
	of    map[TaskID]adoption
	swept time.Time
}

type adoption struct {
	holder int
	until  time.Time // the deadline of the task
}

func newAdoptions() adoptions { return adoptions{of: map[TaskID]adoption{}} }

// sweepAdoptions is the least time between two looks for those that are over.
const sweepAdoptions = time.Second

// learn takes note of a task that the store has told of.
func (a *adoptions) learn(t Task, now time.Time) {
	if t.Holder <= 1 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if t.State.Final() {
		delete(a.of, t.ID)
		return
	}
	known, ok := a.of[t.ID]
	if !ok && len(a.of) >= maxAdoptions && now.Sub(a.swept) >= sweepAdoptions {
		a.swept = now
		for id, other := range a.of {
			if !now.Before(other.until) {
				delete(a.of, id)
			}
		}
	}
	if !ok && len(a.of) >= maxAdoptions {
		return
	}
	if t.Holder > known.holder {
		a.of[t.ID] = adoption{holder: t.Holder, until: t.Deadline}
	}
}

// ended takes note of what this replica has ended.
func (a *adoptions) ended(replies []EndReply, now time.Time) {
	for _, r := range replies {
		if r.Err == nil {
			a.learn(r.Task, now)
		}
	}
}

// passed reports whether a task is known to be held by a later holder.
func (a *adoptions) passed(id TaskID, holder int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return holder != 0 && a.of[id].holder > holder
}
