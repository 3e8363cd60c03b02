package verify

import (
	"context"
	stdjson "encoding/json"
	"fmt"

	"github.com/go-jose/go-jose/v4/json"
)

// maxDetails is how many authorization details one token can have.
const maxDetails = 16

// Detail requires an authorization detail (RFC 9396) of the type that f takes: f gets one after the
// other, as JSON, until it returns nil. nil takes any. The refusal is ErrForbidden: 403; what f says is
// for the log alone.
func Detail(typ string, f func(raw []byte) error) Requirement {
	if typ == "" {
		panic("verify: Detail needs a type")
	}
	return &detail{typ, f}
}

type detail struct {
	typ string
	f   func([]byte) error
}

func (d *detail) scopes() []string { return nil }

func (d *detail) check(_ context.Context, g *Grant) error {
	refusal := fmt.Errorf("%w: it needs an authorization detail of the type %q", ErrForbidden, d.typ)
	for _, raw := range g.Details {
		if typ, ok := detailType(raw); !ok || typ != d.typ {
			continue
		}
		if d.f == nil {
			return nil
		}
		err := d.f(raw)
		if err == nil {
			return nil
		}
		// Whatever f's error is or wraps, this is a 403.
		refusal = fmt.Errorf("%w: the authorization detail of the type %q: %v", ErrForbidden, d.typ, err)
	}
	return refusal
}

// detailType reads the type of a detail as strictly as the other claims are read: in this letter case,
// and once.
func detailType(raw []byte) (string, bool) {
	var d struct {
		Type string `json:"type"`
	}
	if len(raw) == 0 || raw[0] != '{' || json.Unmarshal(raw, &d) != nil {
		return "", false
	}
	return d.Type, d.Type != ""
}

// checkDetails wants objects with a type: what is not understood is refused, not ignored.
func checkDetails(details []stdjson.RawMessage) error {
	if len(details) > maxDetails {
		return malformed(fmt.Sprintf("it has more than %d authorization details", maxDetails))
	}
	for _, raw := range details {
		if _, ok := detailType(raw); !ok {
			return malformed("authorization_details is not a list of objects with a type")
		}
	}
	return nil
}
