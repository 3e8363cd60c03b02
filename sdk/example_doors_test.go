package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/errandhq/errand/sdk"
)

// export is the task of the Examples.
var export = sdk.TaskSpec{Name: "monthly-export", Purpose: "FIN-212: monthly close", Audiences: []string{"orders"}, Scopes: []string{"orders:read"}}

// try begins a client, and does nothing with it.
func try(opts []sdk.Option) {
	client, err := sdk.New(context.Background(), opts...)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close(context.Background())
	fmt.Println(client.ID(), client.Healthy())
}

// In a service, the environment says where broker and identity are, and New needs no options.
func ExampleNew() {
	b := startReal()
	defer b.close()

	client, err := sdk.New(context.Background(), b.with(sdk.WithIdentity(sdk.FromWorkloadAPI(b.socket, "")))...)
	if err != nil {
		fmt.Println(err) // it names what was tried, what that has answered, and what to do
		return
	}
	defer client.Close(context.Background())
	fmt.Println(client.ID())
	// Output: spiffe://prod/report
}

// Where an agent has several SVIDs for the process, say which one this client is.
func ExampleFromWorkloadAPI() {
	b := startReal()
	defer b.close()

	try(b.with(sdk.WithIdentity(sdk.FromWorkloadAPI(b.socket, "spiffe://prod/report"))))
	// Output: spiffe://prod/report <nil>
}

// A Pod certificate of Kubernetes is a file with key and chain, beside one of authorities.
func ExampleFromDir() {
	b := startReal()
	defer b.close()
	dir := b.folder(func(cert, key, bundle []byte) map[string][]byte {
		return map[string][]byte{"credentialbundle.pem": slices.Concat(key, cert), "trustbundle.pem": bundle}
	})

	try(b.with(sdk.WithIdentity(sdk.FromDir(dir))))
	// Output: spiffe://prod/report <nil>
}

// Files of any name, which something else keeps up to date.
func ExampleFromFiles() {
	b := startReal()
	defer b.close()
	dir := b.folder(func(cert, key, bundle []byte) map[string][]byte {
		return map[string][]byte{"tls.crt": cert, "tls.key": key, "ca.crt": bundle}
	})

	try(b.with(sdk.WithIdentity(sdk.FromFiles(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt")))))
	// Output: spiffe://prod/report <nil>
}

// A program that has a source of go-spiffe already shares it.
func ExampleFromSource() {
	b := startReal()
	defer b.close()

	ctx := context.Background()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(b.socket)))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer source.Close()
	try(b.with(sdk.WithIdentity(sdk.FromSource(source, source))))
	// Output: spiffe://prod/report <nil>
}

// What all tasks of a program have in common is said once.
func ExampleWithDefaults() {
	b := startReal()
	defer b.close()

	ctx := context.Background()
	client, err := sdk.New(ctx, b.with(sdk.WithIdentity(sdk.FromWorkloadAPI(b.socket, "")), sdk.WithDefaults(export))...)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close(ctx)
	err = client.Do(ctx, sdk.TaskSpec{Name: "weekly-export"}, func(ctx context.Context, task *sdk.Task) error {
		token, err := task.Token(ctx, sdk.TokenRequest{Audience: "orders"})
		if err == nil {
			fmt.Println(token.Audience, token.Scopes)
		}
		return err
	})
	fmt.Println(err)
	// Output:
	// orders [orders:read]
	// <nil>
}

// A token prints as its grant. The secret is in Secret and Header alone, and SVID is what has to be
// presented with it.
func ExampleTask_Token() {
	b := startReal()
	defer b.close()

	err := b.client.Do(context.Background(), export, func(ctx context.Context, task *sdk.Task) error {
		token, err := task.Token(ctx, sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})
		if err != nil {
			return err
		}
		text := fmt.Sprintf("%+v", token)
		fmt.Println(strings.HasPrefix(text, "grant gnt_"), strings.Contains(text, token.Secret()))
		fmt.Println(token.SVID().ID, token.Bound)
		return nil
	})
	fmt.Println(err)
	// Output:
	// true false
	// spiffe://prod/report true
	// <nil>
}

// More than what the server grants to this token is an error of CheckScope, which says what to ask for.
func ExampleTask_HTTPClient() {
	b := startReal()
	defer b.close()

	err := b.client.Do(context.Background(), export, func(ctx context.Context, task *sdk.Task) error {
		resp, err := task.HTTPClient("orders", "orders:read").Post(b.orders, "text/plain", nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		return sdk.CheckScope(resp)
	})
	var more *sdk.InsufficientScope
	if errors.As(err, &more) {
		fmt.Println(more.Audience, more.Scopes, more.Had)
	}
	// Output: orders [orders:write] [orders:read]
}

// counted stands for what a library for traces or metrics puts around a transport.
type counted struct {
	http.RoundTripper
	requests int
}

func (c *counted) RoundTrip(r *http.Request) (*http.Response, error) {
	c.requests++
	return c.RoundTripper.RoundTrip(r)
}

// To add traces or metrics, wrap what Transport returns.
func ExampleTask_Transport() {
	b := startReal()
	defer b.close()

	err := b.client.Do(context.Background(), export, func(ctx context.Context, task *sdk.Task) error {
		traced := &counted{RoundTripper: task.Transport(nil, sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}})}
		resp, err := (&http.Client{Transport: traced}).Get(b.orders)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		fmt.Println(resp.StatusCode, traced.requests)
		return nil
	})
	fmt.Println(err)
	// Output:
	// 200 1
	// <nil>
}

// Functions below find the task in the context.
func ExampleFromContext() {
	b := startReal()
	defer b.close()

	below := func(ctx context.Context) {
		if task, ok := sdk.FromContext(ctx); ok {
			fmt.Println(task.State())
		}
	}
	_ = b.client.Do(context.Background(), export, func(ctx context.Context, _ *sdk.Task) error {
		below(ctx)
		return nil
	})
	// Output: active
}

// declined says of what kind it is. That is all the broker learns; the text may hold anything.
type declined struct{ card string }

func (d declined) Error() string { return "declined: " + d.card }
func (declined) Class() string   { return "payment/declined" }

// Fail tells the broker the kind of an error.
func ExampleTask_Fail() {
	b := startReal()
	defer b.close()

	ctx := context.Background()
	task, err := b.client.Begin(ctx, export)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer task.Close()
	receipt, err := task.Fail(ctx, declined{"4000 0000 0000 0002"})
	fmt.Println(receipt.State, receipt.Reason, err)
	// Output: failed payment/declined <nil>
}

// Hooks are for metrics and traces.
func ExampleWithHooks() {
	b := startReal()
	defer b.close()

	ctx := context.Background()
	client, err := sdk.New(ctx, b.with(sdk.WithIdentity(sdk.FromWorkloadAPI(b.socket, "")), sdk.WithHooks(sdk.Hooks{
		OnEnd: func(_ context.Context, _ string, s sdk.State, r sdk.Receipt, err error) {
			fmt.Println(s, r.Grants, err)
		},
	}))...)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close(ctx)
	_ = client.Do(ctx, export, func(context.Context, *sdk.Task) error { return nil })
	// Output: completed 1 <nil>
}

// A part of the work that needs less than the whole is a task of its own below it.
func ExampleTask_DoChild() {
	b := startReal()
	defer b.close()

	err := b.client.Do(context.Background(), sdk.TaskSpec{Name: "monthly-export", Purpose: "FIN-212"}, func(ctx context.Context, export *sdk.Task) error {
		return export.DoChild(ctx, sdk.TaskSpec{Name: "read", Audiences: []string{"orders"}, Scopes: []string{"orders:read"}}, func(ctx context.Context, read *sdk.Task) error {
			resp, err := read.HTTPClient("orders").Get(b.orders)
			if err == nil {
				fmt.Println(resp.Status, read.Root() == export.ID())
				err = resp.Body.Close()
			}
			return err
		})
	})
	fmt.Println(err)
	// Output:
	// 200 OK true
	// <nil>
}

// A child ends with its parent: its context says so, and its tokens are dead everywhere.
func ExampleTask_Child() {
	b := startReal()
	defer b.close()

	ctx := context.Background()
	parent, err := b.client.Begin(ctx, export)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer parent.Close()
	child, err := parent.Child(ctx, sdk.TaskSpec{Name: "one-page"}) // all that its parent has
	if err != nil {
		fmt.Println(err)
		return
	}
	defer child.Close()
	receipt, err := parent.Complete(ctx)
	fmt.Println(receipt.SubTasks, err)
	fmt.Println(child.State(), context.Cause(child.Context()))
	// Output:
	// 1 <nil>
	// canceled the task that it is part of has ended
}
