package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk/wire"
)

// Operators has the roles of those who may use the operator listener, by the name that broker.Operator has.
type Operators map[string]broker.Role

// Operator returns the handler of the operator listener. Every route says which role it needs.
func (a *API) Operator() http.Handler {
	r := a.router("operator", a.identifyOperator)
	viewer, operator, admin := r.forRole(broker.RoleViewer), r.forRole(broker.RoleOperator), r.forRole(broker.RoleAdmin)
	looking := viewer.listing()
	getOrWatch(looking, wire.PathGrants, a.listGrants, a.watchGrants)
	getOrWatch(looking, wire.PathTasks, a.listTasks, a.watchTasks)
	get(looking, wire.PathTaskTree, a.tree)
	get(viewer, wire.PathGrant, a.showGrant)
	get(viewer, wire.PathTask, a.showTask)
	post(operator, wire.PathRevocations, http.StatusOK, a.revoke)
	post(operator, wire.PathGrantRevoke, http.StatusOK, a.revokeGrant)
	post(operator, wire.PathTaskRevoke, http.StatusOK, a.revokeTask)
	get(viewer, wire.PathRevocations, a.listRevocations)
	get(viewer, wire.PathRevocation, a.showRevocation)
	post(operator, wire.PathLocks, http.StatusCreated, a.lock)
	remove(operator, wire.PathLock, a.lift)
	get(viewer, wire.PathLocks, a.listLocks)
	get(viewer, wire.PathLock, a.showLock)
	get(viewer, wire.PathKeys, a.listKeys)
	get(viewer, wire.PathVerifiers, a.listVerifiers)
	post(admin, wire.PathKeyRotate, http.StatusOK, a.rotateKey)
	post(admin, wire.PathKeyRevoke, http.StatusOK, a.revokeKey)
	return r
}

// roleNeeded is a peer that may not do what it wants as an operator.
type roleNeeded struct {
	by    broker.Operator
	needs broker.Role
}

func (e *roleNeeded) Error() string {
	has := "the role " + e.by.Role.String()
	if e.by.Role == broker.NoRole {
		has = "none"
	}
	return fmt.Sprintf("this needs the role %s, and %s has %s", e.needs, e.by.Name, has)
}

func (a *API) listKeys(context.Context, request[none]) (wire.KeyList, error) {
	out := wire.KeyList{Keys: []wire.Key{}}
	for _, k := range a.AllKeys() {
		out.Keys = append(out.Keys, encodeKey(k))
	}
	return out, nil
}

func (a *API) rotateKey(ctx context.Context, r request[wire.OperatorRequest]) (wire.KeyRotation, error) {
	kid, err := a.Broker.Rotate(ctx, broker.Rotation{
		Actor: r.Operator.Name, Address: r.Operator.Address, Thumbprint: r.Operator.Thumbprint, Reason: r.Body.Reason,
	})
	return wire.KeyRotation{Active: kid}, err
}

// keyRevoked is 202 while the store does not have it.
type keyRevoked struct{ wire.KeyRevocation }

func (k keyRevoked) status() int {
	if k.Durable {
		return http.StatusOK
	}
	return http.StatusAccepted
}

func (a *API) revokeKey(ctx context.Context, r request[wire.OperatorRequest]) (keyRevoked, error) {
	receipt, err := a.Broker.Revoke(ctx, broker.Revocation{
		Key: r.ID, Actor: r.Operator.Name, Address: r.Operator.Address, Thumbprint: r.Operator.Thumbprint, Reason: r.Body.Reason,
	})
	if err != nil {
		return keyRevoked{}, err
	}
	out := wire.KeyRevocation{
		Event: string(receipt.Event), Key: r.ID, Reason: r.Body.Reason, RevokedAt: receipt.Ended.UTC(), Durable: receipt.Durable,
	}
	if !receipt.Feed.IsZero() {
		out.Feed = wire.Position(receipt.Feed).String()
	}
	return keyRevoked{out}, nil
}

func (a *API) listVerifiers(ctx context.Context, _ request[none]) (wire.VerifierList, error) {
	at, verifiers, err := a.Broker.Verifiers(ctx)
	if err != nil {
		return wire.VerifierList{}, err
	}
	out := wire.VerifierList{Position: wire.Position(at).String(), Verifiers: []wire.Verifier{}}
	for _, v := range verifiers {
		out.Verifiers = append(out.Verifiers, wire.Verifier{
			ID: v.ID, Workload: v.Workload.String(), Audience: v.Audience, Position: wire.Position(v.Position).String(), Behind: v.Behind(at),
			SeenAt: v.SeenAt.UTC().Truncate(time.Millisecond), MaxStale: int64(v.MaxStale / time.Second), Version: v.Version,
		})
	}
	return out, nil
}

func encodeKey(k keys.Key) wire.Key {
	return wire.Key{
		ID: k.ID, Algorithm: string(k.Algorithm), State: string(k.State), CreatedAt: k.Created.UTC(),
		ActivatedAt: moment(k.Activated), RetiredAt: moment(k.Retired), GoneAt: moment(k.Gone), Revoked: k.Removed,
	}
}

// moment is nil for what has not happened.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
