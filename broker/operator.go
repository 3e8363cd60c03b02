package broker

import (
	"context"
	"fmt"
	"strings"
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

// CertificateOperator is what the name of an operator begins with who has no SPIFFE ID, and is known by a
// certificate. No SPIFFE ID begins with it.
const CertificateOperator = "certificate:"

// Operator is somebody who has proved on the connection that a request came in on who they are, and may be
// given a role. Only broker/identity makes one, from a verified peer certificate.
//
// It is no Workload, even where it has a SPIFFE ID: an operator without one would have the ID of nobody.
type Operator struct {
	// Name is the SPIFFE ID, or CertificateOperator and the name in the configuration; never empty. It is
	// the actor of what the operator does, and what the operator's plans and places are bound to.
	Name string

	// Thumbprint is the x5t#S256 of the certificate, for the audit log alone.
	Thumbprint string

	// Address is the peer's network address, for the audit log alone.
	Address string

	Role Role // by the configuration
}

// RuleRole is the rule of an event that says that somebody lacked an operator's role.
const RuleRole = "operator/role"

// RefuseOperator records that somebody asked for what needs a role that they do not have. It does not
// wait for the audit log.
func (b *Broker) RefuseOperator(o Operator, why error) {
	e := Event{
		ID: NewEventID(), Kind: EventDenied, Time: b.Now(), Address: o.Address, Actor: o.Name,
		Thumbprint: o.Thumbprint, Rule: RuleRole, Reason: cut(why.Error(), MaxPurpose),
	}
	if !strings.HasPrefix(o.Name, CertificateOperator) {
		e.Workload = o.Name
	}
	b.recordRefusal(e)
}

// Rotation is an operator's word that the next key is to sign from now on.
type Rotation struct {
	Actor      string // who says so
	Address    string // the peer's
	Thumbprint string // of the actor's certificate
	Reason     string // why; required
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
		ID: NewEventID(), Kind: EventKeyRotated, Time: b.Now(), Actor: r.Actor, Address: r.Address, Thumbprint: r.Thumbprint,
		Reason: r.Reason, Key: kid,
	}})
	return kid, nil
}
