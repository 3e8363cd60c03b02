package redis

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/broker"
)

// Grant begins a task, issues grants in one, or both, in one step.
func (s *Store) Grant(ctx context.Context, req broker.GrantRequest) (broker.GrantReply, error) {
	c, ok := s.grantCall(req)
	if !ok {
		return broker.GrantReply{}, broker.ErrNotFound
	}
	r := s.run(ctx, s.issues, c)[0]
	// Once more for a replay, whose grants it takes an answer to know, and while a quota cannot be told
	// before more that is due has been done.
	began, declared := time.Now(), false
	for r.err == nil && (r.status == "declare" && !declared || r.status == "again" && time.Since(began) < s.limits.send) {
		if r.status == "declare" {
			declared = true
			ids := r.text()
			for ; len(ids) >= bareLength; ids = ids[bareLength:] {
				c.keys = append(c.keys, s.grantKey(c.shard, ids[:bareLength]))
			}
		}
		r = s.run(ctx, s.issues, c)[0]
	}
	if r.err != nil {
		return broker.GrantReply{}, r.err
	}
	out := broker.GrantReply{Replayed: r.status == "replayed"}
	switch r.status {
	case "begun", "issued":
		r.made(req, &out)
	case "replayed":
		out.Now, out.Control = r.moment(), uint64(r.number())
		out.Task = r.task(out.Now)
		r.each(func(item *reply) { out.Grants = append(out.Grants, item.grantFields(out.Task)) })
	default:
		return broker.GrantReply{}, r.refusal()
	}
	if err := cmp.Or(r.err, s.spoilt(&r)); err != nil {
		return broker.GrantReply{}, err
	}
	return out, nil
}

// made reads what has just been made of a request: the script says only what the request does not.
func (r *reply) made(req broker.GrantRequest, out *broker.GrantReply) {
	out.Now, out.Control = r.moment(), uint64(r.number())
	number := uint64(r.number())
	expiries := r.list()
	for _, ask := range req.Grants {
		out.Grants = append(out.Grants, broker.Grant{
			ID: ask.ID, Task: req.Task, Workload: req.Workload, Audience: ask.Audience, Scopes: slices.Clone(ask.Scopes), Details: slices.Clone(ask.Details),
			Binding: ask.Binding, Thumbprint: ask.Thumbprint, Decision: ask.Decision,
			Issued: out.Now.Truncate(time.Second), Expires: expiries.moment(), Epoch: r.epoch, Number: number,
		})
	}
	r.join(expiries)
	if req.Begin == nil {
		out.Task = r.task(out.Now)
		return
	}
	b := req.Begin
	lease := b.Lease.Truncate(time.Millisecond)
	out.Task = broker.Task{
		ID: req.Task, Workload: req.Workload, Name: b.Name, Purpose: b.Purpose, Ceiling: b.Ceiling, Attributes: b.Attributes,
		Begun: out.Now, Lease: lease, LeaseEnd: out.Now.Add(b.FirstLease().Truncate(time.Millisecond)), Deadline: r.moment(), State: broker.Active,
		Presence: b.Presence, Holder: 1, Delegators: b.Delegators,
	}
	above, ok := r.path()
	if !ok {
		r.fail("a path that is none")
	}
	out.Task.Path = append(above, req.Task)
	out.Task = out.Task.Clone()
}

// joinKey is where a delegation is kept that a task has joined by.
func (s *Store) joinKey(shard int, id broker.DelegationID) string {
	return keyOf(s.prefix, shard, "j:"+strings.TrimPrefix(string(id), "dlg_"))
}

// ceilMilli is the first millisecond that is not before a moment, and 0 for none after 1970.
func ceilMilli(t time.Time) int64 { return max(0, t.Add(time.Millisecond-1).UnixMilli()) }

func (s *Store) grantKey(shard int, bare string) string { return s.grantPrefixes[shard] + bare }

// grantCall is the call for a request; there is none for one about something that cannot be.
func (s *Store) grantCall(req broker.GrantRequest) (call, bool) {
	id, ok := bareTask(req.Task)
	// What was decided on the control list of one data set is nothing to the next, wherever it waits.
	c := call{script: s.scripts.grant, shard: req.Task.Shard(), echo: id, epoch: s.knownEpoch()}
	if !ok || !s.has(c.shard) {
		return call{}, false
	}
	c.args = append(make([]any, 0, 12+4*len(req.Grants)),
		req.Workload.String(), req.Control, req.Quota.Tasks, req.Quota.Grants, req.Quota.Children, len(req.Grants))
	for _, ask := range req.Grants {
		notAfter := int64(0)
		if !ask.NotAfter.IsZero() {
			notAfter = max(1, ask.NotAfter.UnixMilli())
		}
		bare, ok := bareGrant(ask.ID)
		if !ok || ask.ID.Shard() != c.shard {
			bare = elsewhere
		}
		c.keys = append(c.keys, s.grantKey(c.shard, bare))
		c.args = append(c.args, ask.Audience, ask.Life.Milliseconds(), notAfter, packGrant(ask))
	}
	if b := req.Begin; b != nil {
		parent, ok := bareTask(b.Parent)
		if b.Parent != "" && (!ok || b.Parent.Shard() != c.shard) {
			parent = elsewhere
		}
		c.args = append(c.args, parent, b.Lease.Milliseconds(), b.Deadline.Milliseconds(), requestKey(req), string(b.Digest[:]), packTask(b), refKey(b.Ref))
		if b.Presence || b.Join != nil {
			first := any("")
			if b.Presence {
				first = b.FirstLease().Milliseconds()
			}
			c.args = append(c.args, first)
		}
		if j := b.Join; j != nil {
			c.keys = append(c.keys, s.joinKey(c.shard, j.Delegation))
			c.args = append(c.args, j.Delegator.String(), ceilMilli(j.Until))
		}
	}
	return c, true
}

// elsewhere stands for the ID of something that cannot be in the shard.
const elsewhere = "--------------------------"

// requestKey is how an idempotency key is known: by a digest that it shares with no other key of any
// workload.
func requestKey(req broker.GrantRequest) string {
	if req.Begin.Key == "" {
		return ""
	}
	return digest(req.Workload.String(), req.Begin.Key)
}

// refKey is how it is known what a task is in another system, and "" when it is nothing there.
func refKey(ref broker.TaskRef) string {
	if ref.Kind == "" && ref.ID == "" {
		return ""
	}
	return digest(ref.Kind, ref.ID)
}

func digest(fields ...string) string {
	sum := sha256.Sum256([]byte(pack(fields...)))
	return string(sum[:16])
}

// refusal is the error that a script's status names.
func (r *reply) refusal() error {
	var err error
	switch r.status {
	case "mismatch":
		return broker.ErrMismatch
	case "not found":
		return broker.ErrNotFound
	case "used":
		return broker.ErrUsed
	case "adopted":
		return broker.ErrAdopted
	case "short":
		return broker.ErrTooShort
	case "deep":
		return &broker.Invalid{Field: "parent", Detail: "is as deep as tasks may be; begin this one further up"}
	case "invalid":
		return &broker.Invalid{Field: "state", Detail: "is not final; name how the task ended"}
	case "nobody":
		return &broker.Invalid{Field: "workload", Detail: "is missing; a lost task is ended for its workload alone"}
	case "expired":
		return &broker.Invalid{Field: "expires", Detail: "is over already by the store's clock; choose a later moment"}
	case "ended":
		err = &broker.Ended{Task: r.taskID(r.text()), State: broker.State(r.text()), Cause: broker.Cause(r.text()), At: r.moment()}
	case "behind":
		err = &broker.Behind{Shard: r.shard, Version: uint64(r.number())}
	case "again":
		err = fmt.Errorf("%w: redis has much to tidy up; try again", broker.ErrUnavailable)
	case "broken":
		key, id := r.text(), r.text()
		err = brokenDenial(key, id)
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
