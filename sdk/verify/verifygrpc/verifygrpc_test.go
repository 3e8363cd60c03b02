package verifygrpc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/examples/grpc/shop"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifygrpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// orders serves the shop.
type orders struct {
	watching chan string // the grants of streams that have begun; not waited for when nil
	listing  chan string
	ended    chan error // what the streams' contexts ended with
	sending  func(grpc.BidiStreamingServer[shop.Text, shop.Text]) error
}

func (o *orders) List(ctx context.Context, _ *shop.Text) (*shop.Text, error) {
	g, ok := verify.FromContext(ctx)
	if !ok {
		return wrapperspb.String("open to everybody"), nil
	}
	if o.listing != nil {
		o.listing <- g.ID
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return wrapperspb.String("two anvils for " + g.Workload), nil
}

func (o *orders) Watch(stream grpc.BidiStreamingServer[shop.Text, shop.Text]) error {
	if g, ok := verify.FromContext(stream.Context()); ok && o.watching != nil {
		o.watching <- g.ID
	}
	if o.sending != nil {
		return o.sending(stream)
	}
	for {
		in, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			if o.ended != nil {
				o.ended <- context.Cause(stream.Context())
			}
			return err
		}
		if err := stream.Send(in); err != nil {
			return err
		}
	}
}

// place is a server with a verifier, and a connection of a workload to it.
type place struct {
	*brokertest.Broker
	v    *verify.Verifier
	conn *grpc.ClientConn
	task *sdk.Task
	addr string
}

func serve(t *testing.T, rules verifygrpc.Rules, o *orders, edit ...func(*verify.Config)) *place {
	t.Helper()
	b := brokertest.New(t)
	p := &place{Broker: b, v: b.Verifier("orders", edit...)}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(b.ServerTLS("orders"))),
		grpc.UnaryInterceptor(verifygrpc.Unary(p.v, rules)), grpc.StreamInterceptor(verifygrpc.Stream(p.v, rules)),
	)
	shop.Register(server, o)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-done })
	p.addr = l.Addr().String()
	client := b.Client("export")
	if p.task, err = client.Begin(t.Context(), sdk.TaskSpec{
		Name: "export", Purpose: "a test", Audiences: []string{"orders"}, Scopes: []string{"orders:read", "orders:write"},
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.task.Close() })
	svid, err := client.SVID()
	if err != nil {
		t.Fatal(err)
	}
	p.conn = p.dial(t, tls.Certificate{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey})
	return p
}

// dial connects as whoever has the certificate.
func (p *place) dial(t *testing.T, own ...tls.Certificate) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+p.addr, grpc.WithTransportCredentials(credentials.NewTLS(
		&tls.Config{InsecureSkipVerify: true, Certificates: own})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// with puts a token of the task into the metadata.
func (p *place) with(t *testing.T, scopes ...string) context.Context {
	t.Helper()
	token, err := p.task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	return metadata.AppendToOutgoingContext(t.Context(), "authorization", token.Header())
}

// want checks a status with its details.
func want(t *testing.T, what string, err error, code codes.Code, reason string) {
	t.Helper()
	s := status.Convert(err)
	got := ""
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Domain == verifygrpc.Domain {
			got = info.Reason
		}
	}
	if s.Code() != code || got != reason {
		t.Errorf("%s: %v, reason %q; want %v, %q", what, err, got, code, reason)
	}
}

var rules = verifygrpc.Rules{
	"/shop.Orders/*":    {verify.Scope("orders:write")},
	"/shop.Orders/List": {verify.Scope("orders:read")},
}

func TestUnary(t *testing.T) {
	p := serve(t, rules, &orders{})
	c := shop.Client{Conn: p.conn}
	if got, err := c.List(p.with(t, "orders:read"), ""); err != nil || got != "two anvils for spiffe://test/export" {
		t.Errorf("%q, %v", got, err)
	}
	_, err := c.List(t.Context(), "")
	want(t, "without a token", err, codes.Unauthenticated, "NO_TOKEN")
	_, err = c.List(p.with(t, "orders:write"), "")
	want(t, "another scope", err, codes.PermissionDenied, "INSUFFICIENT_SCOPE")
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Metadata["www-authenticate"] != `Bearer realm="orders", error="insufficient_scope", error_description="insufficient scope", scope="orders:read"` {
			t.Errorf("the challenge is %q", info.Metadata)
		}
	}
	good := p.with(t, "orders:read")
	_, err = c.List(metadata.AppendToOutgoingContext(good, "authorization", "Bearer x"), "")
	want(t, "two tokens", err, codes.Unauthenticated, "MALFORMED")
	_, err = shop.Client{Conn: p.dial(t)}.List(good, "")
	if code := status.Code(err); code != codes.Unavailable { // the handshake fails
		t.Errorf("without a certificate: %v", err)
	}
	thief := p.ServerTLS("thief").Certificates[0]
	_, err = shop.Client{Conn: p.dial(t, thief)}.List(good, "")
	want(t, "stolen", err, codes.Unauthenticated, "UNBOUND")
	p.PauseFeed()
	p.Advance(11 * time.Second)
	_, err = c.List(good, "")
	want(t, "stale", err, codes.Unavailable, "VERIFIER_STALE")
}

// TestRules: what has no rule is refused, with the best of tokens.
func TestRules(t *testing.T) {
	p := serve(t, verifygrpc.Rules{shop.List: {verifygrpc.Public()}}, &orders{})
	c := shop.Client{Conn: p.conn}
	if got, err := c.List(t.Context(), ""); err != nil || got != "open to everybody" {
		t.Errorf("a public method: %q, %v", got, err)
	}
	stream, err := c.Watch(p.with(t, "orders:read"))
	if err == nil {
		_, err = stream.Recv()
	}
	want(t, "a method without a rule", err, codes.PermissionDenied, "NO_RULE")

	for _, bad := range []verifygrpc.Rules{
		{"": nil}, {"List": nil}, {"/": nil}, {"/shop.Orders": nil}, {"/shop.Orders/": nil}, {"shop.Orders/List": nil}, {"/a/b/c": nil}, {"//List": nil},
		{shop.List: {nil}}, {shop.List: {verifygrpc.Public(), verify.Scope("x")}},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("the rules %v are taken", bad)
				}
			}()
			verifygrpc.Unary(p.v, bad)
		}()
	}
}

// TestPublicElsewhere: only Rules know Public; for a verifier it lets nobody through.
func TestPublicElsewhere(t *testing.T) {
	b := brokertest.New(t)
	v := b.Verifier("orders", func(c *verify.Config) { c.Binding = verify.Unbound })
	_, err := v.Verify(t.Context(), b.Token(verify.Grant{Audience: "orders", Scopes: []string{"orders:read"}}), nil, verifygrpc.Public())
	if !errors.Is(err, verify.ErrForbidden) {
		t.Errorf("it lets through: %v", err)
	}
}

// TestP1_StreamEnds: a running stream ends when its grant does, although its client says nothing.
func TestP1_StreamEnds(t *testing.T) {
	for name, c := range map[string]struct {
		end    func(p *place, grant string)
		reason string
		cause  error
	}{
		"revoked": {func(p *place, grant string) { p.Revoke(grant) }, "REVOKED", verify.ErrRevoked},
		"task":    {func(p *place, _ string) { _ = p.task.Close() }, "REVOKED", verify.ErrRevoked},
		"expired": {func(p *place, _ string) { p.Advance(2 * time.Minute) }, "EXPIRED", verify.ErrExpired},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := &orders{watching: make(chan string, 1), ended: make(chan error, 1)}
			p := serve(t, rules, o)
			stream, err := shop.Client{Conn: p.conn}.Watch(p.with(t, "orders:write"))
			if err != nil {
				t.Fatal(err)
			}
			grant := <-o.watching
			if err := stream.Send(wrapperspb.String("hello")); err != nil {
				t.Fatal(err)
			}
			if out, err := stream.Recv(); err != nil || out.GetValue() != "hello" {
				t.Fatal(out, err)
			}
			c.end(p, grant)
			_, err = stream.Recv()
			want(t, "the stream", err, codes.Unauthenticated, c.reason)
			if cause := <-o.ended; cause != c.cause {
				t.Errorf("its context ended with %v", cause)
			}
		})
	}
}

// TestP1_SendEnds: a handler that looks at no context waits no longer for a client that reads nothing, and
// what it sends later is not sent.
func TestP1_SendEnds(t *testing.T) {
	sent := make(chan error, 1)
	var messages atomic.Int64
	o := &orders{watching: make(chan string, 1)}
	o.sending = func(stream grpc.BidiStreamingServer[shop.Text, shop.Text]) error {
		for some := wrapperspb.String(strings.Repeat("x", 8<<10)); ; {
			if err := stream.Send(some); err != nil {
				sent <- err
				return nil
			}
			messages.Add(1)
		}
	}
	p := serve(t, rules, o)
	stream, err := shop.Client{Conn: p.conn}.Watch(p.with(t, "orders:write"))
	if err != nil {
		t.Fatal(err)
	}
	grant := <-o.watching
	for before := int64(0); before == 0 || before != messages.Load(); time.Sleep(300 * time.Millisecond) {
		before = messages.Load()
	}
	p.Revoke(grant)
	select {
	case err := <-sent:
		want(t, "the send", err, codes.Unauthenticated, "REVOKED")
	case <-time.After(time.Minute):
		t.Fatal("it still waits for its client")
	}
	for err == nil {
		_, err = stream.Recv()
	}
	want(t, "the stream", err, codes.Unauthenticated, "REVOKED")
}

// TestP1_NothingIsSentAfterwards, although the handler tries, and the client waits for it.
func TestP1_NothingIsSentAfterwards(t *testing.T) {
	o := &orders{watching: make(chan string, 1)}
	o.sending = func(stream grpc.BidiStreamingServer[shop.Text, shop.Text]) error {
		<-stream.Context().Done()
		for range 100 {
			want(t, "a send", stream.Send(wrapperspb.String("too late")), codes.Unauthenticated, "REVOKED")
		}
		time.Sleep(100 * time.Millisecond) // what went out would arrive
		return nil
	}
	p := serve(t, rules, o)
	stream, err := shop.Client{Conn: p.conn}.Watch(p.with(t, "orders:write"))
	if err != nil {
		t.Fatal(err)
	}
	p.Revoke(<-o.watching)
	got, err := stream.Recv()
	want(t, fmt.Sprintf("a stream that has brought %v", got), err, codes.Unauthenticated, "REVOKED")
}

// TestUnaryEnds: so does a call.
func TestUnaryEnds(t *testing.T) {
	o := &orders{listing: make(chan string)}
	p := serve(t, rules, o)
	ctx := p.with(t, "orders:read")
	done := make(chan error, 1)
	go func() {
		_, err := shop.Client{Conn: p.conn}.List(ctx, "")
		done <- err
	}()
	p.Revoke(<-o.listing)
	want(t, "the call", <-done, codes.Unauthenticated, "REVOKED")
}

// TestKeepInFlight lets a stream outlive its grant.
func TestKeepInFlight(t *testing.T) {
	o := &orders{watching: make(chan string, 1)}
	p := serve(t, verifygrpc.Rules{shop.Watch: {verify.KeepInFlight()}}, o)
	stream, err := shop.Client{Conn: p.conn}.Watch(p.with(t, "orders:read"))
	if err != nil {
		t.Fatal(err)
	}
	p.Revoke(<-o.watching)
	if err := stream.Send(wrapperspb.String("hello")); err != nil {
		t.Fatal(err)
	}
	if out, err := stream.Recv(); err != nil || out.GetValue() != "hello" {
		t.Error(out, err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// TestBusy: one more than MaxRunning is asked to come back.
func TestBusy(t *testing.T) {
	o := &orders{watching: make(chan string, 1)}
	p := serve(t, rules, o, func(c *verify.Config) { c.MaxRunning = 1 })
	stream, err := shop.Client{Conn: p.conn}.Watch(p.with(t, "orders:write"))
	if err != nil {
		t.Fatal(err)
	}
	<-o.watching
	_, err = shop.Client{Conn: p.conn}.List(p.with(t, "orders:read"), "")
	want(t, "one more", err, codes.Unavailable, "VERIFIER_BUSY")
	_ = stream.CloseSend()
	_, _ = stream.Recv()
}

func ExampleRules() {
	b, stop := brokertest.Start() // in a service, v is from verify.New
	defer stop()
	v := b.Verifier("orders")

	rules := verifygrpc.Rules{
		"/shop.Orders/List":        {verify.Scope("orders:read")},
		"/grpc.health.v1.Health/*": {verifygrpc.Public()},
	}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(b.ServerTLS("orders"))), // asks for the caller's certificate
		grpc.UnaryInterceptor(verifygrpc.Unary(v, rules)),
		grpc.StreamInterceptor(verifygrpc.Stream(v, rules)),
	)
	defer server.Stop()
	shop.Register(server, &orders{})
	fmt.Println(len(server.GetServiceInfo()), "service")
	// Output: 1 service
}
