package wire

import "encoding/json"

// Claims are the payload of a token. All but task and ep are registered with IANA.
type Claims struct {
	Issuer       string        `json:"iss"`
	Subject      string        `json:"sub"`       // the workload's SPIFFE ID
	ClientID     string        `json:"client_id"` // who presents it; the same, unless delegated
	Audience     string        `json:"aud"`       // exactly one
	IssuedAt     int64         `json:"iat"`
	Expiry       int64         `json:"exp"`
	ID           string        `json:"jti"` // the grant's ID
	Transaction  string        `json:"txn"` // the root task's ID (RFC 8417 §2.2)
	Scope        string        `json:"scope"`
	Task         TaskClaim     `json:"task"`
	Epoch        [2]uint64     `json:"ep"` // the data set's epoch, and the shard's feed number at issue
	Confirmation *Confirmation `json:"cnf,omitempty"`
	Actor        *Actor        `json:"act,omitempty"`

	// AuthorizationDetails are objects, each with a type (RFC 9396 §9.1).
	AuthorizationDetails []json.RawMessage `json:"authorization_details,omitempty"`
}

// TaskClaim names the task of a token. A denial of any task on the path kills the token.
type TaskClaim struct {
	ID   string   `json:"id"`
	Path []string `json:"path"` // from the root to ID
	Name string   `json:"name"`
}

// Confirmation binds a token to a certificate (RFC 8705 §3.1).
type Confirmation struct {
	X5T string `json:"x5t#S256"`
}

// Actor is one link of a delegation chain, the current actor outermost (RFC 8693 §4.1).
type Actor struct {
	Subject string `json:"sub"`
	Actor   *Actor `json:"act,omitempty"`
}
