package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The errors of the domain and of its ports. Compare with errors.Is; the typed ones below carry
// what the sentinel cannot. broker/httpapi has the one table that turns them into answers.
var (
	// ErrInvalid: the request itself is wrong. Always an *Invalid.
	ErrInvalid = errors.New("invalid request")
	// ErrUnregistered: the workload is not in the inventory.
	ErrUnregistered = errors.New("workload not registered")
	// ErrDenied: the policy says no. Always a *Denied.
	ErrDenied = errors.New("denied by policy")
	// ErrScopeExceeded: what was asked for is outside the task's own ceiling. Always a *Denied.
	ErrScopeExceeded = errors.New("outside the task's ceiling")
	// ErrQuarantined: a lock stands. Always a *Quarantined.
	ErrQuarantined = errors.New("quarantined")
	// ErrNotFound: there is no such thing, or it is somebody else's, which is the same.
	ErrNotFound = errors.New("not found")
	// ErrEnded: the task has a final state. Always an *Ended.
	ErrEnded = errors.New("task has ended")
	// ErrUsed: another task has joined by the delegation, which is good for one. Outside of the store always a *Used.
	ErrUsed = errors.New("delegation used")
	// ErrNotDelegate: the delegation is for another workload. Always a *NotDelegate.
	ErrNotDelegate = errors.New("not the delegate")
	// ErrHandleExpired: nobody has joined by the delegation in time. Always a *HandleExpired.
	ErrHandleExpired = errors.New("delegation expired")
	// ErrAdopted: another process of the workload holds the task now.
	ErrAdopted = errors.New("task adopted by another process")
	// ErrEndKey: the end key is not that of this task and workload, or there is none.
	ErrEndKey = errors.New("no good end key")
	// ErrQuota: too many live tasks, grants or children. Always a *QuotaExceeded.
	ErrQuota = errors.New("quota exceeded")
	// ErrMismatch: the idempotency key was used with another request.
	ErrMismatch = errors.New("idempotency key used with another request")
	// ErrTooShort: less than MinTokenLife would have been left.
	ErrTooShort = errors.New("too little life left for a token")
	// ErrBehind: the control list has changed since the decision; decide again. Always a *Behind.
	ErrBehind = errors.New("decided on an old control list")
	// ErrEpoch: the position is of another data set, or of one that has lost data.
	ErrEpoch = errors.New("position of another epoch")
	// ErrUnavailable: the store cannot answer. Nothing happened.
	ErrUnavailable = errors.New("store unavailable")
	// ErrUnconfirmed: the store may or may not have done it; repeat.
	ErrUnconfirmed = errors.New("unconfirmed by the store")
	// ErrAudit: it could not be recorded, so it was not done.
	ErrAudit = errors.New("audit log unavailable")
	// ErrSigning: no key can sign now.
	ErrSigning = errors.New("signing unavailable")
	// ErrTooEarly: verifiers may not have the next key yet; the error says from when on they do.
	ErrTooEarly = errors.New("too early to rotate")
	// ErrNotReady: the broker has not read the store's feed yet, or has lost it.
	ErrNotReady = errors.New("broker not ready")
)

// Invalid is ErrInvalid with the field's name and what is wrong with it.
type Invalid struct {
	Field  string // as the API spells it, "tokens[0].audience"
	Detail string // reads on from the field: "is empty; …"
}

func (e *Invalid) Error() string { return fmt.Sprintf("%v: %s %s", ErrInvalid, e.Field, e.Detail) }

// Is matches ErrInvalid.
func (e *Invalid) Is(target error) bool { return target == ErrInvalid }

func invalid(field, format string, args ...any) error {
	return &Invalid{Field: field, Detail: fmt.Sprintf(format, args...)}
}

// Denied is ErrDenied, or ErrScopeExceeded, with the decision.
type Denied struct {
	Reason   error // ErrDenied or ErrScopeExceeded
	Decision Decision
}

func (e *Denied) Error() string {
	return fmt.Sprintf("%v: %s (rule %s, decision %s)", e.Reason, e.Decision.Detail, e.Decision.Rule, e.Decision.ID)
}

func (e *Denied) Unwrap() error { return e.Reason }

// Quarantined is ErrQuarantined with the lock.
type Quarantined struct{ Lock Lock }

func (e *Quarantined) Error() string {
	return fmt.Sprintf("%v by lock %s until %s: %s", ErrQuarantined, e.Lock.ID, e.Lock.Expires.UTC().Format(time.RFC3339), e.Lock.Reason)
}

// Is matches ErrQuarantined.
func (e *Quarantined) Is(target error) bool { return target == ErrQuarantined }

// Ended is ErrEnded with how and when.
type Ended struct {
	Task  TaskID
	State State
	Cause Cause
	At    time.Time
}

func (e *Ended) Error() string {
	return fmt.Sprintf("%v: %s is %s since %s (cause: %s)", ErrEnded, e.Task, e.State, e.At.UTC().Format(time.RFC3339), e.Cause)
}

// Is matches ErrEnded.
func (e *Ended) Is(target error) bool { return target == ErrEnded }

// Used is ErrUsed with the delegation.
type Used struct{ Delegation DelegationID }

func (e *Used) Error() string {
	return fmt.Sprintf("%v: a task has joined by %s already; ask the delegator for another handle", ErrUsed, e.Delegation)
}

// Is matches ErrUsed.
func (e *Used) Is(target error) bool { return target == ErrUsed }

// NotDelegate is ErrNotDelegate with whose the delegation is.
type NotDelegate struct {
	Delegation DelegationID
	To         spiffeid.ID
}

func (e *NotDelegate) Error() string {
	return fmt.Sprintf("%v: %s is for %s alone", ErrNotDelegate, e.Delegation, e.To)
}

// Is matches ErrNotDelegate.
func (e *NotDelegate) Is(target error) bool { return target == ErrNotDelegate }

// HandleExpired is ErrHandleExpired with when.
type HandleExpired struct {
	Delegation DelegationID
	At         time.Time
}

func (e *HandleExpired) Error() string {
	return fmt.Sprintf("%v: %s could be joined by until %s; ask the delegator for another handle", ErrHandleExpired, e.Delegation, e.At.UTC().Format(time.RFC3339Nano))
}

// Is matches ErrHandleExpired.
func (e *HandleExpired) Is(target error) bool { return target == ErrHandleExpired }

// QuotaExceeded is ErrQuota with what there is too much of.
type QuotaExceeded struct {
	What  string // "live tasks", "live grants", "live children", "verifiers" or "locks"
	Limit int
}

func (e *QuotaExceeded) Error() string {
	most := "at once; end some first"
	switch e.What {
	case "live grants":
		most = "at once; each counts until its token has expired, also when its task has ended: wait, or use a token for longer"
	case "verifiers":
		most = fmt.Sprintf("of one SPIFFE ID; one that is silent for %s is forgotten", VerifierSilence)
	case "locks":
		most = "at once; lift some first, or name workloads by what they begin with, as spiffe://prod/fin/*"
	}
	return fmt.Sprintf("%v: at most %d %s %s", ErrQuota, e.Limit, e.What, most)
}

// Is matches ErrQuota.
func (e *QuotaExceeded) Is(target error) bool { return target == ErrQuota }

// Behind is ErrBehind with the version to catch up with.
type Behind struct {
	Shard   int
	Version uint64
}

func (e *Behind) Error() string {
	return fmt.Sprintf("%v: shard %d is at version %d", ErrBehind, e.Shard, e.Version)
}

// Is matches ErrBehind.
func (e *Behind) Is(target error) bool { return target == ErrBehind }
