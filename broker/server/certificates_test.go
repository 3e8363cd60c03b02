package server_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
)

// selfSigned is a self-signed certificate without a SPIFFE ID, which is good for so long.
func selfSigned(t testing.TB, life time.Duration) tls.Certificate {
	t.Helper()
	key, der := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
	}, nil, nil)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func thumbprint(cert tls.Certificate) string {
	digest := sha256.Sum256(cert.Certificate[0])
	return base64.RawURLEncoding.EncodeToString(digest[:])
}

// listCertificate gives a certificate a name and a role.
func listCertificate(c *server.Config, cert tls.Certificate, name string, role broker.Role) {
	if c.Operators == nil {
		c.Operators, c.OperatorAddr = httpapi.Operators{}, "127.0.0.1:0"
	}
	if c.OperatorCertificates == nil {
		c.OperatorCertificates = identity.Certificates{}
	}
	c.OperatorCertificates[thumbprint(cert)] = name
	c.Operators[broker.CertificateOperator+name] = role
}

// people is a replica whose operators have certificates, each a role.
func people(t *testing.T, edits ...func(*server.Config)) (r *replica, vera, otto, ada *caller, certs map[string]tls.Certificate) {
	t.Helper()
	certs = map[string]tls.Certificate{"vera": selfSigned(t, time.Hour), "otto": selfSigned(t, time.Hour), "ada": selfSigned(t, time.Hour)}
	r = startFederated(t, nil, append(edits, func(c *server.Config) {
		listCertificate(c, certs["vera"], "vera", broker.RoleViewer)
		listCertificate(c, certs["otto"], "otto", broker.RoleOperator)
		listCertificate(c, certs["ada"], "ada", broker.RoleAdmin)
	})...)
	return r, r.presenting(certs["vera"]), r.presenting(certs["otto"]), r.presenting(certs["ada"]), certs
}

// events are those of a kind in the audit log.
func (r *replica) events(kind string) (found []map[string]any) {
	r.t.Helper()
	for line := range strings.Lines(r.auditLog()) {
		var e map[string]any
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			r.t.Fatalf("%s: %v", line, err)
		}
		if e["kind"] == kind {
			found = append(found, e)
		}
	}
	return found
}

// recorded wants an event of a kind by a certificate.
func (r *replica) recorded(kind, name string, cert tls.Certificate) {
	r.t.Helper()
	r.eventually(kind+" is recorded", func() bool { return len(r.events(kind)) > 0 })
	for _, e := range r.events(kind) {
		if e["actor"] != "certificate:"+name || e["x5t#S256"] != thumbprint(cert) || e["workload"] == "" || !strings.HasPrefix(e["address"].(string), "127.0.0.1:") {
			r.t.Errorf("%s: %v; want it by %s", kind, e, name)
		}
	}
}

const everything = `{"selector":{"all":true},"reason":"a rehearsal of the worst"}`

// TestCertificateRoles: each may what its role may, all that it does is in its name, and the refusals are too.
func TestCertificateRoles(t *testing.T) {
	r, vera, otto, ada, certs := people(t)
	report := r.client(reportID)
	begun := report.begin()
	if a := vera.send("GET", wire.PathGrants, "", vera.at("operator")); a.status != 200 || !strings.Contains(string(a.body), begun.Task.ID) {
		t.Errorf("a viewer looks: %d %s", a.status, a.body)
	}
	revoke := taskPath(begun.Task.ID, "/revoke")
	a := vera.send("POST", revoke, forReason, vera.at("operator"))
	if a.name() != wire.ProblemRoleRequired || !strings.Contains(a.problem.Detail, "needs the role operator, and certificate:vera has the role viewer") {
		t.Errorf("a viewer revokes: %d %s", a.status, a.body)
	}
	r.recorded("request.denied", "vera", certs["vera"])
	if a := otto.send("POST", revoke, forReason, otto.at("operator")); a.status != 200 || !strings.Contains(string(a.body), `"actor":"certificate:otto"`) {
		t.Errorf("an operator revokes: %d %s", a.status, a.body)
	}
	r.recorded("revocation.applied", "otto", certs["otto"])
	r.recorded("task.ended", "otto", certs["otto"])
	for path, body := range map[string]string{wire.PathRevocations: everything, wire.PathKeyRotate: forReason} {
		if a := otto.send("POST", path, body, otto.at("operator")); a.name() != wire.ProblemRoleRequired {
			t.Errorf("an operator at %s: %d %s", path, a.status, a.body)
		}
	}
	a = otto.send("POST", wire.PathLocks, `{"selector":{"workload":["`+reportID+`"]},"reason":"a rehearsal of it","expires_in":60}`, otto.at("operator"))
	var locks wire.LockResponse
	a.into(t, &locks)
	if a.status != 201 || len(locks.Locks) != 1 || locks.Locks[0].Actor != "certificate:otto" {
		t.Fatalf("an operator locks: %d %s", a.status, a.body)
	}
	r.recorded("lock.added", "otto", certs["otto"])
	if a := ada.send("DELETE", wire.PathLocks+"/"+locks.Locks[0].ID+"?reason=it+is+over", "", ada.at("operator")); a.status != 204 {
		t.Errorf("an admin lifts: %d %s", a.status, a.body)
	}
	r.recorded("lock.lifted", "ada", certs["ada"])
	if a := ada.send("POST", wire.PathRevocations, everything, ada.at("operator")); a.status != 200 {
		t.Errorf("an admin revokes everything: %d %s", a.status, a.body)
	}
	active := ada.listKeys()["active"][0].ID
	if a := ada.send("POST", "/v1/keys/"+active+"/revoke", forReason, ada.at("operator")); a.status != 200 {
		t.Errorf("an admin revokes a key: %d %s", a.status, a.body)
	}
	r.recorded("key.revoked", "ada", certs["ada"])
}

// TestPlansAreOfOneCertificate: a plan is for whoever has made it, and two certificates without a SPIFFE ID are two.
func TestPlansAreOfOneCertificate(t *testing.T) {
	bea := selfSigned(t, time.Hour)
	r, _, otto, _, _ := people(t, func(c *server.Config) { listCertificate(c, bea, "bea", broker.RoleOperator) })
	r.client(reportID).begin()
	a := otto.send("POST", wire.PathRevocations, `{"selector":{"workload":["`+reportID+`"]},"dry_run":true}`, otto.at("operator"))
	var plan wire.RevocationPlan
	a.into(t, &plan)
	if a.status != 200 || plan.Plan == "" {
		t.Fatalf("%d %s", a.status, a.body)
	}
	apply := `{"plan":"` + plan.Plan + `","reason":"a rehearsal of it"}`
	other := r.presenting(bea)
	if a := other.send("POST", wire.PathRevocations, apply, other.at("operator")); a.status != 422 || !strings.Contains(a.problem.Detail, "was made for somebody else") {
		t.Errorf("somebody else's plan: %d %s", a.status, a.body)
	}
	if a := otto.send("POST", wire.PathRevocations, apply, otto.at("operator")); a.status != 200 {
		t.Errorf("one's own plan: %d %s", a.status, a.body)
	}
}

// TestCertificateThatExpires: neither a request nor a stream on a live connection outlives the certificate.
func TestCertificateThatExpires(t *testing.T) {
	var later atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	ca := newAuthority(t)
	dir, err := os.MkdirTemp("", "errand-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	source := identity.FromFiles(ca.files(dir, ca.issue(brokerID, nil)), nil)
	source.Now = now
	vera := selfSigned(t, 30*time.Minute)
	r := startWith(t, dir, source, func(c *server.Config) { listCertificate(c, vera, "vera", broker.RoleViewer) })
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	c := r.with(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{vera}})
	if a := c.send("GET", wire.PathKeys, "", c.at("operator")); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+r.Listening()["operator"]+wire.PathTasks, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", wire.TypeEvents)
	c.http.Timeout = time.Minute
	watch := r.with(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{vera}})
	watch.http.Timeout = time.Minute
	stream, err := watch.http.Do(req)
	if err != nil || stream.StatusCode != 200 {
		t.Fatalf("%v %v", stream, err)
	}
	defer stream.Body.Close()
	later.Store(int64(time.Hour))
	if a := c.send("GET", wire.PathKeys, "", c.at("operator")); a.status != 401 || !strings.Contains(a.problem.Detail, "the certificate of vera is good from") {
		t.Errorf("after its end: %d %s", a.status, a.body)
	}
	buffer := make([]byte, 4096)
	for err = nil; err == nil; {
		_, err = stream.Body.Read(buffer)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) || strings.Contains(err.Error(), "Client.Timeout") {
		t.Errorf("the stream went on: %v", err)
	}
}

// TestNobodyIsNoOperator: no configuration gives a role to whoever has no name.
func TestNobodyIsNoOperator(t *testing.T) {
	r := start(t)
	c := r.Config()
	c.WorkloadAddr, c.PublicAddr, c.OpsAddr, c.OperatorAddr = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	c.AuditLog, c.Operators = filepath.Join(t.TempDir(), "audit.jsonl"), httpapi.Operators{"": broker.RoleAdmin}
	if _, err := server.New(c); err == nil || !strings.Contains(err.Error(), "an operator without a name") {
		t.Errorf("%v", err)
	}
}
