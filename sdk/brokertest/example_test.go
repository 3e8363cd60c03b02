package brokertest_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/verify"
)

// A workload and a resource server, as one test sees them. In a test it is brokertest.New(t), and
// nothing needs to be stopped.
func Example() {
	b, stop := brokertest.Start()
	defer stop()

	// The resource server: your handler, behind a real verifier.
	v := b.Verifier("orders")
	list := func(w http.ResponseWriter, r *http.Request) {
		grant, _ := verify.FromContext(r.Context())
		fmt.Fprintf(w, "two anvils for %s", grant.Workload)
	}
	orders := b.Serve("orders", v.Require("orders:read")(http.HandlerFunc(list)))

	// The workload: your function, with a real client.
	var kept *sdk.Token
	err := b.Client("export").Do(context.Background(), sdk.TaskSpec{
		Name: "monthly-export", Purpose: "FIN-212", Audiences: []string{"orders"}, Scopes: []string{"orders:read"},
	}, func(ctx context.Context, task *sdk.Task) error {
		resp, err := task.HTTPClient("orders", "orders:read").Get(orders)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		fmt.Println(resp.StatusCode, string(body))
		kept, _ = task.Token(ctx, sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})
		return err
	})
	fmt.Println(err, kept.Scopes, len(b.Grants()))
	// Output:
	// 200 two anvils for spiffe://test/export
	// <nil> [orders:read] 1
}

// A handler, without a workload: Sign does what a client would.
func ExampleBroker_Sign() {
	b, stop := brokertest.Start()
	defer stop()
	handler := b.Verifier("orders").Require("orders:write")(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusCreated)
	}))
	for _, scope := range []string{"orders:read", "orders:write"} {
		r, w := httptest.NewRequest(http.MethodPost, "/orders", nil), httptest.NewRecorder()
		b.Sign(r, verify.Grant{Workload: "shop", Audience: "orders", Scopes: []string{scope}})
		handler.ServeHTTP(w, r)
		fmt.Println(scope, w.Code)
	}
	// Output:
	// orders:read 403
	// orders:write 201
}

// What an operator ends, work notices: when Advance brings its next heartbeat about.
func ExampleBroker_Revoke() {
	b, stop := brokertest.Start()
	defer stop()
	task, err := b.Client("export").Begin(context.Background(), sdk.TaskSpec{Name: "export", Purpose: "FIN-212"})
	if err != nil {
		fmt.Println(err)
		return
	}
	b.Revoke(task.ID())
	b.Advance(10 * time.Second)
	fmt.Println(task.State(), context.Cause(task.Context()) == sdk.ErrRevoked)
	// Output: revoked true
}

// A process that hangs loses its task after the lease, 30 s.
func ExampleBroker_DropHeartbeats() {
	b, stop := brokertest.Start()
	defer stop()
	client := b.Client("export")
	hung, _ := client.Begin(context.Background(), sdk.TaskSpec{Name: "export", Purpose: "FIN-212"})
	well, _ := client.Begin(context.Background(), sdk.TaskSpec{Name: "export", Purpose: "FIN-212"})
	defer well.Close()
	b.DropHeartbeats(hung.ID())
	b.Advance(31 * time.Second)
	fmt.Println(hung.State(), well.State())
	// Output: lapsed active
}
