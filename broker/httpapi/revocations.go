package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
)

// revoked is the answer to a POST of wire.PathRevocations: a plan, or what was done.
type revoked struct {
	plan *wire.RevocationPlan
	done *wire.Revocation
}

// MarshalJSON writes the one that there is.
func (r revoked) MarshalJSON() ([]byte, error) {
	if r.plan != nil {
		return json.Marshal(r.plan)
	}
	return json.Marshal(r.done)
}

func (r revoked) status() int {
	if r.done != nil && (!r.done.Durable || r.done.Left != "") {
		return http.StatusAccepted
	}
	return http.StatusOK
}

func (r revoked) location() string {
	if r.done == nil {
		return ""
	}
	return wire.PathRevocations + "/" + r.done.ID
}

// revocationRequest is a RevocationRequest that knows how long it waits.
type revocationRequest struct{ wire.RevocationRequest }

func (r revocationRequest) wait() time.Duration { return waitOf(r.WaitSeconds) }

func (a *API) revoke(ctx context.Context, r request[revocationRequest]) (revoked, error) {
	var filter broker.Filter
	if r.Body.Selector != nil {
		var err error
		if filter, err = filterOf("selector.", *r.Body.Selector); err != nil {
			return revoked{}, err
		}
	}
	if r.Body.DryRun {
		return a.planRevocation(ctx, r, filter)
	}
	return a.revokeAll(ctx, r.Operator, broker.Mass{
		Filter: filter, What: broker.What(r.Body.What), Plan: r.Body.Plan, Reason: r.Body.Reason, Ticket: r.Body.Ticket,
		MaxAffected: r.Body.MaxAffected, Wait: r.Body.wait(),
	})
}

func (a *API) planRevocation(ctx context.Context, r request[revocationRequest], filter broker.Filter) (revoked, error) {
	if r.Body.Plan != "" {
		return revoked{}, &broker.Invalid{Field: "plan", Detail: "and dry_run exclude each other; leave one out"}
	}
	p, err := a.Broker.PlanRevocation(ctx, r.Operator.Name, filter, broker.What(r.Body.What))
	if err != nil {
		return revoked{}, err
	}
	out := &wire.RevocationPlan{
		Plan: p.Text, ExpiresIn: int64(broker.PlanLife / time.Second), Selector: encodeFilter(p.Filter), What: string(p.What),
		Grants: p.Grants, Tasks: p.Tasks, Entries: p.Entries, Complete: p.Complete, Sample: []wire.Grant{},
		Unknown: a.Broker.Unknown(p.Filter), Workloads: encodeCounted(p.Workloads), Owners: encodeCounted(p.Owners), Audiences: encodeCounted(p.Audiences),
	}
	for _, s := range p.Sample {
		out.Sample = append(out.Sample, encodeGrant(s))
	}
	return revoked{plan: out}, nil
}

// revokeAll does what an operator says, in the operator's name.
func (a *API) revokeAll(ctx context.Context, operator broker.Operator, m broker.Mass) (revoked, error) {
	m.Actor, m.Address, m.Thumbprint = operator.Name, operator.Address, operator.Thumbprint
	m.MayAll = operator.Role >= broker.RoleAdmin
	done, err := a.Broker.RevokeAll(ctx, m)
	if err != nil {
		return revoked{}, err
	}
	out := encodeRevocation(done)
	out.Unknown = a.Broker.Unknown(done.Filter)
	return revoked{done: &out}, nil
}

func (a *API) revokeTask(ctx context.Context, r request[wire.OperatorRequest]) (revoked, error) {
	id, err := broker.ParseTaskID(r.ID)
	if err != nil {
		return revoked{}, err
	}
	return a.revokeAll(ctx, r.Operator, broker.Mass{Filter: broker.Filter{Tasks: []broker.TaskID{id}}, What: broker.WhatTasks, Reason: r.Body.Reason})
}

func (a *API) revokeGrant(ctx context.Context, r request[wire.OperatorRequest]) (revoked, error) {
	id, err := broker.ParseGrantID(r.ID)
	if err != nil {
		return revoked{}, err
	}
	return a.revokeAll(ctx, r.Operator, broker.Mass{Filter: broker.Filter{Grants: []broker.GrantID{id}}, What: broker.WhatGrants, Reason: r.Body.Reason})
}

func (a *API) listRevocations(ctx context.Context, r request[none]) (wire.RevocationList, error) {
	values, err := parseQuery(r.RawQuery, "page_size", "cursor")
	if err != nil {
		return wire.RevocationList{}, err
	}
	size, err := pageSize(values)
	if err != nil {
		return wire.RevocationList{}, err
	}
	page, next, err := a.Broker.Revocations(ctx, size, broker.RevocationID(values.Get("cursor")))
	if err != nil {
		return wire.RevocationList{}, err
	}
	out := wire.RevocationList{Items: []wire.Revocation{}, NextCursor: string(next)}
	for _, done := range page {
		out.Items = append(out.Items, encodeRevocation(done))
	}
	return out, nil
}

func (a *API) showRevocation(ctx context.Context, r request[none]) (wire.Revocation, error) {
	done, err := a.Broker.FindRevocation(ctx, broker.RevocationID(r.ID))
	if err != nil {
		return wire.Revocation{}, err
	}
	return encodeRevocation(done), nil
}

func encodeRevocation(m broker.MassRevocation) wire.Revocation {
	out := wire.Revocation{
		ID: string(m.ID), Event: string(m.Event), Selector: encodeFilter(m.Filter), What: string(m.What), Reason: m.Reason, Ticket: m.Ticket,
		Actor: m.Actor, At: m.At.UTC(), Grants: m.Counted, Tasks: m.Tasks, Entries: m.Entries,
		TookMS: float64(m.Took.Microseconds()) / 1000, Durable: m.Durable, Left: m.Left,
		Propagation: encodePropagation(m.Propagation),
	}
	if !m.Feed.IsZero() {
		out.Feed = wire.Position(m.Feed).String()
	}
	if m.Counted == nil && m.Grants > 0 {
		out.Grants = &m.Grants
	}
	return out
}

func encodeCounted(counted []broker.Counted) []wire.Counted {
	out := []wire.Counted{}
	for _, c := range counted {
		out = append(out, wire.Counted(c))
	}
	return out
}

func encodeFilter(f broker.Filter) wire.Selector {
	s := wire.Selector{
		Workload: f.Workloads, Owner: f.Owners, Risk: f.Risks, Audience: f.Audiences, Scope: f.Scopes, Name: f.Names, Label: f.Labels,
		Root: string(f.Root), All: f.All,
	}
	if f.Ref != (broker.TaskRef{}) {
		s.Ref = f.Ref.Kind + ":" + f.Ref.ID
	}
	for _, id := range f.Tasks {
		s.Task = append(s.Task, string(id))
	}
	for _, id := range f.Grants {
		s.Grant = append(s.Grant, string(id))
	}
	if !f.IssuedBefore.IsZero() {
		at := f.IssuedBefore.UTC()
		s.IssuedBefore = &at
	}
	return s
}

// locked is a LockResponse that knows with which status it is answered.
type locked struct{ wire.LockResponse }

func (l locked) status() int {
	added := slices.ContainsFunc(l.Locks, func(lock wire.OperatorLock) bool { return !lock.Stood })
	switch {
	case l.Left != "", l.Revocation != nil && (revoked{done: l.Revocation}).status() != http.StatusOK:
		return http.StatusAccepted
	case added:
		return http.StatusCreated
	}
	return http.StatusOK
}

// lock adds locks, and then kills what is out, or ends what runs: in this order, so that nothing slips in between.
func (a *API) lock(ctx context.Context, r request[wire.LockRequest]) (locked, error) {
	filter, err := filterOf("selector.", r.Body.Selector)
	if err != nil {
		return locked{}, err
	}
	life := time.Duration(min(max(r.Body.ExpiresIn, 0), int64(2*broker.MaxLock/time.Second))) * time.Second
	locks, err := a.Broker.LockAll(ctx, broker.LockRequest{
		Filter: filter, Life: life, Actor: r.Operator.Name, Address: r.Operator.Address, Thumbprint: r.Operator.Thumbprint,
		Reason: r.Body.Reason, Ticket: r.Body.Ticket, MayAll: r.Operator.Role >= broker.RoleAdmin,
	})
	if err != nil {
		return locked{}, err
	}
	var out locked
	out.Unknown = a.Broker.Unknown(filter)
	for _, l := range locks {
		lock := encodeLock(l.Lock)
		lock.Stood = l.Stood
		out.Locks = append(out.Locks, lock)
	}
	if r.Body.Revoke || r.Body.EndTasks {
		what, left := broker.WhatGrants, "the tokens that are out"
		if r.Body.EndTasks {
			what, left = broker.WhatTasks, "the tasks that run, and their tokens"
		}
		done, err := a.revokeAll(ctx, r.Operator, broker.Mass{Filter: filter, What: what, Reason: r.Body.Reason, Ticket: r.Body.Ticket})
		if err != nil { // the locks are in force, and whoever asked must know
			a.Logger.Error("what was locked could not be revoked", "operator", r.Operator.Name, "error", err)
			out.Left = left + ", which could not be revoked: repeat the request"
		}
		out.Revocation = done.done
	}
	return out, nil
}

func (a *API) listLocks(ctx context.Context, _ request[none]) (wire.LockList, error) {
	locks, err := a.Broker.Locks(ctx)
	if err != nil {
		return wire.LockList{}, err
	}
	out := wire.LockList{Locks: []wire.OperatorLock{}}
	for _, l := range locks {
		out.Locks = append(out.Locks, encodeLock(l))
	}
	return out, nil
}

func (a *API) showLock(ctx context.Context, r request[none]) (wire.OperatorLock, error) {
	l, err := a.Broker.FindLock(ctx, broker.LockID(r.ID))
	if err != nil {
		return wire.OperatorLock{}, err
	}
	return encodeLock(l), nil
}

func (a *API) lift(ctx context.Context, r request[none]) (none, error) {
	values, err := parseQuery(r.RawQuery, "reason")
	if err != nil {
		return none{}, err
	}
	return none{}, a.Broker.Lift(ctx, broker.Lifting{
		Lock: broker.LockID(r.ID), Actor: r.Operator.Name, Address: r.Operator.Address, Thumbprint: r.Operator.Thumbprint, Reason: values.Get("reason"),
	})
}

func encodeLock(l broker.Lock) wire.OperatorLock {
	return wire.OperatorLock{
		ID: string(l.ID), Subject: l.Selector.Subject, Audience: l.Selector.Audience, Scope: l.Selector.Scope,
		Reason: l.Reason, Actor: l.Actor, Since: l.Since.UTC(), ExpiresAt: l.Expires.UTC(),
	}
}
