// Package token writes grants as signed JWTs. Use Minter; it is the only server code that names
// claims. The profile is RFC 9068's at+jwt, bound to the workload's certificate by RFC 8705, with
// two claims of the project's own: task and ep.
//
// The claims are marshalled once, from a struct, and signed as they are. The jwt builder of go-jose
// would marshal them, decode them to a map and marshal again, at twice the cost.
package token

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Minter implements broker.Minter with the keys of one ring.
type Minter struct {
	issuer string
	ring   *keys.Ring
}

// NewMinter makes tokens in the name of issuer, byte for byte the iss claim and the issuer of the
// metadata (RFC 8414 §2). The ring must sign with the type wire.TokenType.
func NewMinter(issuer string, ring *keys.Ring) (*Minter, error) {
	if issuer == "" || ring == nil {
		return nil, errors.New("token: an issuer and a key ring are required")
	}
	return &Minter{issuer: issuer, ring: ring}, nil
}

// overhead bounds what a token has beside its payload: the header, two dots, and the signature, of
// which RSA's is the longest.
const overhead = 600

// Draft writes the claims of a grant and picks the key. Errors match broker.ErrSigning, or
// broker.ErrInvalid when no verifier would look at a token of that size.
func (m *Minter) Draft(_ context.Context, task broker.Task, grant broker.Grant) (broker.Draft, error) {
	if task.ID != grant.Task || task.Workload != grant.Workload {
		return nil, fmt.Errorf("%w: grant %s is not of task %s, or not of its workload", broker.ErrSigning, grant.ID, task.ID)
	}
	payload, err := encode(m.claims(task, grant))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrSigning, err)
	}
	if size := base64.RawURLEncoding.EncodedLen(len(payload)) + overhead; size > wire.MaxTokenBytes {
		return nil, tooLarge(task, grant, size)
	}
	signer, err := m.ring.Signer()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", broker.ErrSigning, err)
	}
	return &draft{payload: payload, signer: signer}, nil
}

// encode leaves the details as they are: a token is no HTML, and < is one byte.
func encode(claims wire.Claims) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(claims)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// tooLarge names what takes up most of a token.
func tooLarge(task broker.Task, grant broker.Grant, size int) error {
	field, mend, most := "scopes", "ask for fewer scopes at once", len(grant.Scopes.String())
	details, delegators := 0, 0
	for _, detail := range grant.Details {
		details += len(detail)
	}
	for _, id := range task.Delegators {
		delegators += len(id.String())
	}
	if details > most {
		field, mend, most = "authorization_details", "ask for fewer details at once", details
	}
	if delegators > most {
		field, mend = "delegators", "they are as many and as long as they are, so delegate the task over fewer hops"
	}
	return &broker.Invalid{Field: field, Detail: fmt.Sprintf(
		"make a token of %d bytes; at most %d are allowed: %s", size, wire.MaxTokenBytes, mend)}
}

// Retire takes a key out of use at once. One that was retired before is no error, so that whoever
// could not finish can repeat all of it. Errors are those of broker.Minter.
func (m *Minter) Retire(kid string) error {
	err := m.ring.Remove(kid)
	if err == nil {
		return nil
	}
	removed := slices.ContainsFunc(m.ring.Keys(), func(k keys.Key) bool { return k.ID == kid && k.Removed })
	switch unknown := errors.Is(err, keys.ErrUnknownKey); {
	case unknown && removed:
		return nil
	case unknown:
		return fmt.Errorf("%w: there is no key %s", broker.ErrNotFound, kid)
	case removed:
		return unsigned(err)
	}
	return fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
}

// unsigned turns an error of a ring that was to be changed into the domain's.
func unsigned(err error) error {
	if errors.Is(err, keys.ErrRecord) || errors.Is(err, keys.ErrSealed) {
		return fmt.Errorf("%w: %w", broker.ErrUnconfirmed, err)
	}
	return fmt.Errorf("%w: %w", broker.ErrSigning, err)
}

// Deny implements broker.Minter.
func (m *Minter) Deny(kid string) { m.ring.Deny(kid) }

// Rotate makes the next key the active one now. Errors match broker.ErrTooEarly,
// broker.ErrUnconfirmed or broker.ErrSigning.
func (m *Minter) Rotate() (string, error) {
	err := m.ring.Rotate()
	if errors.Is(err, keys.ErrTooEarly) {
		return "", fmt.Errorf("%w: %s", broker.ErrTooEarly, strings.TrimPrefix(err.Error(), keys.ErrTooEarly.Error()+": "))
	}
	if err == nil {
		var signer *keys.Signer
		if signer, err = m.ring.Signer(); err == nil {
			return signer.KeyID(), nil
		}
	}
	return "", unsigned(err)
}

func (m *Minter) claims(task broker.Task, grant broker.Grant) wire.Claims {
	c := wire.Claims{
		Issuer:      m.issuer,
		Subject:     grant.Workload.String(),
		ClientID:    grant.Workload.String(),
		Audience:    grant.Audience,
		IssuedAt:    grant.Issued.Unix(),
		Expiry:      grant.Expires.Unix(),
		ID:          string(grant.ID),
		Transaction: string(task.Root()),
		Scope:       grant.Scopes.String(),
		Task:        wire.TaskClaim{ID: string(task.ID), Name: task.Name},
		Epoch:       [2]uint64{grant.Epoch, grant.Number},

		AuthorizationDetails: grant.Details.JSON(),
	}
	for _, id := range task.Path {
		c.Task.Path = append(c.Task.Path, string(id))
	}
	if len(task.Delegators) > 0 {
		c.Subject, c.Actor = task.Delegators[0].String(), chain(task.Delegators[1:], grant.Workload)
	}
	if grant.Binding == broker.BindCertificate {
		c.Confirmation = &wire.Confirmation{X5T: grant.Thumbprint}
	}
	return c
}

// chain is who acts in the name of a token's subject (RFC 8693 §4.1): the presenter outermost, and in it those
// through whom it came to that, the latest first.
func chain(through []spiffeid.ID, presenter spiffeid.ID) *wire.Actor {
	var inner *wire.Actor
	for _, id := range through {
		inner = &wire.Actor{Subject: id.String(), Actor: inner}
	}
	return &wire.Actor{Subject: presenter.String(), Actor: inner}
}

// draft is a token without its signature.
type draft struct {
	payload []byte
	signer  *keys.Signer
}

// Key implements broker.Draft.
func (d *draft) Key() string { return d.signer.KeyID() }

// Sign implements broker.Draft.
func (d *draft) Sign(context.Context) (broker.Token, error) {
	compact, err := d.signer.Sign(d.payload)
	if err != nil {
		return broker.Token{}, fmt.Errorf("%w: %w", broker.ErrSigning, err)
	}
	return broker.NewToken(compact), nil
}
