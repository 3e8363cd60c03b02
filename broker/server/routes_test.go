package server_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// kindsOfCaller are the columns of the table below: no certificate, one of a trust domain that nobody knows, a workload
// that is not in the inventory, one that is, a server of an audience, operators by their role, and certificates without
// a SPIFFE ID: one that is listed for a viewer, one that is not, and one that is and has expired.
var kindsOfCaller = []string{"", "spiffe://elsewhere/x", nobodyID, reportID, ordersID, viewerID, operatorID, adminID, "listed", "unlisted", "expired"}

// What a caller gets, in the table below.
const (
	noConnection = '-' // the handshake fails
	answered     = '+' // what the route says, or that something of the request is wrong
	notFound     = '0' // as for an ID that nobody has
	unregistered = 'u'
	roleRequired = 'r'
	denied       = 'd' // no server of the audience
	noRoute      = 'x'
	failed       = '!'
)

const (
	someTask  = "tsk_00aaaaaaaaaaaaaaaaaaaaaaaaaa"
	someGrant = "gnt_00aaaaaaaaaaaaaaaaaaaaaaaaaa"
	forReason = `{"reason":"a test of routes"}`
)

// routes has every route of every listener: who gets what of it, in the order of kindsOfCaller.
var routes = []struct{ listener, route, query, body, who string }{
	{"workload", "GET /v1/whoami", "", "", "--u++uuu---"},
	{"workload", "POST /v1/tasks", "", `{"name":"a","purpose":"b"}`, "--u+uuuu---"},
	{"workload", "GET /v1/tasks/{id}", "", "", "--000000---"},
	{"workload", "POST /v1/tasks/{id}/children", "", `{"name":"a","purpose":"b"}`, "--u0uuuu---"},
	{"workload", "POST /v1/tasks/{id}/tokens", "", `{"audience":"orders"}`, "--u0uuuu---"},
	{"workload", "POST /v1/tasks/{id}/adopt", "", `{}`, "--000000---"},
	{"workload", "POST /v1/tasks/{id}/delegations", "", `{"to":"spiffe://prod/night","purpose":"b"}`, "--u0uuuu---"},
	{"workload", "POST /v1/joins", "", `{"handle":"hdl_x","name":"a","purpose":"b"}`, "--++++++---"}, // the handle decides
	{"workload", "POST /v1/tasks/{id}/end", "", `{"outcome":"completed"}`, "--000000---"},
	{"workload", "POST /v1/heartbeats", "", `{"tasks":[{"id":"x"}]}`, "--++++++---"},
	{"workload", "GET /v1/events", "task=" + someTask, "", "--++++++---"},
	{"workload", "GET /v1/grants/{id}", "", "", "--000000---"},
	{"workload", "GET /v1/feed", "aud=orders", "", "--dd+ddd---"},
	{"workload", "GET /v1/feed/snapshot", "aud=orders", "", "--dd+ddd---"},
	{"workload", "GET /v1/feed/position", "nonce=abc", "", "--++++++---"},
	{"workload", "POST /v1/feed/usage", "aud=orders", `{"batch":"b"}`, "--dd+ddd---"},
	{"workload", "POST /v1/feed/acks", "aud=orders", `{"id":"v","position":"1.1","max_stale":10}`, "--dd+ddd---"},
	{"workload", "POST /v1/hooks/cloudevents", "", `{}`, "--dddddd---"},

	{"public", "GET /.well-known/jwks.json", "", "", "+++++++++++"},
	{"public", "HEAD /.well-known/jwks.json", "", "", "+++++++++++"},
	{"public", "GET /.well-known/oauth-authorization-server", "", "", "+++++++++++"},
	{"public", "HEAD /.well-known/oauth-authorization-server", "", "", "+++++++++++"},
	{"public", "GET /problems", "", "", "+++++++++++"},
	{"public", "HEAD /problems", "", "", "+++++++++++"},
	{"public", "GET /problems/{name}", "", "", "+++++++++++"},
	{"public", "HEAD /problems/{name}", "", "", "+++++++++++"},
	{"public", "GET /healthz", "", "", "+++++++++++"},
	{"public", "HEAD /healthz", "", "", "+++++++++++"},
	{"public", "POST /v1/tasks/{id}/end", "", `{"outcome":"completed"}`, "+++++++++++"}, // the end key decides
	{"public", "POST /v1/hooks/cloudevents", "", `{}`, "+++++++++++"},                   // the bearer token decides

	{"operator", "GET /v1/grants", "", "", "--rrr++++--"},
	{"operator", "GET /v1/grants/{id}", "", "", "--rrr0000--"},
	{"operator", "POST /v1/grants/{id}/revoke", "", forReason, "--rrrr00r--"},
	{"operator", "GET /v1/tasks", "", "", "--rrr++++--"},
	{"operator", "GET /v1/tasks/{id}", "", "", "--rrr0000--"},
	{"operator", "GET /v1/tasks/{id}/tree", "", "", "--rrr0000--"},
	{"operator", "POST /v1/tasks/{id}/revoke", "", forReason, "--rrrr00r--"},
	{"operator", "GET /v1/revocations", "", "", "--rrr++++--"},
	{"operator", "POST /v1/revocations", "", `{"selector":{"all":true},"reason":"a test of routes"}`, "--rrrrr+r--"},
	{"operator", "GET /v1/revocations/{id}", "", "", "--rrr0000--"},
	{"operator", "GET /v1/locks", "", "", "--rrr++++--"},
	{"operator", "POST /v1/locks", "", `{"selector":{"all":true},"reason":"a test of routes","expires_in":0}`, "--rrrr++r--"},
	{"operator", "GET /v1/locks/{id}", "", "", "--rrr0000--"},
	{"operator", "DELETE /v1/locks/{id}", "reason=a+test", "", "--rrrr00r--"},
	{"operator", "GET /v1/verifiers", "", "", "--rrr++++--"},
	{"operator", "GET /v1/keys", "", "", "--rrr++++--"},
	{"operator", "POST /v1/keys/rotate", "", forReason, "--rrrrr+r--"},
	{"operator", "POST /v1/keys/{id}/revoke", "", forReason, "--rrrrr0r--"},

	{"ops", "GET /healthz", "", "", "+++++++++++"},
	{"ops", "HEAD /healthz", "", "", "+++++++++++"},
	{"ops", "GET /readyz", "", "", "+++++++++++"},
	{"ops", "HEAD /readyz", "", "", "+++++++++++"},
	{"ops", "GET /metrics", "", "", "+++++++++++"},
	{"ops", "HEAD /metrics", "", "", "+++++++++++"},
}

// noRoutes is who gets what of a route that a listener does not have: whoever can connect learns that it is none, and nothing of
// what it does.
var noRoutes = map[string]string{
	"workload": "--xxxxxx---",
	"public":   "xxxxxxxxxxx",
	"operator": "--xxxxxxx--",
	"ops":      "xxxxxxxxxxx",
}

// TestRoutes goes through every route, caller and listener. A route that has no row fails it.
func TestRoutes(t *testing.T) {
	served := map[string][]string{}
	certificates := map[string]tls.Certificate{
		"listed": selfSigned(t, time.Hour), "unlisted": selfSigned(t, time.Hour), "expired": selfSigned(t, -time.Second),
	}
	r := startFederated(t, nil, withOperators, func(c *server.Config) {
		listCertificate(c, certificates["listed"], "vera", broker.RoleViewer)
		listCertificate(c, certificates["expired"], "eve", broker.RoleViewer)
		c.Around = func(listener string, h http.Handler) http.Handler {
			served[listener] = h.(interface{ Routes() []string }).Routes()
			return h
		}
	})
	rows := map[string][]string{}
	for _, row := range routes {
		rows[row.listener] = append(rows[row.listener], row.route)
	}
	for listener := range served {
		for _, route := range served[listener] {
			if !slices.Contains(rows[listener], route) {
				t.Errorf("%s of the %s listener has no row; say in the table what each kind of caller gets", route, listener)
			}
		}
	}
	var callers []*caller
	for _, kind := range kindsOfCaller {
		if certificate, ok := certificates[kind]; ok {
			callers = append(callers, r.presenting(certificate))
		} else {
			callers = append(callers, r.caller(kind))
		}
	}
	fates := func(listener, route, query, body string) (got string) {
		for _, c := range callers {
			got += string(c.fate(listener, route, query, body))
		}
		return got
	}
	for _, row := range routes {
		if !slices.Contains(served[row.listener], row.route) {
			t.Errorf("%s of the %s listener has a row, and is not served", row.route, row.listener)
		}
		if got := fates(row.listener, row.route, row.query, row.body); got != row.who {
			t.Errorf("%s of the %s listener: %s; the table says %s", row.route, row.listener, got, row.who)
		}
		for listener := range served {
			if !slices.Contains(served[listener], row.route) {
				if got := fates(listener, row.route, row.query, row.body); got != noRoutes[listener] {
					t.Errorf("%s of the %s listener, at the %s listener: %s; want %s", row.route, row.listener, listener, got, noRoutes[listener])
				}
			}
		}
	}
}

// caller is client for anybody, also of a trust domain that the replica does not know.
func (r *replica) caller(id string) *caller {
	r.t.Helper()
	if id == "" || spiffeid.RequireFromString(id).TrustDomain().Name() == "prod" {
		return r.client(id)
	}
	td := spiffeid.RequireFromString(id).TrustDomain().Name()
	ca, err := devmode.NewCA(td, devmode.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	svid, err := ca.Issue(spiffeid.RequireFromString(id), time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	cert := tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0], Certificate: [][]byte{svid.Certificates[0].Raw}}
	return r.presenting(cert)
}

// fate is what a caller gets of a route. Of a stream it reads no more than the header.
func (c *caller) fate(listener, route, query, body string) rune {
	c.r.t.Helper()
	method, path, _ := strings.Cut(route, " ")
	id := someTask
	if strings.HasPrefix(path, wire.PathGrants) {
		id = someGrant
	}
	path = strings.NewReplacer("{id}", id, "{name}", wire.ProblemInvalid).Replace(path)
	ctx, cancel := context.WithTimeout(c.r.t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.base+path+"?"+query, strings.NewReader(body))
	if err != nil {
		c.r.t.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", wire.TypeJSON)
	}
	c.at(listener)(req)
	resp, err := c.http.Do(req)
	if err != nil {
		return noConnection
	}
	defer resp.Body.Close()
	var p wire.Problem
	if resp.Header.Get("Content-Type") == wire.TypeProblem {
		text, err := io.ReadAll(resp.Body)
		if err != nil || method != http.MethodHead && json.Unmarshal(text, &p) != nil {
			c.r.t.Fatalf("%s: %s %v", route, text, err)
		}
	}
	switch name := p.Type[strings.LastIndexByte(p.Type, '/')+1:]; {
	case resp.StatusCode >= 500:
		return failed
	case resp.StatusCode == http.StatusMethodNotAllowed, strings.Contains(p.Detail, "there is no such path here"),
		resp.StatusCode == http.StatusNotFound && method == http.MethodHead:
		return noRoute
	case name == wire.ProblemNotFound:
		return notFound
	case name == wire.ProblemUnregistered:
		return unregistered
	case name == wire.ProblemRoleRequired:
		return roleRequired
	case name == wire.ProblemDenied:
		return denied
	}
	return answered
}

// TestRolesComeFirst: who lacks a role is told so before the body is read, and the audit log has it.
func TestRolesComeFirst(t *testing.T) {
	r := startFederated(t, nil, withOperators)
	for id, has := range map[string]broker.Role{
		reportID: broker.NoRole, viewerID: broker.RoleViewer, operatorID: broker.RoleOperator,
	} {
		c := r.client(id)
		a := c.send("POST", wire.PathKeyRotate, "not JSON", c.at("operator"))
		if a.status != 403 || a.name() != wire.ProblemRoleRequired || !strings.Contains(a.problem.Detail, "needs the role admin") {
			t.Errorf("by %s: %d %s", has, a.status, a.body)
		}
	}
	r.eventually("refusals are in the audit log", func() bool {
		return strings.Contains(r.auditLog(), `"rule":"operator/role"`) &&
			strings.Contains(r.auditLog(), `"reason":"POST /v1/keys/rotate: this needs the role admin, and `+viewerID+` has the role viewer"`)
	})
}
