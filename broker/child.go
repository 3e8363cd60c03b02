package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// start is what a task begins from: nothing, or its parent.
type start struct {
	shard   int
	ceiling Ceiling // as the request sets it; of a child, with the parent's in the place of what it leaves open
	most    *Ceiling
}

// bound is what is left of a ceiling below the parent's. A policy may be wrong; a child's ceiling is
// not its to widen.
func (s start) bound(c Ceiling) Ceiling {
	if s.most == nil {
		return c
	}
	out := Ceiling{Scopes: c.Scopes.Intersect(s.most.Scopes), Details: c.Details.Minus(c.Details.Minus(s.most.Details))}
	for _, audience := range c.Audiences {
		if s.most.Audiences.Contains(audience) {
			out.Audiences = append(out.Audiences, audience)
		}
	}
	return out
}

// startingPoint finds the place of a new task. A child goes where its parent is, which must be a live
// one of the same workload, and stays within that one's ceiling.
func (b *Broker) startingPoint(ctx context.Context, w Workload, registration WorkloadRegistration, req *BeginRequest) (start, error) {
	if req.Parent == "" {
		shard, err := b.rootShard(w.ID)
		return start{shard: shard, ceiling: req.Ceiling}, err
	}
	parent, err := b.Task(ctx, w, req.Parent)
	if err != nil {
		return start{}, err
	}
	if parent.State.Final() {
		return start{}, ended(parent)
	}
	asked, err := req.Ceiling.below(parent.Ceiling, registration)
	if err != nil {
		return start{}, b.refuse(w, registration, req.task(w), Decision{Rule: "task/ceiling"}, err)
	}
	return start{shard: req.Parent.Shard(), ceiling: asked, most: &parent.Ceiling}, nil
}

// below is a child's ceiling: each part as it was asked for if that is within the parent's, and for
// audiences and scopes that were left open the parent's own, as far as they go together.
func (c Ceiling) below(parent Ceiling, registration WorkloadRegistration) (Ceiling, error) {
	if len(c.Audiences) == 0 {
		c.Audiences = parent.Audiences
	}
	for _, audience := range c.Audiences {
		if !parent.Audiences.Contains(audience) {
			return c, exceeded("parent", "audience", audience, nil)
		}
	}
	if len(c.Scopes) == 0 {
		c.Scopes = inherited(parent.Scopes, c.Audiences, registration)
		if len(c.Scopes) == 0 && len(parent.Scopes) > 0 {
			// Nothing would mean everything to the policy.
			return c, &Denied{Reason: ErrScopeExceeded, Decision: Decision{
				ID: NewDecisionID(), Rule: "task/ceiling",
				Detail:  fmt.Sprintf("the parent's ceiling has no scope for %s", strings.Join(c.Audiences, ", ")),
				Missing: map[string]string{"scope": "name one when the parent begins, or begin a task for it"},
			}}
		}
	}
	if beyond := c.Scopes.Minus(parent.Scopes); len(beyond) > 0 {
		return c, exceeded("parent", "scope", beyond.String(), c.Scopes.Intersect(parent.Scopes))
	}
	if beyond := c.Details.Minus(parent.Details); len(beyond) > 0 {
		return c, exceededBy("parent", beyond)
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
