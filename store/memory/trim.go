package memory

import (
	"container/heap"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
)

// trimInterval is how often passed entries are looked for. Until then they are only not shown.
const trimInterval = time.Second

// settle does everything that is due by now. Each call of the store begins with it, so that no call
// sees a record that should be gone, and no goroutine is needed.
func (s *Store) settle(now time.Time) {
	for len(s.alarms) > 0 && !now.Before(s.alarms[0].at) {
		s.alarms[0].ring()
	}
	if now.Sub(s.trimmed) < trimInterval {
		return
	}
	s.trimmed = now
	passed := func(e broker.Entry) bool { return !now.Before(e.Until) }
	for _, sh := range s.shards {
		sh.entries = slices.DeleteFunc(sh.entries, passed)
		sh.denials = slices.DeleteFunc(sh.denials, passed)
	}
	s.locks = slices.DeleteFunc(s.locks, func(l *lock) bool { return !now.Before(l.Expires) })
	s.takeDown(now)
}

// taskAlarm rings when a task's lease or deadline passes, and again when its record must go.
func (s *Store) taskAlarm(sh *shard, t *task) {
	if t.counts {
		sh.retire(t)
		sh.due[t.ID] = t
		s.alarms.set(&t.alarm, t.gone())
		return
	}
	s.forget(sh, t)
}

// forget takes the record of a task away.
func (s *Store) forget(sh *shard, t *task) {
	s.alarms.remove(&t.alarm)
	sh.retire(t)
	delete(sh.tasks, t.ID)
	delete(sh.due, t.ID)
	if sh.keys[t.key] == t {
		delete(sh.keys, t.key)
	}
}

// grantAlarm rings when a grant expires, and again when its record must go.
func (s *Store) grantAlarm(sh *shard, g *grant) {
	if g.counts {
		g.counts = false
		sh.release(g.Workload, 0, 1)
		s.alarms.set(&g.alarm, g.Expires.Add(broker.Margin))
		return
	}
	s.alarms.remove(&g.alarm)
	delete(sh.grants, g.ID)
}

// alarm is the next moment at which a record changes by itself. ring must move it or remove it.
type alarm struct {
	at    time.Time
	ring  func()
	index int // in alarms, plus one; 0 when it is not set
}

// alarms is a heap, the earliest first. Use set and remove; the other methods are container/heap's.
type alarms []*alarm

// set sets an alarm, or moves it.
func (q *alarms) set(a *alarm, at time.Time) {
	a.at = at
	if a.index == 0 {
		heap.Push(q, a)
		return
	}
	heap.Fix(q, a.index-1)
}

func (q *alarms) remove(a *alarm) { heap.Remove(q, a.index-1) }

func (q alarms) Len() int           { return len(q) }
func (q alarms) Less(i, j int) bool { return q[i].at.Before(q[j].at) }

func (q alarms) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i+1, j+1
}

// Push is called by container/heap alone.
func (q *alarms) Push(x any) {
	a := x.(*alarm)
	*q = append(*q, a)
	a.index = len(*q)
}

// Pop is called by container/heap alone.
func (q *alarms) Pop() any {
	last := len(*q) - 1
	a := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	a.index = 0
	return a
}
