// Command client is a workload that calls sdk/examples/grpc/server inside a task. With errand dev
// running, and what errand dev env report prints in the environment, run it.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"google.golang.org/grpc"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/examples/grpc/shop"
	"github.com/errandhq/errand/sdk/sdkgrpc"
)

func main() {
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
	return export(ctx, client, "127.0.0.1:8082", out)
}

// export makes one connection, over which the tokens of any number of tasks can go.
func export(ctx context.Context, client *sdk.Client, orders string, out io.Writer) error {
	conn, err := grpc.NewClient(orders,
		grpc.WithTransportCredentials(sdkgrpc.TransportCredentials(client)),
		grpc.WithPerRPCCredentials(sdkgrpc.FromContext(sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})))
	if err != nil {
		return err
	}
	defer conn.Close()
	c := shop.Client{Conn: conn}

	var after context.Context
	err = client.Do(ctx, sdk.TaskSpec{
		Name:      "monthly-export",
		Purpose:   "try errand",
		Audiences: []string{"orders"},
		Scopes:    []string{"orders:read"},
	}, func(ctx context.Context, task *sdk.Task) error {
		after = sdk.NewContext(context.WithoutCancel(ctx), task)
		list, err := c.List(ctx, "")
		fmt.Fprintln(out, "inside the task: ", list)
		return err
	})
	if err != nil {
		return err
	}
	_, err = c.List(after, "")
	fmt.Fprintln(out, "after the task:  ", err)
	return nil
}
