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
// New finds the broker in ERRAND_BROKER_URL and ERRAND_BROKER_ID, and who the workload is by
// SPIFFE_ENDPOINT_SOCKET or ERRAND_IDENTITY_DIR; options say it otherwise. Start with New and Do; use Begin
// where the work is not one function call, Transport to put a token on the requests of a client that you
// have, and Token where the request is not HTTP. WithDefaults says once what all tasks of a program have in
// common. README.md in this folder is the first hour: services, a script and a unit test, each step with
// what it prints.
//
// A task that names one audience and one scope gets its token together with its begin, and others
// those of TaskSpec.Tokens; so the common task is two requests to the broker, one to begin and one to
// end.
//
// A part of a task that needs less, or ends earlier, is a task below it (Child, DoChild): it can have no
// more than its parent, and the end of the parent takes everything below along, in one request.
//
// Work may go on elsewhere. Another workload gets a task below this one, and tokens that name both, by a
// handle that is of use to nobody else (Delegate, Join). Another process of the same workload takes over
// the task itself (Adopt); what the one before does with it then ends nothing.
//
// What it promises: a task that Do began has ended at the broker when Do returns, or the error says
// that this is not confirmed and by when its tokens are dead all the same. When the broker can't be reached
// for two thirds of the lease, the task's Context ends and no more tokens are handed out, also not those in
// memory; nothing here goes by the wall clock alone. A token is presented with the certificate that it is
// bound to, only to hosts that the broker names, and formats as its grant's ID. A new SVID ends no task
// and no request: tokens are asked for anew while the old certificate is still in use; sdkgrpc says what it
// does to a connection of gRPC. What is not confirmed at the broker, such as an end, is repeated until
// Close; a task that was dropped without an end is reported, and lapses.
//
// When somebody else ends a task, its Context ends: at once if the client listens for it, which it does for
// the oldest 256 tasks that have lived for a second, or for about five when it listens for others already.
// Otherwise the next heartbeat brings the news, which needs no code, within about a third of the lease. So
// it does where the listening fails, and for an end of a task without live tokens that another replica of
// the broker has made.
//
// Until Close the client keeps three goroutines, and one more while it listens, whatever the number of
// tasks, besides those of its identity source.
package sdk
