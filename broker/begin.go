package broker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// BeginRequest describes a task that a workload is about to do.
type BeginRequest struct {
	Parent  TaskID // "" for a root
	Name    string
	Purpose string
	Ceiling Ceiling // no audiences, no scopes: what the policy allows; below a parent, what that has
	Attributes

	Lease    time.Duration // DefaultLease when zero
	Deadline time.Duration // from now; DefaultDeadline when zero; below a parent, its deadline at the latest

	// Presence ends the task with its client's connection: see Follow.
	Presence bool

	// Tokens are issued in the same step, all or none.
	Tokens []TokenRequest

	// Key makes repeating safe: within the life of the task the same key with the same request
	// is the same task, and its tokens are signed again, not issued again.
	Key string
}

// Begun is a begun task with its first tokens, in the order that they were asked for.
type Begun struct {
	Task     Task
	Tokens   []Issued
	Replayed bool // the task was there already; tokens that have expired are left out

	// EndKey is for EndRequest.Key: with it the task also ends while the store is away.
	EndKey EndKey
}

// Begin starts a task and issues its first tokens. Errors: ErrInvalid, ErrUnregistered,
// ErrQuarantined, ErrDenied, ErrScopeExceeded, ErrMismatch, ErrQuota, ErrEnded (the parent's),
// ErrNotFound (the parent), ErrTooShort, ErrAudit, ErrSigning, ErrNotReady and those of the store.
func (b *Broker) Begin(ctx context.Context, w Workload, req BeginRequest) (Begun, error) {
	if err := req.normalize(); err != nil {
		return Begun{}, err
	}
	registration, err := b.Registry.Workload(w.ID)
	if err != nil {
		return Begun{}, b.refuse(w, registration, req.task(w), Decision{Rule: "registry/unregistered"}, unregistered(w, err))
	}
	asking, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	from, err := b.startingPoint(asking, w, registration, &req)
	if err != nil {
		return Begun{}, err
	}
	return b.beginFrom(ctx, asking, w, registration, &req, from)
}

// beginning is what a task was begun on.
type beginning struct {
	Decision
	delegation DelegationID // by which it has joined, "" for none
}

// beginFrom begins a task from where it is to be. asking bounds what the store is asked for.
func (b *Broker) beginFrom(ctx, asking context.Context, w Workload, registration WorkloadRegistration, req *BeginRequest, from start) (Begun, error) {
	task := from.task(w, req)
	task.ID = NewTaskID(from.shard)
	var asks []approved
	begun := beginning{delegation: from.delegation}
	reply, err := b.commit(asking, from.shard, func(control Control, now time.Time) (_ GrantRequest, err error) {
		asks, task.Ceiling = nil, from.ceiling
		if begun.Decision, err = b.decideBegin(ctx, w, registration, task, control, now); err != nil {
			return GrantRequest{}, err
		}
		task.Ceiling = from.bound(begun.Ceiling)
		for _, token := range req.Tokens {
			// What the request left open is the policy's to refuse, in its own words.
			if err := b.withinCeiling(w, registration, task, from.ceiling, token); err != nil {
				return GrantRequest{}, err
			}
			ask, err := b.decideIssue(ctx, w, registration, task, token, control, now)
			if err != nil {
				return GrantRequest{}, err
			}
			asks = append(asks, ask)
		}
		return req.commitment(w, registration, task, from, asks), nil
	})
	if err != nil {
		return Begun{}, err
	}
	if err := b.stillGood(asking, w, &reply); err != nil {
		return Begun{}, err
	}
	tokens, err := b.release(ctx, w, registration, reply, asks, &begun)
	if err != nil {
		return Begun{}, err
	}
	return Begun{Task: reply.Task, Tokens: tokens, Replayed: reply.Replayed, EndKey: b.endKeys.of(reply.Task)}, nil
}

// task is the task as it is asked for.
func (req *BeginRequest) task(w Workload) Task {
	return Task{
		Workload: w.ID, Name: req.Name, Purpose: req.Purpose, Ceiling: req.Ceiling, Attributes: req.Attributes, Lease: req.Lease,
	}
}

func (b *Broker) decideBegin(ctx context.Context, w Workload, registration WorkloadRegistration, task Task, control Control, now time.Time) (Decision, error) {
	if lock, ok := control.Locked(now, task.Subjects(), "", nil); ok {
		err := &Quarantined{Lock: lock}
		return Decision{}, b.refuse(w, registration, task, Decision{Rule: "lock/" + string(lock.ID)}, err)
	}
	ask := Ask{Action: ActionBegin, Workload: registration, Delegators: b.registrations(task.Delegators), Task: task}
	names := task.Ceiling.Audiences
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(registration.Ceiling))
	}
	ask.Audiences = b.audiences(names)
	return b.decide(ctx, w, ask)
}

// audiences are the registrations of those that have one. One that has none is missing in every ceiling.
func (b *Broker) audiences(names Audiences) (known []AudienceRegistration) {
	for _, name := range names {
		if audience, err := b.Registry.Audience(name); err == nil {
			known = append(known, audience)
		}
	}
	return known
}

func (req *BeginRequest) commitment(w Workload, registration WorkloadRegistration, task Task, from start, asks []approved) GrantRequest {
	out := GrantRequest{
		Workload: w.ID,
		Task:     task.ID,
		Begin: &Beginning{
			Parent: from.parent, Join: from.join, Delegators: from.delegators, Name: req.Name, Purpose: req.Purpose, Ceiling: task.Ceiling, Attributes: req.Attributes,
			Lease: req.Lease, Deadline: req.Deadline, Presence: req.Presence, Key: req.Key, Digest: req.digest(from.delegation),
		},
		Quota: Quota{Tasks: registration.MaxTasks, Grants: registration.MaxGrants, Children: MaxChildren},
	}
	for _, ask := range asks {
		out.Grants = append(out.Grants, ask.Asked)
	}
	return out
}

// digest stands for the request as it was asked, so that a policy that has changed in between does
// not make a repetition look like another request. The same one by another delegation is another one. Without
// a key nobody can repeat it.
func (req *BeginRequest) digest(by DelegationID) [32]byte {
	if req.Key == "" {
		return [32]byte{}
	}
	return sha256.Sum256(plainJSON(struct {
		*BeginRequest
		By DelegationID `json:",omitempty"`
	}{req, by}))
}

// normalize fills in the defaults and checks the bounds. A value outside is refused, never clipped.
func (req *BeginRequest) normalize() error {
	req.Lease = cmp.Or(req.Lease, DefaultLease)
	req.Deadline = cmp.Or(req.Deadline, DefaultDeadline)
	if err := checkText("name", req.Name, MaxName); err != nil {
		return err
	}
	if err := checkText("purpose", req.Purpose, MaxPurpose); err != nil {
		return err
	}
	if err := checkSeconds("lease_seconds", req.Lease, MinLease, MaxLease); err != nil {
		return err
	}
	if err := checkSeconds("deadline_seconds", req.Deadline, MinDeadline, MaxDeadline); err != nil {
		return err
	}
	if err := req.Attributes.check(); err != nil {
		return err
	}
	if len(req.Tokens) > MaxTokens {
		return invalid("tokens", "has %d entries; at most %d are allowed in one request", len(req.Tokens), MaxTokens)
	}
	for i := range req.Tokens {
		if err := req.Tokens[i].normalize(indexed("tokens", i)); err != nil {
			return err
		}
	}
	return checkKey(req.Key)
}

// checkKey allows what fits in a structured-field string, so that the header's form does not matter.
func checkKey(key string) error {
	if len(key) > MaxKey {
		return invalid("Idempotency-Key", "has %d bytes; at most %d are allowed", len(key), MaxKey)
	}
	for i := range len(key) {
		if key[i] < ' ' || key[i] > '~' || key[i] == '"' || key[i] == '\\' {
			return invalid("Idempotency-Key", "has a character that is not allowed at byte %d; use printable ASCII without quote and backslash", i)
		}
	}
	return nil
}

// checkText wants something to read. What it says is not judged, only kept and escaped.
func checkText(field, text string, limit int) error {
	switch {
	case strings.TrimSpace(text) == "":
		return invalid(field, "is empty; say what this task is, it is what the audit log shows")
	case len(text) > limit:
		return invalid(field, "has %d bytes; at most %d are allowed", len(text), limit)
	case !utf8.ValidString(text):
		return invalid(field, "is not valid UTF-8")
	}
	return nil
}

func checkSeconds(field string, d, low, high time.Duration) error {
	if d < low || d > high {
		return invalid(field, "is %g; it must be between %g and %g", d.Seconds(), low.Seconds(), high.Seconds())
	}
	return nil
}
