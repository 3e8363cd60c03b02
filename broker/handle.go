package broker

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
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
// Its text is "hdl_", the delegation as JSON in base64url, a dot, and an HMAC-SHA-256 of that JSON in base64url.
// The zero value is none.
type Handle struct {
	payload string
	mac     [sha256.Size]byte
}

const (
	handlePrefix = "hdl_"
	macChars     = 43 // of an HMAC-SHA-256 in base64url
)

// ParseHandle reads exactly what String writes. Anything else is ErrInvalid. Who has made it, and what it says,
// is not looked at.
func ParseHandle(s string) (Handle, error) {
	switch {
	case s == "":
		return Handle{}, invalid("handle", "is empty; send the one that the delegator was given")
	case len(s) > MaxHandleBytes:
		return Handle{}, invalid("handle", "has %d bytes; at most %d are allowed", len(s), MaxHandleBytes)
	}
	rest, ok := strings.CutPrefix(s, handlePrefix)
	payload, mac, dotted := strings.Cut(rest, ".")
	if !ok || !dotted || payload == "" || len(mac) != macChars {
		return Handle{}, badHandle()
	}
	text, err := base64.RawURLEncoding.Strict().DecodeString(payload)
	if err != nil {
		return Handle{}, badHandle()
	}
	sum, err := base64.RawURLEncoding.Strict().DecodeString(mac)
	if err != nil || len(sum) != sha256.Size {
		return Handle{}, badHandle()
	}
	h := Handle{payload: string(text), mac: [sha256.Size]byte(sum)}
	if h.String() != s { // the decoder passes over line breaks
		return Handle{}, badHandle()
	}
	return h, nil
}

// badHandle says the same of what is none and of what this broker has not made.
func badHandle() error {
	return invalid("handle", "is none that this broker has made; send it as the delegator was given it, and to the same broker")
}

// String is the handle's text, and "" for none.
func (h Handle) String() string {
	if h == (Handle{}) {
		return ""
	}
	return handlePrefix + base64.RawURLEncoding.EncodeToString([]byte(h.payload)) + "." + base64.RawURLEncoding.EncodeToString(h.mac[:])
}

// handleLen is how long the handle of a payload is.
func handleLen(payload int) int {
	return len(handlePrefix) + base64.RawURLEncoding.EncodedLen(payload) + 1 + macChars
}

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

// handle makes the handle of a delegation. The secret is that of the end keys; the first line keeps what it is
// used for apart.
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
	payload := strings.TrimSuffix(text.String(), "\n")
	if size := handleLen(len(payload)); size > MaxHandleBytes {
		return Handle{}, tooLong(d, size)
	}
	return Handle{payload: payload, mac: e.handleMAC(payload)}, nil
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

func (e endKeys) handleMAC(payload string) [sha256.Size]byte {
	mac := hmac.New(sha256.New, e.secret)
	fmt.Fprintf(mac, "errand delegation handle\n%s", payload)
	return [sha256.Size]byte(mac.Sum(nil))
}

// open returns what a handle says if a broker with this secret has made it, and ErrInvalid otherwise.
func (e endKeys) open(h Handle) (delegation, error) {
	good := e.handleMAC(h.payload)
	if !hmac.Equal(good[:], h.mac[:]) {
		return delegation{}, badHandle()
	}
	var text handleText
	if err := strict.Unmarshal([]byte(h.payload), &text, strict.RejectUnknownMembers(true)); err != nil {
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
