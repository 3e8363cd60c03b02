package wire

import "time"

// Paths of the operator listener (mutual TLS with the X.509-SVID of an operator). Each says which role
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

// KeyRevocation is the answer to the revocation of a key.
type KeyRevocation struct {
	Event     string    `json:"event"`
	Key       string    `json:"kid"`
	Reason    string    `json:"reason"`
	RevokedAt time.Time `json:"revoked_at"`
	Feed      string    `json:"feed"` // the position at which verifiers know
	Durable   bool      `json:"durable"`
}
