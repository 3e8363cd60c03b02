package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// What says what a mass revocation takes away.
type What string

// The kinds of mass revocation.
const (
	WhatGrants What = "grants" // the tokens that are out; their tasks go on, and may get new ones
	WhatTasks  What = "tasks"  // the tasks, everything below them, and their tokens
)

// Bounds of a plan.
const (
	PlanLife    = 5 * time.Minute
	MaxSample   = 10 // grants
	MaxCounted  = 20 // names of each kind
	MaxPlanText = 32 << 10

	// countTime is how long a count looks for what it counts.
	countTime = 4 * time.Second

	// A plan is another one when it hits more than a tenth more, and more than spare.
	spare = 10
)

// Plan says what a mass revocation would do now. Whoever asked for it has PlanLife to apply it.
type Plan struct {
	Text    string // for Mass.Plan; "pln_…"
	Expires time.Time
	Filter  Filter
	What    What
	Entries int // that it writes: of the control list, and one for each task or grant that is ended by its ID; see Count.ends
	Count
}

// Count is what a filter means at a time.
type Count struct {
	Grants    int // live ones
	Tasks     int // active ones that die, all below others included, when tasks are meant; else those that the grants are of
	Workloads []Counted
	Owners    []Counted
	Audiences []Counted
	Sample    []GrantStatus
	Complete  bool // false: there is more than could be counted in time

	// ends is how many end by their IDs: of tasks those with none of the others above them, since the rest goes with these in
	// the same writes; else the grants.
	ends int
}

// Counted is a name and how many of the live grants it has.
type Counted struct {
	Name   string
	Grants int
}

// ErrPlanChanged: what would be hit is much more than was agreed to. Always a *PlanChanged.
var ErrPlanChanged = errors.New("the plan has changed")

// ErrPlanExpired: the plan is too old, or of a data set that is no more.
var ErrPlanExpired = errors.New("the plan has expired")

// PlanChanged is ErrPlanChanged with the numbers.
type PlanChanged struct {
	What               What // Now is of tasks, or of live grants
	Planned, Now, Most int  // Planned and Most are -1 when there was none
	Complete           bool // false: Now is what could be counted in time
}

func (e *PlanChanged) Error() string {
	what := "live grants"
	if e.What == WhatTasks {
		what = "tasks"
	}
	now := fmt.Sprintf("%d %s would be hit", e.Now, what)
	if !e.Complete {
		now = fmt.Sprintf("at least %d %s would be hit, and there may be more than could be counted", e.Now, what)
	}
	if e.Most >= 0 {
		return fmt.Sprintf("%v: %s, and max_affected is %d", ErrPlanChanged, now, e.Most)
	}
	return fmt.Sprintf("%v: %s, and %d when it was made", ErrPlanChanged, now, e.Planned)
}

// Is matches ErrPlanChanged.
func (e *PlanChanged) Is(target error) bool { return target == ErrPlanChanged }

// PlanRevocation counts what a mass revocation would hit, and does nothing. Errors: ErrInvalid, ErrNotReady and those
// of the store.
func (b *Broker) PlanRevocation(ctx context.Context, actor string, f Filter, what What) (Plan, error) {
	what, selectors, err := b.aim(&f, what)
	if err != nil {
		return Plan{}, err
	}
	if err := b.checkRoot(ctx, f); err != nil {
		return Plan{}, err
	}
	p := Plan{Filter: f, What: what, Entries: len(selectors)}
	if f.All {
		p.Entries = 1
	}
	if p.Count, err = b.count(ctx, f, what, 0); err != nil {
		return Plan{}, err
	}
	if !f.isPure() || what == WhatTasks {
		p.Entries += p.ends
	}
	p.Expires = b.Now().Add(PlanLife)
	p.Text = b.sealPlan(p, actor)
	return p, nil
}

// aim checks what a mass revocation is about, and returns the entries of the control list that say it, if they can.
func (b *Broker) aim(f *Filter, what What) (What, []Selector, error) {
	if err := f.normalize("selector."); err != nil {
		return what, nil, err
	}
	if f.IsZero() {
		return what, nil, invalid("selector", `is empty; name what is to be revoked, or everything with {"all": true}`)
	}
	if what == "" {
		what = WhatGrants
		if f.namesTasks() {
			what = WhatTasks
		}
	}
	switch what {
	case WhatGrants:
	case WhatTasks:
		if err := f.checkTasksOnly("selector."); err != nil {
			return what, nil, err
		}
	default:
		return what, nil, invalid("what", "is not known; there are grants and tasks")
	}
	if !f.isPure() || f.All {
		return what, nil, nil
	}
	selectors, err := b.selectors("selector", *f)
	return what, selectors, err
}

// checkRoot refuses as a root what is none, as far as the store can tell: somebody means another tree than would end.
func (b *Broker) checkRoot(ctx context.Context, f Filter) error {
	if f.Root == "" {
		return nil
	}
	if task, err := b.FindTask(ctx, f.Root); err == nil && task.Root() != task.ID {
		return invalid("selector.root", "is no root: it is in the tree of %s; name that, or this one as a task, for it and what is below it", task.Root())
	}
	return nil
}

// namesTasks reports whether the filter has what only tasks have, and nothing that only grants have.
func (f Filter) namesTasks() bool {
	return f.checkTasksOnly("") == nil && (len(f.Tasks)+len(f.Names)+len(f.Labels) > 0 || f.Root != "" || f.Ref != TaskRef{})
}

// errEnough ends a count.
var errEnough = errors.New("enough is counted")

// count counts what a filter means, for countTime. With a most it stops when there is more of either.
func (b *Broker) count(ctx context.Context, f Filter, what What, most int) (Count, error) {
	ctx, cancel := context.WithTimeout(ctx, countTime+listCall)
	defer cancel()
	until := b.Now().Add(countTime)
	c := counter{b: b, most: most, tasks: map[TaskID]bool{}, workloads: map[string]int{}, owners: map[string]int{}, audiences: map[string]int{}}
	inTime := func(err error) error {
		if err == nil && b.Now().After(until) {
			return errEnough
		}
		return err
	}
	var err error
	if what == WhatTasks {
		err = c.countTasks(ctx, f, inTime)
	} else {
		err = b.scan(ctx, f, true, func(found []GrantStatus) error { return inTime(c.add(found)) })
	}
	if err != nil && !errors.Is(err, errEnough) {
		return Count{}, err
	}
	return c.result(what, err == nil), nil
}

// counter sums up.
type counter struct {
	b      *Broker
	most   int
	grants int
	tasks  map[TaskID]bool
	tops   int // of these: meant by the filter, and with none of them above
	sample []GrantStatus

	workloads, owners, audiences map[string]int
}

// countTasks counts the active tasks that a filter means and those below them, and then the live grants of all of these.
func (c *counter) countTasks(ctx context.Context, f Filter, inTime func(error) error) error {
	everything := f.widest()
	if err := c.findTasks(ctx, f, everything, inTime); err != nil {
		return err
	}
	return c.b.scan(ctx, everything, true, func(found []GrantStatus) error {
		return inTime(c.add(slices.DeleteFunc(found, func(s GrantStatus) bool { return !c.hit(s.Task.Path) })))
	})
}

// findTasks is countTasks without the grants.
func (c *counter) findTasks(ctx context.Context, f, everything Filter, inTime func(error) error) error {
	m := c.b.matcher(f)
	var meant, below [][]TaskID // paths, and those of none that is known yet
	err := c.b.scan(ctx, everything, false, func(found []GrantStatus) error {
		for _, s := range found {
			switch {
			case s.Task.State.Final():
			case m.matches(s.record()):
				c.tasks[s.Task.ID] = true
				meant = append(meant, s.Task.Path)
			case c.hit(s.Task.Path):
				c.tasks[s.Task.ID] = true
			case len(s.Task.Path) > 1:
				below = append(below, s.Task.Path)
			}
		}
		if most := c.most; most > 0 && len(c.tasks) > most {
			return errEnough
		}
		return inTime(nil)
	})
	for _, path := range meant {
		if !c.hit(path[:len(path)-1]) {
			c.tops++
		}
	}
	if err != nil {
		return err
	}
	for _, path := range below { // of one whose parent came later
		if c.hit(path) {
			c.tasks[path[len(path)-1]] = true
		}
	}
	return nil
}

// hit reports whether a path has one of the tasks.
func (c *counter) hit(path []TaskID) bool {
	return slices.ContainsFunc(path, func(id TaskID) bool { return c.tasks[id] })
}

// widest is a filter that also means everything below what f means, and is looked for in the same places.
func (f Filter) widest() Filter {
	return Filter{Root: f.Root, Tasks: f.Tasks}
}

func (c *counter) add(found []GrantStatus) error {
	for _, s := range found {
		if !s.Live {
			continue
		}
		c.grants++
		c.tasks[s.Task.ID] = true
		c.workloads[s.Task.Workload.String()]++
		c.owners[c.b.registration(s.Task).Owner]++
		c.audiences[s.Grant.Audience]++
		if len(c.sample) < MaxSample {
			c.sample = append(c.sample, s)
		}
	}
	if c.most > 0 && c.grants > c.most {
		return errEnough
	}
	return nil
}

func (c *counter) result(what What, complete bool) Count {
	out := Count{
		Grants: c.grants, Tasks: len(c.tasks), Sample: c.sample, Complete: complete, ends: c.grants,
		Workloads: counted(c.workloads), Owners: counted(c.owners), Audiences: counted(c.audiences),
	}
	if what == WhatTasks {
		out.ends = c.tops
	}
	return out
}

func counted(grants map[string]int) []Counted {
	var out []Counted
	for _, name := range slices.Sorted(maps.Keys(grants)) {
		out = append(out, Counted{name, grants[name]})
	}
	slices.SortStableFunc(out, func(a, b Counted) int { return cmp.Compare(b.Grants, a.Grants) })
	return out[:min(len(out), MaxCounted)]
}

// sealedPlan is what a plan's text says. It needs no memory of the broker, so that any replica can apply it.
type sealedPlan struct {
	Filter   Filter `json:"f"`
	What     What   `json:"w"`
	Actor    string `json:"b"`
	Grants   int    `json:"g"`
	Tasks    int    `json:"t"`
	Complete bool   `json:"c"`
	Epoch    uint64 `json:"e"`
	Expires  int64  `json:"x"` // Unix milliseconds
}

const (
	planPrefix = "pln_"
	planText   = "errand plan"
)

func (b *Broker) sealPlan(p Plan, actor string) string {
	text := plainJSON(sealedPlan{p.Filter, p.What, actor, p.Grants, p.Tasks, p.Complete, b.view.epoch(), p.Expires.UnixMilli()})
	return planPrefix + b.endKeys.seal(planText, text)
}

// openPlan reads exactly what sealPlan wrote for the same actor.
func (b *Broker) openPlan(text, actor string) (p sealedPlan, err error) {
	rest, ok := strings.CutPrefix(text, planPrefix)
	if ok = ok && len(text) <= MaxPlanText; ok {
		var payload []byte
		payload, ok = b.endKeys.unseal(planText, rest)
		ok = ok && json.Unmarshal(payload, &p) == nil
	}
	switch {
	case !ok:
		return p, invalid("plan", "is not one of this broker's; send it as it came in the answer to the dry run, or make a new one")
	case p.Actor != actor:
		return p, invalid("plan", "was made for somebody else; make one of your own")
	case !b.Now().Before(time.UnixMilli(p.Expires)) || p.Epoch != b.view.epoch():
		return p, ErrPlanExpired
	}
	return p, nil
}
