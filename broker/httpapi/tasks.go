package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
)

// begun is a BeginResponse that knows where its task is.
type begun struct{ wire.BeginResponse }

func (b begun) location() string { return wire.PathTasks + "/" + b.Task.ID }

func (a *API) begin(ctx context.Context, r request[wire.BeginRequest]) (begun, error) {
	return a.beginBelow(ctx, r, "")
}

// child begins a task below that of the path.
func (a *API) child(ctx context.Context, r request[wire.BeginRequest]) (begun, error) {
	parent, err := broker.ParseTaskID(r.ID)
	if err != nil {
		return begun{}, err
	}
	return a.beginBelow(ctx, r, parent)
}

// beginBelow begins a task below a parent, and a root for none.
func (a *API) beginBelow(ctx context.Context, r request[wire.BeginRequest], parent broker.TaskID) (begun, error) {
	req, err := beginRequest(r.Body)
	if err != nil {
		return begun{}, err
	}
	req.Parent, req.Key = parent, r.Key
	b, err := a.Broker.Begin(ctx, r.Workload, req)
	if err != nil {
		return begun{}, err
	}
	return encodeBegun(b), nil
}

func encodeBegun(b broker.Begun) begun {
	out := begun{wire.BeginResponse{Task: encodeTask(b.Task), EndKey: b.EndKey.Secret()}}
	for _, issued := range b.Tokens {
		out.Tokens = append(out.Tokens, encodeToken(issued))
	}
	return out
}

// adopt makes the caller the holder of a task of its workload.
func (a *API) adopt(ctx context.Context, r request[none]) (wire.BeginResponse, error) {
	id, err := broker.ParseTaskID(r.ID)
	if err != nil {
		return wire.BeginResponse{}, err
	}
	b, err := a.Broker.Adopt(ctx, r.Workload, id)
	if err != nil {
		return wire.BeginResponse{}, err
	}
	return encodeBegun(b).BeginResponse, nil
}

func (a *API) issue(ctx context.Context, r request[wire.TokenRequest]) (wire.TokenResponse, error) {
	id, err := broker.ParseTaskID(r.ID)
	if err != nil {
		return wire.TokenResponse{}, err
	}
	req, err := tokenRequest("", r.Body)
	if err != nil {
		return wire.TokenResponse{}, err
	}
	issued, err := a.Broker.Issue(ctx, r.Workload, id, req)
	if err != nil {
		return wire.TokenResponse{}, err
	}
	return encodeToken(issued), nil
}

func (a *API) task(ctx context.Context, r request[none]) (wire.Task, error) {
	id, err := broker.ParseTaskID(r.ID)
	if err != nil {
		return wire.Task{}, err
	}
	task, err := a.Broker.Task(ctx, r.Workload, id)
	if err != nil {
		return wire.Task{}, err
	}
	return encodeTask(task), nil
}

// ended is a Receipt that knows with which status it is answered.
type ended struct{ wire.Receipt }

func (e ended) status() int {
	if e.Durable {
		return http.StatusOK
	}
	return http.StatusAccepted
}

// endRequest is an EndRequest that knows how long its answer is waited for.
type endRequest struct{ wire.EndRequest }

func (e endRequest) wait() time.Duration { return waitOf(e.WaitSeconds) }

// waitOf is a wait in seconds, without an overflow.
func waitOf(seconds int) time.Duration {
	return time.Duration(min(max(seconds, -1), wire.MaxWait+1)) * time.Second
}

func (a *API) end(ctx context.Context, r request[endRequest]) (ended, error) {
	id, err := broker.ParseTaskID(r.ID)
	if err != nil {
		return ended{}, err
	}
	if r.Body.Workload != "" {
		return ended{}, &broker.Invalid{Field: "workload", Detail: "is for the public listener; leave it out here, where the SVID says whose the task is"}
	}
	key, err := broker.ParseEndKey(r.Body.EndKey)
	if err != nil {
		return ended{}, err
	}
	receipt, err := a.Broker.End(ctx, r.Workload, id, broker.EndRequest{
		State: broker.State(r.Body.Outcome), Reason: r.Body.Reason, Key: key, Holder: r.Body.Holder,
		Wait: r.Body.wait(), Waiting: r.Leave, // who waits takes nobody's place
	})
	if err != nil {
		return ended{}, err
	}
	return ended{encodeReceipt(receipt)}, nil
}

func encodeReceipt(receipt broker.Receipt) wire.Receipt {
	out := wire.Receipt{
		Event: string(receipt.Event), Task: string(receipt.Task), State: string(receipt.State),
		Cause: string(receipt.Cause), Reason: receipt.Reason, EndedAt: receipt.Ended.UTC(),
		Grants: receipt.Grants, SubTasks: receipt.SubTasks, Durable: receipt.Durable,
		Propagation: encodePropagation(receipt.Propagation),
	}
	if !receipt.Feed.IsZero() {
		out.Feed = wire.Position(receipt.Feed).String()
	}
	return out
}

func (a *API) heartbeat(ctx context.Context, r request[wire.HeartbeatRequest]) (wire.HeartbeatResponse, error) {
	more := a.admission.rates[kindOther].more(len(r.Body.Tasks) / BeatsPerRequest)
	if err := a.withinRate(kindOther, r.Workload.ID, more); err != nil {
		return wire.HeartbeatResponse{}, err
	}
	beats := make([]broker.Beat, len(r.Body.Tasks))
	for i, task := range r.Body.Tasks {
		// What is not an ID cannot be found, and is answered so in its place.
		if id, err := broker.ParseTaskID(task.ID); err == nil {
			beats[i].Task = id
		}
		beats[i].Note, beats[i].Holder, beats[i].Stream = task.Note, task.Holder, broker.StreamID(r.Body.Stream)
	}
	pulses, err := a.Broker.Heartbeat(ctx, r.Workload, beats)
	if err != nil {
		return wire.HeartbeatResponse{}, err
	}
	out := wire.HeartbeatResponse{Tasks: make([]wire.Pulse, len(pulses))}
	for i, pulse := range pulses {
		answer := wire.Pulse{ID: r.Body.Tasks[i].ID, State: wire.StateUnknown}
		if errors.Is(pulse.Err, broker.ErrAdopted) {
			answer.State = wire.StateAdopted
		}
		if pulse.Err == nil {
			answer.State, answer.Cause = string(pulse.Task.State), string(pulse.Task.Cause)
			if pulse.Task.State == broker.Active {
				at, _, _ := pulse.Task.Due()
				answer.LeaseExpiresIn = int64(at.Sub(pulse.Now) / time.Second)
			}
		}
		out.Tasks[i] = answer
	}
	return out, nil
}

func (a *API) grant(ctx context.Context, r request[none]) (wire.Grant, error) {
	id, err := broker.ParseGrantID(r.ID)
	if err != nil {
		return wire.Grant{}, err
	}
	status, err := a.Broker.Grant(ctx, r.Workload, id)
	if err != nil {
		return wire.Grant{}, err
	}
	return encodeGrant(status), nil
}

func beginRequest(body wire.BeginRequest) (req broker.BeginRequest, err error) {
	req.Name, req.Purpose = body.Name, body.Purpose
	if req.Ceiling, err = ceiling(body.Audiences, body.Scopes, body.AuthorizationDetails); err != nil {
		return req, err
	}
	req.Ticket, req.Labels, req.Presence = body.Ticket, body.Labels, body.Presence
	if req.Ref, err = taskRef(body.Ref); err != nil {
		return req, err
	}
	if req.Context, err = broker.ParseContext(body.Context); err != nil {
		return req, err
	}
	if req.Lease, err = seconds("lease_seconds", body.LeaseSeconds); err != nil {
		return req, err
	}
	if req.Deadline, err = seconds("deadline_seconds", body.DeadlineSeconds); err != nil {
		return req, err
	}
	for i, token := range body.Tokens {
		t, err := tokenRequest(fmt.Sprintf("tokens[%d].", i), token)
		if err != nil {
			return req, err
		}
		req.Tokens = append(req.Tokens, t)
	}
	return req, nil
}

func ceiling(audiences, scopes []string, details []json.RawMessage) (c broker.Ceiling, err error) {
	if c.Audiences, err = broker.ParseAudiences(audiences); err != nil {
		return c, err
	}
	if c.Scopes, err = broker.ParseScopes(scopes); err != nil {
		return c, err
	}
	c.Details, err = broker.ParseDetails(details)
	return c, err
}

func tokenRequest(field string, body wire.TokenRequest) (req broker.TokenRequest, err error) {
	req.Audience = body.Audience
	if req.Scopes, err = broker.ParseScopes(body.Scopes); err != nil {
		return req, below(field, err)
	}
	if req.Details, err = broker.ParseDetails(body.AuthorizationDetails); err != nil {
		return req, below(field, err)
	}
	req.Life, err = seconds(field+"ttl_seconds", body.TTLSeconds)
	return req, err
}

// below names the field of an error from further up.
func below(field string, err error) error {
	var bad *broker.Invalid
	if errors.As(err, &bad) {
		bad.Field = field + bad.Field
	}
	return err
}

// taskRef tells an absent member from an empty object, which is a mistake.
func taskRef(ref *wire.Ref) (broker.TaskRef, error) {
	if ref == nil {
		return broker.TaskRef{}, nil
	}
	if *ref == (wire.Ref{}) {
		return broker.TaskRef{}, &broker.Invalid{Field: "ref", Detail: "is empty; give it a kind and an id, or leave it out"}
	}
	return broker.TaskRef(*ref), nil
}

// seconds tells an absent member, which is the default, from a zero, which is a mistake.
func seconds(field string, n *int64) (time.Duration, error) {
	const most = int64(365 * 24 * time.Hour / time.Second) // far above every bound, far below an overflow
	switch {
	case n == nil:
		return 0, nil
	case *n <= 0 || *n > most:
		return 0, &broker.Invalid{Field: field, Detail: fmt.Sprintf("is %d; it must be a positive number of seconds within the documented bounds; leave it out for the default", *n)}
	}
	return time.Duration(*n) * time.Second, nil
}

func encodeTask(t broker.Task) wire.Task {
	out := wire.Task{
		ID: string(t.ID), Root: string(t.Root()), Workload: t.Workload.String(), Name: t.Name, Purpose: t.Purpose,
		Audiences: t.Ceiling.Audiences, Scopes: t.Ceiling.Scopes, AuthorizationDetails: t.Ceiling.Details.JSON(),
		Ticket: t.Ticket, Labels: t.Labels, Context: json.RawMessage(t.Context), Note: t.Note, Presence: t.Presence, Holder: t.Holder,
		State: string(t.State), Cause: string(t.Cause), BegunAt: t.Begun.UTC(),
		LeaseSeconds: int64(t.Lease / time.Second), LeaseExpiresAt: t.LeaseEnd.UTC(), Deadline: t.Deadline.UTC(),
	}
	for _, id := range t.Path {
		out.Path = append(out.Path, string(id))
	}
	for _, id := range t.Delegators {
		out.Delegators = append(out.Delegators, id.String())
	}
	if t.Ref != (broker.TaskRef{}) {
		ref := wire.Ref(t.Ref)
		out.Ref = &ref
	}
	out.EndedAt, out.NotedAt = moment(t.Ended), moment(t.Noted)
	return out
}

func encodeGrant(s broker.GrantStatus) wire.Grant {
	g := s.Grant
	return wire.Grant{
		ID: string(g.ID), Task: string(g.Task), Workload: g.Workload.String(), Audience: g.Audience,
		Scope: g.Scopes.String(), Binding: g.Binding.String(), IssuedAt: g.Issued.UTC(), ExpiresAt: g.Expires.UTC(),
		Live: s.Live, TaskState: string(s.Task.State), DecisionID: string(g.Decision),
		AuthorizationDetails: g.Details.JSON(),
	}
}

func encodeToken(i broker.Issued) wire.TokenResponse {
	var servers []string
	for _, id := range i.Servers {
		servers = append(servers, id.String())
	}
	return wire.TokenResponse{
		Servers:     servers,
		AccessToken: i.Token.Secret(), TokenType: "Bearer", ExpiresIn: int64(i.Life / time.Second),
		Scope: i.Grant.Scopes.String(), GrantID: string(i.Grant.ID), Audience: i.Grant.Audience,
		Hosts: i.Hosts, Binding: i.Grant.Binding.String(), DecisionID: string(i.Grant.Decision),
		AuthorizationDetails: i.Grant.Details.JSON(),
	}
}
