package verify_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"time"

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
	var v *verify.Verifier // from verify.New
	if v == nil {
		return
	}
	refund := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	http.Handle("POST /refunds", v.Middleware(
		verify.AnyScope("refunds:write", "orders:admin"),
		verify.Workload("spiffe://example.com/agents/*"),
		verify.Check("daytime", func(_ context.Context, g *verify.Grant) error {
			if g.Issued.Hour() < 6 {
				return fmt.Errorf("%s asks for a refund at night", g.Workload)
			}
			return nil
		}),
		verify.KeepInFlight(), // a refund that has begun is finished
	)(refund))
}
