package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handler is a resource server. In a real test it is the one that you have.
func handler(v *verify.Verifier) http.Handler {
	return v.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "two anvils")
	}))
}

func TestExport(t *testing.T) {
	b := brokertest.New(t)
	orders := b.Serve("orders", handler(b.Verifier("orders"))) // over mutual TLS
	if err := export(t.Context(), b.Client("report"), orders, io.Discard); err != nil {
		t.Fatal(err)
	}
	b.AssertLeastPrivilege(t) // every scope that was got was looked for
} // fails if a task was left open

// What the work writes, that nothing can be got after it, and that what was got before is refused.
func TestExportWrites(t *testing.T) {
	b := brokertest.New(t)
	orders := b.Serve("orders", handler(b.Verifier("orders")))
	var out strings.Builder
	if err := export(t.Context(), b.Client("report"), orders, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"inside the task:  200 OK\ntwo anvils\n", "after the task:   task has ended", `the same token:   401 Unauthorized, Bearer realm="orders", error="invalid_token", error_description="revoked"`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it has written %q, without %q", out.String(), want)
		}
	}
	b.AssertIssued(t, "orders", "orders:read")
	b.AssertNoneLive(t)
}

// An operator ends the task while the server is at work on it: the server stops, and so does export.
func TestExportIsRevoked(t *testing.T) {
	b := brokertest.New(t)
	asked, why := make(chan string), make(chan error, 1)
	orders := b.Serve("orders", b.Verifier("orders").Require("orders:read")(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		grant, _ := verify.FromContext(r.Context())
		asked <- grant.Task.ID
		<-r.Context().Done()
		why <- context.Cause(r.Context())
	})))
	done := make(chan error, 1)
	client := b.Client("report")
	go func() { done <- export(t.Context(), client, orders, io.Discard) }()

	b.Revoke(<-asked)

	if err := <-why; !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("the server's request ended with %v", err)
	}
	if err := <-done; !errors.Is(err, sdk.ErrRevoked) {
		t.Errorf("export returned %v", err)
	}
}

// The policy says no: nothing was sent, and the error says why.
func TestExportIsDenied(t *testing.T) {
	b := brokertest.New(t)
	b.DenyNext("not at the end of the month")
	err := export(t.Context(), b.Client("report"), "https://127.0.0.1:1", io.Discard)
	if !errors.Is(err, sdk.ErrDenied) {
		t.Errorf("export returned %v", err)
	}
}

// The process hangs in the middle: its token is dead everywhere after the lease, 30 s.
func TestExportHangs(t *testing.T) {
	b := brokertest.New(t)
	asked := make(chan string)
	orders := b.Serve("orders", b.Verifier("orders").Require("orders:read")(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		grant, _ := verify.FromContext(r.Context())
		asked <- grant.Task.ID
		<-r.Context().Done()
	})))
	done := make(chan error, 1)
	client := b.Client("report")
	go func() { done <- export(t.Context(), client, orders, io.Discard) }()

	b.DropHeartbeats(<-asked)
	b.Advance(31 * time.Second)

	if err := <-done; !errors.Is(err, sdk.ErrLeaseLost) {
		t.Errorf("export returned %v", err)
	}
	b.AssertNoneLive(t)
}
