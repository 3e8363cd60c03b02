package broker

import (
	"context"
	"fmt"
)

// Role is what an operator may do. Each role may all that those below it may.
type Role int

// The roles. The zero value may nothing.
const (
	NoRole       Role = iota
	RoleViewer        // looks
	RoleOperator      // ends and locks what others do
	RoleAdmin         // changes the broker itself: its keys, its inventory
)

func (r Role) String() string {
	switch r {
	case NoRole:
		return "none"
	case RoleViewer:
		return "viewer"
	case RoleOperator:
		return "operator"
	case RoleAdmin:
		return "admin"
	}
	return fmt.Sprintf("Role(%d)", int(r))
}

// RuleRole is the rule of an event that says that somebody lacked an operator's role.
const RuleRole = "operator/role"

// RefuseOperator records that somebody asked for what needs a role that they do not have. It does not
// wait for the audit log.
func (b *Broker) RefuseOperator(w Workload, why error) {
	b.recordRefusal(Event{
		ID: NewEventID(), Kind: EventDenied, Time: b.Now(), Workload: w.ID.String(), Address: w.Address, Actor: w.ID.String(),
		Thumbprint: w.Thumbprint, Rule: RuleRole, Reason: cut(why.Error(), MaxPurpose),
	})
}

// Rotation is an operator's word that the next key is to sign from now on.
type Rotation struct {
	Actor   string // who says so
	Address string // the peer's
	Reason  string // why; required
}

// Rotate makes the next key the active one before its time, and returns its kid. Nothing that was
// signed dies by it; to kill that, revoke the key. Errors: ErrInvalid, ErrTooEarly, ErrSigning.
func (b *Broker) Rotate(ctx context.Context, r Rotation) (kid string, err error) {
	if err := checkOperator(r.Actor, r.Reason); err != nil {
		return "", err
	}
	if kid, err = b.Minter.Rotate(); err != nil {
		return "", err
	}
	b.record(ctx, []Event{{
		ID: NewEventID(), Kind: EventKeyRotated, Time: b.Now(), Actor: r.Actor, Address: r.Address, Reason: r.Reason, Key: kid,
	}})
	return kid, nil
}
