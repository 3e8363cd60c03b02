package sdk_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/sdk"
)

// Another workload does a part of the task, and has tokens for it that die with the task.
func ExampleTask_Delegate() {
	b := startReal()
	defer b.close()
	index := b.Client("index") // the client of the other workload, in a process of its own

	ctx := context.Background()
	var part *sdk.Task
	err := b.client.Do(ctx, sdk.TaskSpec{Name: "monthly-export", Purpose: "FIN-212"}, func(ctx context.Context, task *sdk.Task) error {
		handle, err := task.Delegate(ctx, sdk.Delegation{
			To:     spiffeid.RequireFromString("spiffe://prod/index"),
			Scopes: []string{"orders:read"},
		})
		if err != nil {
			return err
		}
		// The handle travels in a message, a header or the argument of a job. Nobody else can use it.
		if part, err = index.Join(ctx, handle, sdk.TaskSpec{Name: "index", Purpose: "for the export"}); err != nil {
			return err
		}
		token, err := part.Token(ctx, sdk.TokenRequest{Audience: "orders"})
		if err != nil {
			return err
		}
		fmt.Println(part.Parent() == task.ID(), token.Scopes)
		_, err = index.Join(ctx, handle, sdk.TaskSpec{Name: "index", Purpose: "once more"})
		fmt.Println(errors.Is(err, sdk.ErrHandleUsed))
		return nil
	})
	_, ended := part.Token(ctx, sdk.TokenRequest{Audience: "orders", Fresh: true})
	fmt.Println(err, errors.Is(ended, sdk.ErrTaskEnded))
	// Output:
	// true [orders:read]
	// true
	// <nil> true
}

// A supervisor takes over the task of a worker that hangs, and ends it. Should the worker wake up, it is told, and
// cannot do anything about it.
func ExampleClient_Adopt() {
	b := startReal()
	defer b.close()
	worker, supervisor := b.client, b.Client("report") // two processes of one workload

	ctx := context.Background()
	hung, err := worker.Begin(ctx, sdk.TaskSpec{Name: "monthly-export", Purpose: "FIN-212"})
	if err != nil {
		fmt.Println(err)
		return
	}
	task, err := supervisor.Adopt(ctx, hung.ID()) // the worker has told its ID when it began
	if err != nil {
		fmt.Println(err)
		return
	}
	defer task.Close()

	_, err = hung.Complete(ctx)
	fmt.Println(errors.Is(err, sdk.ErrAdopted), hung.State(), task.State())
	receipt, err := task.Cancel(ctx, "the worker hangs")
	fmt.Println(receipt.State, receipt.Reason, err)
	// Output:
	// true adopted active
	// canceled the worker hangs <nil>
}
