// Command server is a gRPC server that takes the broker's tokens. With errand dev running, and what
// errand dev env orders prints in the environment, run it; it serves on 127.0.0.1:8082, for
// sdk/examples/grpc/client.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/errandhq/errand/sdk/examples/grpc/shop"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifygrpc"
	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
)

var listen = flag.String("listen", "127.0.0.1:8082", "the address to serve on; errand dev lets tokens be sent to the default")

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) error {
	for _, name := range []string{"SPIFFE_ENDPOINT_SOCKET", "ERRAND_BROKER_ID", "ERRAND_ISSUER"} {
		if os.Getenv(name) == "" {
			return fmt.Errorf(`%s is not set: start errand dev, and run  eval "$(./errand dev env orders)"`, name)
		}
	}
	starting, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	source, err := workloadapi.NewX509Source(starting)
	if err != nil {
		return err
	}
	defer source.Close()
	broker, err := verifyspiffe.TLS(source, os.Getenv("ERRAND_BROKER_ID"))
	if err != nil {
		return err
	}
	v, err := verify.New(starting, verify.Config{Issuer: os.Getenv("ERRAND_ISSUER"), Audience: "orders", TLS: broker})
	if err != nil {
		return err
	}
	defer v.Close()
	l, err := net.Listen("tcp", *listen)
	if err != nil {
		return fmt.Errorf("%w; choose another address with -listen", err)
	}
	config := tlsconfig.MTLSServerConfig(source, source, tlsconfig.AuthorizeAny())
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true
	server := newServer(v, config)
	defer context.AfterFunc(ctx, server.Stop)()
	log.Printf("orders is at %s", l.Addr())
	return server.Serve(l)
}

func newServer(v *verify.Verifier, config *tls.Config) *grpc.Server {
	rules := verifygrpc.Rules{
		shop.List:  {verify.Scope("orders:read")},
		shop.Watch: {verify.Scope("orders:read")},
	}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(config)), // asks for the caller's certificate, which the token is bound to
		grpc.UnaryInterceptor(verifygrpc.Unary(v, rules)),
		grpc.StreamInterceptor(verifygrpc.Stream(v, rules)),
	)
	shop.Register(server, orders{})
	return server
}

type orders struct{}

func (orders) List(ctx context.Context, _ *shop.Text) (*shop.Text, error) {
	grant, _ := verify.FromContext(ctx)
	return wrapperspb.String(fmt.Sprintf("two anvils, for %s in task %s", grant.Workload, grant.Task.Name)), nil
}

// Watch sends the orders again whenever the client asks, until the client leaves or its task ends.
func (o orders) Watch(stream grpc.BidiStreamingServer[shop.Text, shop.Text]) error {
	for {
		in, err := stream.Recv()
		if err != nil {
			return err
		}
		out, err := o.List(stream.Context(), in)
		if err != nil {
			return err
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}
