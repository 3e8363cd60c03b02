package main

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"go.uber.org/goleak"

	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A handler, without a workload: Sign does what a client would.
func TestRoutes(t *testing.T) {
	b := brokertest.New(t)
	handler := routes(b.Verifier("orders"))
	for scope, want := range map[string]int{"orders:read": http.StatusOK, "orders:write": http.StatusForbidden} {
		r, w := httptest.NewRequest(http.MethodGet, "/orders", nil), httptest.NewRecorder()
		b.Sign(r, verify.Grant{Workload: "report", Audience: "orders", Scopes: []string{scope}, Task: verify.Task{Name: "export"}})
		handler.ServeHTTP(w, r)
		if w.Code != want || want == http.StatusOK && w.Body.String() != "two anvils, for spiffe://test/report in task export\n" {
			t.Errorf("%s: %d %s", scope, w.Code, w.Body)
		}
	}
}
