package broker

import (
	"context"
	"fmt"
)

// Heartbeat says that the workload is still at work on the tasks, and extends their leases. The
// answers come in the order of ids; a task that is unknown, or another workload's, has ErrNotFound
// in its pulse. Errors: ErrInvalid and those of the store.
func (b *Broker) Heartbeat(ctx context.Context, w Workload, ids []TaskID) ([]Pulse, error) {
	if len(ids) == 0 || len(ids) > MaxHeartbeat {
		return nil, invalid("tasks", "has %d entries; 1 to %d are allowed", len(ids), MaxHeartbeat)
	}
	beats := make([]Beat, len(ids))
	for i, id := range ids {
		beats[i] = Beat{Task: id, Workload: w.ID}
	}
	ctx, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	pulses, err := b.Store.Heartbeat(ctx, beats)
	if err == nil && len(pulses) != len(ids) {
		err = fmt.Errorf("%w: %d answers to %d heartbeats", ErrUnconfirmed, len(pulses), len(ids))
	}
	for i := range pulses {
		if pulses[i].Err == nil {
			pulses[i].Task = b.pending.task(pulses[i].Task)
		}
	}
	return pulses, err
}
