package sdk_test

import (
	"errors"
	"net/url"
	"testing"

	"github.com/errandhq/errand/sdk"
)

// TestCheckHost is for those who send a token themselves.
func TestCheckHost(t *testing.T) {
	token := sdk.Token{Audience: "orders", Hosts: []string{"orders.internal", "127.0.0.1:8082"}}
	for text, good := range map[string]bool{
		"https://orders.internal/x":    true,
		"https://ORDERS.internal:443":  true,
		"http://127.0.0.1:8082/orders": true,
		"https://127.0.0.1:8082":       true,
		"http://orders.internal/x":     false,
		"https://orders.internal:8443": false,
		"https://orders.internal.evil": false,
		"http://127.0.0.1:8083":        false,
		"https:///x":                   false,
		"ftp://127.0.0.1:8082":         false,
	} {
		err := token.CheckHost(must(url.Parse(text))(t))
		if (err == nil) != good || err != nil && !errors.Is(err, sdk.ErrHost) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestSVID is what connections that are made now present.
func TestSVID(t *testing.T) {
	w := newWorld(t)
	client := w.client(t)
	first := must(client.SVID())(t)
	w.who.change(func(i *identity) { i.svid = must(w.ca.Issue(reportID, 0))(t) })
	if second := must(client.SVID())(t); first.ID != reportID || leafOf(first) == leafOf(second) {
		t.Errorf("%s, and the same after a rotation", first.ID)
	}
}
