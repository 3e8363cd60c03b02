package sdk_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
)

func TestMain(m *testing.M) {
	if os.Getenv(workloadVariable) != "" {
		os.Exit(workloadProcess())
	}
	goleak.VerifyTestMain(m)
}

var (
	brokerID = spiffeid.RequireFromString("spiffe://example.org/errand")
	reportID = spiffeid.RequireFromString("spiffe://example.org/report")
	ordersID = spiffeid.RequireFromString("spiffe://example.org/orders")
)

// must is for calls that cannot fail in a test that is right: must(f())(tb).
func must[T any](value T, err error) func(testing.TB) T {
	return func(tb testing.TB) T {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
		return value
	}
}

// eventually polls until the condition holds.
func eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	deadline := time.Now().Add(time.Minute)
	for !condition() {
		if time.Now().After(deadline) {
			tb.Fatalf("it did not come to pass in time: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// identity is a source whose SVID and bundle a test can replace.
type identity struct {
	mu     sync.Mutex
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
	err    error
}

func newIdentity(tb testing.TB, ca *devmode.CA) *identity {
	return &identity{svid: must(ca.Issue(reportID, 0))(tb), bundle: ca.Bundle()}
}

func (i *identity) GetX509SVID() (*x509svid.SVID, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.svid, i.err
}

func (i *identity) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.bundle.GetX509BundleForTrustDomain(td)
}

func (i *identity) change(f func(*identity)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f(i)
}

// call is a request that the fake broker has got.
type call struct {
	at    time.Time
	route string // method and last segment of the path: "POST tokens"
	task  string
	key   string
	leaf  [sha256.Size]byte // of the client's certificate; zero without TLS
	body  []byte
}

// fake is a broker that answers by the book, unless a test has scripted an answer. It keeps no
// clock: leases and deadlines pass only in the client under test.
type fake struct {
	tb      testing.TB
	hosts   []string
	servers []string
	binding string
	life    time.Duration // of tokens

	mu     sync.Mutex
	calls  []call
	script map[string]http.HandlerFunc // by route
	states map[string]string           // by task
	above  map[string]string           // parents by task
	held   map[string]int              // holders by task
	used   map[string]string           // idempotency keys by the handle that they have joined with
	keys   map[string]string           // tasks by idempotency key
	lease  int64
	grants int
	tasks  int
	svid   *x509svid.SVID // of the client, where there is no TLS
}

func newFake(tb testing.TB) *fake {
	return &fake{
		tb: tb, hosts: []string{"orders.internal"}, binding: "certificate", life: time.Minute, lease: 30,
		script: map[string]http.HandlerFunc{}, states: map[string]string{}, keys: map[string]string{}, above: map[string]string{},
		held: map[string]int{}, used: map[string]string{},
	}
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body := must(io.ReadAll(r.Body))(f.tb)
	r.Body = io.NopCloser(bytes.NewReader(body))
	c := call{at: time.Now(), route: r.Method + " " + path.Base(r.URL.Path), key: r.Header.Get(wire.HeaderIdempotencyKey), body: body}
	if parts := strings.Split(r.URL.Path, "/"); len(parts) > 4 {
		c.task = parts[3]
	}
	f.mu.Lock()
	switch {
	case r.TLS != nil:
		c.leaf = sha256.Sum256(r.TLS.PeerCertificates[0].Raw)
	case f.svid != nil:
		c.leaf = leafOf(f.svid)
	}
	f.calls = append(f.calls, c)
	scripted := f.script[c.route]
	f.mu.Unlock()
	if scripted != nil {
		scripted(w, r)
		return
	}
	f.answer(w, r)
}

func leafOf(svid *x509svid.SVID) [sha256.Size]byte { return sha256.Sum256(svid.Certificates[0].Raw) }

// answer is what a broker says that is well.
func (f *fake) answer(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	id := ""
	if parts := strings.Split(r.URL.Path, "/"); len(parts) > 4 {
		id = parts[3]
	}
	switch path.Base(r.URL.Path) {
	case "whoami":
		reply(w, http.StatusOK, wire.Whoami{Workload: reportID.String()})
	case "tasks":
		f.begin(w, r, body, "")
	case "children":
		if !f.gone(w, id) {
			f.begin(w, r, body, id)
		}
	case "delegations":
		if !f.gone(w, id) {
			f.delegate(w, id, body)
		}
	case "joins":
		f.join(w, r, body)
	case "adopt":
		if !f.gone(w, id) {
			f.held[id]++
			f.begun(w, id, wire.BeginRequest{}, nil)
		}
	case "tokens":
		f.issue(w, id, body)
	case "heartbeats":
		var req wire.HeartbeatRequest
		f.read(body, &req)
		var answer wire.HeartbeatResponse
		for _, t := range req.Tasks {
			state, cause := f.fate(t.ID)
			if state == wire.StateActive && t.Holder != f.held[t.ID] {
				state = wire.StateAdopted
			}
			answer.Tasks = append(answer.Tasks, wire.Pulse{ID: t.ID, State: state, Cause: cause})
		}
		reply(w, http.StatusOK, answer)
	case "end":
		var req wire.EndRequest
		f.read(body, &req)
		if req.EndKey != endKeyOf(id) && f.held[id] == 1 {
			f.tb.Errorf("the end of %s came with the key %q", id, req.EndKey)
		}
		if f.states[id] == wire.StateActive && req.Holder != f.held[id] {
			refuse(w, http.StatusConflict, wire.Problem{Type: "https://broker/problems/adopted", Title: "Task adopted"})
			return
		}
		switch f.states[id] {
		case "":
			refuse(w, http.StatusNotFound, wire.Problem{Type: "https://broker/problems/not-found", Title: "Not found"})
			return
		case wire.StateActive:
			f.states[id] = req.Outcome
		}
		reply(w, http.StatusOK, wire.Receipt{Event: "evt_" + id, Task: id, State: f.states[id], Reason: req.Reason, Durable: true})
	default:
		http.NotFound(w, r)
	}
}

// fate is the state of a task, and the cause if that is its parent.
func (f *fake) fate(id string) (state, cause string) {
	if state = f.states[id]; state == "" {
		return wire.StateUnknown, ""
	}
	if parent := f.above[id]; state == wire.StateActive && parent != "" {
		if up, _ := f.fate(parent); up != wire.StateActive {
			return wire.StateCanceled, "parent"
		}
	}
	return state, ""
}

func (f *fake) begin(w http.ResponseWriter, r *http.Request, body []byte, parent string) {
	var req wire.BeginRequest
	f.read(body, &req)
	key := r.Header.Get(wire.HeaderIdempotencyKey)
	id := f.keys[key]
	if id == "" {
		f.tasks++
		id = fmt.Sprintf("tsk_00%026d", f.tasks)
		f.keys[key], f.states[id], f.above[id], f.held[id] = id, wire.StateActive, parent, 1
	}
	var issued []wire.TokenResponse
	for _, ask := range req.Tokens {
		issued = append(issued, f.mint(ask))
	}
	f.begun(w, id, req, issued)
}

// begun answers with a task that the caller holds from now on.
func (f *fake) begun(w http.ResponseWriter, id string, req wire.BeginRequest, issued []wire.TokenResponse) {
	lease, deadline := f.lease, int64(3600)
	if req.LeaseSeconds != nil {
		lease = *req.LeaseSeconds
	}
	if req.DeadlineSeconds != nil {
		deadline = *req.DeadlineSeconds
	}
	// Its clock is an hour off, which must not matter.
	now := time.Now().Add(time.Hour)
	path := []string{id}
	for up := f.above[id]; up != ""; up = f.above[up] {
		path = append([]string{up}, path...)
	}
	key := endKeyOf(id)
	if f.held[id] > 1 {
		key += fmt.Sprint(".", f.held[id])
	}
	reply(w, http.StatusCreated, wire.BeginResponse{Tokens: issued, EndKey: key, Task: wire.Task{
		ID: id, Root: path[0], Path: path, Holder: f.held[id], Purpose: req.Purpose, Audiences: req.Audiences, Scopes: req.Scopes, State: wire.StateActive, BegunAt: now, LeaseSeconds: lease,
		LeaseExpiresAt: now.Add(time.Duration(lease) * time.Second), Deadline: now.Add(time.Duration(deadline) * time.Second),
	}})
}

// gone refuses what needs a task that is active, unless it is.
func (f *fake) gone(w http.ResponseWriter, id string) bool {
	state, cause := f.fate(id)
	if state != wire.StateActive {
		refuse(w, http.StatusGone, wire.Problem{Type: "https://broker/problems/task-ended", Title: "Task has ended", State: state, Cause: cause})
	}
	return state != wire.StateActive
}

// delegate gives a handle that names the task, and how many there were before.
func (f *fake) delegate(w http.ResponseWriter, id string, body []byte) {
	var req wire.DelegationRequest
	f.read(body, &req)
	f.grants++
	reply(w, http.StatusCreated, wire.DelegationResponse{ID: fmt.Sprintf("dlg_%026d", f.grants), Handle: fmt.Sprintf("hdl_%s.%026d", id, f.grants)})
}

func (f *fake) join(w http.ResponseWriter, r *http.Request, body []byte) {
	var req wire.JoinRequest
	f.read(body, &req)
	id, _, _ := strings.Cut(strings.TrimPrefix(req.Handle, "hdl_"), ".")
	key := r.Header.Get(wire.HeaderIdempotencyKey)
	if key == "" {
		f.tb.Error("a join without an idempotency key")
	}
	if by := f.used[req.Handle]; by != "" && by != key {
		refuse(w, http.StatusConflict, wire.Problem{Type: "https://broker/problems/handle-used", Title: "Handle used"})
		return
	}
	if !f.gone(w, id) {
		f.used[req.Handle] = key
		f.begin(w, r, body, id)
	}
}

func (f *fake) issue(w http.ResponseWriter, id string, body []byte) {
	var req wire.TokenRequest
	f.read(body, &req)
	if !f.gone(w, id) {
		reply(w, http.StatusOK, f.mint(req))
	}
}

func (f *fake) mint(req wire.TokenRequest) wire.TokenResponse {
	f.grants++
	grant := fmt.Sprintf("gnt_00%026d", f.grants)
	life := int64(f.life / time.Second)
	if req.TTLSeconds != nil {
		life = min(life, *req.TTLSeconds)
	}
	return wire.TokenResponse{
		AccessToken: secretOf(grant), TokenType: "Bearer", ExpiresIn: life, Scope: strings.Join(req.Scopes, " "),
		GrantID: grant, Audience: req.Audience, Hosts: f.hosts, Servers: f.servers, Binding: f.binding,
	}
}

func secretOf(grant string) string { return "eyJhbGciOiJFUzI1NiJ9." + grant + ".c2lnbmF0dXJl" }

func endKeyOf(task string) string { return "end_1." + task }

func (f *fake) read(body []byte, into any) {
	if err := json.Unmarshal(body, into); err != nil {
		f.tb.Errorf("the client sent %q: %v", body, err)
	}
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", wire.TypeJSON)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, status int, p wire.Problem) {
	p.Status = status
	w.Header().Set("Content-Type", wire.TypeProblem)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(p)
}

// on scripts the answer to a route; nil is the book again.
func (f *fake) on(route string, h http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.script[route] = h
}

// set changes what the broker thinks of a task.
func (f *fake) set(id, state string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.states[id] = state
}

func (f *fake) state(id string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.states[id]
}

// got returns the requests to a route so far.
func (f *fake) got(route string) []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []call
	for _, c := range f.calls {
		if c.route == route {
			out = append(out, c)
		}
	}
	return out
}

// The routes.
const (
	whoami     = "GET whoami"
	tasks      = "POST tasks"
	children   = "POST children"
	tokens     = "POST tokens"
	heartbeats = "POST heartbeats"
	end        = "POST end"

	delegations = "POST delegations"
	joins       = "POST joins"
	adopt       = "POST adopt"
)

// down is a broker that does not answer a connection, away one that answers 503, and hang one that
// never answers.
func down(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func away(w http.ResponseWriter, _ *http.Request) {
	refuse(w, http.StatusServiceUnavailable, wire.Problem{Type: "https://broker/problems/not-ready", Title: "Not ready"})
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

// RoundTrip is the fake without a network, for time that is not real.
func (f *fake) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	defer func() {
		if p := recover(); p != nil {
			resp, err = nil, errors.New("connection refused")
		}
	}()
	rec := httptest.NewRecorder()
	f.ServeHTTP(rec, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	resp = rec.Result()
	resp.Request = r
	return resp, nil
}

// inBubble makes a client of the fake that uses no sockets. It is closed when the test ends.
func inBubble(t *testing.T, f *fake, opts ...sdk.Option) (*sdk.Client, *identity) {
	t.Helper()
	ca := must(devmode.NewCA("example.org", devmode.Options{}))(t)
	who := newIdentity(t, ca)
	return inBubbleAs(t, f, who, opts...), who
}

func inBubbleAs(t *testing.T, f *fake, who *identity, opts ...sdk.Option) *sdk.Client {
	t.Helper()
	all := []sdk.Option{
		sdk.WithEnv(nil), sdk.WithBroker("https://broker.internal:8443"), sdk.WithBrokerID(brokerID),
		sdk.WithIdentity(sdk.FromSource(who, who)), sdk.WithLogger(slog.New(slog.DiscardHandler)),
		sdk.WithTransports(func(svid *x509svid.SVID) (broker, servers http.RoundTripper) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.svid = svid
			return f, f
		}),
	}
	client := must(sdk.New(t.Context(), append(all, opts...)...))(t)
	t.Cleanup(func() { closeClient(client) })
	return client
}

// closeClient gives up on whatever cannot be ended: some tests leave no broker.
func closeClient(c *sdk.Client) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = c.Close(ctx)
}

// serve runs a handler over mutual TLS, as the workload with the SVID.
func serve(tb testing.TB, h http.Handler, svid *x509svid.SVID, trust *x509bundle.Bundle) *url.URL {
	tb.Helper()
	return serveTLS(tb, h, svid, trust, tls.VersionTLS13)
}

func serveTLS(tb testing.TB, h http.Handler, svid *x509svid.SVID, trust *x509bundle.Bundle, version uint16) *url.URL {
	tb.Helper()
	return must(url.Parse(newServer(tb, h, svid, trust, version).URL))(tb)
}

func newServer(tb testing.TB, h http.Handler, svid *x509svid.SVID, trust *x509bundle.Bundle, version uint16) *httptest.Server {
	tb.Helper()
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	server.TLS = tlsconfig.MTLSServerConfig(svid, trust, tlsconfig.AuthorizeAny())
	server.TLS.MaxVersion = version
	// Or httptest would use its own where a client names no server.
	server.TLS.Certificates = []tls.Certificate{*must(server.TLS.GetCertificate(nil))(tb)}
	if watcher, ok := h.(interface {
		watch(net.Conn, http.ConnState)
	}); ok {
		server.Config.ConnState = watcher.watch
	}
	server.StartTLS()
	tb.Cleanup(server.Close)
	return server
}

// world is a broker over real TLS, and a workload.
type world struct {
	*fake
	ca     *devmode.CA
	who    *identity
	broker *url.URL
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	ca := must(devmode.NewCA("example.org", devmode.Options{}))(tb)
	w := &world{fake: newFake(tb), ca: ca, who: newIdentity(tb, ca)}
	w.broker = serve(tb, w.fake, must(ca.Issue(brokerID, 0))(tb), ca.Bundle())
	return w
}

func (w *world) options() []sdk.Option {
	return []sdk.Option{
		sdk.WithEnv(nil), sdk.WithBroker(w.broker.String()), sdk.WithBrokerID(brokerID),
		sdk.WithIdentity(sdk.FromSource(w.who, w.who)), sdk.WithLogger(slog.New(slog.DiscardHandler)),
	}
}

func (w *world) client(tb testing.TB, opts ...sdk.Option) *sdk.Client {
	tb.Helper()
	client := must(sdk.New(tb.Context(), append(w.options(), opts...)...))(tb)
	tb.Cleanup(func() { closeClient(client) })
	return client
}

// spec asks for no token in advance, so that tests count from the first Token.
var spec = sdk.TaskSpec{Name: "monthly-export", Purpose: "a test", Audiences: []string{"orders"}, Scopes: []string{"orders:read"}, Tokens: []sdk.TokenRequest{}}

// begin begins a task, or fails the test.
func begin(tb testing.TB, c *sdk.Client, s sdk.TaskSpec) *sdk.Task {
	tb.Helper()
	return must(c.Begin(tb.Context(), s))(tb)
}

var ordersRead = sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}}

// recorded is what a handler answers.
func recorded(h http.HandlerFunc, r *http.Request) []byte {
	rec := httptest.NewRecorder()
	h(rec, r)
	return rec.Body.Bytes()
}
