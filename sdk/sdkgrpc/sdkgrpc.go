// Package sdkgrpc attaches a task's tokens to gRPC calls. Dial with TransportCredentials, and give each
// call, or the connection, one of PerRPC and FromContext.
//
//	conn, err := grpc.NewClient("orders.internal:443",
//		grpc.WithTransportCredentials(sdkgrpc.TransportCredentials(client)),
//		grpc.WithPerRPCCredentials(sdkgrpc.FromContext(sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})))
//
//	err = client.Do(ctx, spec, func(ctx context.Context, task *sdk.Task) error {
//		list, err := shop.NewOrdersClient(conn).List(ctx, &shop.ListRequest{})
//		...
//	})
//
// What it promises: a token goes over TLS only, to a host that the broker names for the audience, and to
// no other server than those that it names by their SPIFFE IDs; and a token that is bound to a
// certificate goes over connections that present that one. After the task has ended nothing is sent.
//
// Errors are those of package sdk for errors.Is, with a status: PermissionDenied and Unauthenticated
// where trying again is in vain, Unavailable where it is not, ResourceExhausted for a quota or too many
// requests, and Internal for a request that is wrong in itself. A RetryInfo says when to try again where the
// broker does.
package sdkgrpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/errandhq/errand/sdk"
)

// PerRPC attaches tokens of one task.
func PerRPC(t *sdk.Task, req sdk.TokenRequest) credentials.PerRPCCredentials {
	return &tokens{func(context.Context) (*sdk.Task, error) { return t, nil }, req}
}

// FromContext attaches tokens of the task that is in the call's context (sdk.FromContext), so that one
// connection can serve many tasks. A call without a task is refused before anything is sent.
func FromContext(req sdk.TokenRequest) credentials.PerRPCCredentials {
	return &tokens{func(ctx context.Context) (*sdk.Task, error) {
		if t, ok := sdk.FromContext(ctx); ok {
			return t, nil
		}
		return nil, fmt.Errorf("sdkgrpc: %w: the call's context has no task; use the one that sdk.Client.Do gives, or sdk.NewContext", sdk.ErrTaskEnded)
	}, req}
}

// tokens implements credentials.PerRPCCredentials.
type tokens struct {
	task func(context.Context) (*sdk.Task, error)
	ask  sdk.TokenRequest
}

func (*tokens) RequireTransportSecurity() bool { return true }

func (p *tokens) GetRequestMetadata(ctx context.Context, uri ...string) (map[string]string, error) {
	task, err := p.task(ctx)
	if err != nil {
		return nil, refusal(err)
	}
	token, err := task.Token(ctx, p.ask)
	if err == nil {
		err = fits(ctx, token, uri)
	}
	if err != nil {
		return nil, refusal(err)
	}
	return map[string]string{"authorization": token.Header()}, nil
}

// fits returns nil if the connection of a call is one that the token may go over.
func fits(ctx context.Context, token *sdk.Token, uri []string) error {
	for _, text := range uri {
		u, err := url.Parse(text)
		if err != nil {
			return fmt.Errorf("sdkgrpc: %w: %w", sdk.ErrHost, err)
		}
		if err := token.CheckHost(u); err != nil {
			return err
		}
	}
	var over *link
	var state tls.ConnectionState
	call, _ := credentials.RequestInfoFromContext(ctx)
	switch info := call.AuthInfo.(type) {
	case *link:
		over, state = info, info.State
	case credentials.TLSInfo:
		state = info.State
	default:
		return fmt.Errorf("sdkgrpc: %w: the connection is not TLS; dial with TransportCredentials", sdk.ErrUnbound)
	}
	if err := serves(token, state); err != nil {
		return err
	}
	if !token.Bound {
		return nil
	}
	return over.presents(token)
}

// serves looks for the server among those of the audience, if the broker names any.
func serves(token *sdk.Token, state tls.ConnectionState) error {
	if len(token.Servers) == 0 {
		return nil
	}
	if len(state.PeerCertificates) == 0 {
		return fmt.Errorf("sdkgrpc: %w: the server shows no certificate", sdk.ErrHost)
	}
	id, err := x509svid.IDFromCert(state.PeerCertificates[0])
	if err != nil || !slices.Contains(token.Servers, id.String()) {
		return fmt.Errorf("sdkgrpc: %w: the server is %q, and those of %s are %q", sdk.ErrHost, id, token.Audience, token.Servers)
	}
	return nil
}

// TransportCredentials connects over TLS 1.3 with the client's SVID of that moment, to the servers with
// these SPIFFE IDs, or to any of the workload's own trust domain; a token goes to those of its audience
// alone, all the same.
//
// After the SVID was replaced, the first call whose token is bound to the new one finds that its
// connection presents the old one: that connection is closed, with what runs over it, the call fails
// with Unavailable, and the calls after it have a new connection. A retry policy for Unavailable in
// the service config, as the README of sdk shows, hides that from calls that are not streams.
func TransportCredentials(client *sdk.Client, servers ...spiffeid.ID) credentials.TransportCredentials {
	authorize := tlsconfig.AuthorizeMemberOf(client.ID().TrustDomain())
	if len(servers) > 0 {
		authorize = tlsconfig.AuthorizeOneOf(servers...)
	}
	return &transport{client: client, authorize: authorize}
}

type transport struct {
	client    *sdk.Client
	authorize tlsconfig.Authorizer
}

// link is a connection, with what it presents.
type link struct {
	credentials.TLSInfo
	leaf []byte // DER
	conn net.Conn
}

// presents returns nil if the connection presents the certificate that the token is bound to.
func (l *link) presents(token *sdk.Token) error {
	switch svid := token.SVID(); {
	case l == nil:
		return fmt.Errorf("sdkgrpc: %w: nobody knows what it presents; dial with TransportCredentials", sdk.ErrUnbound)
	case svid == nil || !bytes.Equal(svid.Certificates[0].Raw, l.leaf):
		// It is an error of the next read there, whose answer is a new connection.
		_ = l.conn.Close()
		return &refused{codes.Unavailable, fmt.Errorf("sdkgrpc: %w: the SVID was replaced since it was made; the next call has a new one", sdk.ErrUnbound)}
	}
	return nil
}

func (t *transport) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	svid, err := t.client.SVID()
	if err != nil {
		return nil, nil, err
	}
	bundle, err := t.client.Bundle()
	if err != nil {
		return nil, nil, err
	}
	config := tlsconfig.MTLSClientConfig(svid, bundle, t.authorize)
	config.MinVersion = tls.VersionTLS13
	conn, info, err := credentials.NewTLS(config).ClientHandshake(ctx, authority, raw)
	if err != nil {
		return nil, nil, err
	}
	over, ok := info.(credentials.TLSInfo)
	if !ok {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("sdkgrpc: the handshake has brought %T; TLS was expected", info)
	}
	return conn, &link{TLSInfo: over, leaf: svid.Certificates[0].Raw, conn: conn}, nil
}

var errServer = errors.New("sdkgrpc: TransportCredentials are those of a client; a server uses go-spiffe's tlsconfig with credentials.NewTLS")

func (t *transport) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errServer
}

func (t *transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (t *transport) Clone() credentials.TransportCredentials {
	return &transport{t.client, t.authorize}
}

// OverrideServerName does nothing: the server is known by its SPIFFE ID.
func (t *transport) OverrideServerName(string) error { return nil }

// refused is an error of sdk with a status for gRPC.
type refused struct {
	code codes.Code
	err  error
}

func (r *refused) Error() string { return r.err.Error() }
func (r *refused) Unwrap() error { return r.err }

// GRPCStatus has a RetryInfo if the broker has said when to try again.
func (r *refused) GRPCStatus() *status.Status {
	plain := status.New(r.code, r.err.Error())
	var answer *sdk.Error
	if !errors.As(r.err, &answer) || answer.RetryAfter <= 0 {
		return plain
	}
	detailed, err := plain.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(answer.RetryAfter)})
	if err != nil {
		return plain
	}
	return detailed
}

// codesOf has the code of each error of sdk; the first row that matches counts. gRPC lets credentials use
// no InvalidArgument and no NotFound.
var codesOf = []struct {
	code codes.Code
	errs []error
}{
	{codes.Unauthenticated, []error{
		sdk.ErrTaskEnded, sdk.ErrRevoked, sdk.ErrLeaseLost, sdk.ErrDeadline, sdk.ErrParentEnded, sdk.ErrEndUnconfirmed, sdk.ErrAdopted, sdk.ErrNotFound,
		sdk.ErrUnauthenticated, sdk.ErrUnregistered, sdk.ErrUnbound, sdk.ErrClosed, sdk.ErrBrokerID, sdk.ErrHandleUsed, sdk.ErrHandleExpired,
	}},
	{codes.PermissionDenied, []error{sdk.ErrDenied, sdk.ErrScopeExceeded, sdk.ErrQuarantined, sdk.ErrHost, sdk.ErrNotDelegate}},
	{codes.Internal, []error{sdk.ErrInvalid}},
	{codes.ResourceExhausted, []error{sdk.ErrQuota, sdk.ErrRateLimited}},
	{codes.Unavailable, []error{sdk.ErrUnavailable, sdk.ErrNoIdentity}},
	{codes.DeadlineExceeded, []error{context.DeadlineExceeded}},
	{codes.Canceled, []error{context.Canceled}},
}

// refusal says whether it is of use to try again.
func refusal(err error) error {
	var done *refused
	if errors.As(err, &done) {
		return done
	}
	for _, row := range codesOf {
		if slices.ContainsFunc(row.errs, func(one error) bool { return errors.Is(err, one) }) {
			return &refused{row.code, err}
		}
	}
	return &refused{codes.Internal, err}
}
