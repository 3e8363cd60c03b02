package memory

import (
	"time"

	"github.com/errandhq/errand/broker"
)

// used is the record of a delegation that a task has joined by.
type used struct {
	task  broker.TaskID
	alarm alarm // when the delegation is over, and the record goes
}

func joinOf(req broker.GrantRequest) *broker.Join {
	if req.Begin == nil {
		return nil
	}
	return req.Begin.Join
}

// isUsed reports whether a task has joined by a delegation, other than one that was never handed out.
func (sh *shard) isUsed(id broker.DelegationID, now time.Time) bool {
	u, ok := sh.used[id]
	if !ok || !now.Before(u.alarm.at) {
		return false
	}
	t, ok := sh.tasks[u.task]
	return !ok || t.Cause != broker.CauseAudit && t.Cause != broker.CauseSigning
}

// markUsed keeps that a task has joined by a delegation, for as long as anybody else could.
func (s *Store) markUsed(sh *shard, join broker.Join, by broker.TaskID, now time.Time) {
	u, ok := sh.used[join.Delegation]
	if !ok {
		if !now.Before(join.Until) {
			return
		}
		u = &used{}
		sh.used[join.Delegation] = u
		u.alarm.ring = func() {
			s.alarms.remove(&u.alarm)
			delete(sh.used, join.Delegation)
		}
	}
	u.task = by
	s.alarms.set(&u.alarm, join.Until.UTC())
}
