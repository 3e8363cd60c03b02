package broker

import "time"

// EventKind says what happened.
type EventKind string

// The kinds of event.
const (
	EventTaskBegun     EventKind = "task.begun"
	EventGrantIssued   EventKind = "grant.issued"
	EventDenied        EventKind = "request.denied"
	EventDeniedMore    EventKind = "requests.denied" // Count of them, beyond those that have events of their own
	EventTaskDelegated EventKind = "task.delegated"  // the purpose and the scopes are the delegation's
	EventTaskAdopted   EventKind = "task.adopted"
	EventTaskEnded     EventKind = "task.ended"
	EventTaskLost      EventKind = "task.lost" // its end key ended it, and the store did not have it: how it may have ended before is in an earlier event
	EventEndMoot       EventKind = "end.moot"  // it was answered while the store was away, and another one had been first
	EventGrantRevoked  EventKind = "grant.revoked"
	EventRevoked       EventKind = "selector.revoked"
	EventApplied       EventKind = "revocation.applied" // a mass action as a whole; what it has ended has events of its own
	EventKeyRevoked    EventKind = "key.revoked"
	EventKeyRotated    EventKind = "key.rotated"
	EventLocked        EventKind = "lock.added"
	EventLifted        EventKind = "lock.lifted"
	EventGrantUsed     EventKind = "grant.used" // a verifier's summary; the actor is the verifier
	EventUsageLost     EventKind = "usage.lost" // it had no room for some of what it checked
)

// Event is one audit fact. It never holds a token.
type Event struct {
	ID   EventID
	Kind EventKind
	Time time.Time // the store's time where the store decided, else the broker's

	Workload string // the SPIFFE ID that it is about
	Owner    string
	Address  string // the peer's
	Actor    string // who asked: a SPIFFE ID, an operator, EndKeyHolder, a source's, or "errand" itself

	Task     TaskID
	TaskPath []TaskID
	TaskName string
	Purpose  string
	Attributes
	Details  Details // of a task: its ceiling's; of a grant: its own
	State    State
	Cause    Cause
	Reason   string
	Grants   int // of an ended task: issued under it, ever
	SubTasks int // of an ended task: begun under it, ever

	Delegators []string     // in whose name it is done
	Delegation DelegationID // by which a task was begun, or which was made or refused
	To         string       // for whom a delegation is
	Audiences  Audiences    // of a delegation
	Holder     int          // of an adopted task

	Grant      GrantID
	Audience   string
	Scopes     Scopes
	Expires    time.Time
	Thumbprint string // of the certificate of who asked; in an event of a grant, of what its token is bound to
	Key        string // the kid that signs the token

	Decision DecisionID
	Allowed  bool
	Rule     string
	Revision string // the policy's

	Count int       // of EventDeniedMore: by the same rule
	First time.Time // of these; Time is that of the last

	Selector Selector
	Lock     LockID
	Unsure   bool // it may not have happened: the store went away while it was written, or the process was killed

	// Reconciled says that another process recorded it than the one that did it, which was killed before it could, or
	// has a log that takes nothing; or perhaps had recorded it already, under the same ID. It has what the store
	// knows: the actor is "" when that may have been one of several, and there is no address. Of a begin, that it was
	// asked for again: the first time may have come to no record, and the decision is that of now.
	Reconciled bool

	Revocation RevocationID    // the mass action that it is part of
	Mass       *MassRevocation // of EventApplied

	Usage *GrantUsage // of a used grant
	Lost  int64       // checks that are in no summary
}
