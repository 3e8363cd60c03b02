package broker

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"
)

// Bounds of a count.
const (
	MaxSample  = 10 // grants
	MaxCounted = 20 // names of each kind

	// countTime is how long a count looks for what it counts.
	countTime = 4 * time.Second
)

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
		c.owners[c.b.registration(s.Task.Workload).Owner]++
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
