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
	mu sync.Mutex // guards what follows
	of map[TaskID]adoption
}

type adoption struct {
	holder int
	until  time.Time // the deadline of the task
}

func newAdoptions() adoptions { return adoptions{of: map[TaskID]adoption{}} }

// learn takes note of a live task that the store has told of.
func (a *adoptions) learn(t Task, now time.Time) {
	if t.Holder <= 1 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	known, ok := a.of[t.ID]
	if !ok && len(a.of) >= maxAdoptions {
		for id, other := range a.of {
			if !now.Before(other.until) {
				delete(a.of, id)
			}
		}
		if len(a.of) >= maxAdoptions {
			return
		}
	}
	if t.Holder > known.holder {
		a.of[t.ID] = adoption{holder: t.Holder, until: t.Deadline}
	}
}

// passed reports whether a task is known to be held by a later holder.
func (a *adoptions) passed(id TaskID, holder int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return holder != 0 && a.of[id].holder > holder
}
