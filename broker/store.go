package broker

import (
	"context"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Store keeps the live tasks, grants, locks and denials. This comment and those below are its
// contract; store/storetest checks a store against them.
//
// Atomicity: each Grant, and each target of one End, happens whole or not at all, and is seen whole
// by every later call of any replica.
//
// Time: the store's own clock decides every life, and never goes backwards. A moment has passed
// when that clock has reached it. No caller's clock is ever compared with a stored moment.
//
// Order: each shard numbers its feed entries 1, 2, 3…; a grant carries the number that its shard
// had reached when it was committed.
//
// Durability: what a nil error reports has happened; a Receipt says in Durable whether it survives
// what the store is configured to survive. ErrUnavailable means that nothing happened,
// ErrUnconfirmed that it may have: repeating a call is always safe.
//
// Loss: a store that notices that it has lost data begins another data set, with a later epoch. Tasks
// and grants of before are unknown in it, since their ends may be what was lost.
//
// A context that ends makes a call return early with ErrUnconfirmed at the worst; it never undoes
// anything.
type Store interface {
	// Grant begins a task, issues grants in one, or both, in one step, and writes nothing unless
	// all of it can be done. In this order it returns
	//
	//   ErrMismatch  the idempotency key belongs to another request of this workload
	//   ErrNotFound  no such task or parent, or one of another workload; of a join, one not of the Delegator
	//   ErrEnded     the task, the parent, or a task above has ended
	//   ErrUsed      another task has joined by this delegation
	//   ErrInvalid   the tree would be deeper than MaxDepth
	//   ErrBehind    the shard's control list is newer than the one decided on
	//   ErrQuota     of live tasks, children or grants
	//   ErrTooShort  a grant would have less than MinTokenLife between Issued and Expires
	//
	// A begin that repeats an idempotency key with the same digest is a replay: it writes nothing
	// and returns the task with those grants of the first time that have not expired. A replay of
	// a task that has ended is ErrEnded. Keys are kept as long as their task.
	//
	// A join is a begin below a task of another workload, by a delegation that is good for one: until Until it
	// is ErrUsed for every other join in the shard, and not known any more from then on. Whether it is over is
	// the caller's to say. A replay uses nothing. A join without a parent or a Delegator is ErrNotFound.
	//
	// A child's deadline is its parent's at the latest. Of a grant, Issued is the commit's time
	// rounded down to a second, and Expires the earliest of that time plus Life, the task's
	// deadline and NotAfter, rounded down. Both depend on nothing else, a heartbeat included.
	Grant(context.Context, GrantRequest) (GrantReply, error)

	// Heartbeat extends the lease of each task to the store's time plus the lease, unless the
	// task has ended; a deadline is never moved. With it, and in the same step, the task gets the
	// beat's note, if that has one, and the store's time as its moment. The replies are in the order of the beats. A
	// task that is unknown or another workload's has ErrNotFound in its reply.
	//
	// A task with Presence begins without a stream, and with a lease of AttachTime if its own is longer. A
	// beat that says Attach binds it to the beat's Stream, instead of any other, and extends the lease. One that
	// says Lost, if it is bound to the beat's Stream, takes that away and shortens the lease to the store's
	// time plus PresenceGrace; else it does nothing. Any other beat extends the lease only if the task is bound to
	// the beat's Stream: one that names none, or another, says nothing about the presence of the task's client, and
	// may be older than a loss. So a task whose stream nobody has any more, since its replica has gone, ends a
	// lease after the last beat that named it, however it is beaten. For other tasks a beat with Lost does nothing,
	// and neither Attach nor Stream is anything.
	//
	// A task has one holder at a time, by number: 1 is who began it. A beat that says Adopt makes the caller the
	// next one, takes the stream away whatever the beat says of one, and makes the lease what it is when the task
	// begins; repeated, it does so again. A beat that names another holder than the task has does nothing at all,
	// and its reply has the task as it is.
	Heartbeat(context.Context, []Beat) ([]Pulse, error)

	// End puts each target into its final state and writes one feed entry for it, however large
	// the tree below. Targets are independent of each other; the replies are in their order. One that
	// cannot be told of, as when its shard is away, holds up no other: it has ErrUnavailable or
	// ErrUnconfirmed in its reply. Only when that is so of all of them End itself fails, with
	// ErrUnconfirmed if any may have happened.
	//
	// The first end wins. A task that is already past its lease or deadline, or below a task that
	// has ended, gets the state and the moment of that; whichever call writes it has First true.
	// A task that ends with CauseAudit or CauseSigning was never handed out: it gives its idempotency
	// key up, so that the request can be repeated, and while it is known the delegation that it joined by.
	// Repeating an end returns the receipt of the first with First false. A target that is unknown
	// or another workload's has ErrNotFound in its reply; a live task that has another holder than the one
	// who ends it has ErrAdopted, and goes on. One that has ended already has its receipt for every holder.
	//
	// With Lost, a task that Lookup would not find is ended all the same, unless Margin has passed
	// since Lost or the ID is another workload's. No token of it can live longer than MaxTokenLife from
	// now, nor than Lost: Margin after the earlier of these it is forgotten. Until then it is kept in
	// its final state, knows its ID, workload and deadline and nothing of what it was, stands alone on
	// its path, and has one entry, addressed to everybody. It counts for no quota, and a begin with its
	// ID is ErrEnded.
	//
	// A task's entry is addressed to the audiences of all grants ever issued in its tree, and is
	// kept until the last of those issued at or below it expires, plus Margin; if that has passed,
	// or none was issued, or a task above was ended by a write and so has an entry that covers it,
	// there is none. A grant's entry is addressed to its audience. Entries
	// of the other kinds are addressed to everybody and kept for MaxTokenLife plus Margin; they
	// are written to every shard, and so are locks.
	End(context.Context, []Ending) ([]EndReply, error)

	// Lookup returns a task, or a grant with its task, as of the store's time. A task whose
	// ancestor is missing is ErrNotFound: never alive, and never in a final state. Ended tasks
	// stay visible until their last grant has expired and Margin has passed, and for Margin at
	// least.
	Lookup(context.Context, Ref) (Record, error)

	// List returns tasks or grants in the order of their places, at most Limit of them (1 to MaxPage; 0 means
	// MaxPage), from after the cursor. It returns what Lookup would find, whatever its state, and each as of one
	// moment. What is there from the first page to the last is in one of them, once; what comes or goes
	// meanwhile may be. A page may be shorter than it could be, or empty, and have a Next all the same, when it
	// takes a long search to find more. What Query.Check refuses is ErrInvalid.
	List(context.Context, Query) (Page, error)

	// Watch delivers, from the position on, every entry of every shard that has not passed its
	// Until, in the order of each shard's numbers, and the control lists. It delivers at once,
	// then whenever there is something new, and at least every 200 ms a position even when there
	// is not. It returns only with an error: the context's, what emit returned, ErrUnavailable,
	// or ErrEpoch when the position is not one of this data set.
	//
	// Entries are trimmed by time only, so a reader that comes back misses nothing that matters.
	Watch(ctx context.Context, from Position, emit func(Update) error) error
}

// MaxPage bounds a List.
const MaxPage = 500

// WatchInterval is the longest that Watch may be silent.
const WatchInterval = 200 * time.Millisecond

// GrantRequest asks for a task, for grants, or for both.
type GrantRequest struct {
	Workload spiffeid.ID
	Task     TaskID     // the task; of a begin, the new one's ID
	Begin    *Beginning // nil for grants in a task that is there
	Grants   []Asked
	Control  uint64 // the version of the shard's control list that was decided on
	Quota    Quota
}

// on is the task that must be alive for it: "" for a root.
func (r GrantRequest) on() TaskID {
	if r.Begin != nil {
		return r.Begin.Parent
	}
	return r.Task
}

// Beginning describes a task that is to begin now.
type Beginning struct {
	Parent  TaskID // "" for a root
	Join    *Join  // nil for a task of the parent's workload
	Name    string
	Purpose string
	Ceiling Ceiling
	Attributes
	Delegators []spiffeid.ID // the task's; kept as they are
	Lease      time.Duration
	Deadline   time.Duration // from now
	Presence   bool
	Key        string   // idempotency key; "" for none
	Digest     [32]byte // of the request that the key stands for
}

// Join is the delegation by which a task begins below one of another workload.
type Join struct {
	Delegation DelegationID
	Delegator  spiffeid.ID // whose the parent is
	Until      time.Time   // when the delegation is over
}

// Asked is a grant that is to be issued.
type Asked struct {
	ID         GrantID
	Audience   string
	Scopes     Scopes
	Details    Details
	Binding    Binding
	Thumbprint string
	Decision   DecisionID
	Life       time.Duration
	NotAfter   time.Time // of the SVID; zero for no such bound
}

// Quota bounds what may be live. Tasks and children count until they are ended themselves or their
// own lease or deadline passes; grants count until they expire. Zero means no bound.
type Quota struct {
	Tasks    int // of the workload
	Grants   int // of the workload
	Children int // of the parent
}

// GrantReply is what a Grant made, or had made when it is a replay.
type GrantReply struct {
	Task     Task
	Grants   []Grant
	Now      time.Time // the store's
	Control  uint64    // the version of the shard's control list
	Replayed bool
}

// Beat says that a task of a workload is still being worked on.
type Beat struct {
	Task     TaskID
	Workload spiffeid.ID
	Note     string // "" leaves the last one

	Stream StreamID // the one that the client has open, "" for none
	Attach bool     // the task is the stream's from now on
	Lost   bool     // the stream is over, and its client is not known to live

	Holder int  // who beats, as the task counts them; 0 for whoever it is
	Adopt  bool // the caller is the holder from now on, and all who were are not
}

// Apply returns the task that has not ended as it is after the beat. Both stores answer with it, or with a
// script that says the same.
func (b Beat) Apply(t Task, now time.Time) Task {
	switch {
	case t.HeldByOther(b.Holder):
		return t
	case b.Adopt:
		t.Holder++
		t.Stream = ""
		t.LeaseEnd = now.Add(firstLease(t.Lease, t.Presence))
	case b.Lost && t.Presence && b.Stream != "" && b.Stream == t.Stream:
		t.Stream = ""
		if cut := now.Add(PresenceGrace); cut.Before(t.LeaseEnd) {
			t.LeaseEnd = cut
		}
		return t
	case b.Lost:
		return t
	default:
		if t.Presence && b.Attach && b.Stream != "" {
			t.Stream = b.Stream
		}
		if !t.Presence || b.Stream != "" && b.Stream == t.Stream {
			t.LeaseEnd = now.Add(t.Lease)
		}
	}
	if b.Note != "" {
		t.Note, t.Noted = b.Note, now
	}
	return t
}

// FirstLease is how long a task has that begins, until its first heartbeat or stream.
func (b Beginning) FirstLease() time.Duration { return firstLease(b.Lease, b.Presence) }

func firstLease(lease time.Duration, presence bool) time.Duration {
	if presence {
		return min(lease, AttachTime)
	}
	return lease
}

// Pulse is the answer to a Beat.
type Pulse struct {
	Task Task // as of Now
	Now  time.Time
	Err  error // ErrNotFound, from the broker also ErrAdopted, or nil
}

// TargetKind says what is to end.
type TargetKind string

// The kinds of target.
const (
	TargetTask     TargetKind = "task"
	TargetGrant    TargetKind = "grant"
	TargetKey      TargetKind = "key"
	TargetSelector TargetKind = "selector"
	TargetAll      TargetKind = "all"
	TargetLock     TargetKind = "lock" // adds a lock
	TargetLift     TargetKind = "lift" // takes one away
)

// Ending asks to end one target. Only the field that Kind names is read.
type Ending struct {
	Kind     TargetKind
	Task     TaskID
	Grant    GrantID
	Key      string
	Selector Selector
	Lock     Lock // Since is the store's to set

	// Workload, when set, is the only one whose tasks and grants may be ended.
	Workload spiffeid.ID
	State    State // a task's final state
	Cause    Cause
	Reason   string
	Event    EventID // kept in the receipt
	Holder   int     // of a task: only while it has this holder; 0 for whoever it is
	IfDue    bool    // only a task whose lease or deadline has passed; State and Cause are the store's to set

	// Lost, when set, is the deadline of a task of Workload that is known to have begun, also when
	// the store has lost it. ErrInvalid without Workload.
	Lost time.Time
}

// EndReply is the answer to an Ending. With IfDue, a task that is not due is not ended: First is
// false and the receipt's state is Active.
type EndReply struct {
	Receipt Receipt
	Task    Task // of a task or grant target
	Grant   Grant
	Err     error // ErrNotFound, ErrAdopted, ErrInvalid for an ending that makes no sense, ErrUnavailable, ErrUnconfirmed, or nil

	// Audiences are those whose verifiers must know, sorted: of a task or grant target, those that had tokens in
	// its tree or the grant's one; nil for every audience, which is right for all other kinds.
	Audiences []string
}

// Receipt is the statement about one end. It is evidence: Event is in the audit log.
type Receipt struct {
	Event  EventID
	Task   TaskID
	Grant  GrantID
	State  State
	Cause  Cause
	Reason string
	Ended  time.Time

	Grants   int // issued under the task, ever, descendants included
	SubTasks int // begun under the task, ever

	Feed    Position // everything about this end is in the feed up to here
	Durable bool
	First   bool // this call ended it

	Propagation *Propagation // of an end that was waited for, if it can be said; stores leave it nil
}

// Ref names a grant, or a task when Grant is "".
type Ref struct {
	Task  TaskID
	Grant GrantID
}

// Record is the answer to a Lookup.
type Record struct {
	Task    Task
	Grant   Grant // zero for a task
	Now     time.Time
	Control uint64 // the version of the shard's control list
}

// Query selects tasks, or grants. What is set must all hold; at most one of Of, Below, Ref, Due and Ended is set.
type Query struct {
	Grants   bool        // the grants of the tasks that are selected, in the place of these
	Workload spiffeid.ID // zero for all
	Of       TaskID      // this task alone
	Below    TaskID      // this task and all below it
	Ref      TaskRef     // only those that have it; the URL is not looked at
	Due      bool        // only those past their lease or deadline that nobody has ended; not for grants
	Ended    EventRange  // only those that somebody has ended, with an event in there; not for grants
	Limit    int
	After    string // the cursor: Next of the page before, or a Place
}

// EventRange is the events from one on and before another, in the order of their IDs' bytes.
type EventRange struct {
	From, Until EventID
}

// Has reports whether an event is in there.
func (r EventRange) Has(id EventID) bool { return r.From <= id && id < r.Until }

// Page is the answer to a List.
type Page struct {
	Tasks  []Task
	Grants []Record // with their tasks; Now and Control are not set
	Next   string   // the cursor for what follows, "" when nothing does
	Now    time.Time
}

// Update is one delivery of Watch.
type Update struct {
	// Position: everything up to here has been delivered.
	Position Position
	// Entries are new since the last delivery.
	Entries []Entry
	// Controls are the control lists of all shards, whole; nil when they have not changed since
	// the last delivery. The first delivery has them.
	Controls []Control
	// Age is how old the read may be that proves the position.
	Age time.Duration
	// Now is the store's time.
	Now time.Time
}
