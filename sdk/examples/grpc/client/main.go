// Command client is a workload that calls sdk/examples/grpc/server inside a task. With errand dev
// running, and what errand dev env report prints in the environment, run it.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/examples/grpc/shop"
	"github.com/errandhq/errand/sdk/sdkgrpc"
)

var orders = flag.String("orders", "127.0.0.1:8082", "the address of the server")

// patience bounds how long replay waits for a refusal. It comes within milliseconds.
const patience = 5 * time.Second

func main() {
	flag.Parse()
	if os.Getenv("SPIFFE_ENDPOINT_SOCKET") == "" && os.Getenv("ERRAND_IDENTITY_DIR") == "" {
		log.Fatal(`SPIFFE_ENDPOINT_SOCKET is not set: start errand dev, and run  eval "$(./errand dev env report)"`)
	}
	if err := run(context.Background(), os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, out io.Writer) error {
	client, err := sdk.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close(context.WithoutCancel(ctx))
	return export(ctx, client, *orders, out)
}

// export makes one connection, over which the tokens of any number of tasks can go.
func export(ctx context.Context, client *sdk.Client, orders string, out io.Writer) error {
	conn, err := grpc.NewClient(orders,
		grpc.WithDefaultServiceConfig(shop.Retries),
		grpc.WithTransportCredentials(sdkgrpc.TransportCredentials(client)),
		grpc.WithPerRPCCredentials(sdkgrpc.FromContext(sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})))
	if err != nil {
		return err
	}
	defer conn.Close()
	c := shop.Client{Conn: conn}

	var after context.Context
	var kept *sdk.Token
	err = client.Do(ctx, sdk.TaskSpec{
		Name:      "monthly-export",
		Purpose:   "try errand",
		Audiences: []string{"orders"},
		Scopes:    []string{"orders:read"},
	}, func(ctx context.Context, task *sdk.Task) error {
		after = sdk.NewContext(context.WithoutCancel(ctx), task)
		list, err := c.List(ctx, "")
		if err != nil {
			return err
		}
		fmt.Fprintln(out, "inside the task: ", list)
		kept, err = task.Token(ctx, sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})
		return err
	})
	if err != nil {
		return err
	}
	_, err = c.List(after, "")
	fmt.Fprintln(out, "after the task:  ", err)
	answer, err := replay(ctx, client, kept, orders)
	fmt.Fprintln(out, "the same token:  ", answer)
	return err
}

// replay sends a token of a task that is over, as somebody would who has kept it, until the server
// refuses it, and returns the answer. No service needs this: it is here to show that the token is dead
// where it counts, and not only in the SDK.
func replay(ctx context.Context, client *sdk.Client, token *sdk.Token, orders string) (answer, err error) {
	conn, err := grpc.NewClient(orders, grpc.WithTransportCredentials(sdkgrpc.TransportCredentials(client)))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", token.Header())
	for start := time.Now(); ; {
		if _, answer = (shop.Client{Conn: conn}).List(ctx, ""); answer != nil || time.Since(start) > patience {
			return answer, nil
		}
	}
}
