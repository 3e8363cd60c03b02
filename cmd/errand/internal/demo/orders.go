package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
)

// orders is the sample resource server. It is what any team would write: one verifier, and one line
// for each route.
type orders struct {
	listener net.Listener
	server   *http.Server
	own      *devmode.Identity
	verifier *verify.Verifier
}

func newOrders(ctx context.Context, l net.Listener, d Description, log *slog.Logger) (*orders, error) {
	own, err := devmode.Open(ctx, d.Sockets[OrdersName])
	if err != nil {
		return nil, fmt.Errorf("the orders server: %w", err)
	}
	v, err := newVerifier(ctx, own, d, log)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the orders server: %w", err), own.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /orders", v.Require("orders:read")(http.HandlerFunc(listOrders)))
	mux.Handle("POST /orders", v.Require("orders:write")(http.HandlerFunc(addOrder)))
	return &orders{listener: l, own: own, verifier: v, server: &http.Server{
		Handler: mux, TLSConfig: own.ServerTLS(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		WriteTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}, nil
}

func newVerifier(ctx context.Context, own *devmode.Identity, d Description, log *slog.Logger) (*verify.Verifier, error) {
	toBroker, err := verifyspiffe.TLS(own.Source(), d.BrokerID)
	if err != nil {
		return nil, err
	}
	return verify.New(ctx, verify.Config{Issuer: d.Issuer, Audience: OrdersName, TLS: toBroker, Logger: log})
}

// order is one of the sample's two.
type order struct {
	ID    int    `json:"id"`
	Item  string `json:"item"`
	Units int    `json:"units"`
}

func listOrders(w http.ResponseWriter, r *http.Request) {
	grant, _ := verify.FromContext(r.Context())
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"orders": []order{{1, "anvil", 2}, {2, "rope", 30}},
		"read_by": map[string]string{
			"workload": grant.Workload, "task": grant.Task.ID, "grant": grant.ID,
		},
	})
}

func addOrder(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) }

// Run serves until ctx ends.
func (o *orders) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- o.server.ServeTLS(o.listener, "", "") }()
	var err error
	select {
	case err = <-served:
	case <-ctx.Done():
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if o.server.Shutdown(stop) != nil {
			_ = o.server.Close()
		}
		<-served
	}
	// The broker ends at the same time, and may not hear of the last uses any more.
	_ = o.verifier.Close()
	return errors.Join(err, o.own.Close())
}
