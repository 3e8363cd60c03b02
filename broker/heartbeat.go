package broker

import (
	"context"
	"fmt"
	"slices"
)

// Heartbeat says that the workload is still at work on the tasks, extends their leases, and keeps their
// notes. Each beat is in the name of w. The answers come in the order of the beats; a task that is unknown, or
// another workload's, has ErrNotFound in its pulse, and a live one that has another holder than the beat says
// ErrAdopted. The lease of a task with Presence is extended only by a beat that names the stream it is bound to. Errors: ErrInvalid and those of the store.
func (b *Broker) Heartbeat(ctx context.Context, w Workload, beats []Beat) ([]Pulse, error) {
	if len(beats) == 0 || len(beats) > MaxHeartbeat {
		return nil, invalid("tasks", "has %d entries; 1 to %d are allowed", len(beats), MaxHeartbeat)
	}
	beats = slices.Clone(beats)
	for i := range beats {
		if err := checkLine(indexed("tasks", i)+".note", beats[i].Note, MaxNote); err != nil {
			return nil, err
		}
		if err := checkLine("stream", string(beats[i].Stream), MaxStreamID); err != nil {
			return nil, err
		}
		if beats[i].Holder < 0 {
			return nil, badHolder(indexed("tasks", i)+".holder", beats[i].Holder)
		}
		beats[i].Workload = w.ID
	}
	ctx, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	pulses, err := b.Store.Heartbeat(ctx, beats)
	if err == nil && len(pulses) != len(beats) {
		err = fmt.Errorf("%w: %d answers to %d heartbeats", ErrUnconfirmed, len(pulses), len(beats))
	}
	for i := range pulses {
		if pulses[i].Err != nil {
			continue
		}
		task := b.pending.task(pulses[i].Task)
		pulses[i].Task = task
		b.adoptions.learn(task, b.Now())
		if task.State == Active && !beats[i].Adopt && task.HeldByOther(beats[i].Holder) {
			pulses[i].Err = ErrAdopted
		}
	}
	return pulses, err
}

func badHolder(field string, n int) error {
	return invalid(field, "is %d; send the number that the answer to the begin or the adoption has, or leave it out", n)
}
