// Package sdk is the workload's client of the credential broker: it obtains short-lived tokens for
// one task at a time.
//
//	client, err := sdk.New(ctx)
//	defer client.Close(context.WithoutCancel(ctx))
//
//	err = client.Do(ctx, sdk.TaskSpec{
//		Name:      "nightly-invoice-export",
//		Purpose:   "FIN-212 monthly close",
//		Audiences: []string{"orders"},
//		Scopes:    []string{"orders:read"},
//	}, func(ctx context.Context, task *sdk.Task) error {
//		resp, err := task.HTTPClient("orders", "orders:read").Get("https://orders.internal/orders")
//		...
//	})
//	// Here every token of the task is dead, even if the function panicked.
//
// Start with New and Do; use Begin where the work is not one function call, and Token where the
// request is not sent by HTTPClient.
//
// What it promises: a task that Do began has ended at the broker when Do returns, or the error says
// that this is not confirmed and by when its tokens are dead all the same. Heartbeats need no code.
// When the broker can't be reached for two thirds of the lease, the task's Context ends and no more
// tokens are handed out, also not those in memory; nothing here goes by the wall clock alone. A token
// is presented with the certificate that it is bound to, only to hosts that the broker names, and
// formats as its grant's ID.
//
// Until Close the client keeps two goroutines, whatever the number of tasks, besides those of its
// identity source.
package sdk
