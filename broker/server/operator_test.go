package server_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk/wire"
)

const (
	viewerID   = "spiffe://prod/ops/viewer"
	operatorID = "spiffe://prod/ops/operator"
	adminID    = "spiffe://prod/ops/admin"
)

// withOperators gives a replica its operator listener.
func withOperators(c *server.Config) {
	c.OperatorAddr = "127.0.0.1:0"
	c.Operators = httpapi.Operators{
		viewerID: broker.RoleViewer, operatorID: broker.RoleOperator, adminID: broker.RoleAdmin,
	}
}

// at sends the request to another listener than the workload's.
func (c *caller) at(listener string) func(*http.Request) {
	return func(r *http.Request) {
		r.URL.Host = c.r.Listening()[listener]
		if listener == "ops" {
			r.URL.Scheme = "http"
		}
	}
}

// TestNoOperators: without any, there is no listener for them.
func TestNoOperators(t *testing.T) {
	r := start(t)
	if addr, ok := r.Listening()["operator"]; ok {
		t.Errorf("an operator listener at %s for nobody", addr)
	}
}

// TestOperatorNeedsASVID: the listener's handshake fails without one.
func TestOperatorNeedsASVID(t *testing.T) {
	r := startFederated(t, nil, withOperators)
	c := r.client("")
	resp, err := c.http.Get("https://" + r.Listening()["operator"] + wire.PathKeys)
	if err == nil {
		resp.Body.Close()
		t.Fatalf("an answer without an SVID: %d", resp.StatusCode)
	}
}

// listKeys returns the keys by state.
func (c *caller) listKeys() map[string][]wire.Key {
	c.r.t.Helper()
	a := c.send("GET", wire.PathKeys, "", c.at("operator"))
	var list wire.KeyList
	a.into(c.r.t, &list)
	out := map[string][]wire.Key{}
	for _, k := range list.Keys {
		out[k.State] = append(out[k.State], k)
	}
	return out
}

func (r *replica) auditLog() string {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(r.dir, "audit.jsonl"))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text)
}

// TestRotateByHand: when verifiers have the next key it signs at once, the old one retires, and the
// audit log says who did it and why.
func TestRotateByHand(t *testing.T) {
	var later atomic.Int64
	r := startFederated(t, nil, withOperators, func(c *server.Config) {
		c.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	})
	admin := r.client(adminID)
	a := admin.send("POST", wire.PathKeyRotate, `{"reason":"a rehearsal"}`, admin.at("operator"))
	if a.name() != wire.ProblemTooEarly || !strings.Contains(a.problem.Detail, "may sign from") {
		t.Fatalf("at once: %d %s", a.status, a.body)
	}
	before := admin.listKeys()
	later.Store(int64(keys.DefaultPublish))
	a = admin.send("POST", wire.PathKeyRotate, `{"reason":"a rehearsal"}`, admin.at("operator"))
	var rotated wire.KeyRotation
	a.into(t, &rotated)
	after := admin.listKeys()
	if a.status != 200 || rotated.Active != before["next"][0].ID || after["active"][0].ID != rotated.Active || after["retiring"][0].ID != before["active"][0].ID {
		t.Fatalf("%d %s\nbefore %v\nafter %v", a.status, a.body, before, after)
	}
	for _, want := range []string{`"kind":"key.rotated"`, `"actor":"` + adminID + `"`, `"address":"127.0.0.1:`, `"reason":"a rehearsal"`, `"kid":"` + rotated.Active + `"`} {
		if !strings.Contains(r.auditLog(), want) {
			t.Errorf("the audit log lacks %s:\n%s", want, r.auditLog())
		}
	}
	for _, body := range []string{`{}`, `{"reason":" "}`, `{"reason":"` + strings.Repeat("x", broker.MaxPurpose+1) + `"}`} {
		if a := admin.send("POST", wire.PathKeyRotate, body, admin.at("operator")); a.status != 422 || a.problem.Field != "reason" {
			t.Errorf("%.40s: %d %s", body, a.status, a.body)
		}
	}
}

// TestRevokeKey: a revoked key is gone from the published set, its successor signs, and the denial is
// on the feed. A reason is needed, and a repetition is no error.
func TestRevokeKey(t *testing.T) {
	r := startFederated(t, nil, withOperators)
	admin, report, orders := r.client(adminID), r.client(reportID), r.client(ordersID)
	report.begin()
	active := admin.listKeys()["active"][0].ID
	path := "/v1/keys/" + active + "/revoke"
	if a := admin.send("POST", path, `{}`, admin.at("operator")); a.status != 422 || a.problem.Field != "reason" {
		t.Errorf("without a reason: %d %s", a.status, a.body)
	}
	if got := admin.listKeys()["active"][0].ID; got != active {
		t.Error("a refused revocation has changed the keys")
	}
	for range 2 {
		a := admin.send("POST", path, `{"reason":"it was on a stolen disk"}`, admin.at("operator"))
		var done wire.KeyRevocation
		a.into(t, &done)
		if a.status != 200 || done.Key != active || done.Event == "" || done.Feed == "" || done.RevokedAt.IsZero() {
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	now := admin.listKeys()
	if now["gone"][0].ID != active || !now["gone"][0].Revoked || now["active"][0].ID == active {
		t.Errorf("the keys are now %v", now)
	}
	r.eventually("the denial is on the feed", func() bool {
		return strings.Contains(string(orders.get(wire.PathFeedSnapshot+"?aud=orders").body), active)
	})
	if a := report.send("GET", wire.PathJWKS, "", report.at("public")); a.status != 200 || strings.Contains(string(a.body), active) {
		t.Errorf("the revoked key is still published: %d %s", a.status, a.body)
	}
	for _, want := range []string{`"kind":"key.revoked"`, `"actor":"` + adminID + `"`, `"address":"127.0.0.1:`, `"reason":"it was on a stolen disk"`, `"kid":"` + active + `"`} {
		if !strings.Contains(r.auditLog(), want) {
			t.Errorf("the audit log lacks %s:\n%s", want, r.auditLog())
		}
	}
	report.begin() // with the successor
}

// TestConfigErrors: a mistake that New finds names the field that it is in.
func TestConfigErrors(t *testing.T) {
	r := startFederated(t, nil, withOperators)
	for field, spoil := range map[string]func(*server.Config){
		"WorkloadAddr": func(c *server.Config) { c.WorkloadAddr = r.Listening()["workload"] },
		"PublicAddr":   func(c *server.Config) { c.PublicAddr = r.Listening()["workload"] },
		"OpsAddr":      func(c *server.Config) { c.OpsAddr = "0.0.0.0:0" },
		"OperatorAddr": func(c *server.Config) { c.OperatorAddr = r.Listening()["workload"] },
		"Issuer":       func(c *server.Config) { c.Issuer = "http://a" },
		"BrokerURL":    func(c *server.Config) { c.BrokerURL = "https://a/b" },
		"AuditLog":     func(c *server.Config) { c.AuditLog = filepath.Join(r.dir, "audit.jsonl") },
	} {
		c := r.Config()
		c.WorkloadAddr, c.PublicAddr, c.OpsAddr, c.OperatorAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		c.AuditLog = filepath.Join(t.TempDir(), "audit.jsonl")
		spoil(&c)
		_, err := server.New(c)
		var bad *server.ConfigError
		if !errors.As(err, &bad) || bad.Field != field {
			t.Errorf("%s: %v", field, err)
		}
		if strings.HasSuffix(field, "Addr") && field != "OpsAddr" && !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("%s: %v; want that the address is in use", field, err)
		}
	}
}
