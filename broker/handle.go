package broker

import (
	"bytes"
	"encoding/json"
	"strings"
	"time"

	strict "github.com/go-json-experiment/json"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxHandleBytes bounds a handle.
const MaxHandleBytes = 4096

// Handle is a delegation in the form in which one workload hands it to another. It is no credential: it is of
// use to nobody but the workload that it names, which must prove who it is, and once. No store has to keep it,
// since it says all of the delegation itself.
//
// Its text is "hdl_", and the delegation as JSON, sealed with the secret of the end keys. The zero value is none.
type Handle struct{ text string }

const (
	handlePrefix = "hdl_"
	handleKind   = "errand delegation handle"
)

// ParseHandle takes what may be a handle: no more than its length and its beginning is looked at here, and the
// rest when it is used. Errors are ErrInvalid.
func ParseHandle(s string) (Handle, error) {
	switch {
	case s == "":
		return Handle{}, invalid("handle", "is empty; send the one that the delegator was given")
	case len(s) > MaxHandleBytes:
		return Handle{}, invalid("handle", "has %d bytes; at most %d are allowed", len(s), MaxHandleBytes)
	case !strings.HasPrefix(s, handlePrefix):
		return Handle{}, badHandle()
	}
	return Handle{s}, nil
}

// badHandle says the same of what is none and of what this broker has not made.
func badHandle() error {
	return invalid("handle", "is none that this broker has made; send it as the delegator was given it, and to the same broker")
}

// String is the handle's text, and "" for none.
func (h Handle) String() string { return h.text }

// delegation is what a handle says.
type delegation struct {
	ID        DelegationID
	Task      TaskID
	Delegator spiffeid.ID // whose the task is
	To        spiffeid.ID // who may join it
	Purpose   string
	Ceiling   Ceiling
	Expires   time.Time // to the millisecond
}

// handleText is its JSON.
type handleText struct {
	ID        string            `json:"id"`
	Task      string            `json:"task"`
	Delegator string            `json:"from"`
	To        string            `json:"to"`
	Purpose   string            `json:"purpose"`
	Audiences []string          `json:"audiences"`
	Scopes    []string          `json:"scopes"`
	Details   []json.RawMessage `json:"authorization_details,omitempty"`
	Expires   int64             `json:"expires"` // Unix milliseconds
}

// handle makes the handle of a delegation.
func (e endKeys) handle(d delegation) (Handle, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // < is one byte
	if err := encoder.Encode(handleText{
		ID: string(d.ID), Task: string(d.Task), Delegator: d.Delegator.String(), To: d.To.String(), Purpose: d.Purpose,
		Audiences: d.Ceiling.Audiences, Scopes: d.Ceiling.Scopes, Details: d.Ceiling.Details.JSON(), Expires: d.Expires.UnixMilli(),
	}); err != nil {
		panic("broker: a delegation of checked values must marshal: " + err.Error())
	}
	h := Handle{handlePrefix + e.seal(handleKind, bytes.TrimSuffix(text.Bytes(), []byte("\n")))}
	if size := len(h.text); size > MaxHandleBytes {
		return Handle{}, tooLong(d, size)
	}
	return h, nil
}

// tooLong names what takes up most of a handle.
func tooLong(d delegation, size int) error {
	field, most := "purpose", len(d.Purpose)
	for _, part := range []struct {
		field string
		size  int
	}{
		{"to", len(d.To.String())}, {"audiences", len(strings.Join(d.Ceiling.Audiences, ""))},
		{"scopes", len(d.Ceiling.Scopes.String())}, {detailsField, d.Ceiling.Details.size()},
	} {
		if part.size > most {
			field, most = part.field, part.size
		}
	}
	return invalid(field, "make a handle of %d bytes; at most %d are allowed: delegate less at once", size, MaxHandleBytes)
}

// open returns what a handle says if a broker with this secret has made it, and ErrInvalid otherwise.
func (e endKeys) open(h Handle) (delegation, error) {
	payload, ok := e.unseal(handleKind, strings.TrimPrefix(h.text, handlePrefix))
	if !ok {
		return delegation{}, badHandle()
	}
	var text handleText
	if err := strict.Unmarshal(payload, &text, strict.RejectUnknownMembers(true)); err != nil {
		return delegation{}, badHandle()
	}
	d := delegation{
		ID: DelegationID(text.ID), Task: TaskID(text.Task), Purpose: text.Purpose,
		Ceiling: Ceiling{Audiences: text.Audiences, Scopes: text.Scopes}, Expires: time.UnixMilli(text.Expires).UTC(),
	}
	for _, detail := range text.Details {
		d.Ceiling.Details = append(d.Ceiling.Details, Object(detail)) // it was canonical, and is as it was
	}
	var err error
	if d.Delegator, err = spiffeid.FromString(text.Delegator); err != nil {
		return delegation{}, badHandle()
	}
	if d.To, err = spiffeid.FromString(text.To); err != nil {
		return delegation{}, badHandle()
	}
	return d, nil
}
