package main

import (
	"context"
	"net"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/examples/grpc/shop"
	"github.com/errandhq/errand/sdk/sdkgrpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A stream that runs when an operator ends its task, ends.
func TestWatchIsRevoked(t *testing.T) {
	b := brokertest.New(t)
	server := newServer(b.Verifier("orders"), b.ServerTLS("orders"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		server.Stop()
		<-served
	}()
	b.Host("orders", l.Addr().String())

	client := b.Client("report")
	conn, err := grpc.NewClient(l.Addr().String(),
		grpc.WithTransportCredentials(sdkgrpc.TransportCredentials(client)),
		grpc.WithPerRPCCredentials(sdkgrpc.FromContext(sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = client.Do(t.Context(), sdk.TaskSpec{
		Name: "export", Purpose: "a test", Audiences: []string{"orders"}, Scopes: []string{"orders:read"},
	}, func(ctx context.Context, task *sdk.Task) error {
		stream, err := shop.Client{Conn: conn}.Watch(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(wrapperspb.String("")); err != nil {
			return err
		}
		if got, err := stream.Recv(); got.GetValue() != "two anvils, for spiffe://test/report in task export" {
			t.Errorf("%q, %v", got.GetValue(), err)
		}
		b.Revoke(task.ID())
		_, err = stream.Recv()
		return err
	})
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("the stream ended with %v", err)
	}
}
