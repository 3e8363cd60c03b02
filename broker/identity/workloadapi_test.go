package identity_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/broker/identity"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// agent runs a Workload API for the broker's identity. It ends when the test does, or by stop.
func agent(t *testing.T, ca *devmode.CA, dir string) (api *devmode.WorkloadAPI, addr string, stop func()) {
	t.Helper()
	api = devmode.NewWorkloadAPI(ca, dir, 0)
	addr, err := api.Add(spiffeid.RequireFromString(brokerID))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.Run(ctx) }()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return api, addr, stop
}

func newCA(t *testing.T, domain string) *devmode.CA {
	t.Helper()
	ca, err := devmode.NewCA(domain, devmode.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issued(t *testing.T, ca *devmode.CA, id string) svid {
	t.Helper()
	s, err := ca.Issue(spiffeid.RequireFromString(id), 0)
	if err != nil {
		t.Fatal(err)
	}
	return svid{[][]byte{s.Certificates[0].Raw}, s.PrivateKey}
}

func TestFromWorkloadAPI(t *testing.T) {
	ca, partner := newCA(t, ours), newCA(t, theirs)
	api, addr, _ := agent(t, ca, t.TempDir())
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", addr)
	source := identity.FromWorkloadAPI("", nil)
	runSource(t, source)
	wait(t, source)
	own, err := source.GetX509SVID()
	if err != nil || own.ID.String() != brokerID {
		t.Fatalf("our SVID is %v, %v", own, err)
	}
	next := func(change func()) {
		t.Helper()
		generation := source.Generation()
		change()
		eventually(t, "a new generation", func() bool { return source.Generation() > generation })
	}
	next(func() {
		if err := api.Rotate(own.ID); err != nil {
			t.Fatal(err)
		}
	})
	if rotated, err := source.GetX509SVID(); err != nil || rotated.Certificates[0].Equal(own.Certificates[0]) {
		t.Errorf("after a rotation: %v, %v", rotated, err)
	}

	// One Peer throughout, as on one connection.
	ctx := identity.ConnContext(t.Context(), nil)
	kept := request(issued(t, partner, "spiffe://"+theirs+"/worker")).WithContext(ctx)
	if _, err := source.Workload(kept); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("before its domain is federated: %v", err)
	}
	next(func() { api.Federate(partner.Bundle()) })
	if _, err := source.Workload(kept); err != nil {
		t.Errorf("while its domain is federated: %v", err)
	}
	if _, err := source.Workload(request(issued(t, partner, "spiffe://"+theirs+"/worker"))); err != nil {
		t.Errorf("another: %v", err)
	}
	next(func() { api.Federate() })
	if _, err := source.Workload(kept); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("after its domain was removed: %v", err)
	}
}

// What there was stays in use while the agent is away, and is replaced once it is back.
func TestAgentRestarts(t *testing.T) {
	dir := t.TempDir()
	before, after := newCA(t, ours), newCA(t, ours)
	_, addr, stop := agent(t, before, dir)
	source := identity.FromWorkloadAPI(addr, nil)
	runSource(t, source)
	wait(t, source)
	stop()
	old := issued(t, before, worker).certs()
	if _, err := source.Verify(old, time.Now()); err != nil {
		t.Errorf("while the agent is away: %v", err)
	}
	generation := source.Generation()
	agent(t, after, dir)
	eventually(t, "the new agent is asked", func() bool { return source.Generation() > generation })
	if _, err := source.Verify(old, time.Now()); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("the old CA is still trusted: %v", err)
	}
}

func TestWaitSaysWhy(t *testing.T) {
	nobody := "unix://" + filepath.Join(t.TempDir(), "nobody.sock")
	source := identity.FromWorkloadAPI(nobody, nil)
	runSource(t, source)
	ctx, cancel := context.WithCancel(t.Context())
	eventually(t, "the connection is refused", func() bool {
		_, err := source.GetX509SVID()
		return err != nil && strings.Contains(err.Error(), "no such file")
	})
	cancel()
	err := source.Wait(ctx)
	if !errors.Is(err, identity.ErrNoSVID) || !errors.Is(err, context.Canceled) ||
		!strings.Contains(err.Error(), nobody) || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("Wait says %v", err)
	}
	if err := source.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second Run: %v", err)
	}
}

func TestBadAddress(t *testing.T) {
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	for addr, want := range map[string]string{"": "SPIFFE_ENDPOINT_SOCKET", "run/agent.sock": "scheme", "https://127.0.0.1": "scheme"} {
		source := identity.FromWorkloadAPI(addr, nil)
		if err := source.Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: Run says %v; want %q", addr, err, want)
		}
		// Nobody has to wait for what cannot come.
		if err := source.Wait(t.Context()); !errors.Is(err, identity.ErrNoSVID) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: Wait says %v; want %q", addr, err, want)
		}
	}
}

// fakeAgent says what a test wants.
type fakeAgent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	addr    string
	answers chan answer
}

type answer struct {
	response *workload.X509SVIDResponse
	err      error
}

func newFakeAgent(t *testing.T) *fakeAgent {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeAgent{addr: "tcp://" + l.Addr().String(), answers: make(chan answer, 8)}
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	workload.RegisterSpiffeWorkloadAPIServer(server, f)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return f
}

// FetchX509SVID passes the answers on; an error ends the stream.
func (f *fakeAgent) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	for {
		select {
		case a := <-f.answers:
			if a.err != nil {
				return a.err
			}
			if err := stream.Send(a.response); err != nil {
				return err
			}
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// send answers with an SVID of our domain and a bundle of these certificates.
func (f *fakeAgent) send(i svid, bundle ...[]byte) {
	key, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		panic(err)
	}
	response := &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{SpiffeId: brokerID, X509Svid: i.chain[0], X509SvidKey: key}}}
	for _, der := range bundle {
		response.Svids[0].Bundle = append(response.Svids[0].Bundle, der...)
	}
	f.answers <- answer{response: response}
}

func TestAnswersOfAnAgent(t *testing.T) {
	ca := newAuthority(t)
	f := newFakeAgent(t)
	// SPIRE says this until it knows the workload; an agent that stops may say the next. Neither
	// is the end.
	for range 3 {
		f.answers <- answer{err: status.Error(codes.PermissionDenied, "no identity issued")}
	}
	f.answers <- answer{err: status.Error(codes.Canceled, "stopping")}
	f.answers <- answer{response: &workload.X509SVIDResponse{}}
	f.send(ca.issue(t, brokerID), ca.cert.Raw)
	said := &log{}
	source := identity.FromWorkloadAPI(f.addr, said.logger())
	runSource(t, source)
	wait(t, source)
	if got := strings.Count(strings.Join(said.warnings(), ""), "no identity issued"); got != 1 {
		t.Errorf("what was said three times was logged %d times", got)
	}
	peer := ca.issue(t, worker).certs()
	if _, err := source.Verify(peer, time.Now()); err != nil {
		t.Fatal(err)
	}
	// A bundle with nothing in it trusts nobody.
	generation := source.Generation()
	f.send(ca.issue(t, brokerID))
	eventually(t, "the empty bundle is taken", func() bool { return source.Generation() > generation })
	if _, err := source.Verify(peer, time.Now()); !errors.Is(err, identity.ErrIdentity) {
		t.Errorf("by an empty bundle: %v", err)
	}
}

func TestAgentRefusesForGood(t *testing.T) {
	f := newFakeAgent(t)
	f.answers <- answer{err: status.Error(codes.InvalidArgument, "security header missing")}
	err := identity.FromWorkloadAPI(f.addr, nil).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "refuses to answer") || !strings.Contains(err.Error(), f.addr) {
		t.Errorf("Run says %v", err)
	}
}
