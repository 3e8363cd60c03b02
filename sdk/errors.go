package sdk

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/sdk/wire"
)

// sentinel is an error that is a constant, so that nobody can assign to it.
type sentinel string

// Error returns what has happened in a few words.
func (s sentinel) Error() string { return string(s) }

// The kinds of failure. Compare with errors.Is. ErrRevoked, ErrLeaseLost, ErrDeadline, ErrParentEnded,
// ErrAdopted and ErrTaskEnded are also the causes of a task's Context (context.Cause).
const (
	ErrInvalid         = sentinel("invalid request")
	ErrUnauthenticated = sentinel("the broker does not accept this SVID")
	ErrUnregistered    = sentinel("workload not registered")
	ErrDenied          = sentinel("denied by policy")
	ErrScopeExceeded   = sentinel("outside the task's ceiling")
	ErrQuarantined     = sentinel("quarantined")
	ErrQuota           = sentinel("quota exceeded")
	ErrRateLimited     = sentinel("too many requests")
	ErrNotFound        = sentinel("not found")
	ErrTaskEnded       = sentinel("task has ended")
	ErrRevoked         = sentinel("task revoked") // by an operator, or with the identity of its workload
	ErrLeaseLost       = sentinel("lease lost: the broker was not reached in time")
	ErrDeadline        = sentinel("task deadline passed")
	ErrParentEnded     = sentinel("the task that it is part of has ended")
	ErrAdopted         = sentinel("task adopted by another process") // of the workload; it goes on there
	ErrNotDelegate     = sentinel("the handle is for another workload")
	ErrHandleUsed      = sentinel("the handle has been used")
	ErrHandleExpired   = sentinel("the handle is over")
	ErrEndUnconfirmed  = sentinel("end of task not confirmed by the broker")
	ErrUnavailable     = sentinel("broker unavailable")
	ErrBrokerID        = sentinel("this is not the broker")
	ErrNoIdentity      = sentinel("no SPIFFE identity")
	ErrHost            = sentinel("host not allowed for the audience")
	ErrUnbound         = sentinel("the connection does not present the certificate that the token is bound to")
	ErrClosed          = sentinel("client closed")
)

// problems tells which sentinel a problem is.
func problems(name string) error {
	switch name {
	case wire.ProblemInvalid, wire.ProblemMalformed, wire.ProblemTooShort, wire.ProblemTooLarge, wire.ProblemIdempotencyMismatch:
		return ErrInvalid
	case wire.ProblemUnauthenticated:
		return ErrUnauthenticated
	case wire.ProblemUnregistered:
		return ErrUnregistered
	case wire.ProblemDenied:
		return ErrDenied
	case wire.ProblemScopeExceeded:
		return ErrScopeExceeded
	case wire.ProblemQuarantined:
		return ErrQuarantined
	case wire.ProblemQuota:
		return ErrQuota
	case wire.ProblemRateLimited:
		return ErrRateLimited
	case wire.ProblemNotFound:
		return ErrNotFound
	case wire.ProblemTaskEnded:
		return ErrTaskEnded
	case wire.ProblemAdopted:
		return ErrAdopted
	case wire.ProblemNotDelegate:
		return ErrNotDelegate
	case wire.ProblemHandleUsed:
		return ErrHandleUsed
	case wire.ProblemHandleExpired:
		return ErrHandleExpired
	}
	return nil
}

// Error is every failure that the broker answers with (RFC 9457). It matches the sentinel of its
// problem type, and ErrUnavailable when its status is 500 or more.
type Error struct {
	Status     int    // of HTTP
	Type       string // a URI, stable, and a page that says how to mend it
	Title      string
	Detail     string
	Field      string            // what is wrong, of an invalid request
	Decision   string            // dcs_…, of a refusal by policy
	Rule       string            // that decided
	Missing    map[string]string // what would have changed the answer
	Instead    []string          // scopes that would have been granted
	State      State             // of a task that has ended
	Cause      string            // why it has
	Request    string            // the request's ID, for the broker's operators
	RetryAfter time.Duration     // zero when the broker did not say
}

// Error is one line with all that helps to mend it.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("broker: ")
	b.WriteString(e.Title)
	if e.Detail != "" && e.Detail != e.Title {
		b.WriteString(": " + e.Detail)
	}
	var notes []string
	if e.Rule != "" {
		notes = append(notes, "rule "+e.Rule)
	}
	if e.Decision != "" {
		notes = append(notes, "decision "+e.Decision)
	}
	for _, name := range slices.Sorted(maps.Keys(e.Missing)) {
		notes = append(notes, "missing "+name+": "+e.Missing[name])
	}
	if len(e.Instead) > 0 {
		notes = append(notes, "would be granted: "+strings.Join(e.Instead, " "))
	}
	if e.Request != "" {
		notes = append(notes, "request "+e.Request)
	}
	fmt.Fprintf(&b, " (%s)", strings.Join(append([]string{fmt.Sprint("HTTP ", e.Status)}, notes...), "; "))
	return b.String()
}

// Is matches the sentinels.
func (e *Error) Is(target error) bool {
	if target == ErrUnavailable {
		return e.Status >= http.StatusInternalServerError
	}
	name := e.name()
	return target == problems(name) || name == wire.ProblemTaskEnded && target == causeOf(e.State, e.Cause)
}

// name is the last segment of Type.
func (e *Error) name() string { return e.Type[strings.LastIndexByte(e.Type, '/')+1:] }

// refusal reports whether the broker has decided against the caller.
func (e *Error) refusal() bool {
	switch e.name() {
	case wire.ProblemDenied, wire.ProblemScopeExceeded, wire.ProblemQuarantined, wire.ProblemUnregistered, wire.ProblemNotDelegate:
		return true
	}
	return false
}

// EndError matches ErrEndUnconfirmed: the task is over for this client, which goes on trying to
// tell the broker until it is closed.
type EndError struct {
	Task string
	By   time.Time // the tokens are dead by then at the latest, without anybody's doing
	Err  error     // what the last try has met
}

// Error says by when the tokens are dead.
func (e *EndError) Error() string {
	return fmt.Sprintf("%v: %s: %v; its tokens are dead by %s at the latest", ErrEndUnconfirmed, e.Task, e.Err, e.By.UTC().Format(time.RFC3339))
}

// Is matches ErrEndUnconfirmed.
func (e *EndError) Is(target error) bool { return target == ErrEndUnconfirmed }

// Unwrap returns what the last try has met.
func (e *EndError) Unwrap() error { return e.Err }

// endedError says that a task is over. It matches the cause, and ErrTaskEnded unless the task was adopted and
// goes on.
type endedError struct {
	task  string
	state State
	cause error
	why   string // the broker's cause, if it has told
}

func (e *endedError) Error() string {
	if e.state == Adopted {
		return fmt.Sprintf("%v: %s; that one gets its tokens, and ends it", ErrAdopted, e.task)
	}
	text := fmt.Sprintf("%v: %s is %s", ErrTaskEnded, e.task, e.state)
	if e.cause != ErrTaskEnded {
		text += ": " + e.cause.Error()
	}
	switch e.why {
	case "operator":
		text += " by an operator"
	case "identity":
		text += ": its identity was withdrawn"
	case "ref":
		text += ", since what its Ref names has ended"
	case "presence":
		text += ", since the connection to it was"
	}
	return text + "; begin a new one"
}

func (e *endedError) Is(target error) bool {
	return target == e.cause || target == ErrTaskEnded && e.state != Adopted
}

// impostor is a server with a good SVID that is not the broker's. Waiting does not mend that.
type impostor struct{ is, want spiffeid.ID }

func (e *impostor) Error() string {
	return fmt.Sprintf("%v: it presents %s, and the broker is %s; mend the URL, or %s or WithBrokerID", ErrBrokerID, e.is, e.want, EnvBrokerID)
}

func (e *impostor) Is(target error) bool { return target == ErrBrokerID }

// line is several errors on one line.
type line []error

func (l line) Error() string {
	texts := make([]string, len(l))
	for i, err := range l {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (l line) Unwrap() []error { return l }
