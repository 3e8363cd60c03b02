package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TokenRequest asks for one token in a task.
type TokenRequest struct {
	Audience string
	Scopes   Scopes        // none: as many of the task's as the audience knows
	Details  Details       // each of them one of the task's; none: none
	Life     time.Duration // DefaultTokenLife when zero; caps may make it shorter
}

// Issued is a grant with its token.
type Issued struct {
	Grant Grant
	Token Token
	Life  time.Duration // what is left of it by the store's time, whole seconds
	Hosts []string      // where the token may be sent

	// Servers are the SPIFFE IDs of those who may be there.
	Servers []spiffeid.ID
}

// approved is a grant that a policy has agreed to and that the store has not committed yet.
type approved struct {
	Asked
	audience AudienceRegistration
	decision Decision
}

// Issue gives a token in a task of the workload. Errors: ErrInvalid, ErrUnregistered,
// ErrQuarantined, ErrDenied, ErrScopeExceeded, ErrNotFound, ErrEnded, ErrQuota, ErrTooShort,
// ErrAudit, ErrSigning, ErrNotReady and those of the store.
func (b *Broker) Issue(ctx context.Context, w Workload, id TaskID, req TokenRequest) (Issued, error) {
	if err := req.normalize(""); err != nil {
		return Issued{}, err
	}
	registration, err := b.Registry.Workload(w.ID)
	if err != nil {
		return Issued{}, b.refuse(w, registration, Task{}, Decision{Rule: "registry/unregistered"}, unregistered(w, err))
	}
	asking, cancel := context.WithTimeout(ctx, storeBudget)
	defer cancel()
	task, err := b.liveTask(asking, w, id)
	if err != nil {
		return Issued{}, err
	}
	if err := b.withinCeiling(w, registration, task, task.Ceiling, req); err != nil {
		return Issued{}, err
	}
	var ask approved
	reply, err := b.commit(asking, id.Shard(), func(control Control, now time.Time) (GrantRequest, error) {
		ask, err = b.decideIssue(ctx, w, registration, task, req, control, now)
		return GrantRequest{
			Workload: w.ID, Task: id, Grants: []Asked{ask.Asked},
			Quota: Quota{Grants: registration.MaxGrants},
		}, err
	})
	if err != nil {
		return Issued{}, err
	}
	tokens, err := b.release(ctx, w, registration, reply, []approved{ask}, nil)
	if err != nil {
		return Issued{}, err
	}
	if len(tokens) != 1 {
		return Issued{}, fmt.Errorf("%w: %d grants where one was asked for", ErrUnconfirmed, len(tokens))
	}
	return tokens[0], nil
}

// maxDecisions bounds how often one request is decided again because the control list has moved.
const maxDecisions = 5

// commit decides on the newest control list that this replica has and writes the outcome. When the
// store knows a newer list it has written nothing, and the decision is made again.
func (b *Broker) commit(ctx context.Context, shard int, decide func(Control, time.Time) (GrantRequest, error)) (GrantReply, error) {
	if _, skew, _ := b.view.age(b.Now()); skew > MaxSkew {
		return GrantReply{}, skewed(skew) // nobody could tell how long a token lives
	}
	for range maxDecisions {
		control, now, err := b.view.control(shard)
		if err != nil {
			return GrantReply{}, err
		}
		req, err := decide(control, now)
		if err != nil {
			return GrantReply{}, err
		}
		req.Control = control.Version
		reply, err := b.grant(ctx, req)
		behind := (*Behind)(nil)
		if !errors.As(err, &behind) {
			return reply, err
		}
		if err := b.view.catchUp(ctx, behind); err != nil {
			return GrantReply{}, err
		}
	}
	return GrantReply{}, &wrapped{ErrUnavailable, "the control list keeps changing; try again"}
}

// grant asks the store, and once more when it may have happened: the IDs are new, so that what is
// there under them is this call's own. When that is not known either, nothing is signed, and what
// there may be expires unused.
func (b *Broker) grant(ctx context.Context, req GrantRequest) (GrantReply, error) {
	try := func() (GrantReply, error) {
		ctx, cancel := context.WithTimeout(ctx, storeTry)
		defer cancel()
		return b.Store.Grant(ctx, req)
	}
	reply, err := try()
	if errors.Is(err, ErrUnconfirmed) && ctx.Err() == nil {
		reply, err = try()
	}
	b.known.learn(req.on(), reply, err)
	if err == nil && reply.Task.ID == req.Task {
		reply.Replayed = false
	}
	return reply, err
}

// withinCeiling refuses what is outside a ceiling that the workload has set itself. An empty part of
// it sets nothing.
func (b *Broker) withinCeiling(w Workload, registration WorkloadRegistration, task Task, ceiling Ceiling, req TokenRequest) error {
	var err error
	beyond := req.Scopes.Minus(ceiling.Scopes)
	switch {
	case len(ceiling.Audiences) > 0 && !ceiling.Audiences.Contains(req.Audience):
		err = exceeded("task", "audience", req.Audience, nil)
	case len(ceiling.Scopes) > 0 && len(beyond) > 0:
		err = exceeded("task", "scope", beyond.String(), req.Scopes.Intersect(ceiling.Scopes))
	case len(req.Details.Minus(ceiling.Details)) > 0:
		err = exceededBy("task", req.Details.Minus(ceiling.Details))
	default:
		return nil
	}
	return b.refuse(w, registration, task, Decision{Rule: "task/ceiling"}, err)
}

func (b *Broker) decideIssue(ctx context.Context, w Workload, registration WorkloadRegistration, task Task, req TokenRequest, control Control, now time.Time) (approved, error) {
	audience, err := b.Registry.Audience(req.Audience)
	if err != nil {
		d := Decision{ID: NewDecisionID(), Rule: "registry/audience", Detail: fmt.Sprintf("there is no audience %q that %s may ask for; it may ask for %s",
			req.Audience, w.ID, strings.Join(slices.Sorted(maps.Keys(registration.Ceiling)), ", "))}
		return approved{}, b.refuse(w, registration, task, d, &Denied{Reason: ErrDenied, Decision: d})
	}
	decision, err := b.decide(ctx, w, Ask{
		Action: ActionIssue, Workload: registration, Delegators: b.registrations(task.Delegators), Task: task, Audience: audience, Scopes: req.Scopes, Details: req.Details, Life: req.Life,
	})
	if err != nil {
		return approved{}, err
	}
	if lock, ok := control.Locked(now, task.Subjects(), req.Audience, decision.Scopes); ok {
		return approved{}, b.refuse(w, registration, task, Decision{Rule: "lock/" + string(lock.ID)}, &Quarantined{Lock: lock})
	}
	return approved{Asked: b.ask(w, task, audience, req.Details, decision), audience: audience, decision: decision}, nil
}

func (b *Broker) ask(w Workload, task Task, audience AudienceRegistration, details Details, decision Decision) Asked {
	asked := Asked{
		ID: NewGrantID(task.ID.Shard()), Audience: audience.Name, Scopes: decision.Scopes, Details: details,
		Binding: audience.Binding, Decision: decision.ID, Life: decision.Life, NotAfter: w.NotAfter,
	}
	if audience.Binding == BindCertificate {
		asked.Thumbprint = w.Thumbprint
	}
	return asked
}

// decide asks the policy and takes its answer for no more than was asked. A denial is recorded.
func (b *Broker) decide(ctx context.Context, w Workload, ask Ask) (Decision, error) {
	decision, err := b.Policy.Decide(ctx, ask)
	if err != nil {
		b.Logger.Error("policy failed; denied", "error", err, "workload", w.ID.String())
		decision = Decision{Rule: "policy/error", Detail: "the policy could not be evaluated", Revision: decision.Revision}
	}
	if decision.ID == "" {
		decision.ID = NewDecisionID()
	}
	if !decision.Allowed {
		return decision, b.refuse(w, ask.Workload, ask.Task, decision, &Denied{Reason: ErrDenied, Decision: decision})
	}
	if ask.Action == ActionIssue {
		if !ask.Task.Ceiling.Audiences.Contains(ask.Audience.Name) {
			// A policy may be wrong; the ceiling is not its to widen.
			return Decision{}, b.refuse(w, ask.Workload, ask.Task, Decision{Rule: "task/ceiling"}, exceeded("task", "audience", ask.Audience.Name, nil))
		}
		if len(ask.Scopes) > 0 {
			decision.Scopes = decision.Scopes.Intersect(ask.Scopes)
		}
		decision.Scopes = decision.Scopes.Intersect(ask.Task.Ceiling.Scopes)
		decision.Life = tokenLife(ask, decision.Life)
	}
	return decision, nil
}

// tokenLife is the least of what was asked for and of every cap, also of those in whose name it is.
func tokenLife(ask Ask, allowed time.Duration) time.Duration {
	life := ask.Life
	if life == 0 {
		life = DefaultTokenLife
	}
	limits := []time.Duration{allowed, ask.Workload.MaxLife, ask.Audience.MaxLife, MaxTokenLife}
	for _, delegator := range ask.Delegators {
		limits = append(limits, delegator.MaxLife)
	}
	for _, limit := range limits {
		if limit > 0 {
			life = min(life, limit)
		}
	}
	return life
}

// release records what the store has committed, and only then signs it. If either fails the
// grants, or the task when it was begun with them, are taken back: nothing that could not be
// recorded stays alive. A replay was released before and is left alone. begun is what the task was
// begun on, and nil for grants in a task that was there.
func (b *Broker) release(ctx context.Context, w Workload, registration WorkloadRegistration, reply GrantReply, asks []approved, begun *beginning) ([]Issued, error) {
	drafts, events, err := b.drafts(ctx, w, registration, reply, asks, begun)
	if err == nil {
		if err = b.recordNow(ctx, events...); err != nil {
			err = &wrapped{ErrAudit, "no token is issued that cannot be recorded"}
		}
	}
	var issued []Issued
	for i := 0; err == nil && i < len(drafts); i++ {
		grant := reply.Grants[i]
		var token Token
		token, err = drafts[i].Sign(ctx)
		issued = append(issued, Issued{
			Grant: grant, Token: token, Life: grant.Expires.Sub(reply.Now).Truncate(time.Second),
			Hosts: registered(asks, grant).Hosts, Servers: registered(asks, grant).Servers,
		})
	}
	if err == nil {
		// It may have ended here in the meantime, where the store could not know.
		if task := b.pending.task(reply.Task); task.State.Final() {
			return nil, ended(task)
		}
		return issued, nil
	}
	if !reply.Replayed {
		b.takeBack(ctx, w, reply, begun != nil, err)
	}
	return nil, err
}

// stillGood drops the grants of a replay that were revoked since, or whose token the workload could
// not present any more since its certificate is another one.
func (b *Broker) stillGood(ctx context.Context, w Workload, reply *GrantReply) error {
	if !reply.Replayed {
		return nil
	}
	control, err := b.controlAt(ctx, reply.Task.ID.Shard(), reply.Control)
	if err != nil {
		return err
	}
	reply.Grants = slices.DeleteFunc(reply.Grants, func(g Grant) bool {
		return g.Revoked || b.pending.revoked(g.ID) || control.Denies(g, reply.Task) || g.Binding == BindCertificate && g.Thumbprint != w.Thumbprint
	})
	return nil
}

func (b *Broker) drafts(ctx context.Context, w Workload, registration WorkloadRegistration, reply GrantReply, asks []approved, begun *beginning) ([]Draft, []Event, error) {
	var drafts []Draft
	var events []Event
	if begun != nil {
		// Of a replay nobody knows whether the first call has come so far; under one ID it is one event.
		e := taskEvent(EventTaskBegun, registration, reply.Task)
		e.ID, e.Reconciled = begunEvent(reply.Task.ID), reply.Replayed
		e.Attributes, e.Details = reply.Task.Attributes, reply.Task.Ceiling.Details
		e.Delegation = begun.delegation
		e.Decision, e.Rule, e.Revision, e.Allowed = begun.ID, begun.Rule, begun.Revision, true
		e.Time, e.Actor, e.Address = reply.Task.Begun, w.ID.String(), w.Address
		events = append(events, e)
	}
	for i, grant := range reply.Grants {
		draft, err := b.Minter.Draft(ctx, reply.Task, grant)
		if bad := (*Invalid)(nil); begun != nil && errors.As(err, &bad) {
			err = &Invalid{Field: indexed("tokens", i) + "." + bad.Field, Detail: bad.Detail}
		}
		if err != nil {
			return nil, nil, err
		}
		e := grantEvent(EventGrantIssued, registration, reply.Task, grant)
		e.Attributes, e.Details = reply.Task.Attributes, grant.Details
		e.Time, e.Actor, e.Address, e.Key, e.Allowed = reply.Now, w.ID.String(), w.Address, draft.Key(), true
		if d, ok := decisionFor(asks, grant); ok {
			e.Rule, e.Revision = d.Rule, d.Revision
		}
		drafts, events = append(drafts, draft), append(events, e)
	}
	return drafts, events, nil
}

// takeBack ends what a failed release has left behind, with a context of its own: the caller's may
// be the reason for the failure.
func (b *Broker) takeBack(ctx context.Context, w Workload, reply GrantReply, begun bool, why error) {
	cause := CauseSigning
	if errors.Is(why, ErrAudit) {
		cause = CauseAudit
	}
	round := b.rounds.enter()
	defer b.rounds.leave(round)
	var ends []Ending
	if begun {
		ends = append(ends, Ending{Kind: TargetTask, Task: reply.Task.ID, State: Canceled, Cause: cause, Event: b.rounds.event()})
	} else {
		for _, grant := range reply.Grants {
			ends = append(ends, Ending{Kind: TargetGrant, Grant: grant.ID, Cause: cause, Event: b.rounds.event()})
		}
	}
	replies, err := b.tryEnd(context.WithoutCancel(ctx), storeTry, ends...)
	if err == nil {
		b.handOver(b.endEvents(replies, w.ID.String(), w.Address))
		return
	}
	for _, end := range ends {
		if _, full := b.pending.add(&pendingEnd{Ending: end, actor: w.ID.String(), address: w.Address}, b.early); full != nil {
			b.rounds.lose(end.Event)
			b.Logger.Error("what was never handed out could not be taken back; it expires unused", "error", err, "task", string(end.Task), "grant", string(end.Grant))
		}
	}
}

// registered is the registration of a grant's audience.
func registered(asks []approved, grant Grant) AudienceRegistration {
	for _, ask := range asks {
		if ask.Asked.Audience == grant.Audience {
			return ask.audience
		}
	}
	return AudienceRegistration{}
}

func decisionFor(asks []approved, grant Grant) (Decision, bool) {
	for _, ask := range asks {
		if ask.Asked.ID == grant.ID {
			return ask.decision, true
		}
	}
	return Decision{}, false
}

func (req *TokenRequest) normalize(field string) error {
	if field != "" {
		field += "."
	}
	if req.Audience == "" {
		return invalid(field+"audience", "is empty; name the audience that the token is for")
	}
	if len(req.Audience) > MaxAudienceBytes {
		return invalid(field+"audience", "has %d bytes; at most %d are allowed", len(req.Audience), MaxAudienceBytes)
	}
	if err := req.Details.checkToken(field); err != nil || req.Life == 0 {
		return err
	}
	return checkSeconds(field+"ttl_seconds", req.Life, MinTokenLife, MaxTokenLife)
}

func indexed(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

// exceeded is the refusal of something that the task itself, or its parent, did not ask for when it
// began, or that was not delegated.
func exceeded(whose, kind, what string, instead Scopes) error {
	return &Denied{Reason: ErrScopeExceeded, Decision: Decision{
		ID: NewDecisionID(), Rule: "task/ceiling", Instead: instead,
		Detail:  fmt.Sprintf("%s %q is outside the %s's ceiling", kind, what, whose),
		Missing: map[string]string{kind: mendCeiling("it", whose)},
	}}
}

func exceededBy(whose string, details Details) error {
	return &Denied{Reason: ErrScopeExceeded, Decision: Decision{
		ID: NewDecisionID(), Rule: "task/ceiling",
		Detail:  fmt.Sprintf("an authorization detail of the type %q is not one of the %s's", details[0].Type(), whose),
		Missing: map[string]string{detailsField: mendCeiling("it", whose) + "; ask for it with the same members and values"},
	}}
}

// mendCeiling says how a thing gets into somebody's ceiling.
func mendCeiling(what, whose string) string {
	if whose == "delegation" {
		return fmt.Sprintf("have the delegator name %s when it delegates, or begin a task for it", what)
	}
	return fmt.Sprintf("name %s when the %s begins, or begin a task for it", what, whose)
}

func unregistered(w Workload, err error) error {
	return fmt.Errorf("%w: %s is not in the inventory", err, w.ID)
}

func ended(task Task) error {
	return &Ended{Task: task.ID, State: task.State, Cause: task.Cause, At: task.Ended}
}
