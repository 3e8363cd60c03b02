package server_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/memory"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	brokerID = "spiffe://prod/errand"
	reportID = "spiffe://prod/report"
	ordersID = "spiffe://prod/orders"
	nobodyID = "spiffe://prod/nobody"
)

const inventory = `
audiences:
  - {name: orders, owner: team-shop, hosts: [orders.internal], scopes: ["orders:read", "orders:write"], details: [customer, payment], servers: [spiffe://prod/orders]}
  - {name: files, owner: team-shop, scopes: ["files:write"], servers: [spiffe://prod/files]}
sources:
  - {name: cluster, owner: team-platform, id: spiffe://prod/watcher, kinds: [k8s/job, k8s/pod], workloads: [spiffe://prod/report, spiffe://prod/batch/*]}
  - {name: forge, owner: team-build, source: [https://forge.example/runs], kinds: [ci/run], workloads: [spiffe://prod/*], token_sha256: ` + forgeDigest + `}
workloads:
  - {id: spiffe://prod/report, owner: team-fin, purpose: exports, ceiling: {orders: ["orders:read"], files: ["files:write"]}}
  - {id: spiffe://partner/agent, owner: team-partner, purpose: their agents, ceiling: {orders: ["orders:read"]}}
  - {id: spiffe://prod/night, owner: team-fin, purpose: batches, ceiling: {orders: ["orders:read"]}}
  - {id: spiffe://prod/small, owner: team-fin, purpose: little, ceiling: {orders: ["orders:read"]}, max_tasks: 2, max_grants: 3}
`

const (
	watcherID  = "spiffe://prod/watcher"
	forgeToken = "a-token-of-32-random-bytes-would-be-this-long"
	// forgeDigest is what sha256sum prints of it.
	forgeDigest = "2f670c3d6481b370accfd8f2253a10dfa312b0fb946faf97e4d5f1fcd825a71d"
)

// output collects what a replica logs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// lines is how many lines of a level there are of each message.
func (o *output) lines(level string) map[string]int {
	found := map[string]int{}
	for text := range strings.Lines(o.String()) {
		var line struct{ Level, Msg string }
		if json.Unmarshal([]byte(text), &line) == nil && line.Level == level {
			found[line.Msg]++
		}
	}
	return found
}

// replica is a running server on loopback, with a dev CA in place of SPIRE.
type replica struct {
	*server.Server
	t       testing.TB
	ca      *devmode.CA
	agent   *devmode.WorkloadAPI
	dir     string
	logs    *output
	store   *memory.Store
	secrets []string // every token and end key that was handed out
	mu      sync.Mutex
	stop    func() // ends Run, without waiting
}

// start starts a replica; federated are the bundles that its Workload API has beside our own.
func start(t testing.TB, federated ...*x509bundle.Bundle) *replica {
	t.Helper()
	return startFederated(t, federated)
}

// startFederated is start with changes to the configuration.
func startFederated(t testing.TB, federated []*x509bundle.Bundle, edits ...func(*server.Config)) *replica {
	t.Helper()
	ca, err := devmode.NewCA("prod", devmode.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "errand-test-") // shorter than t.TempDir: a socket's path is bounded
	if err != nil {
		t.Fatal(err)
	}
	api := devmode.NewWorkloadAPI(ca, dir, time.Hour)
	api.Federate(federated...)
	socket, err := api.Add(spiffeid.RequireFromString(brokerID))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		os.RemoveAll(dir)
	})
	r := startWith(t, dir, identity.FromWorkloadAPI(socket, slog.New(slog.DiscardHandler)), edits...)
	r.ca, r.agent = ca, api
	return r
}

// startWith starts a replica with another source of its identity.
func startWith(t testing.TB, dir string, source *identity.Source, edits ...func(*server.Config)) *replica {
	t.Helper()
	r := &replica{t: t, dir: dir, logs: &output{}}
	var err error
	if r.store, err = memory.New(memory.Config{}); err != nil {
		t.Fatal(err)
	}
	config := server.Config{
		Store: r.store, WorkloadAddr: "127.0.0.1:0", PublicAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		Identity: source, Registry: known(t), AuditLog: filepath.Join(dir, "audit.jsonl"),
		Logger: r.logger(), Withdrawal: 50 * time.Millisecond,
	}
	for _, edit := range edits {
		edit(&config)
	}
	if r.Server, err = server.New(config); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		r.checkSecrets()
	})
	waiting, giveUp := context.WithTimeout(ctx, 10*time.Second)
	defer giveUp()
	if err := source.Wait(waiting); err != nil {
		t.Fatal(err)
	}
	r.eventually("the replica is ready", func() bool { return r.Ready() == nil })
	return r
}

func known(t testing.TB) *registry.Registry {
	t.Helper()
	r, err := registry.Parse([]byte(inventory))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// logger keeps everything for a test, and nothing for a benchmark.
func (r *replica) logger() *slog.Logger {
	if _, ok := r.t.(*testing.B); ok {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewJSONHandler(r.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// checkSecrets looks for tokens where none may be.
func (r *replica) checkSecrets() {
	audit, err := os.ReadFile(filepath.Join(r.dir, "audit.jsonl"))
	if err != nil {
		r.t.Error(err)
	}
	for _, secret := range r.secrets {
		signature := secret[strings.LastIndexByte(secret, '.')+1:]
		if strings.Contains(r.logs.String(), signature) || bytes.Contains(audit, []byte(signature)) {
			r.t.Error("a token or an end key is in the log or in the audit log")
		}
	}
}

func (r *replica) eventually(what string, f func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within 30 seconds", what)
		}
	}
}

// busy is what is promised, on a machine that has other work to do. What it takes without that is for make bench.
func busy(promised time.Duration) time.Duration { return 5 * promised }

// certificate is a fresh SVID of an identity.
func (r *replica) certificate(id string) tls.Certificate {
	r.t.Helper()
	svid, err := r.ca.Issue(spiffeid.RequireFromString(id), time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	cert := tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

func (r *replica) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range r.ca.Bundle().X509Authorities() {
		pool.AddCert(c)
	}
	return pool
}

// client presents an identity's SVID, and none for "".
func (r *replica) client(id string) *caller {
	config := &tls.Config{RootCAs: r.roots(), MinVersion: tls.VersionTLS13}
	if id != "" {
		config.Certificates = []tls.Certificate{r.certificate(id)}
	}
	return r.with(config)
}

// presenting is client for whoever has a certificate, whatever that is.
func (r *replica) presenting(cert tls.Certificate) *caller {
	return r.with(&tls.Config{RootCAs: r.roots(), MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}})
}

func (r *replica) with(config *tls.Config) *caller {
	transport := &http.Transport{TLSClientConfig: config}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &caller{r: r, base: r.BrokerURL(), http: &http.Client{Transport: transport, Timeout: 10 * time.Second}}
}

// caller is one workload's connection.
type caller struct {
	r    *replica
	base string // the URL of the workload listener
	http *http.Client
}

// answer is a response with its body read.
type answer struct {
	status  int
	header  http.Header
	body    []byte
	problem wire.Problem
}

func (a answer) into(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%s: %v", a.body, err)
	}
}

func (a answer) name() string { return a.problem.Type[strings.LastIndexByte(a.problem.Type, '/')+1:] }

// send makes a request that must be answered; edit may change it.
func (c *caller) send(method, path, body string, edit func(*http.Request)) answer {
	c.r.t.Helper()
	a, err := c.try(method, path, body, edit)
	if err != nil {
		c.r.t.Fatalf("%s %s: %v", method, path, err)
	}
	if a.header.Get("Content-Type") == wire.TypeProblem {
		a.into(c.r.t, &a.problem)
	}
	return a
}

// try makes a request, as send does.
func (c *caller) try(method, path, body string, edit func(*http.Request)) (a answer, err error) {
	req, err := http.NewRequest(method, c.base+path, strings.NewReader(body))
	if err != nil {
		return a, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if edit != nil {
		edit(req)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a = answer{status: resp.StatusCode, header: resp.Header}
	a.body, err = io.ReadAll(resp.Body)
	return a, err
}

func (c *caller) get(path string) answer        { return c.send("GET", path, "", nil) }
func (c *caller) post(path, body string) answer { return c.send("POST", path, body, nil) }

const beginBody = `{"name":"export","purpose":"FIN-212","tokens":[{"audience":"orders"}]}`

// begin begins a task with a token and checks that it worked.
func (c *caller) begin() wire.BeginResponse {
	c.r.t.Helper()
	return c.beginAs(beginBody)
}

func (c *caller) beginAs(body string) wire.BeginResponse {
	c.r.t.Helper()
	a := c.post(wire.PathTasks, body)
	if a.status != http.StatusCreated {
		c.r.t.Fatalf("begin: %d %s", a.status, a.body)
	}
	var out wire.BeginResponse
	a.into(c.r.t, &out)
	if a.header.Get("Location") != wire.PathTasks+"/"+out.Task.ID || a.header.Get("Cache-Control") != "no-store" {
		c.r.t.Errorf("headers: %v", a.header)
	}
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.r.secrets = append(c.r.secrets, out.EndKey)
	for _, token := range out.Tokens {
		c.r.secrets = append(c.r.secrets, token.AccessToken)
	}
	return out
}

func taskPath(id, rest string) string { return wire.PathTasks + "/" + id + rest }

func (c *caller) end(id, outcome string) answer {
	return c.post(taskPath(id, "/end"), fmt.Sprintf(`{"outcome":%q}`, outcome))
}

// refused checks a refusal: its status and name, that it is a problem document which explains
// itself, that it is no fault of the server, and that a good request works right after.
func (c *caller) refused(a answer, status int, name string) {
	c.r.t.Helper()
	if a.status != status || a.name() != name {
		c.r.t.Errorf("got %d %s, want %d %s", a.status, a.body, status, name)
	}
	if a.status >= 500 {
		c.r.t.Errorf("a fault of the server: %s", a.body)
	}
	p := a.problem
	if p.Title == "" || p.Detail == "" || p.Status != a.status || !strings.HasPrefix(p.Type, c.r.Issuer()+"/problems/") ||
		p.RequestID == "" || p.RequestID != a.header.Get(wire.HeaderRequestID) {
		c.r.t.Errorf("the problem does not explain itself: %s", a.body)
	}
	if good := c.get(wire.PathWhoami); good.status != http.StatusOK {
		c.r.t.Errorf("a good request after it: %d %s", good.status, good.body)
	}
}
