package sdk_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/errandhq/errand/sdk"
)

// agent is a Workload API that gives one workload several SVIDs, or an error.
type agent struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	addr    string
	answers chan any // *workload.X509SVIDResponse or error
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	a := &agent{addr: "tcp://" + l.Addr().String(), answers: make(chan any, 8)}
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	workload.RegisterSpiffeWorkloadAPIServer(server, a)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	return a
}

// FetchX509SVID passes the answers on.
func (a *agent) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	for {
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case answer := <-a.answers:
			if err, ok := answer.(error); ok {
				return err
			}
			if err := stream.Send(answer.(*workload.X509SVIDResponse)); err != nil {
				return err
			}
		}
	}
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
			a.answers <- w.offer(t, hints, reportID, ordersID)
			svids, _, release, err := sdk.FromWorkloadAPI(a.addr, pick).Open(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer release()
			if got := must(svids.GetX509SVID())(t); got.ID != want {
				t.Errorf("got %s; want %s", got.ID, want)
			}
			// It is the same one after a rotation in another order.
			before := must(svids.GetX509SVID())(t)
			if pick == "" {
				return
			}
			a.answers <- w.offer(t, hints, ordersID, reportID)
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
	source := sdk.FromWorkloadAPI(a.addr, "external")
	a.answers <- w.offer(t, map[spiffeid.ID]string{reportID: "internal"}, reportID)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, _, _, err := source.Open(ctx)
	if err == nil || !strings.Contains(err.Error(), `"external"`) || !strings.Contains(err.Error(), reportID.String()+` (hint "internal")`) {
		t.Errorf("got %v", err)
	}
	// One that comes late is waited for.
	a = newAgent(t)
	source = sdk.FromWorkloadAPI(a.addr, "external")
	a.answers <- w.offer(t, nil, reportID)
	a.answers <- w.offer(t, map[spiffeid.ID]string{ordersID: "external"}, reportID, ordersID)
	svids, _, release, err := source.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if got := must(svids.GetX509SVID())(t); got.ID != ordersID {
		t.Errorf("got %s", got.ID)
	}
}

func TestWorkloadAPIThatRefuses(t *testing.T) {
	w := newWorld(t)
	a := newAgent(t)
	for range 8 {
		a.answers <- status.Error(codes.PermissionDenied, "no identity issued")
	}
	_, err := sdk.New(t.Context(), append(w.options(), sdk.WithIdentity(sdk.FromWorkloadAPI(a.addr, "")), sdk.WithStartupTimeout(300*time.Millisecond))...)
	if !errors.Is(err, sdk.ErrNoIdentity) {
		t.Fatal(err)
	}
	for _, text := range []string{a.addr, "PermissionDenied", "no identity issued", "register it there"} {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not say %q", err, text)
		}
	}
}
