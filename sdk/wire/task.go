package wire

import (
	"encoding/json"
	"time"
)

// BeginRequest begins a task, and with Tokens its first grants in the same step. The
// Idempotency-Key header makes it safe to repeat.
//
// At PathTaskChildren it begins a child: a task below another one of the same workload, which ends with
// that one at the latest. The child's ceiling is within its parent's, and what it asks for beyond that
// is refused.
type BeginRequest struct {
	Name    string `json:"name"`    // the stable kind of work; required
	Purpose string `json:"purpose"` // why, for the audit log; required

	// The ceiling. Empty means what the policy allows, and for a child what its parent has; one that names
	// some of its parent's audiences and no scopes has those of its parent's that are allowed there.
	Audiences []string `json:"audiences,omitempty"`
	Scopes    []string `json:"scopes,omitempty"`

	// AuthorizationDetails are part of the ceiling (RFC 9396): objects, each with a "type" that one of
	// the audiences knows. A token may have those of them that it asks for, as they are. At most 16.
	AuthorizationDetails []json.RawMessage `json:"authorization_details,omitempty"`

	Ticket  string            `json:"ticket,omitempty"`  // a change or incident reference
	Ref     *Ref              `json:"ref,omitempty"`     // what the task is in another system
	Labels  map[string]string `json:"labels,omitempty"`  // for search; at most 16
	Context json.RawMessage   `json:"context,omitempty"` // an object that a policy may look at, for the audit log

	LeaseSeconds    *int64         `json:"lease_seconds,omitempty"`    // 5 to 600; 30 when absent
	DeadlineSeconds *int64         `json:"deadline_seconds,omitempty"` // from now, 5 to 86400; 3600 when absent; cut at a parent's
	Tokens          []TokenRequest `json:"tokens,omitempty"`           // at most 16

	// Presence ends the task within two seconds when the caller's connection is lost, the one over which it
	// follows the task (PathEvents). It has five seconds to begin that.
	Presence bool `json:"presence,omitempty"`
}

// TokenRequest asks for one token in a task.
type TokenRequest struct {
	Audience   string   `json:"audience"`              // required
	Scopes     []string `json:"scopes,omitempty"`      // none: as many of the task's as the audience knows
	TTLSeconds *int64   `json:"ttl_seconds,omitempty"` // 2 to 900; 60 when absent

	// AuthorizationDetails are some of the task's; none: none.
	AuthorizationDetails []json.RawMessage `json:"authorization_details,omitempty"`
}

// Ref names an object in another system, so that whoever watches that can end the task.
type Ref struct {
	Kind string `json:"kind"`          // as "k8s/job"; required
	ID   string `json:"id"`            // as the system knows it; required
	URL  string `json:"url,omitempty"` // where people look at it
}

// Task is a task as of the answer.
type Task struct {
	ID        string   `json:"id"`
	Root      string   `json:"root"`
	Path      []string `json:"path"`
	Workload  string   `json:"workload"`
	Name      string   `json:"name"`
	Purpose   string   `json:"purpose"`
	Audiences []string `json:"audiences"`
	Scopes    []string `json:"scopes"`

	AuthorizationDetails []json.RawMessage `json:"authorization_details,omitempty"`

	Ticket  string            `json:"ticket,omitempty"`
	Ref     *Ref              `json:"ref,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Context json.RawMessage   `json:"context,omitempty"` // in canonical form (RFC 8785)

	State   string     `json:"state"`
	Cause   string     `json:"cause,omitempty"`
	BegunAt time.Time  `json:"begun_at"`
	EndedAt *time.Time `json:"ended_at,omitempty"`

	LeaseSeconds   int64     `json:"lease_seconds"`
	LeaseExpiresAt time.Time `json:"lease_expires_at"`
	Deadline       time.Time `json:"deadline"`

	Presence bool `json:"presence,omitempty"` // it ends with the stream that follows it

	Holder     int      `json:"holder"`               // who holds it: 1 for who began it, and one more for each that adopts it
	Delegators []string `json:"delegators,omitempty"` // in whose name it is done, the first one first

	Note    string     `json:"note,omitempty"` // of the last heartbeat that had one
	NotedAt *time.Time `json:"noted_at,omitempty"`
}

// BeginResponse is the answer to a BeginRequest, in the order of its Tokens.
type BeginResponse struct {
	Task   Task            `json:"task"`
	Tokens []TokenResponse `json:"tokens,omitempty"`

	// EndKey is a secret that can do one thing: end this task for this workload, also while the
	// broker cannot reach its store. Send it back with the end.
	EndKey string `json:"end_key"`
}

// TokenResponse carries a token, in the shape of RFC 6749 §5.1.
type TokenResponse struct {
	AccessToken string   `json:"access_token"`
	TokenType   string   `json:"token_type"` // always "Bearer", also when bound (RFC 8705 §3)
	ExpiresIn   int64    `json:"expires_in"` // seconds
	Scope       string   `json:"scope"`
	GrantID     string   `json:"grant_id"`
	Audience    string   `json:"audience"`
	Hosts       []string `json:"hosts,omitempty"`   // where the token may be sent
	Servers     []string `json:"servers,omitempty"` // the SPIFFE IDs of who may be there, if they have any
	Binding     string   `json:"binding"`           // "certificate", "identity" or "none"
	DecisionID  string   `json:"decision_id"`

	// AuthorizationDetails are what was granted (RFC 9396 §7).
	AuthorizationDetails []json.RawMessage `json:"authorization_details,omitempty"`
}

// MaxNote is how many bytes a HeartbeatTask's note has at most.
const MaxNote = 256

// MaxHeartbeat is how many tasks one HeartbeatRequest has at most.
const MaxHeartbeat = 1000

// HeartbeatRequest says that tasks are still being worked on; 1 to MaxHeartbeat of them.
type HeartbeatRequest struct {
	Tasks []HeartbeatTask `json:"tasks"`

	// Stream names the stream of PathEvents that the caller has open, as its HeaderStream did. The lease of a task
	// with presence is extended only if that is the one it is bound to. For others it is nothing.
	Stream string `json:"stream,omitempty"`
}

// HeartbeatTask names one.
type HeartbeatTask struct {
	ID string `json:"id"`

	// Note says how far the work is: at most MaxNote bytes of one printable line. The last one is kept.
	Note string `json:"note,omitempty"`

	// Holder is the Task.Holder that the caller knows. When somebody else has adopted the task since, the beat does
	// nothing and its pulse says StateAdopted. Without one it is taken for whoever holds it.
	Holder int `json:"holder,omitempty"`
}

// HeartbeatResponse answers in the same order.
type HeartbeatResponse struct {
	Tasks []Pulse `json:"tasks"`
}

// Pulse is the state of one task. State is StateUnknown for a task that is not there (any more),
// or not the caller's; the client treats it as ended.
type Pulse struct {
	ID             string `json:"id"`
	State          string `json:"state"`
	Cause          string `json:"cause,omitempty"`
	LeaseExpiresIn int64  `json:"lease_expires_in,omitempty"` // whole seconds, rounded down
}

// MaxFollowed is how many tasks one stream of PathEvents follows at most.
const MaxFollowed = 256

// TaskEnded says that a task is over, whoever has ended it. State is StateUnknown for one that is not there
// (any more), or not the caller's, and StateAdopted for one that was named with a holder and has another one.
type TaskEnded struct {
	ID    string `json:"id"`
	State string `json:"state"`
	Cause string `json:"cause,omitempty"`
}

// States of a task, as in Task.State and Pulse.State. All but StateActive are final.
const (
	StateActive    = "active"
	StateCompleted = "completed"
	StateFailed    = "failed"
	StateCanceled  = "canceled"
	StateLapsed    = "lapsed"
	StateExpired   = "expired"
	StateRevoked   = "revoked"
	StateUnknown   = "unknown" // of a Pulse or TaskEnded alone
	StateAdopted   = "adopted" // of these alone: the task goes on, and is not the caller's to look after
)

// EndRequest ends a task.
type EndRequest struct {
	Outcome string `json:"outcome"`          // StateCompleted, StateFailed or StateCanceled
	Reason  string `json:"reason,omitempty"` // at most 1024 bytes, for the audit log

	// EndKey is that of the BeginResponse. One that is not this task's and caller's is ignored.
	EndKey string `json:"end_key,omitempty"`

	// Holder is the Task.Holder that the caller knows: when somebody else has adopted the task since, nothing ends.
	Holder int `json:"holder,omitempty"`

	// Workload is whose the task is. It is for the public listener alone, where nobody else says so.
	Workload string `json:"workload,omitempty"`

	// WaitSeconds has the answer wait until every verifier of the task's audiences has confirmed the end, or so many
	// seconds have passed; at most MaxWait. 0 does not wait.
	WaitSeconds int `json:"wait_seconds,omitempty"`
}

// MaxWait bounds WaitSeconds.
const MaxWait = 30

// Receipt is the broker's statement about one end. It is evidence: the audit log has the same
// under Event.
type Receipt struct {
	Event    string    `json:"event"`
	Task     string    `json:"task"`
	State    string    `json:"state"`
	Cause    string    `json:"cause"`
	Reason   string    `json:"reason,omitempty"`
	EndedAt  time.Time `json:"ended_at"`
	Grants   int       `json:"grants"`         // issued under the task, ever
	SubTasks int       `json:"sub_tasks"`      // begun under it, ever
	Feed     string    `json:"feed,omitempty"` // the position that has this end

	// Durable is false, and the status 202, while the store is away: the end is in force on the
	// broker's replica that answers and on its feed, and lives in its memory alone until it is in the
	// store. There is no Feed yet, nothing is counted, and if the task had ended by itself before,
	// later receipts say so.
	Durable bool `json:"durable"`

	Propagation *Propagation `json:"propagation,omitempty"` // when it was waited for
}

// Propagation says which verifiers have a position of the feed.
type Propagation struct {
	Confirmed int               `json:"confirmed"` // how many have
	Pending   []PendingVerifier `json:"pending"`   // who has not, at most MaxPending of them
	Others    int               `json:"others"`    // how many more have not
}

// MaxPending bounds Propagation.Pending.
const MaxPending = 100

// PendingVerifier has not said yet that it has a position. It refuses by itself what it does not know from
// RefusesAt on, if it hears nothing until then.
type PendingVerifier struct {
	ID        string    `json:"id"`
	Workload  string    `json:"workload"`
	Audience  string    `json:"audience"`
	RefusesAt time.Time `json:"refuses_at"`
}

// DelegationRequest lets another workload begin a task below the caller's.
type DelegationRequest struct {
	To      string `json:"to"`      // the SPIFFE ID that may; required
	Purpose string `json:"purpose"` // why, for the audit log; required

	// What it may have at most: some of the task's own. Empty means as for a child.
	Audiences            []string          `json:"audiences,omitempty"`
	Scopes               []string          `json:"scopes,omitempty"`
	AuthorizationDetails []json.RawMessage `json:"authorization_details,omitempty"`

	ExpiresIn *int64 `json:"expires_in,omitempty"` // seconds in which it must have joined, 1 to 86400; 600 when absent; cut at the task's deadline
}

// DelegationResponse answers it.
type DelegationResponse struct {
	ID        string    `json:"id"`
	Handle    string    `json:"handle"` // no secret: it is of use to nobody but To, once
	ExpiresAt time.Time `json:"expires_at"`
}

// JoinRequest begins a task below another workload's. Its ceiling is within what was delegated.
type JoinRequest struct {
	Handle string `json:"handle"`
	BeginRequest
}

// Grant is a grant as of the answer.
type Grant struct {
	ID         string    `json:"id"`
	Task       string    `json:"task"`
	Workload   string    `json:"workload"`
	Audience   string    `json:"audience"`
	Scope      string    `json:"scope"`
	Binding    string    `json:"binding"`
	IssuedAt   time.Time `json:"issued_at"`
	ExpiresAt  time.Time `json:"expires_at"`
	Live       bool      `json:"live"`
	TaskState  string    `json:"task_state"`
	DecisionID string    `json:"decision_id"`

	AuthorizationDetails []json.RawMessage `json:"authorization_details,omitempty"`
}

// Whoami is what the broker knows of the caller. Owner is empty for one that is registered as a server
// of audiences or a source alone, and can begin no task.
type Whoami struct {
	Workload  string              `json:"workload"`
	ExpiresAt time.Time           `json:"svid_expires_at"`
	Owner     string              `json:"owner"`
	Purpose   string              `json:"purpose"`
	Ceiling   map[string][]string `json:"ceiling"` // scopes by audience
	Locks     []Lock              `json:"locks"`
	Serves    []string            `json:"serves"`           // audiences whose part of the feed it may read
	Source    string              `json:"source,omitempty"` // the name of the source that it is: see PathCloudEvents
	Replica   Replica             `json:"replica"`
}

// Replica is the one of the broker that has answered.
type Replica struct {
	Version string    `json:"version,omitempty"`
	Time    time.Time `json:"time"`             // by its own clock, to the millisecond
	Ready   bool      `json:"ready"`            // false: nothing is issued now
	Reason  string    `json:"reason,omitempty"` // why it is not
}

// Lock is a quarantine that covers the caller.
type Lock struct {
	ID        string    `json:"id"`
	Reason    string    `json:"reason"`
	ExpiresAt time.Time `json:"expires_at"`
}

// Problem is an RFC 9457 error body. Type is stable, and is a page that says how to mend it.
type Problem struct {
	Type       string            `json:"type"`
	Title      string            `json:"title"`
	Status     int               `json:"status"`
	Detail     string            `json:"detail,omitempty"`
	Field      string            `json:"field,omitempty"` // of "invalid": the member that is wrong
	DecisionID string            `json:"decision_id,omitempty"`
	Rule       string            `json:"rule,omitempty"`
	Missing    map[string]string `json:"missing,omitempty"`         // what would have changed the answer
	Instead    []string          `json:"granted_instead,omitempty"` // the scopes that would have been granted
	State      string            `json:"state,omitempty"`           // of "task-ended"
	Cause      string            `json:"cause,omitempty"`           // of "task-ended"
	RequestID  string            `json:"request_id,omitempty"`
}

// Names of problems: the last segment of Problem.Type.
const (
	ProblemMalformed           = "malformed"
	ProblemInvalid             = "invalid"
	ProblemUnauthenticated     = "unauthenticated"
	ProblemBadEndKey           = "bad-end-key"
	ProblemBadToken            = "bad-token"
	ProblemUnregistered        = "unregistered"
	ProblemDenied              = "denied"
	ProblemScopeExceeded       = "scope-exceeded"
	ProblemQuarantined         = "quarantined"
	ProblemRoleRequired        = "role-required"
	ProblemNotFound            = "not-found"
	ProblemMethodNotAllowed    = "method-not-allowed"
	ProblemTooEarly            = "too-early"
	ProblemTaskEnded           = "task-ended"
	ProblemAdopted             = "adopted"
	ProblemNotDelegate         = "not-delegate"
	ProblemHandleUsed          = "handle-used"
	ProblemHandleExpired       = "handle-expired"
	ProblemPlanChanged         = "plan-changed"
	ProblemPlanExpired         = "plan-expired"
	ProblemIdempotencyMismatch = "idempotency-mismatch"
	ProblemQuota               = "quota-exceeded"
	ProblemRateLimited         = "rate-limited"
	ProblemTooShort            = "too-short"
	ProblemTooLarge            = "too-large"
	ProblemMediaType           = "unsupported-media-type"
	ProblemCursorExpired       = "cursor-expired"
	ProblemStoreUnavailable    = "store-unavailable"
	ProblemAuditUnavailable    = "audit-unavailable"
	ProblemNotReady            = "not-ready"
	ProblemOverloaded          = "overloaded"
	ProblemInternal            = "internal"
	ProblemVerifierStale       = "verifier-stale" // a resource server's
	ProblemVerifierBusy        = "verifier-busy"  // a resource server's
)
