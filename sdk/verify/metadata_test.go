package verify_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/errandhq/errand/sdk/verify"
)

// TestResourceMetadata is served as RFC 9728 §3 says, and named by the challenge of a 401.
func TestResourceMetadata(t *testing.T) {
	b := newBroker(t, 1)
	for resource, at := range map[string]string{
		"https://orders.example.com":          "https://orders.example.com/.well-known/oauth-protected-resource",
		"https://orders.example.com/":         "https://orders.example.com/.well-known/oauth-protected-resource",
		"https://example.com:8443/orders/%2F": "https://example.com:8443/.well-known/oauth-protected-resource/orders/%2F",
		"http://127.0.0.1:8082/orders":        "http://127.0.0.1:8082/.well-known/oauth-protected-resource/orders",
	} {
		v := b.verifier(func(c *verify.Config) { c.Resource, c.Scopes = resource, []string{"orders:read"} })
		w := httptest.NewRecorder()
		v.Metadata().ServeHTTP(w, httptest.NewRequest(http.MethodGet, at, nil))
		var got map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
			t.Fatalf("%d %v %s", w.Code, w.Header(), w.Body)
		}
		want := map[string]any{
			"resource": resource, "authorization_servers": []any{b.public.URL}, "bearer_methods_supported": []any{"header"},
			"scopes_supported": []any{"orders:read"}, "tls_client_certificate_bound_access_tokens": true,
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %v", got)
		}
		for token, status := range map[string]int{"": 401, "x": 401, b.token(func(c map[string]any) { c["scope"] = "" }): 403} {
			request := must(withToken(resource, token))(t)
			request.TLS = httptest.NewRequest(http.MethodGet, "https://x/", nil).TLS
			request.TLS.PeerCertificates = append(request.TLS.PeerCertificates, b.agent.Leaf)
			_, refusal := v.Authorize(request, verify.Scope("orders:read"))
			named := strings.Contains(refusal.Header.Get("WWW-Authenticate"), `, resource_metadata="`+at+`"`)
			if refusal.Status != status || named != (status == 401) {
				t.Errorf("%d: %s", refusal.Status, refusal.Header.Get("WWW-Authenticate"))
			}
		}
		w = httptest.NewRecorder()
		v.Metadata().ServeHTTP(w, httptest.NewRequest(http.MethodPost, at, nil))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") == "" {
			t.Errorf("POST: %d", w.Code)
		}
	}
}

// TestNoResourceMetadata without a URL that it could be of.
func TestNoResourceMetadata(t *testing.T) {
	b := newBroker(t, 1)
	v := b.verifier(nil)
	defer func() {
		if text, _ := recover().(string); !strings.Contains(text, "Config.Resource") {
			t.Errorf("recovered %q", text)
		}
	}()
	v.Metadata()
}
