package sdkoauth2_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/oauth2"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/sdkoauth2"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	export     = sdk.TaskSpec{Name: "export", Purpose: "a test", Audiences: []string{"orders"}, Scopes: []string{"orders:read"}}
	ordersRead = sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}}
)

// orders answers whoever has a good token.
func orders(b *brokertest.Broker) *httptest.Server {
	return httptest.NewServer(b.Verifier("orders").Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "two anvils")
	})))
}

func get(t *testing.T, c *http.Client, url string) (int, error) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

// TestNoTokenAfterTheTask, although oauth2.NewClient caches: the source would be asked in vain, and
// what is cached must not be used.
func TestNoTokenAfterTheTask(t *testing.T) {
	b := brokertest.New(t)
	srv := orders(b)
	defer srv.Close()
	task, err := b.Client("export").Begin(t.Context(), export)
	if err != nil {
		t.Fatal(err)
	}
	making, cancel := context.WithCancel(t.Context())
	source := sdkoauth2.TokenSource(task, ordersRead)
	client := oauth2.NewClient(making, source)
	cancel() // what it was made with is no matter
	defer client.CloseIdleConnections()
	for range 2 {
		if code, err := get(t, client, srv.URL); code != http.StatusOK {
			t.Fatalf("in the task: %d, %v", code, err)
		}
	}
	if n := len(b.Grants()); n != 1 {
		t.Errorf("%d grants for two requests; the task's cache was not used", n)
	}
	b.Advance(2 * time.Minute)
	if code, err := get(t, client, srv.URL); code != http.StatusOK {
		t.Errorf("two minutes later: %d, %v", code, err)
	}
	if _, err := task.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := source.Token(); !errors.Is(err, sdk.ErrTaskEnded) {
		t.Errorf("the source after the task: %v", err)
	}
	if code, err := get(t, client, srv.URL); !errors.Is(err, sdk.ErrTaskEnded) {
		t.Errorf("a request after the task: %d, %v", code, err)
	}
}

func TestTokenSaysMore(t *testing.T) {
	b := brokertest.New(t)
	err := b.Client("export").Do(t.Context(), export, func(_ context.Context, task *sdk.Task) error {
		token, err := sdkoauth2.TokenSource(task, ordersRead).Token()
		if err != nil {
			return err
		}
		expires, _ := token.Extra("expires_at").(time.Time)
		if token.Valid() || token.Type() != "Bearer" || token.Extra("grant_id") != b.Grants()[0].ID || expires.Sub(b.Now()) < 50*time.Second {
			t.Errorf("valid %v, type %s, grant %v, expires %v", token.Valid(), token.Type(), token.Extra("grant_id"), expires)
		}
		_, err = sdkoauth2.TokenSource(task, sdk.TokenRequest{Audience: "payroll"}).Token()
		if !errors.Is(err, sdk.ErrScopeExceeded) {
			t.Errorf("a refusal: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// A library that wants a token source gets that of the task.
func ExampleTokenSource() {
	b, stop := brokertest.Start() // in a service, client is from sdk.New
	defer stop()
	client, srv := b.Client("export"), orders(b)
	defer srv.Close()

	err := client.Do(context.Background(), export, func(ctx context.Context, task *sdk.Task) error {
		library := oauth2.NewClient(ctx, sdkoauth2.TokenSource(task, ordersRead))
		defer library.CloseIdleConnections()
		resp, err := library.Get(srv.URL)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		fmt.Println(resp.Status)
		return nil
	})
	fmt.Println(err)
	// Output:
	// 200 OK
	// <nil>
}
