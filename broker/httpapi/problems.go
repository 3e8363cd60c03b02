package httpapi

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/feed"
	"github.com/errandhq/errand/sdk/wire"
)

// Errors of the HTTP layer itself.
var (
	errRoute     = errors.New("there is no such path here; workloads, operators and the public have a listener each: is this the right one?")
	errMethod    = errors.New("this path does not have that method here; workloads, operators and the public have a listener each: is this the right one?")
	errTooLarge  = errors.New("the body is too large")
	errMediaType = errors.New("the body must be application/json in UTF-8, without content coding")
	errEventType = errors.New("the body must be a CloudEvent: application/cloudevents+json, application/cloudevents-batch+json, or application/json with the attributes as Ce- headers")
	errNotServer = errors.New("there is no such audience, or the caller is not among its servers in the inventory")
)

// malformed is a body or header that cannot be read as what it should be.
type malformed struct{ detail string }

func (e *malformed) Error() string { return "malformed request: " + e.detail }

// unauthenticated is a peer without a good SVID.
type unauthenticated struct{ err error }

func (e *unauthenticated) Error() string { return "unauthenticated: " + e.err.Error() }
func (e *unauthenticated) Unwrap() error { return e.err }

// problemType is one row of the table from errors to answers, and one page.
type problemType struct {
	name   string
	status int
	title  string
	retry  string // Retry-After, in seconds
	mend   string // what to do about it
	is     func(error) bool
}

func matches(targets ...error) func(error) bool {
	return func(err error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
}

func as[T error](err error) bool {
	var target T
	return errors.As(err, &target)
}

// problemTypes is the one table. The first row that matches an error answers it.
var problemTypes = []problemType{
	{wire.ProblemMalformed, 400, "Malformed request", "", "The body or a header cannot be read; \"detail\" says where. Send one JSON object with the members that the API documents, each once, in lower case.", as[*malformed]},
	{wire.ProblemUnauthenticated, 401, "No good SVID", "", "Present an X.509-SVID of a trust domain that the broker knows, over TLS 1.3. If it did work before, the SVID has expired or its trust bundle was withdrawn: get a new one and connect again. At the operator listener a certificate without a SPIFFE ID does, as long as it is listed there and has not expired.", as[*unauthenticated]},
	{wire.ProblemBadEndKey, 401, "No good end key", "", "Send the end key that came with the answer to the begin, as \"Authorization: EndKey end_…\", once, to the path of its own task, with the workload that has begun that in \"workload\". Whether there is such a task is told to nobody without its key; without the key the workload itself can end the task, at the workload listener.", matches(broker.ErrEndKey)},
	{wire.ProblemBadToken, 401, "No good bearer token", "", "Send \"Authorization: Bearer …\", once, with the token whose SHA-256 the inventory has under sources. It has at least 43 characters. A source that has an SVID comes to the workload listener with that, and without a token.", as[*noToken]},
	{wire.ProblemMethodNotAllowed, 405, "Method not allowed", "", "Use one of the methods that the Allow header names.", matches(errMethod)},
	{wire.ProblemTooLarge, 413, "Body too large", "", "Send at most 64 KiB; a report of usage may have 1 MiB, a batch of events 256 KiB, and an end by its end key alone 12 KiB.", matches(errTooLarge)},
	{wire.ProblemMediaType, 415, "Unsupported media type", "", "Send Content-Type: application/json, in UTF-8, without a content coding; events also as application/cloudevents+json, or as application/cloudevents-batch+json.", matches(errMediaType, errEventType)},
	{wire.ProblemInvalid, 422, "Invalid request", "", "The member named in \"field\" has a value that is not allowed. Give it one that is: \"detail\" says which.", matches(broker.ErrInvalid)},
	{wire.ProblemTooShort, 422, "Too little life left", "", "A token would have lived for less than two seconds, since the task's deadline or the SVID's end is near. Begin a new task, or wait for the next SVID.", matches(broker.ErrTooShort)},
	{wire.ProblemUnregistered, 403, "Workload not registered", "", "Add the workload's SPIFFE ID to the inventory with an owner, a purpose and a ceiling.", matches(broker.ErrUnregistered)},
	{wire.ProblemScopeExceeded, 403, "Outside the task's ceiling", "", "A token can only narrow what its task asked for when it began, and a task what its parent did. Name the audience, scope or detail there, or begin a task for it.", matches(broker.ErrScopeExceeded)},
	{wire.ProblemDenied, 403, "Denied by policy", "", "\"rule\" says what decided, and \"missing\" what would have changed the answer: ask the owner named there to widen the workload's ceiling in the inventory, or ask for no more than \"granted_instead\".", matches(broker.ErrDenied, errNotServer, errNotSource)},
	{wire.ProblemQuarantined, 403, "Quarantined", "", "An operator has locked this workload, audience or scope; \"detail\" has the reason and the end. Ask the operators; trying again does not help before then.", matches(broker.ErrQuarantined)},
	{wire.ProblemRoleRequired, 403, "Operator's role required", "", "\"detail\" names the role. Whoever keeps the broker's configuration can give it to your SPIFFE ID or certificate, under operators.", func(err error) bool { return as[*roleNeeded](err) || errors.Is(err, broker.ErrAll) }},
	{wire.ProblemNotFound, 404, "Not found", "", "There is no such path, or nothing that is known by that ID, or it is not yours. Check the path and the ID, and the listener; a task that has ended is forgotten half a minute after its last token.", matches(broker.ErrNotFound, errRoute)},
	{wire.ProblemNotDelegate, 403, "Not the delegate", "", "A handle is of use to the one workload that its delegator named; \"detail\" says which. If you are to do it, ask the delegator for a handle of your own. Somebody else's handle that has come to you is worth nothing to you, and the attempt is recorded.", matches(broker.ErrNotDelegate)},
	{wire.ProblemAdopted, 409, "Task adopted by another process", "", "Another process of this workload has adopted the task since, and looks after it. Nothing was ended. Leave the task to it; to take it back, adopt it.", matches(broker.ErrAdopted)},
	{wire.ProblemHandleUsed, 410, "Delegation used", "", "A handle is good for one task, and one has begun by it. Ask the delegator for another one. Repeat a join that you have no answer to with the same Idempotency-Key.", matches(broker.ErrUsed)},
	{wire.ProblemHandleExpired, 410, "Delegation expired", "", "Nobody has joined in time; \"detail\" says until when it would have been. Ask the delegator for another handle, or for one that lives longer.", matches(broker.ErrHandleExpired)},
	{wire.ProblemIdempotencyMismatch, 409, "Idempotency key reused", "", "This Idempotency-Key stands for another request. Make a new random key for each new task.", matches(broker.ErrMismatch)},
	{wire.ProblemPlanChanged, 409, "The plan has changed", "", "Much more would be hit than the plan said, or than \"max_affected\" allows; \"detail\" has the numbers, and nothing has happened. Look at a new plan (\"dry_run\"). In an emergency send the selector itself without \"max_affected\": that counts nothing and refuses nothing.", matches(broker.ErrPlanChanged)},
	{wire.ProblemTooEarly, 409, "Too early to rotate", "", "Verifiers may not have the next key yet; \"detail\" says from when on they do. Repeat then. If the active key is no longer secret, revoke it instead: that is never too early.", matches(broker.ErrTooEarly)},
	{wire.ProblemTaskEnded, 410, "Task has ended", "", "A task that has ended stays ended; \"state\" and \"cause\" say how. Begin a new one.", matches(broker.ErrEnded)},
	{wire.ProblemPlanExpired, 410, "The plan has expired", "", "A plan is good for five minutes, and for the data set that it was made on. Nothing has happened. Make a new one (\"dry_run\"), or send the selector itself.", matches(broker.ErrPlanExpired)},
	{wire.ProblemCursorExpired, 410, "Position of another epoch", "", "Take a snapshot and follow from its position.", matches(feed.ErrCursor, broker.ErrEpoch)},
	{wire.ProblemQuota, 429, "Quota exceeded", "5", "Too many tasks or grants of this workload, or children of this task, are live at once. End tasks that are done; one that its parent has taken along counts until its own lease is over, and a grant until its token has expired. Or raise the workload's max_tasks or max_grants in the inventory. Retry-After is when to look again, not a promise that there is room then.", matches(broker.ErrQuota)},
	{wire.ProblemRateLimited, 429, "Too many requests", "1", "This SPIFFE ID, or at the public listener this address, sends more requests than the broker takes from one: wait as long as Retry-After says, and repeat. Requests that begin a task or ask for a token have a rate of their own, so that ends and heartbeats go on. Keep a token for its life rather than ask for another, send heartbeats of many tasks at once, or have the operators raise limits in the broker's configuration.", as[*rateLimited]},
	{wire.ProblemAuditUnavailable, 503, "Audit log unavailable", "1", "No token is issued that cannot be recorded. Tell the operators of the broker; try again.", matches(broker.ErrAudit)},
	{wire.ProblemStoreUnavailable, 503, "Store unavailable", "1", "The broker cannot reach its store. Try again with the same Idempotency-Key. Ending is safe to repeat, and with the task's end_key needs no store, unless too many ends wait for it already.", matches(broker.ErrUnavailable, broker.ErrUnconfirmed)},
	{wire.ProblemNotReady, 503, "Not ready", "1", "This replica cannot answer now. Try again, or ask another.", matches(broker.ErrNotReady, broker.ErrSigning, feed.ErrFull, feed.ErrReset, broker.ErrCrowded, broker.ErrLeaving)},
	{wire.ProblemOverloaded, 503, "Overloaded", "1", "This replica is working on as much of this kind as it takes on at once. Try again, or ask another. Beginning and issuing never take the places of ending, nor of heartbeats.", matches(errOverloaded)},
	{wire.ProblemVerifierStale, 503, "Revocation view too old", "1", "The answer of a resource server that has not heard from the broker for too long to know what has ended. The token may be good: try again. If it lasts, its operators should look at its connection to the broker.", func(error) bool { return false }},
	{wire.ProblemVerifierBusy, 503, "Too many requests are running", "1", "The answer of a resource server that runs as many requests at once as its verifier watches. It says nothing about the token: try again. If it lasts, its operators should run more of that server, or raise MaxRunning in the verifier's configuration; requests that never end have the same effect.", func(error) bool { return false }},
	{wire.ProblemInternal, 500, "Internal error", "", "This is a mistake of the broker. Give its operators the request ID.", func(error) bool { return true }},
}

// challenges say how to authenticate where it is not the connection that does (RFC 9110 §11.6.1).
var challenges = map[string]string{wire.ProblemBadEndKey: `EndKey realm="errand"`}

// maxDetail bounds what is repeated of a request, in bytes.
const maxDetail = 1024

// problem turns an error into its answer, with the headers that go with it.
func (a *API) problem(err error) (wire.Problem, map[string]string) {
	row := problemTypes[len(problemTypes)-1]
	for _, candidate := range problemTypes {
		if candidate.is(err) {
			row = candidate
			break
		}
	}
	p := wire.Problem{
		Type: a.Issuer + "/problems/" + row.name, Title: row.title, Status: row.status, Detail: detail(err, row),
	}
	header := map[string]string{}
	if row.retry != "" {
		header["Retry-After"] = row.retry
	}
	if challenge := challenges[row.name]; challenge != "" {
		header["WWW-Authenticate"] = challenge
	}
	if missing := (*noToken)(nil); errors.As(err, &missing) {
		header["WWW-Authenticate"] = missing.challenge()
	}
	if limited := (*rateLimited)(nil); errors.As(err, &limited) {
		header["Retry-After"] = strconv.Itoa(int((limited.wait + time.Second - 1) / time.Second))
	}
	a.fill(&p, err)
	p.Detail = short(p.Detail)
	if row.status >= http.StatusInternalServerError {
		// What went wrong inside is for the log; the page says what the caller can do.
		p.Detail = row.mend
	}
	return p, header
}

// detail is what the error adds to the title, or what to do when it adds nothing.
func detail(err error, row problemType) string {
	text := err.Error()
	switch first, rest, more := strings.Cut(text, ": "); {
	case !strings.EqualFold(first, row.title):
		return text
	case more:
		return rest
	}
	return row.mend
}

func short(s string) string {
	if len(s) <= maxDetail {
		return s
	}
	return strings.ToValidUTF8(s[:maxDetail], "") + "…"
}

// fill adds what the typed errors know.
func (a *API) fill(p *wire.Problem, err error) {
	var (
		bad    *malformed
		field  *broker.Invalid
		denied *broker.Denied
		ended  *broker.Ended
	)
	switch {
	case errors.As(err, &bad):
		p.Detail = bad.detail
	case errors.As(err, &field):
		p.Field, p.Detail = field.Field, field.Field+" "+field.Detail
	case errors.As(err, &denied):
		d := denied.Decision
		p.Detail, p.DecisionID, p.Rule, p.Instead = d.Detail, string(d.ID), d.Rule, d.Instead
		p.Missing = map[string]string{}
		for what, how := range d.Missing {
			p.Missing[what] = short(how)
		}
	case errors.As(err, &ended):
		p.State, p.Cause = string(ended.State), string(ended.Cause)
	}
}
