package wire

import "time"

// Paths of the operator listener (mutual TLS with the X.509-SVID of an operator, or a certificate that the broker lists). Each says which role
// it needs.
const (
	PathKeys      = "/v1/keys"             // GET: viewer
	PathKeyRotate = "/v1/keys/rotate"      // POST: admin
	PathKeyRevoke = "/v1/keys/{id}/revoke" // POST: admin; the ID is a kid
)

// KeyList is the answer to a GET of PathKeys: the next key, the active one, the retiring ones, and the
// last that are gone; the newest first.
type KeyList struct {
	Keys []Key `json:"keys"`
}

// Key is a signing key, without its private half.
type Key struct {
	ID          string     `json:"kid"`
	Algorithm   string     `json:"algorithm"`
	State       string     `json:"state"` // next, active, retiring or gone
	CreatedAt   time.Time  `json:"created_at"`
	ActivatedAt *time.Time `json:"activated_at,omitempty"`
	RetiredAt   *time.Time `json:"retired_at,omitempty"`
	GoneAt      *time.Time `json:"gone_at,omitempty"` // when it leaves, or has left, the published set
	Revoked     bool       `json:"revoked"`           // it was taken away before its time
}

// OperatorRequest is the body of an operator's command that needs no more than a reason.
type OperatorRequest struct {
	Reason string `json:"reason"` // required; for the audit log, and whoever meets the effect
}

// KeyRotation is the answer to a rotation.
type KeyRotation struct {
	Active string `json:"active"` // the kid that signs from now on
}

// KeyRevocation is the answer to the revocation of a key: 200, or 202 when the store is away. Then the key is out of use
// at this replica, whose verifiers hear of it at once; the others do when the store is back, unless this replica ends before.
type KeyRevocation struct {
	Event     string    `json:"event"`
	Key       string    `json:"kid"`
	Reason    string    `json:"reason"`
	RevokedAt time.Time `json:"revoked_at"`
	Feed      string    `json:"feed,omitempty"` // the position at which verifiers know; none yet with 202
	Durable   bool      `json:"durable"`        // the store has it
}

// More paths of the operator listener, beside GETs of PathTasks, PathTask and PathGrant, for which a viewer does:
// a TaskList, a TaskItem, a GrantItem. Lists take filters, page_size and cursor as query parameters; with
// "Accept: text/event-stream" they are watched. The filters are the members of a Selector but All, and state,
// repeated for several: of tasks as Task.State, of grants GrantLive or GrantDead. Without one it is all of them.
const (
	PathGrants      = "/v1/grants"             // GET: viewer
	PathGrantRevoke = "/v1/grants/{id}/revoke" // POST: operator; an OperatorRequest, answered with a Revocation
	PathTaskTree    = "/v1/tasks/{id}/tree"    // GET: viewer; the task and all below it, as a TaskList with LiveGrants, by page_size and cursor
	PathTaskRevoke  = "/v1/tasks/{id}/revoke"  // POST: operator; as PathGrantRevoke, with all below the task
	PathRevocations = "/v1/revocations"        // GET: viewer, a RevocationList by page_size and cursor; POST: operator
	PathRevocation  = "/v1/revocations/{id}"   // GET: viewer
	PathLocks       = "/v1/locks"              // GET: viewer; POST: operator
	PathLock        = "/v1/locks/{id}"         // GET: viewer; DELETE: operator, ?reason=
	PathVerifiers   = "/v1/verifiers"          // GET: viewer
)

// States of a grant, as a filter of lists.
const (
	GrantLive = "live"
	GrantDead = "dead"
)

// Selector says what a mass action is about. Members are a conjunction, the values of one a disjunction. The
// empty selector is refused; everything is All. In a list's query the names are the same, and a member with
// several values is repeated.
type Selector struct {
	Workload []string          `json:"workload,omitempty"` // a SPIFFE ID, or one that ends in /* and means all below it
	Owner    []string          `json:"owner,omitempty"`    // of the workload's registration
	Risk     []string          `json:"risk,omitempty"`     // of the workload's registration
	Audience []string          `json:"audience,omitempty"`
	Scope    []string          `json:"scope,omitempty"`
	Name     []string          `json:"name,omitempty"`  // of the task
	Label    map[string]string `json:"label,omitempty"` // of the task; in a query label=KEY=VALUE
	Ref      string            `json:"ref,omitempty"`   // of the task: "KIND:ID"
	Root     string            `json:"root,omitempty"`  // the whole tree of this root task
	Task     []string          `json:"task,omitempty"`  // these tasks and all below them
	Grant    []string          `json:"grant,omitempty"`

	IssuedBefore *time.Time `json:"issued_before,omitempty"` // of grants: by the store's clock

	All bool `json:"all,omitempty"`
}

// What a revocation takes away.
const (
	WhatGrants = "grants" // the tokens that are out; the tasks go on, and may get new ones
	WhatTasks  = "tasks"  // the tasks, everything below them, and their tokens
)

// RevocationRequest revokes. With DryRun nothing happens and the answer is a RevocationPlan; with Plan it does
// what that plan said, unless much more would be hit by now; with neither it acts at once.
type RevocationRequest struct {
	Selector *Selector `json:"selector,omitempty"`
	What     string    `json:"what,omitempty"` // WhatGrants or WhatTasks; tasks when absent and the selector names tasks, else grants
	Plan     string    `json:"plan,omitempty"` // in the place of Selector and What

	Reason string `json:"reason,omitempty"` // required unless DryRun
	Ticket string `json:"ticket,omitempty"`
	DryRun bool   `json:"dry_run,omitempty"`

	MaxAffected *int `json:"max_affected,omitempty"` // refuse when more live grants would be hit, or more tasks end, all below others included, by a count right before
	WaitSeconds int  `json:"wait_seconds,omitempty"` // as in EndRequest
}

// RevocationPlan says what a revocation would do now.
type RevocationPlan struct {
	Plan      string    `json:"plan"` // good for ExpiresIn seconds, for whoever asked
	ExpiresIn int64     `json:"expires_in"`
	Selector  Selector  `json:"selector"`
	What      string    `json:"what"`
	Grants    int       `json:"grants"`  // live ones that it hits
	Tasks     int       `json:"tasks"`   // active ones that end, all below others included, or that these grants are of
	Entries   int       `json:"entries"` // to write: one for each grant, and each task that ends with all below, if it had tokens; one to each shard for a combination
	Workloads []Counted `json:"workloads"`
	Owners    []Counted `json:"owners"`
	Audiences []Counted `json:"audiences"`
	Sample    []Grant   `json:"sample"`   // at most 10
	Complete  bool      `json:"complete"` // false: there was more than could be counted in time; all of it is hit

	// Unknown are names of the selector that the inventory does not have, as "audience=ordres": mostly they are misspelt.
	Unknown []string `json:"unknown,omitempty"`
}

// Counted is a name and how many live grants it has in a plan, the most first, at most 20.
type Counted struct {
	Name   string `json:"name"`
	Grants int    `json:"grants"`
}

// Revocation is the record of one, kept for a day.
type Revocation struct {
	ID       string    `json:"id"`
	Event    string    `json:"event"` // revocation.applied, the last of its audit events, which sums them up
	Selector Selector  `json:"selector"`
	What     string    `json:"what"`
	Reason   string    `json:"reason"`
	Ticket   string    `json:"ticket,omitempty"`
	Actor    string    `json:"actor"`
	At       time.Time `json:"at"`
	Grants   *int      `json:"grants,omitempty"` // live ones that it hit, if they were counted or it ended them by ID
	Tasks    int       `json:"tasks"`            // that it ended by their IDs; all below these are dead as well, and not counted
	Entries  int       `json:"entries"`          // that it wrote, as in RevocationPlan
	TookMS   float64   `json:"took_ms"`          // until it was in force for look-ups
	Feed     string    `json:"feed"`             // the position at which verifiers know
	Durable  bool      `json:"durable"`

	// Left says what is not done, when the store went away in between or the time for one request was over; the
	// status is then 202. To repeat the request is safe.
	Left string `json:"left,omitempty"`

	Propagation *Propagation `json:"propagation,omitempty"` // as of the answer, when it was waited for
	Unknown     []string     `json:"unknown,omitempty"`     // as in RevocationPlan, in the answer alone
}

// RevocationList is a page of the revocations of the last day, the newest first.
type RevocationList struct {
	Items      []Revocation `json:"items"`
	NextCursor string       `json:"next_cursor,omitempty"`
}

// LockRequest denies new tasks and tokens to what the selector means: members that name tasks or grants are
// refused. It becomes one lock for each combination of values, at most 100.
type LockRequest struct {
	Selector  Selector `json:"selector"`
	Revoke    bool     `json:"revoke"`              // also the tokens that are out, after the lock is in force; running tasks go on without them
	EndTasks  bool     `json:"end_tasks,omitempty"` // as Revoke, and the running tasks end, too
	Reason    string   `json:"reason"`
	Ticket    string   `json:"ticket,omitempty"`
	ExpiresIn int64    `json:"expires_in"` // seconds, at most 30 days; required
}

// LockResponse answers it.
type LockResponse struct {
	Locks      []OperatorLock `json:"locks"`
	Revocation *Revocation    `json:"revocation,omitempty"`

	// Left says that the locks are in force and the revocation that was asked for has failed; the status is then 202. To
	// repeat the request is safe.
	Left string `json:"left,omitempty"`

	Unknown []string `json:"unknown,omitempty"` // as in RevocationPlan
}

// OperatorLock is a lock as operators see it.
type OperatorLock struct {
	ID        string    `json:"id"`
	Subject   string    `json:"subject,omitempty"` // a SPIFFE ID, or one that ends in /*
	Audience  string    `json:"audience,omitempty"`
	Scope     string    `json:"scope,omitempty"`
	Reason    string    `json:"reason"`
	Actor     string    `json:"actor"`
	Since     time.Time `json:"since"`
	ExpiresAt time.Time `json:"expires_at"`

	// Stood says that such a lock stood already, with its own reason and expiry, and that nothing was added.
	Stood bool `json:"stood,omitempty"`
}

// LockList is the answer to a GET of PathLocks.
type LockList struct {
	Locks []OperatorLock `json:"locks"`
}

// TaskList is a page of tasks, with what operators see beside the task. One may have fewer than were asked for,
// or none, and go on all the same: until there is no NextCursor.
type TaskList struct {
	Items      []TaskItem `json:"items"`
	NextCursor string     `json:"next_cursor,omitempty"`
}

// TaskItem is a task with its workload's registration.
type TaskItem struct {
	Task
	Owner string `json:"owner"`
	Risk  string `json:"risk,omitempty"`

	LiveGrants *int `json:"live_grants,omitempty"` // in a tree: its own, and not those of the tasks below it
}

// GrantList is a page of grants, as TaskList.
type GrantList struct {
	Items      []GrantItem `json:"items"`
	NextCursor string      `json:"next_cursor,omitempty"`
}

// GrantItem is a grant with what operators want to know of its task.
type GrantItem struct {
	Grant
	Owner    string   `json:"owner"`
	TaskName string   `json:"task_name"`
	Purpose  string   `json:"purpose"`
	TaskPath []string `json:"task_path"`
}

// VerifierList is the answer to a GET of PathVerifiers.
type VerifierList struct {
	Position  string     `json:"position"` // the feed's, as of now
	Verifiers []Verifier `json:"verifiers"`
}

// Verifier is a running resource server as the broker knows it.
type Verifier struct {
	ID       string    `json:"id"`
	Workload string    `json:"workload"`
	Audience string    `json:"audience"`
	Position string    `json:"position"`
	Behind   uint64    `json:"behind"` // changes that it has not confirmed
	SeenAt   time.Time `json:"seen_at"`
	MaxStale int64     `json:"max_stale"`
	Version  string    `json:"version,omitempty"`
}

// Events of a watched list. Each carries an item; of EventRemoved only the ID.
const (
	EventAdded   = "added"
	EventChanged = "changed"
	EventRemoved = "removed"
	EventCurrent = "current" // everything that was there has been told; what follows is news
)
