package httpapi

import (
	"context"
	"strings"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// delegate lets another workload join the task of the path.
func (a *API) delegate(ctx context.Context, r request[wire.DelegationRequest]) (wire.DelegationResponse, error) {
	id, err := broker.ParseTaskID(r.ID)
	if err != nil {
		return wire.DelegationResponse{}, err
	}
	d, err := delegation(r.Body)
	if err != nil {
		return wire.DelegationResponse{}, err
	}
	made, err := a.Broker.Delegate(ctx, r.Workload, id, d)
	if err != nil {
		return wire.DelegationResponse{}, err
	}
	return wire.DelegationResponse{ID: string(made.ID), Handle: made.Handle.String(), ExpiresAt: made.Expires}, nil
}

func delegation(body wire.DelegationRequest) (d broker.Delegation, err error) {
	d.Purpose = body.Purpose
	if body.To != "" { // else the broker says so
		if d.To, err = spiffeid.FromString(body.To); err != nil {
			why := strings.TrimPrefix(err.Error(), "spiffeid: ")
			return d, &broker.Invalid{Field: "to", Detail: "is not a SPIFFE ID: " + short(why)}
		}
	}
	if d.Ceiling, err = ceiling(body.Audiences, body.Scopes, body.AuthorizationDetails); err != nil {
		return d, err
	}
	d.Life, err = seconds("expires_in", body.ExpiresIn)
	return d, err
}

// join begins a task below the one that a handle is for.
func (a *API) join(ctx context.Context, r request[wire.JoinRequest]) (begun, error) {
	handle, err := broker.ParseHandle(r.Body.Handle)
	if err != nil {
		return begun{}, err
	}
	req, err := beginRequest(r.Body.BeginRequest)
	if err != nil {
		return begun{}, err
	}
	req.Key = r.Key
	b, err := a.Broker.Join(ctx, r.Workload, handle, req)
	if err != nil {
		return begun{}, err
	}
	return encodeBegun(b), nil
}
