package identity_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/identity"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = time.Minute
	poll     = 5 * time.Millisecond

	ours     = "example.org"
	theirs   = "partner.example"
	brokerID = "spiffe://" + ours + "/broker"
	worker   = "spiffe://" + ours + "/worker"
)

// files is a folder that a Source follows.
type files struct {
	t   testing.TB
	dir string
}

func (f files) path(name string) string { return filepath.Join(f.dir, name) }

func (f files) write(name string, text []byte) {
	f.t.Helper()
	// By a rename, so that nothing half-written is seen unless a test wants that.
	if err := os.WriteFile(f.path("."+name), text, 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(f.path("."+name), f.path(name)); err != nil {
		f.t.Fatal(err)
	}
}

// writeSVID writes an SVID with its key into one file, so that the two change together.
func (f files) writeSVID(i svid) {
	f.t.Helper()
	chain, key := i.pem(f.t)
	f.write("svid.pem", append(chain, key...))
}

// clock is a time that a test moves; the zero value is the real one.
type clock struct {
	mu sync.Mutex
	at time.Time
	n  int
}

func (c *clock) reads() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	if c.at.IsZero() {
		return time.Now()
	}
	return c.at
}

func (c *clock) set(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = at
}

// house is a listener for workloads with a Source behind it. It trusts our domain by root, and
// theirs by partner.
type house struct {
	t             testing.TB
	root, partner authority
	files         files
	clock         *clock
	source        *identity.Source
	addr          string

	mu   sync.Mutex
	seen []string // the IDs of the requests that were let in
}

// newHouse serves until the test ends. Further federated bundles are by name of the trust domain.
func newHouse(t testing.TB, federated map[string]authority) *house {
	t.Helper()
	h := &house{t: t, root: newAuthority(t), partner: newAuthority(t), files: files{t, t.TempDir()}, clock: &clock{}}
	h.files.writeSVID(h.root.issue(t, brokerID))
	h.files.write("bundle.pem", certPEM(h.root.cert.Raw))
	h.files.write(theirs, certPEM(h.partner.cert.Raw))
	named := []identity.Federation{{TrustDomain: theirs, File: h.files.path(theirs)}}
	for td, a := range federated {
		h.files.write("f"+td[:min(len(td), 16)], certPEM(a.cert.Raw))
		named = append(named, identity.Federation{TrustDomain: td, File: h.files.path("f" + td[:min(len(td), 16)])})
	}
	h.source = fromFiles(h.files.path("svid.pem"), h.files.path("svid.pem"), h.files.path("bundle.pem"), nil)
	if err := h.source.Federate(named...); err != nil {
		t.Fatal(err)
	}
	h.source.Now = h.clock.now
	runSource(t, h.source)
	wait(t, h.source)
	for _, f := range named {
		waitFor(t, h.source, f.TrustDomain)
	}
	h.addr = serve(t, &http.Server{Handler: h, TLSConfig: identity.ServerTLS(h.source), ConnContext: identity.ConnContext})
	return h
}

// ServeHTTP answers with who the caller is.
func (h *house) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	peer, err := h.source.Workload(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	h.mu.Lock()
	h.seen = append(h.seen, peer.ID.String())
	h.mu.Unlock()
	io.WriteString(w, peer.ID.String()+" "+peer.Thumbprint+" "+peer.Address)
}

func (h *house) letIn() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.seen)
}

// config is a workload's, which wants our broker at the other end.
func (h *house) config(i *svid) *tls.Config {
	bundle, err := h.source.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString(ours))
	if err != nil {
		h.t.Fatal(err)
	}
	config := tlsconfig.TLSClientConfig(bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromString(brokerID)))
	if i != nil {
		config.Certificates = []tls.Certificate{i.tls()}
	}
	return config
}

// client keeps its connections until the test ends.
func (h *house) client(config *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: config.NextProtos == nil}
	h.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// get returns what the house answers, or why it does not.
func (h *house) get(c *http.Client) (string, error) {
	response, err := c.Get("https://" + h.addr)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status + ": " + string(body))
	}
	return string(body), err
}

// call is get on a connection of its own.
func (h *house) call(config *tls.Config) (string, error) {
	c := h.client(config)
	defer c.CloseIdleConnections()
	return h.get(c)
}

// good proves that the house still serves.
func (h *house) good() {
	h.t.Helper()
	i := h.root.issue(h.t, worker)
	if got, err := h.call(h.config(&i)); err != nil || !strings.HasPrefix(got, worker+" ") {
		h.t.Fatalf("a good connection: %q, %v", got, err)
	}
}

// refuses wants the connection to fail before a request gets through, and a good one to work then.
func (h *house) refuses(config *tls.Config) {
	h.t.Helper()
	before := h.letIn()
	if got, err := h.call(config); err == nil {
		h.t.Errorf("it was let in and answered %q", got)
	} else if strings.Contains(err.Error(), "401 Unauthorized") {
		h.t.Errorf("the handshake let it through, and only the request was refused: %v", err)
	} else if errors.Is(err, context.DeadlineExceeded) {
		h.t.Errorf("it was left hanging: %v", err)
	}
	if h.letIn() != before {
		h.t.Error("a request was handled")
	}
	h.good()
}

// fromFiles makes a Source that looks often.
func fromFiles(cert, key, bundle string, said *log) *identity.Source {
	var logger *slog.Logger
	if said != nil {
		logger = said.logger()
	}
	source := identity.FromFiles(identity.Files{Cert: cert, Key: key, Bundle: bundle}, logger)
	source.Poll = poll
	return source
}

// waitFor waits for the bundle of a trust domain.
func waitFor(t testing.TB, s *identity.Source, td string) {
	t.Helper()
	eventually(t, td+" is trusted", func() bool { return trusts(s, td) })
}

// trusts reports whether somebody of the trust domain may be believed.
func trusts(s *identity.Source, td string) bool {
	b, err := s.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString(td))
	return err == nil && !b.Empty()
}

func runSource(t testing.TB, s *identity.Source) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func wait(t testing.TB, s *identity.Source) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %s", what)
		}
	}
}

func serve(t testing.TB, server *http.Server) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return l.Addr().String()
}
