package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// start is what a task begins from: nothing, its parent, or a delegation of that.
type start struct {
	shard   int
	parent  TaskID
	ceiling Ceiling // as the request sets it; of a child, with the parent's in the place of what it leaves open
	most    *Ceiling

	delegators []spiffeid.ID
	join       *Join
	delegation DelegationID
}

// task is the task as it is asked for.
func (s start) task(w Workload, req *BeginRequest) Task {
	task := req.task(w)
	task.Delegators = s.delegators
	return task
}

// bound is what is left of a ceiling below the parent's. A policy may be wrong; a child's ceiling is
// not its to widen.
func (s start) bound(c Ceiling) Ceiling {
	if s.most == nil {
		return c
	}
	return c.bound(*s.most)
}

// bound is what is in both ceilings.
func (c Ceiling) bound(most Ceiling) Ceiling {
	return Ceiling{
		Audiences: c.Audiences.filter(most.Audiences.Contains), Scopes: c.Scopes.Intersect(most.Scopes),
		Details: c.Details.Minus(c.Details.Minus(most.Details)),
	}
}

// startingPoint finds the place of a new task. A child goes where its parent is, which must be a live
// one of the same workload, and stays within that one's ceiling.
func (b *Broker) startingPoint(ctx context.Context, w Workload, registration WorkloadRegistration, req *BeginRequest) (start, error) {
	if req.Parent == "" {
		shard, err := b.rootShard(w.ID)
		return start{shard: shard, ceiling: req.Ceiling}, err
	}
	parent, err := b.liveTask(ctx, w, req.Parent)
	if err != nil {
		return start{}, err
	}
	from := start{shard: req.Parent.Shard(), parent: req.Parent, most: &parent.Ceiling, delegators: parent.Delegators}
	if from.ceiling, err = req.Ceiling.below(parent.Ceiling, registration, "parent"); err != nil {
		return start{}, b.refuse(w, registration, from.task(w, req), Decision{Rule: "task/ceiling"}, err)
	}
	return from, nil
}

// within is the ceiling of another workload below that of whose task it is: as below, and of audiences that were
// left open those that the workload is registered for. When there are none, that is the policy's to say.
func (c Ceiling) within(most Ceiling, registration WorkloadRegistration, whose string) (Ceiling, error) {
	if len(c.Audiences) == 0 {
		c.Audiences = most.Audiences.filter(func(audience string) bool {
			_, registered := registration.Ceiling[audience]
			return registered
		})
	}
	return c.below(most, registration, whose)
}

// below is a child's ceiling: each part as it was asked for if that is within the parent's, and for
// audiences and scopes that were left open the parent's own, as far as they go together. The parent is named as
// whose ceiling it is.
func (c Ceiling) below(parent Ceiling, registration WorkloadRegistration, whose string) (Ceiling, error) {
	if len(c.Audiences) == 0 {
		c.Audiences = parent.Audiences
	}
	for _, audience := range c.Audiences {
		if !parent.Audiences.Contains(audience) {
			return c, exceeded(whose, "audience", audience, nil)
		}
	}
	if len(c.Scopes) == 0 {
		c.Scopes = inherited(parent.Scopes, c.Audiences, registration)
		if len(c.Scopes) == 0 && len(parent.Scopes) > 0 {
			// Nothing would mean everything to the policy.
			return c, &Denied{Reason: ErrScopeExceeded, Decision: Decision{
				ID: NewDecisionID(), Rule: "task/ceiling",
				Detail:  fmt.Sprintf("the %s's ceiling has no scope for %s", whose, strings.Join(c.Audiences, ", ")),
				Missing: map[string]string{"scope": mendCeiling("one", whose)},
			}}
		}
	}
	if beyond := c.Scopes.Minus(parent.Scopes); len(beyond) > 0 {
		return c, exceeded(whose, "scope", beyond.String(), c.Scopes.Intersect(parent.Scopes))
	}
	if beyond := c.Details.Minus(parent.Details); len(beyond) > 0 {
		return c, exceededBy(whose, beyond)
	}
	return c, nil
}

// inherited are those of the parent's scopes that the workload may have at these audiences. One that
// the registration says nothing of is the policy's to judge.
func inherited(scopes Scopes, audiences Audiences, registration WorkloadRegistration) Scopes {
	var known Scopes
	for _, audience := range audiences {
		at, ok := registration.Ceiling[audience]
		if !ok {
			return scopes
		}
		known = append(known, at...)
	}
	slices.Sort(known)
	return scopes.Intersect(known)
}
