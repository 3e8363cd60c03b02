package redis

import (
	"context"
	"encoding/hex"
	"fmt"

	"github.com/errandhq/errand/broker"
)

// Grant begins a task, issues grants in one, or both, in one step.
func (s *Store) Grant(ctx context.Context, req broker.GrantRequest) (broker.GrantReply, error) {
	if !s.has(req.Task.Shard()) {
		return broker.GrantReply{}, broker.ErrNotFound
	}
	r := s.run(ctx, call{s.scripts.grant, req.Task.Shard(), string(req.Task), grantArgs(req)})[0]
	if r.err != nil {
		return broker.GrantReply{}, r.err
	}
	if r.status != "ok" {
		return broker.GrantReply{}, r.refusal()
	}
	out := broker.GrantReply{Now: r.moment(), Control: uint64(r.number()), Replayed: r.flag()}
	out.Task = r.task(out.Now)
	r.each(func(item *reply) { out.Grants = append(out.Grants, item.grantFields()) })
	if r.err != nil {
		return broker.GrantReply{}, r.err
	}
	return out, nil
}

func grantArgs(req broker.GrantRequest) []any {
	args := []any{
		string(req.Task), req.Workload.String(), req.Control, req.Quota.Tasks, req.Quota.Grants, req.Quota.Children,
		len(req.Grants),
	}
	for _, ask := range req.Grants {
		notAfter := int64(0)
		if !ask.NotAfter.IsZero() {
			notAfter = max(1, ask.NotAfter.UnixMilli())
		}
		static := grantStatic{Scopes: ask.Scopes, Binding: ask.Binding, Thumbprint: ask.Thumbprint, Decision: ask.Decision}
		args = append(args, string(ask.ID), ask.Audience, ask.Life.Milliseconds(), notAfter, encode(static))
	}
	if b := req.Begin; b != nil {
		static := taskStatic{Name: b.Name, Purpose: b.Purpose, Audiences: b.Ceiling.Audiences, Scopes: b.Ceiling.Scopes}
		args = append(args, string(b.Parent), b.Lease.Milliseconds(), b.Deadline.Milliseconds(), b.Key,
			hex.EncodeToString(b.Digest[:]), encode(static))
	}
	return args
}

// refusal is the error that a script's status names.
func (r *reply) refusal() error {
	var err error
	switch r.status {
	case "mismatch":
		return broker.ErrMismatch
	case "not found":
		return broker.ErrNotFound
	case "short":
		return broker.ErrTooShort
	case "deep":
		return &broker.Invalid{Field: "parent", Detail: "is as deep as tasks may be; begin this one further up"}
	case "invalid":
		return &broker.Invalid{Field: "state", Detail: "is not final; name how the task ended"}
	case "expired":
		return &broker.Invalid{Field: "expires", Detail: "is over already by the store's clock; choose a later moment"}
	case "ended":
		err = &broker.Ended{Task: broker.TaskID(r.text()), State: broker.State(r.text()), Cause: broker.Cause(r.text()), At: r.moment()}
	case "behind":
		err = &broker.Behind{Shard: r.shard, Version: uint64(r.number())}
	case "quota":
		err = &broker.QuotaExceeded{What: r.text(), Limit: int(r.number())}
	default:
		err = fmt.Errorf("%w: script %s answered %q", r.script.doubt(), r.script.name, r.status)
	}
	if r.err != nil {
		return r.err
	}
	return err
}
