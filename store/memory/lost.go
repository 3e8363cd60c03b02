package memory

import (
	"time"

	"github.com/errandhq/errand/broker"
)

// bury ends a task that this data set does not have, or has without those above it: what is left is
// a record that only says so.
func (s *Store) bury(sh *shard, e broker.Ending, now time.Time) broker.EndReply {
	until := e.Lost
	if last := now.Add(broker.MaxTokenLife); last.Before(until) {
		until = last // what the store has lost has issued nothing since
	}
	until = until.Add(broker.Margin)
	old, there := sh.tasks[e.Task]
	switch {
	case e.Workload.IsZero():
		return broker.EndReply{Err: &broker.Invalid{Field: "workload", Detail: "is missing; a lost task is ended for its workload alone"}}
	case there && old.Workload != e.Workload, !now.Before(e.Lost.Add(broker.Margin)):
		return broker.EndReply{Err: broker.ErrNotFound}
	case e.State == "" || !e.State.Final():
		return broker.EndReply{Err: notFinal()}
	case there:
		s.forget(sh, old)
	}
	t := &task{lost: true, Task: broker.Task{
		ID: e.Task, Path: []broker.TaskID{e.Task}, Workload: e.Workload, Deadline: e.Lost.UTC(),
		State: e.State, Cause: e.Cause, Ended: now,
	}}
	sh.tasks[t.ID] = t
	t.alarm.ring = func() { s.taskAlarm(sh, t) }
	s.alarms.set(&t.alarm, until)
	s.announce(sh, broker.Entry{Denial: broker.Denial{Kind: broker.DenyTask, Task: t.ID}, Until: until})
	receipt := s.receipt(e, now)
	receipt.Task, receipt.State = t.ID, t.State
	t.receipt = &receipt
	return broker.EndReply{Receipt: cloneReceipt(receipt), Task: t.Clone()}
}

func notFinal() error {
	return &broker.Invalid{Field: "state", Detail: "is not final; name how the task ended"}
}
