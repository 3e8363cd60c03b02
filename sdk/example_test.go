package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/errandhq/errand/sdk"
)

// A token lives exactly as long as the function that it was got in.
func ExampleClient_Do() {
	b := startReal() // in a service: sdk.New(ctx)
	defer b.close()
	client, ordersURL := b.client, b.orders

	var kept *sdk.Task
	err := client.Do(context.Background(), sdk.TaskSpec{
		Name:      "monthly-export",
		Purpose:   "FIN-212: monthly close",
		Audiences: []string{"orders"},
		Scopes:    []string{"orders:read"},
	}, func(ctx context.Context, task *sdk.Task) error {
		kept = task
		resp, err := task.HTTPClient("orders", "orders:read").Get(ordersURL)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		fmt.Println(resp.StatusCode, string(body))
		return err
	})
	fmt.Println(err, kept.State())
	_, err = kept.Token(context.Background(), sdk.TokenRequest{Audience: "orders"})
	fmt.Println(errors.Is(err, sdk.ErrTaskEnded))
	// Output:
	// 200 two anvils
	// <nil> completed
	// true
}

// Begin is for work that is not one function call. Close cancels what has not been completed.
func ExampleClient_Begin() {
	b := startReal()
	defer b.close()

	ctx := context.Background()
	task, err := b.client.Begin(ctx, sdk.TaskSpec{Name: "import", Purpose: "FIN-213"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer task.Close()
	token, err := task.Token(ctx, sdk.TokenRequest{Audience: "orders"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(token.Scopes, token.Bound, len(token.Secret()) > 0)
	receipt, err := task.Complete(ctx)
	fmt.Println(receipt.State, receipt.Grants, err)
	// Output:
	// [orders:read] true true
	// completed 1 <nil>
}

// Run is Do for a function with a result.
func ExampleRun() {
	b := startReal()
	defer b.close()

	scopes, err := sdk.Run(context.Background(), b.client, sdk.TaskSpec{Name: "count", Purpose: "FIN-214"},
		func(ctx context.Context, task *sdk.Task) (int, error) {
			token, err := task.Token(ctx, sdk.TokenRequest{Audience: "orders"})
			if err != nil {
				return 0, err
			}
			return len(token.Scopes), nil
		})
	fmt.Println(scopes, err)
	// Output: 1 <nil>
}

// A refusal names the rule, and what would have been granted.
func ExampleError() {
	b := startReal()
	defer b.close()

	_, err := b.client.Begin(context.Background(), sdk.TaskSpec{
		Name: "cleanup", Purpose: "FIN-215", Audiences: []string{"orders"}, Scopes: []string{"orders:read", "orders:write"},
	})
	var refusal *sdk.Error
	if errors.Is(err, sdk.ErrDenied) && errors.As(err, &refusal) {
		fmt.Println(refusal.Status, refusal.Rule, refusal.Instead)
	}
	// Output: 403 ceiling/scope [orders:read]
}
