package devmode

import (
	"bytes"
	"context"
	"net"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	// securityHeader must be "true" in the metadata of every call, so that nobody can be tricked
	// into making one (SPIFFE Workload Endpoint, §6).
	securityHeader = "workload.spiffe.io"

	maxRequest = 4 << 10 // bytes; all requests are empty or nearly
	maxStreams = 100     // of one connection
)

// endpoint is one identity's socket with the server behind it.
type endpoint struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	api      *WorkloadAPI
	addr     string
	listener net.Listener
	server   *grpc.Server

	svid    *x509svid.SVID // under api.mu
	changed chan struct{}  // under api.mu; closed and replaced by every push
}

func newEndpoint(api *WorkloadAPI, svid *x509svid.SVID, l net.Listener, addr string) *endpoint {
	e := &endpoint{api: api, addr: addr, listener: l, svid: svid, changed: make(chan struct{})}
	e.server = grpc.NewServer(
		grpc.UnaryInterceptor(requireHeader),
		grpc.StreamInterceptor(requireHeaderStream),
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.WaitForHandlers(true),
	)
	workload.RegisterSpiffeWorkloadAPIServer(e.server, e)
	return e
}

// push wakes those who watch. The caller holds api.mu.
func (e *endpoint) push() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// FetchX509SVID sends the SVID, its key and all bundles, now and whenever one of them changes.
func (e *endpoint) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	return watch(e, stream, e.svidResponse)
}

// FetchX509Bundles sends all bundles, now and whenever one of them changes.
func (e *endpoint) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return watch(e, stream, e.bundlesResponse)
}

// watch sends what compose returns, which is called with the lock held, until the peer leaves or
// the server stops. The status is never Canceled: clients take that for their own cancelling, and
// would not come back.
func watch[T any](e *endpoint, stream grpc.ServerStreamingServer[T], compose func() (*T, error)) error {
	for {
		e.api.mu.Lock()
		changed := e.changed
		message, err := compose()
		e.api.mu.Unlock()
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if err := stream.Send(message); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return status.Error(codes.Unavailable, "the Workload API is stopping")
		}
	}
}

func (e *endpoint) svidResponse() (*workload.X509SVIDResponse, error) {
	chain, key, err := e.svid.MarshalRaw()
	if err != nil {
		return nil, err
	}
	response := &workload.X509SVIDResponse{
		Svids: []*workload.X509SVID{{
			SpiffeId: e.svid.ID.String(), X509Svid: chain, X509SvidKey: key, Bundle: der(e.api.ca.Bundle()),
		}},
		FederatedBundles: map[string][]byte{},
	}
	for _, b := range e.api.federated {
		response.FederatedBundles[b.TrustDomain().IDString()] = der(b)
	}
	return response, nil
}

func (e *endpoint) bundlesResponse() (*workload.X509BundlesResponse, error) {
	bundle := e.api.ca.Bundle()
	response := &workload.X509BundlesResponse{Bundles: map[string][]byte{bundle.TrustDomain().IDString(): der(bundle)}}
	for _, b := range e.api.federated {
		response.Bundles[b.TrustDomain().IDString()] = der(b)
	}
	return response, nil
}

func der(bundle *x509bundle.Bundle) []byte {
	var all [][]byte
	for _, authority := range bundle.X509Authorities() {
		all = append(all, authority.Raw)
	}
	return bytes.Join(all, nil)
}

func requireHeader(ctx context.Context, request any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := checkHeader(ctx); err != nil {
		return nil, err
	}
	return next(ctx, request)
}

func requireHeaderStream(server any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := checkHeader(stream.Context()); err != nil {
		return err
	}
	return next(server, stream)
}

func checkHeader(ctx context.Context) error {
	if values := metadata.ValueFromIncomingContext(ctx, securityHeader); len(values) != 1 || values[0] != "true" {
		return status.Errorf(codes.InvalidArgument, "the metadata %s: true is required", securityHeader)
	}
	return nil
}
