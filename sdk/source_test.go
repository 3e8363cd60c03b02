package sdk_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/errandhq/errand/sdk"
)

// agent is a Workload API that gives one workload several SVIDs, or an error.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	addr string

	mu      sync.Mutex
	answers []any         // each a *workload.X509SVIDResponse or an error
	more    chan struct{} // closed when there is one more
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	a := &agent{addr: "tcp://" + l.Addr().String(), more: make(chan struct{})}
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return a
}

func (a *agent) say(answers ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answers = append(a.answers, answers...)
	close(a.more)
	a.more = make(chan struct{})
}

// said returns what there is from the n-th answer on.
func (a *agent) said(n int) (answers []any, more <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.answers[n:], a.more
}

// FetchX509SVID passes all answers on, on each stream from the first: a stream whose client has left
// takes none away from the next.
func (a *agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	for n := 0; ; {
		answers, more := a.said(n)
		n += len(answers)
		for _, answer := range answers {
			if err, ok := answer.(error); ok {
				return err
			}
			if err := stream.Send(answer.(*workload.X509SVIDResponse)); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-more:
		}
	}
}

// openInTime opens a source that has all that it needs.
func openInTime(t *testing.T, source sdk.IdentitySource) x509svid.Source {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	svids, _, release, err := source.Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Errorf("release: %v", err)
		}
	})
	return svids
}

// offer gives SVIDs with these hints, by their IDs.
func (w *world) offer(t *testing.T, hints map[spiffeid.ID]string, order ...spiffeid.ID) *workload.X509SVIDResponse {
	t.Helper()
	out := &workload.X509SVIDResponse{}
	for _, id := range order {
		svid := must(w.ca.Issue(id, 0))(t)
		certs, key, err := svid.MarshalRaw()
		if err != nil {
			t.Fatal(err)
		}
		one := &workload.X509SVID{SpiffeId: id.String(), X509Svid: certs, X509SvidKey: key, Hint: hints[id]}
		for _, root := range w.ca.Bundle().X509Authorities() {
			one.Bundle = append(one.Bundle, root.Raw...)
		}
		out.Svids = append(out.Svids, one)
	}
	return out
}

// Of several SVIDs the default is the first; another is picked by its ID or its hint.
func TestWorkloadAPIWithSeveralSVIDs(t *testing.T) {
	w := newWorld(t)
	hints := map[spiffeid.ID]string{reportID: "internal", ordersID: "external"}
	for pick, want := range map[string]spiffeid.ID{
		"": reportID, ordersID.String(): ordersID, "external": ordersID, "internal": reportID,
	} {
		t.Run(pick, func(t *testing.T) {
			a := newAgent(t)
			a.say(w.offer(t, hints, reportID, ordersID))
			svids := openInTime(t, sdk.FromWorkloadAPI(a.addr, pick))
			if got := must(svids.GetX509SVID())(t); got.ID != want {
				t.Errorf("got %s; want %s", got.ID, want)
			}
			// It is the same one after a rotation in another order.
			before := must(svids.GetX509SVID())(t)
			if pick == "" {
				return
			}
			a.say(w.offer(t, hints, ordersID, reportID))
			eventually(t, "the rotation is seen", func() bool { return must(svids.GetX509SVID())(t) != before })
			if got := must(svids.GetX509SVID())(t); got.ID != want {
				t.Errorf("after the rotation %s; want %s", got.ID, want)
			}
		})
	}
}

func TestWorkloadAPIWithoutTheSVIDThatIsPicked(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t)
	a.say(w.offer(t, map[spiffeid.ID]string{reportID: "internal"}, reportID))
	startError(t, append(w.options(), sdk.WithIdentity(sdk.FromWorkloadAPI(a.addr, "external"))),
		`"external"`, reportID.String()+` (hint "internal")`)
	// One that comes late is waited for.
	a = newAgent(t)
	a.say(w.offer(t, nil, reportID), w.offer(t, map[spiffeid.ID]string{ordersID: "external"}, reportID, ordersID))
	svids := openInTime(t, sdk.FromWorkloadAPI(a.addr, "external"))
	if got := must(svids.GetX509SVID())(t); got.ID != ordersID {
		t.Errorf("got %s", got.ID)
	}
}

func TestWorkloadAPIThatRefuses(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t)
	a.say(status.Error(codes.PermissionDenied, "no identity issued"))
	err := startError(t, append(w.options(), sdk.WithIdentity(sdk.FromWorkloadAPI(a.addr, ""))),
		a.addr, "PermissionDenied", "no identity issued", "register it there")
	if !errors.Is(err, sdk.ErrNoIdentity) {
		t.Fatal(err)
	}
}
