package sdk_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker/devmode"
	svids "github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
)

// realBroker is a whole broker in this process, with a resource server that verifies: what the
// Examples talk to.
type realBroker struct {
	client *sdk.Client
	orders string // URL
	server *server.Server
	ca     *devmode.CA
	socket string // the Workload API of the workload report
	undo   []func()
}

// close undoes everything, the last first.
func (b *realBroker) close() {
	for i := len(b.undo) - 1; i >= 0; i-- {
		b.undo[i]()
	}
}

// run starts f, and ends it with everything else.
func (b *realBroker) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = f(ctx)
	}()
	b.undo = append(b.undo, func() { cancel(); <-done })
}

func sure[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func startReal() *realBroker {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	b := &realBroker{}
	dir := sure(os.MkdirTemp("", "errand-"))
	b.undo = append(b.undo, func() { os.RemoveAll(dir) })
	b.ca = sure(devmode.NewCA("prod", devmode.Options{}))
	api := devmode.NewWorkloadAPI(b.ca, dir, time.Hour)
	sockets := map[string]string{}
	for _, name := range []string{"errand", "orders", "report"} {
		sockets[name] = sure(api.Add(spiffeid.RequireFromString("spiffe://prod/" + name)))
	}
	b.run(api.Run)
	l := sure(net.Listen("tcp", "127.0.0.1:0"))
	b.orders = "https://" + l.Addr().String() + "/orders"
	inventory := sure(registry.Parse([]byte(fmt.Sprintf(`
audiences:
  - {name: orders, owner: team-shop, hosts: ["%s"], scopes: ["orders:read", "orders:write"], servers: ["spiffe://prod/orders"]}
workloads:
  - {id: "spiffe://prod/report", owner: team-fin, purpose: exports, ceiling: {orders: ["orders:read"]}}
`, l.Addr()))))
	source := svids.FromWorkloadAPI(sockets["errand"], slog.New(slog.DiscardHandler))
	b.server = sure(server.New(server.Config{
		WorkloadAddr: "127.0.0.1:0", PublicAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		Identity: source, Registry: inventory, AuditLog: filepath.Join(dir, "audit.jsonl"),
	}))
	b.run(b.server.Run)
	sure(0, source.Wait(ctx))
	b.serveOrders(ctx, l, sockets["orders"])
	b.socket = sockets["report"]
	b.client = sure(sdk.New(ctx, b.with(sdk.WithIdentity(sdk.FromWorkloadAPI(b.socket, "")))...))
	b.undo = append(b.undo, func() { _ = b.client.Close(context.Background()) })
	return b
}

// with adds where the broker is; in a service the environment says that.
func (b *realBroker) with(opts ...sdk.Option) []sdk.Option {
	return append(opts, sdk.WithBroker(b.server.BrokerURL()), sdk.WithBrokerID(spiffeid.RequireFromString("spiffe://prod/errand")),
		sdk.WithLogger(slog.New(slog.DiscardHandler)))
}

// folder is a folder with the files of an identity, as something else keeps them.
func (b *realBroker) folder(files func(cert, key, bundle []byte) map[string][]byte) string {
	dir := sure(os.MkdirTemp("", "errand-"))
	b.undo = append(b.undo, func() { os.RemoveAll(dir) })
	svid := sure(b.ca.Issue(spiffeid.RequireFromString("spiffe://prod/report"), 0))
	cert, key, err := svid.Marshal()
	for name, text := range files(cert, sure(key, err), sure(b.ca.Bundle().Marshal())) {
		sure(0, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
	return dir
}

func (b *realBroker) serveOrders(ctx context.Context, l net.Listener, socket string) {
	own := sure(devmode.Open(ctx, socket))
	v := sure(verify.New(ctx, verify.Config{
		Issuer: b.server.Issuer(), Audience: "orders", TLS: sure(verifyspiffe.TLS(own.Source(), "spiffe://prod/errand")),
		Logger: slog.New(slog.DiscardHandler),
	}))
	mux := http.NewServeMux()
	mux.Handle("GET /orders", v.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "two anvils")
	})))
	mux.Handle("POST /orders", v.Require("orders:write")(http.NotFoundHandler()))
	s := &http.Server{TLSConfig: own.ServerTLS(), Handler: mux}
	b.run(func(ctx context.Context) error {
		go func() { <-ctx.Done(); s.Close() }()
		return s.ServeTLS(l, "", "")
	})
	b.undo = append(b.undo, func() { v.Close(); own.Close() })
}
