package verify_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/verify"
)

// A resource server that answers only to workloads whose task is still going on.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	v, err := verify.New(ctx, verify.Config{
		Issuer:   "https://broker.example.com:8444",
		Audience: "orders",
		Files: &verify.Files{
			Cert: "/run/svid/svid.pem", Key: "/run/svid/svid_key.pem", Bundle: "/run/svid/bundle.pem",
			BrokerID: "spiffe://example.com/errand",
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer v.Close()

	list := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		grant, _ := verify.FromContext(r.Context())
		fmt.Fprintf(w, "orders for %s, which is working on %s\n", grant.Workload, grant.Task.Name)
	})
	http.Handle("GET /orders", v.Require("orders:read")(list))
	http.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := v.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	})
}

// A route that wants more than scopes. The requirements are looked at in their order.
func ExampleVerifier_Middleware() {
	b, stop := brokertest.Start() // in a service, v is from New
	defer stop()
	v := b.Verifier("refunds")

	refund := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	handler := v.Middleware(
		verify.AnyScope("refunds:write", "orders:admin"),
		verify.Workload("spiffe://test/agents/*"),
		verify.Check("complaint", func(_ context.Context, g *verify.Grant) error {
			if g.Task.Name != "complaint" {
				return fmt.Errorf("%s asks for a refund in a task %q", g.Workload, g.Task.Name)
			}
			return nil
		}),
		verify.KeepInFlight(), // a refund that has begun is finished
	)(refund)

	for _, task := range []string{"complaint", "chat"} {
		r, w := httptest.NewRequest(http.MethodPost, "/refunds", nil), httptest.NewRecorder()
		b.Sign(r, verify.Grant{Workload: "agents/desk", Audience: "refunds", Scopes: []string{"refunds:write"}, Task: verify.Task{Name: task}})
		handler.ServeHTTP(w, r)
		fmt.Println(task, w.Code)
	}
	// Output:
	// complaint 204
	// chat 403
}
