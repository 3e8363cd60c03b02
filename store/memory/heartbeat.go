package memory

import (
	"context"
	"time"

	"github.com/errandhq/errand/broker"
)

// Heartbeat extends the lease of each task that has not ended, and keeps its note.
func (s *Store) Heartbeat(_ context.Context, beats []broker.Beat) ([]broker.Pulse, error) {
	now := s.enter()
	defer s.mu.Unlock()
	pulses := make([]broker.Pulse, len(beats))
	for i, beat := range beats {
		task, err := s.extend(beat, now)
		pulses[i] = broker.Pulse{Task: task, Now: now, Err: err}
	}
	return pulses, nil
}

func (s *Store) extend(beat broker.Beat, now time.Time) (broker.Task, error) {
	sh, err := s.shard(beat.Task.Shard())
	if err != nil {
		return broker.Task{}, err
	}
	p, err := sh.find(beat.Task, beat.Workload)
	if err != nil {
		return broker.Task{}, err
	}
	if p.asOf(now).State == broker.Active {
		t := p.task()
		t.Task = beat.Apply(t.Task, now)
		due, _, _ := t.Due()
		s.alarms.set(&t.alarm, due)
	}
	return p.asOf(now), nil
}
