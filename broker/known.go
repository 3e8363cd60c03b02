package broker

import (
	"context"
	"errors"
	"sync"
)

// maxKnown bounds the tasks that a replica remembers: so many, and as many that it has not needed lately.
const maxKnown = 4096

// known remembers the live tasks in which this replica has begun or issued something last, so that a further token,
// or a child, takes one round trip and not two. What does not change about a task is all that anybody may take
// from it: whether it is alive, and what of it may still be issued, the store says when it commits.
type known struct {
	mu         sync.Mutex // guards what follows
	young, old map[TaskID]Task
}

func newKnown() known { return known{young: map[TaskID]Task{}, old: map[TaskID]Task{}} }

// remember leaves out a task with authorization details, which may be large.
func (k *known) remember(task Task) {
	if task.State.Final() || len(task.Ceiling.Details) > 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.young) >= maxKnown {
		k.young, k.old = map[TaskID]Task{}, k.young
	}
	k.young[task.ID] = task
}

func (k *known) forget(id TaskID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.young, id)
	delete(k.old, id)
}

func (k *known) task(id TaskID) (Task, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if task, ok := k.young[id]; ok {
		return task, true
	}
	task, ok := k.old[id]
	return task, ok
}

// liveTask returns a task of the workload in which something is to be issued or begun, or ErrEnded or ErrNotFound. It
// may have ended all the same, as far as only the store knows: see known.
func (b *Broker) liveTask(ctx context.Context, w Workload, id TaskID) (Task, error) {
	task, ok := b.known.task(id)
	var err error
	if ok && task.Workload == w.ID {
		task = b.pending.task(task)
	} else {
		task, err = b.Task(ctx, w, id)
	}
	if err == nil && task.State.Final() {
		err = ended(task)
	}
	return task, err
}

// learn keeps what a commit in a task has shown of it.
func (k *known) learn(id TaskID, reply GrantReply, err error) {
	switch {
	case err == nil:
		k.remember(reply.Task)
	case errors.Is(err, ErrEnded), errors.Is(err, ErrNotFound):
		k.forget(id)
	}
}
