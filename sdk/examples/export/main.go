// Command export is a workload that reads orders inside a task: the program of the README. With
// errand dev running, and what errand dev env report prints in the environment, run it.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"

	"github.com/errandhq/errand/sdk"
)

func main() {
	if os.Getenv("ERRAND_DEV_ORDERS") == "" {
		log.Fatal(`ERRAND_DEV_ORDERS is not set: start errand dev, and run  eval "$(./errand dev env report)"`)
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
	return export(ctx, client, os.Getenv("ERRAND_DEV_ORDERS"), out)
}

// export is the work. It is given its client, so that a test can give it another one.
func export(ctx context.Context, client *sdk.Client, orders string, out io.Writer) error {
	var task *sdk.Task
	var kept *sdk.Token
	err := client.Do(ctx, sdk.TaskSpec{
		Name:      "monthly-export",
		Purpose:   "try errand",
		Audiences: []string{"orders"},
		Scopes:    []string{"orders:read"},
	}, func(ctx context.Context, t *sdk.Task) error {
		task = t
		resp, err := t.HTTPClient("orders", "orders:read").Get(orders)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		fmt.Fprintln(out, "inside the task: ", resp.Status)
		if kept, err = t.Token(ctx, sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}}); err != nil {
			return err
		}
		_, err = io.Copy(out, resp.Body)
		return err
	})
	if err != nil {
		return err
	}
	_, err = task.Token(ctx, sdk.TokenRequest{Audience: "orders"})
	fmt.Fprintln(out, "after the task:  ", err)
	answer, err := replay(ctx, client, kept, orders)
	fmt.Fprintln(out, "the same token:  ", answer)
	return err
}
