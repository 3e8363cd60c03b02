package broker

import (
	"context"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of a delegation. A value outside is ErrInvalid with the field and the bound in its text.
const (
	MinDelegation     = time.Second
	DefaultDelegation = 10 * time.Minute
	MaxDelegation     = MaxDeadline

	maxSubject = 2048 // bytes of a SPIFFE ID (SPIFFE-ID §2)
)

// Delegation lets another workload begin one task below a task of the caller's, and have tokens there in the
// caller's name.
type Delegation struct {
	To      spiffeid.ID // who may, and nobody else; not the caller itself, for whom there are sub-tasks
	Purpose string      // why, for the audit log
	Ceiling Ceiling     // the most that it may have, within the task's; what is left open is what both may have
	Life    time.Duration
}

// Delegated is a delegation that was made.
type Delegated struct {
	ID      DelegationID
	Handle  Handle
	Expires time.Time // To must have joined before; the task's deadline at the latest
}

// Delegate makes a handle by which another workload, and it alone, can join a task of the workload, once. It is
// decided and recorded as a begin is, and nothing is kept: the task ends as it would have, and whatever has
// joined it ends with it. Errors: ErrInvalid, ErrUnregistered, ErrNotFound, ErrEnded, ErrQuarantined, ErrDenied,
// ErrScopeExceeded, ErrAudit, ErrNotReady and those of the store.
func (b *Broker) Delegate(ctx context.Context, w Workload, id TaskID, d Delegation) (Delegated, error) {
	if err := d.normalize(w); err != nil {
		return Delegated{}, err
	}
	registration, err := b.Registry.Workload(w.ID)
	if err != nil {
		return Delegated{}, b.refuse(w, registration, Task{}, Decision{Rule: "registry/unregistered"}, unregistered(w, err))
	}
	asking, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	record, err := b.lookup(asking, w, Ref{Task: id})
	if err != nil {
		return Delegated{}, err
	}
	task := record.Task
	if task.State.Final() {
		return Delegated{}, ended(task)
	}
	if len(task.Path) >= MaxDepth {
		return Delegated{}, invalid("task", "is as deep as tasks may be, so nobody could join it; delegate one further up")
	}
	control, err := b.controlAt(asking, id.Shard(), record.Control)
	if err != nil {
		return Delegated{}, err
	}
	if lock, ok := control.Locked(record.Now, append(task.Subjects(), d.To.String()), "", nil); ok {
		return Delegated{}, b.refuse(w, registration, task, Decision{Rule: "lock/" + string(lock.ID)}, &Quarantined{Lock: lock})
	}
	ceiling, decision, err := b.decideDelegate(ctx, w, registration, task, d)
	if err != nil {
		return Delegated{}, err
	}
	made := delegation{
		ID: NewDelegationID(), Task: id, Delegator: w.ID, To: d.To, Purpose: d.Purpose, Ceiling: ceiling,
		Expires: d.expires(record.Now, task),
	}
	handle, err := b.endKeys.handle(made)
	if err != nil {
		return Delegated{}, err
	}
	if err := b.recordDelegation(ctx, w, registration, task, made, decision, record.Now); err != nil {
		return Delegated{}, err
	}
	if task := b.pending.task(task); task.State.Final() { // here, in the meantime
		return Delegated{}, ended(task)
	}
	return Delegated{ID: made.ID, Handle: handle, Expires: made.Expires}, nil
}

// decideDelegate returns what the delegation allows. A policy may be wrong; the ceiling is not its to widen.
func (b *Broker) decideDelegate(ctx context.Context, w Workload, registration WorkloadRegistration, task Task, d Delegation) (Ceiling, Decision, error) {
	ask := Ask{Action: ActionDelegate, Workload: registration, Delegators: b.registrations(task.Delegators), Task: task, To: d.To}
	known := WorkloadRegistration{}
	if r, err := b.Registry.Workload(d.To); err == nil {
		known, ask.Delegate = r, &r
	}
	var err error
	if ask.Ceiling, err = d.Ceiling.within(task.Ceiling, known, "task"); err != nil {
		return Ceiling{}, Decision{}, b.refuse(w, registration, task, Decision{Rule: "task/ceiling"}, err)
	}
	ask.Audiences = b.audiences(ask.Ceiling.Audiences)
	decision, err := b.decide(ctx, w, ask)
	if err != nil {
		return Ceiling{}, Decision{}, err
	}
	return decision.Ceiling.bound(ask.Ceiling), decision, nil
}

// recordDelegation makes it durable before anybody hears of the handle, since that lets somebody in.
func (b *Broker) recordDelegation(ctx context.Context, w Workload, registration WorkloadRegistration, task Task, d delegation, decision Decision, now time.Time) error {
	e := taskEvent(EventTaskDelegated, registration, task)
	e.Purpose = d.Purpose
	e.Delegation, e.To, e.Audiences, e.Scopes, e.Details, e.Expires = d.ID, d.To.String(), d.Ceiling.Audiences, d.Ceiling.Scopes, d.Ceiling.Details, d.Expires
	e.Decision, e.Rule, e.Revision, e.Allowed = decision.ID, decision.Rule, decision.Revision, true
	e.Time, e.Actor, e.Address, e.Thumbprint = now, w.ID.String(), w.Address, w.Thumbprint
	if err := b.recordNow(ctx, e); err != nil {
		return &wrapped{ErrAudit, "nothing is delegated that cannot be recorded"}
	}
	return nil
}

// expires is by the store's clock, as of the look-up.
func (d Delegation) expires(now time.Time, task Task) time.Time {
	at := now.Add(d.Life)
	if at.After(task.Deadline) {
		at = task.Deadline
	}
	return at.UTC().Truncate(time.Millisecond)
}

func (d *Delegation) normalize(w Workload) error {
	switch {
	case d.To.IsZero():
		return invalid("to", "is empty; name the SPIFFE ID of the workload that may join")
	case d.To.Path() == "":
		return invalid("to", "is a trust domain; name one workload of it")
	case len(d.To.String()) > maxSubject:
		return invalid("to", "has %d bytes; at most %d are allowed", len(d.To.String()), maxSubject)
	case d.To == w.ID:
		return invalid("to", "is the caller itself; begin a task below this one instead")
	}
	if err := checkText("purpose", d.Purpose, MaxPurpose); err != nil {
		return err
	}
	if d.Life == 0 {
		d.Life = DefaultDelegation
	}
	return checkSeconds("expires_in", d.Life, MinDelegation, MaxDelegation)
}
