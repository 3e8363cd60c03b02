package broker

import (
	"context"
	"errors"
	"fmt"
)

// Adopt makes the caller the holder of a task of the workload, whoever was it before: another process of the
// same workload, perhaps one that is no more. From then on the heartbeats and the ends of earlier holders, if they
// say that they are these, are ErrAdopted and do nothing, and no stream of theirs binds the task. The tokens that
// are out stay good. The answer has the task with its new Holder, and its end key. Errors: ErrNotFound, ErrEnded
// and those of the store; after ErrUnconfirmed repeat it: it only counts on.
func (b *Broker) Adopt(ctx context.Context, w Workload, id TaskID) (Begun, error) {
	asking, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	try := func() ([]Pulse, error) {
		ctx, cancel := context.WithTimeout(asking, storeTry)
		defer cancel()
		return b.Store.Heartbeat(ctx, []Beat{{Task: id, Workload: w.ID, Adopt: true}})
	}
	pulses, err := try()
	if errors.Is(err, ErrUnconfirmed) && asking.Err() == nil {
		pulses, err = try()
	}
	if err == nil && len(pulses) != 1 {
		err = fmt.Errorf("%w: %d answers to one adoption", ErrUnconfirmed, len(pulses))
	}
	if err != nil {
		return Begun{}, err
	}
	if pulses[0].Err != nil {
		return Begun{}, pulses[0].Err
	}
	task := b.pending.task(pulses[0].Task)
	if task.State.Final() {
		return Begun{}, ended(task)
	}
	b.adoptions.learn(task, b.Now())
	b.followers.tell(id)
	e := taskEvent(EventTaskAdopted, b.registration(w.ID), task)
	e.Time, e.Actor, e.Address, e.Thumbprint, e.Holder = pulses[0].Now, w.ID.String(), w.Address, w.Thumbprint, task.Holder
	b.record(ctx, []Event{e})
	return Begun{Task: task, EndKey: b.endKeys.of(task)}, nil
}
