package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	MaxPlanText = 32 << 10

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
