package memory

import (
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker"
)

// task is the record of a task. The embedded one is as stored: Active until an end is written, also
// when its lease or the task above is long over.
type task struct {
	broker.Task
	key    key
	digest [32]byte
	first  []broker.GrantID // issued when it began

	audiences map[string]bool // of all grants in the tree; of a root alone
	lastExp   time.Time       // of the grants at or below it
	grants    int             // issued at or below it, ever
	subTasks  int             // begun below it, ever

	lost     bool // begun in another data set, and known by its end alone
	counts   bool // against the quotas: not ended itself, and not due
	children int  // that count
	receipt  *broker.Receipt
	alarm    alarm
}

// key is an idempotency key, which is its workload's own.
type key struct {
	workload spiffeid.ID
	text     string
}

// grant is the record of a grant.
type grant struct {
	broker.Grant
	counts  bool // against the quota: not expired
	receipt *broker.Receipt
	alarm   alarm
}

// gone is when the record of a task that nobody ends goes away.
func (t *task) gone() time.Time {
	due, _, _ := t.Due()
	return later(due, t.lastExp).Add(broker.Margin)
}

// path has the records from the root down to a task. One with a gap is no path: the task is gone.
type path []*task

// find returns the path to a task of a workload, or of any workload when that is zero.
func (sh *shard) find(id broker.TaskID, workload spiffeid.ID) (path, error) {
	t, ok := sh.tasks[id]
	if !ok || !workload.IsZero() && t.Workload != workload {
		return nil, broker.ErrNotFound
	}
	p := make(path, len(t.Path))
	for i, id := range t.Path {
		if p[i], ok = sh.tasks[id]; !ok {
			return nil, broker.ErrNotFound
		}
	}
	return p, nil
}

func (p path) task() *task { return p[len(p)-1] }

func (p path) above() path { return p[:len(p)-1] }

// asOf returns the task as it is at now.
func (p path) asOf(now time.Time) broker.Task {
	above := make([]broker.Task, 0, broker.MaxDepth)
	for _, t := range p.above() {
		above = append(above, t.Task)
	}
	return p.task().AsOf(now, above).Clone()
}

// covered reports whether a task above was ended by a write: its entry kills this task's tokens too.
func (p path) covered() bool {
	return slices.ContainsFunc(p.above(), func(t *task) bool { return t.receipt != nil })
}

// audiences are those of all grants ever issued in the tree, sorted, and nil for every audience when nobody
// knows them any more.
func (p path) audiences() []string {
	if p[0].lost {
		return nil
	}
	out := slices.AppendSeq(make([]string, 0, len(p[0].audiences)), maps.Keys(p[0].audiences))
	slices.Sort(out)
	return out
}

// use returns the counters of a workload; release drops them when nothing is left to count.
func (sh *shard) use(workload spiffeid.ID) *usage {
	u, ok := sh.usage[workload]
	if !ok {
		u = &usage{}
		sh.usage[workload] = u
	}
	return u
}

func (sh *shard) release(workload spiffeid.ID, tasks, grants int) {
	u := sh.use(workload)
	u.tasks -= tasks
	u.grants -= grants
	if *u == (usage{}) {
		delete(sh.usage, workload)
	}
}

// retire takes a task out of the quotas.
func (sh *shard) retire(t *task) {
	if !t.counts {
		return
	}
	t.counts = false
	sh.release(t.Workload, 1, 0)
	if parent, ok := sh.tasks[t.Parent()]; ok {
		parent.children--
	}
}
