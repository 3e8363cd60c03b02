package broker

import (
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of a task. A value outside is ErrInvalid with the field and the bound in its text.
const (
	MinLease        = 5 * time.Second
	DefaultLease    = 30 * time.Second
	MaxLease        = 10 * time.Minute
	MinDeadline     = 5 * time.Second
	DefaultDeadline = time.Hour
	MaxDeadline     = 24 * time.Hour

	MaxDepth     = 8    // tasks on the path from the root, both ends counted
	MaxChildren  = 1000 // live children of one task
	MaxName      = 128  // bytes of a task's name
	MaxPurpose   = 1024 // bytes of a task's purpose
	MaxKey       = 128  // bytes of an idempotency key
	MaxHeartbeat = 1000 // tasks in one heartbeat
	MaxStreamID  = 64   // bytes of the stream that a heartbeat names

	// AttachTime is how long a presence task that has begun may be without a stream, and PresenceGrace one
	// whose stream was lost. Nothing of this is longer than its lease.
	AttachTime    = 5 * time.Second
	PresenceGrace = time.Second
	MaxTokens     = 16 // tokens begun with a task in one request
)

// Task is one bounded piece of work of one workload. All its tokens die with it, and so do its
// descendants and theirs.
type Task struct {
	ID       TaskID
	Path     []TaskID // from the root to the task itself
	Workload spiffeid.ID
	Name     string // the stable kind of work, as "nightly-export"
	Purpose  string // why, for the audit log
	Ceiling  Ceiling
	Attributes

	Begun    time.Time
	Lease    time.Duration
	LeaseEnd time.Time // the last heartbeat and the lease: the task lapses then
	Deadline time.Time // the task expires then, whatever the heartbeats

	// State, Cause and Ended are as of the store's time of the answer that brought the task: a
	// task past its lease is Lapsed whether or not a sweeper has come by.
	State State
	Cause Cause
	Ended time.Time // zero while active

	// Note is what came with the last heartbeat that had one, and Noted when that was.
	Note  string
	Noted time.Time

	// Presence binds the task to a stream of its client. Stream is the one, and "" while there is none, when the
	// lease has been cut short. Only a heartbeat that names it extends the lease.
	Presence bool
	Stream   StreamID

	// Holder counts who has held the task: 1 is who began it, and each that adopts it is the next.
	Holder int

	// Delegators are the workloads in whose name the task's does it, the first one first; none for a task of
	// its own. They do not change below a task until another one joins.
	Delegators []spiffeid.ID
}

// Subjects are the workloads that a task or its tokens are of: its own, and all in whose name it acts. A
// selector or lock that means one of them means the task.
func (t Task) Subjects() []string {
	out := []string{t.Workload.String()}
	for _, id := range t.Delegators {
		out = append(out, id.String())
	}
	return out
}

// HeldByOther reports whether somebody else than the holder of that number holds the task; 0 is whoever it is.
func (t Task) HeldByOther(holder int) bool { return holder != 0 && holder != t.Holder }

// Root is the outermost task of the tree: the txn claim of its tokens.
func (t Task) Root() TaskID { return t.Path[0] }

// Parent is the task above, and "" for a root.
func (t Task) Parent() TaskID {
	if len(t.Path) < 2 {
		return ""
	}
	return t.Path[len(t.Path)-2]
}

// Clone returns a copy that shares no memory with t.
func (t Task) Clone() Task {
	t.Path = slices.Clone(t.Path)
	t.Ceiling = t.Ceiling.Clone()
	t.Attributes = t.Attributes.Clone()
	t.Delegators = slices.Clone(t.Delegators)
	return t
}

// Ceiling is the most that a task's tokens may say. It is fixed when the task begins.
type Ceiling struct {
	Audiences Audiences
	Scopes    Scopes
	Details   Details // none means none: unlike the others there is nothing to fill it from
}

// Clone returns a copy that shares no memory with c.
func (c Ceiling) Clone() Ceiling {
	return Ceiling{Audiences: slices.Clone(c.Audiences), Scopes: slices.Clone(c.Scopes), Details: slices.Clone(c.Details)}
}

// State is where a task is in its life. Everything but Active is final.
type State string

// The states of a task.
const (
	Active    State = "active"
	Completed State = "completed" // the caller: the work is done
	Failed    State = "failed"    // the caller: the work went wrong
	Canceled  State = "canceled"  // the caller gave up, or the task above ended
	Lapsed    State = "lapsed"    // heartbeats stopped for longer than the lease
	Expired   State = "expired"   // the deadline passed
	Revoked   State = "revoked"   // an operator, or the trust domain was withdrawn
)

// Final reports whether nothing follows.
func (s State) Final() bool { return s != Active }

// Cause says what brought a task to its final state.
type Cause string

// The causes of an end.
const (
	CauseCaller   Cause = "caller"
	CauseLease    Cause = "lease"
	CauseDeadline Cause = "deadline"
	CausePresence Cause = "presence" // its client's connection was lost
	CauseParent   Cause = "parent"
	CauseOperator Cause = "operator"
	CauseRef      Cause = "ref"      // what its reference names has ended, says a source
	CauseIdentity Cause = "identity" // its trust domain is not trusted any more
	CauseAudit    Cause = "audit"    // it could not be recorded, so it must not be
	CauseSigning  Cause = "signing"
)

// Due returns the moment that the task ends by itself if nothing else happens, and how.
func (t Task) Due() (at time.Time, state State, cause Cause) {
	if t.Deadline.After(t.LeaseEnd) {
		if t.Presence && t.Stream == "" {
			return t.LeaseEnd, Lapsed, CausePresence
		}
		return t.LeaseEnd, Lapsed, CauseLease
	}
	return t.Deadline, Expired, CauseDeadline
}

// AsOf returns the task as it is at now, given its stored ancestors from the root down to its
// parent. The earliest end on the path decides, so a task ends with the first ancestor that does,
// and exactly when a lease or deadline passes, not when somebody notices. It is the one definition
// of liveness: both stores answer with it or with a script that says the same.
func (t Task) AsOf(now time.Time, ancestors []Task) Task {
	out := t.endedBy(now)
	for _, a := range ancestors {
		a = a.endedBy(now)
		if a.State.Final() && (!out.State.Final() || a.Ended.Before(out.Ended)) {
			out.State, out.Cause, out.Ended = Canceled, CauseParent, a.Ended
		}
	}
	return out
}

// endedBy applies the task's own lease and deadline. A moment is past when now has reached it.
func (t Task) endedBy(now time.Time) Task {
	if t.State.Final() {
		return t
	}
	if at, state, cause := t.Due(); !now.Before(at) {
		t.State, t.Cause, t.Ended = state, cause, at
	}
	return t
}
