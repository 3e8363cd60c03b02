package sdkgrpc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/examples/grpc/shop"
	"github.com/errandhq/errand/sdk/sdkgrpc"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifygrpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	export     = sdk.TaskSpec{Name: "export", Purpose: "a test", Audiences: []string{"orders"}, Scopes: []string{"orders:read"}}
	ordersRead = sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}}
)

// orders answers whom its rules let through.
type orders struct{}

func (orders) List(ctx context.Context, _ *shop.Text) (*shop.Text, error) {
	g, _ := verify.FromContext(ctx)
	return wrapperspb.String("two anvils for " + g.Workload), nil
}

func (orders) Watch(stream grpc.BidiStreamingServer[shop.Text, shop.Text]) error {
	_, err := stream.Recv()
	return err
}

// serve serves orders as the audience's server, or with the certificate of somebody else.
func serve(b *brokertest.Broker, as ...string) (addr string, stop func()) {
	v := b.Verifier("orders")
	rules := verifygrpc.Rules{"/shop.Orders/*": {verify.Scope("orders:read")}}
	config := b.ServerTLS(append(as, "orders")[0])
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)),
		grpc.UnaryInterceptor(verifygrpc.Unary(v, rules)), grpc.StreamInterceptor(verifygrpc.Stream(v, rules)))
	shop.Register(server, orders{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	return l.Addr().String(), func() { server.Stop(); <-done }
}

func dial(t *testing.T, addr string, with credentials.TransportCredentials, opts ...grpc.DialOption) shop.Client {
	t.Helper()
	conn, err := grpc.NewClient(addr, append(opts, grpc.WithTransportCredentials(with))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return shop.Client{Conn: conn}
}

func want(t *testing.T, what string, err error, code codes.Code, is error) {
	t.Helper()
	if status.Code(err) != code || !errors.Is(err, is) {
		t.Errorf("%s: %v; want %v and %v", what, err, code, is)
	}
}

// TestOneConnectionManyTasks with the task in the context.
func TestOneConnectionManyTasks(t *testing.T) {
	b := brokertest.New(t)
	addr, stop := serve(b)
	t.Cleanup(stop)
	b.Host("orders", addr)
	client := b.Client("export")
	c := dial(t, addr, sdkgrpc.TransportCredentials(client), grpc.WithPerRPCCredentials(sdkgrpc.FromContext(ordersRead)))
	for range 2 {
		err := client.Do(t.Context(), export, func(ctx context.Context, _ *sdk.Task) error {
			got, err := c.List(ctx, "")
			if got != "two anvils for spiffe://test/export" {
				t.Errorf("got %q", got)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if g := b.Grants(); len(g) != 2 || g[0].Task.ID == g[1].Task.ID {
		t.Errorf("grants: %v", g)
	}
	_, err := c.List(t.Context(), "")
	want(t, "without a task", err, codes.Unauthenticated, sdk.ErrTaskEnded)
}

// TestRefusals are final, or not, by their codes.
func TestRefusals(t *testing.T) {
	b := brokertest.New(t)
	addr, stop := serve(b)
	t.Cleanup(stop)
	b.Host("orders", addr)
	client := b.Client("export")
	task, err := client.Begin(t.Context(), export)
	if err != nil {
		t.Fatal(err)
	}
	c := dial(t, addr, sdkgrpc.TransportCredentials(client, spiffeid.RequireFromString("spiffe://test/orders")))
	with := func(req sdk.TokenRequest) grpc.CallOption { return grpc.PerRPCCredentials(sdkgrpc.PerRPC(task, req)) }
	if _, err := c.List(t.Context(), "", with(ordersRead)); err != nil {
		t.Fatal(err)
	}
	_, err = c.List(t.Context(), "", with(sdk.TokenRequest{Audience: "payroll"}))
	want(t, "another audience", err, codes.PermissionDenied, sdk.ErrScopeExceeded)
	b.DenyNext("not today")
	fresh := ordersRead
	fresh.Fresh = true
	_, err = c.List(t.Context(), "", with(fresh))
	want(t, "a denial", err, codes.PermissionDenied, sdk.ErrDenied)
	_, err = c.List(t.Context(), "", with(sdk.TokenRequest{}))
	want(t, "nonsense", err, codes.Internal, sdk.ErrInvalid)

	restore := b.Outage()
	_, err = c.List(t.Context(), "", with(fresh))
	want(t, "an outage", err, codes.Unavailable, sdk.ErrUnavailable)
	restore()

	if _, err := task.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = c.List(t.Context(), "", with(ordersRead))
	want(t, "after the task", err, codes.Unauthenticated, sdk.ErrTaskEnded)
}

// TestNowhereElse: a token goes to no host and no server but those of its audience, and over no
// connection that it is not good on.
func TestNowhereElse(t *testing.T) {
	b := brokertest.New(t)
	named, stop := serve(b)
	t.Cleanup(stop)
	unnamed, stop := serve(b)
	t.Cleanup(stop)
	posing, stop := serve(b, "mallory")
	t.Cleanup(stop)
	b.Host("orders", named)
	b.Host("orders", posing)
	client := b.Client("export")
	task, err := client.Begin(t.Context(), export)
	if err != nil {
		t.Fatal(err)
	}
	defer task.Close()
	own, per := sdkgrpc.TransportCredentials(client), grpc.WithPerRPCCredentials(sdkgrpc.PerRPC(task, ordersRead))
	_, err = dial(t, unnamed, own, per).List(t.Context(), "")
	want(t, "a host that nobody has named", err, codes.PermissionDenied, sdk.ErrHost)
	_, err = dial(t, posing, own, per).List(t.Context(), "")
	want(t, "another workload on a named host", err, codes.PermissionDenied, sdk.ErrHost)
	_, err = dial(t, named, own, per, grpc.WithAuthority("orders.internal")).List(t.Context(), "")
	want(t, "another authority", err, codes.PermissionDenied, sdk.ErrHost)

	svid, err := client.SVID()
	if err != nil {
		t.Fatal(err)
	}
	plain := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{svid.Certificates[0].Raw}, PrivateKey: svid.PrivateKey}}}
	_, err = dial(t, named, credentials.NewTLS(plain), per).List(t.Context(), "")
	want(t, "a connection of others", err, codes.Unauthenticated, sdk.ErrUnbound)

	only := sdkgrpc.TransportCredentials(client, spiffeid.RequireFromString("spiffe://test/orders"))
	if _, err := dial(t, posing, only, per).List(t.Context(), ""); status.Code(err) != codes.Unavailable {
		t.Errorf("a server that is not the one: %v", err)
	}
	if _, err := grpc.NewClient(named, grpc.WithTransportCredentials(insecure.NewCredentials()), per); err == nil {
		t.Error("a connection without TLS is taken")
	}
}

// identity is a source whose SVID is replaced.
type identity struct {
	x509bundle.Source
	mu   sync.Mutex
	svid *x509svid.SVID
}

func (i *identity) GetX509SVID() (*x509svid.SVID, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.svid, nil
}

func (i *identity) replace(svid *x509svid.SVID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.svid = svid
}

// fetch gets one SVID with its bundles from the Workload API.
func fetch(t *testing.T, addr string) (*x509svid.SVID, x509bundle.Source) {
	t.Helper()
	svids, bundles, release, err := sdk.FromWorkloadAPI(addr, "").Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	svid, err := svids.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	return svid, bundle
}

// TestSVIDIsReplaced: a connection that presents the old one is made anew, and no bound token goes
// over it.
func TestSVIDIsReplaced(t *testing.T) {
	r := rotating(t)
	b, addr, client, task := r.Broker, r.addr, r.client, r.task
	c := dial(t, addr, sdkgrpc.TransportCredentials(client), grpc.WithPerRPCCredentials(sdkgrpc.PerRPC(task, ordersRead)))
	if _, err := c.List(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	r.replace()
	if _, err := c.List(t.Context(), ""); err != nil && status.Code(err) != codes.Unavailable {
		t.Fatal(err) // the token from before may still be good, with the connection from before
	}
	b.Advance(time.Minute)
	_, err := c.List(t.Context(), "")
	want(t, "the first call", err, codes.Unavailable, sdk.ErrUnbound)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if _, err = c.List(ctx, "", grpc.WaitForReady(true)); status.Code(err) != codes.Unavailable {
			break
		}
	}
	if err != nil {
		t.Errorf("the calls after it: %v", err)
	}
}

// TestRetriesHideANewSVID: with the service config of the example, callers that go on all the time see
// nothing of the SVID's replacement, and one whose stream is on that connection sees Unavailable.
func TestRetriesHideANewSVID(t *testing.T) {
	r := rotating(t)
	addr, client, task := r.addr, r.client, r.task
	fresh := ordersRead
	fresh.Fresh = true // so that it is bound to the new one soon
	c := dial(t, addr, sdkgrpc.TransportCredentials(client), grpc.WithDefaultServiceConfig(shop.Retries),
		grpc.WithPerRPCCredentials(sdkgrpc.PerRPC(task, fresh)))
	stream, err := c.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := stream.Recv(); ended <- err }()
	var callers sync.WaitGroup
	over := make(chan struct{})
	for range 4 {
		callers.Go(func() {
			for {
				if _, err := c.List(t.Context(), ""); err != nil {
					t.Errorf("a call: %v", err)
				}
				select {
				case <-over:
					return
				case <-time.After(20 * time.Millisecond):
				}
			}
		})
	}
	r.replace()
	select {
	case err = <-ended:
		want(t, "the stream", err, codes.Unavailable, err)
	case <-time.After(20 * time.Second):
		t.Error("the connection of before is still in use")
	}
	for range 3 { // over the new connection
		if _, err := c.List(t.Context(), ""); err != nil {
			t.Errorf("a call afterwards: %v", err)
		}
	}
	close(over)
	callers.Wait()
}

// A connection for the life of the program, and a token for each task.
func ExampleFromContext() {
	b, stop := brokertest.Start() // in a service, client is from sdk.New
	defer stop()
	addr, stopServer := serve(b)
	defer stopServer()
	b.Host("orders", addr)
	client := b.Client("export")

	conn, err := grpc.NewClient(addr,
		grpc.WithTransportCredentials(sdkgrpc.TransportCredentials(client)),
		grpc.WithPerRPCCredentials(sdkgrpc.FromContext(sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	err = client.Do(context.Background(), export, func(ctx context.Context, _ *sdk.Task) error {
		list, err := shop.Client{Conn: conn}.List(ctx, "")
		fmt.Println(list)
		return err
	})
	fmt.Println(err)
	_, err = shop.Client{Conn: conn}.List(context.Background(), "")
	fmt.Println(status.Code(err))
	// Output:
	// two anvils for spiffe://test/export
	// <nil>
	// Unauthenticated
}

// rotation is a workload's task, at a broker with a gRPC server, whose SVID can be replaced.
type rotation struct {
	*brokertest.Broker
	addr    string
	client  *sdk.Client
	task    *sdk.Task
	replace func()
}

func rotating(t *testing.T) rotation {
	t.Helper()
	b := brokertest.New(t)
	addr, stop := serve(b)
	t.Cleanup(stop)
	b.Host("orders", addr)
	second, bundles := fetch(t, b.WorkloadAPI("export"))
	first, err := b.Client("export").SVID() // of the same workload, and another one
	if err != nil {
		t.Fatal(err)
	}
	who := &identity{Source: bundles, svid: first}
	client := b.Client("export", sdk.WithIdentity(sdk.FromSource(who, who)))
	task, err := client.Begin(t.Context(), export)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { task.Close() })
	return rotation{Broker: b, addr: addr, client: client, task: task, replace: func() { who.replace(second) }}
}
