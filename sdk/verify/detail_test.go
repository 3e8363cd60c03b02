package verify_test

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/errandhq/errand/sdk/verify"
)

// TestDetail lets a token with two payments and a customer meet, or not meet, what a route asks.
func TestDetail(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	token := b.token(func(c map[string]any) {
		c["authorization_details"] = []any{
			map[string]any{"type": "payment", "max": 5}, map[string]any{"type": "payment", "max": 50}, map[string]any{"type": "customer"},
		}
	})
	plain := b.token(nil)
	upTo := func(amount int) func([]byte) error {
		return func(raw []byte) error {
			var payment struct{ Max int }
			if err := json.Unmarshal(raw, &payment); err != nil || payment.Max < amount {
				return errors.New("that is too much")
			}
			return nil
		}
	}
	for name, c := range map[string]struct {
		token string
		req   verify.Requirement
		want  error
	}{
		"any":            {token, verify.Detail("customer", nil), nil},
		"the second":     {token, verify.Detail("payment", upTo(50)), nil},
		"none of them":   {token, verify.Detail("payment", upTo(51)), verify.ErrForbidden},
		"another type":   {token, verify.Detail("refund", nil), verify.ErrForbidden},
		"letter case":    {token, verify.Detail("Customer", nil), verify.ErrForbidden},
		"without any":    {plain, verify.Detail("customer", nil), verify.ErrForbidden},
		"nothing needed": {plain, verify.Scope(), nil},
	} {
		g, err := v.Verify(t.Context(), c.token, b.peer(), c.req)
		if !errors.Is(err, c.want) || (g == nil) == (c.want == nil) {
			t.Errorf("%s: %v, %v; want %v", name, g, err, c.want)
		}
	}
	other := verify.Detail("payment", func([]byte) error { return verify.ErrMissing }) // as of a call that it makes
	if _, err := v.Verify(t.Context(), token, b.peer(), other); !errors.Is(err, verify.ErrForbidden) || errors.Is(err, verify.ErrMissing) {
		t.Errorf("with an error that means something else: %v", err)
	}
	if g, err := v.Verify(t.Context(), token, b.peer()); err != nil || len(g.Details) != 3 {
		t.Errorf("got %+v, %v", g, err)
	}
	for name, details := range map[string]any{
		"no list": map[string]any{"type": "a"}, "a string": []any{"a"}, "null": []any{nil}, "no type": []any{map[string]any{}},
		"a type that is no string": []any{map[string]any{"type": 1}}, "an empty one": []any{map[string]any{"type": ""}},
		"other letter case": []any{map[string]any{"Type": "a"}}, "a list": []any{[]any{}}, "too many": make([]map[string]string, 17),
		"a type twice": []any{json.RawMessage(`{"type":"a","type":"b"}`)},
	} {
		bad := b.token(func(c map[string]any) { c["authorization_details"] = details })
		if g, err := v.Verify(t.Context(), bad, b.peer()); !errors.Is(err, verify.ErrMalformed) || g != nil {
			t.Errorf("%s: %v, %v", name, g, err)
		}
	}
}
