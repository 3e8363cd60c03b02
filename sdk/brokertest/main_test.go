package brokertest_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/verify"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var export = sdk.TaskSpec{Name: "export", Purpose: "a test", Audiences: []string{"orders"}, Scopes: []string{"orders:read"}}

var ordersRead = sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}}

// orders is a resource server's handler.
func orders(v *verify.Verifier) http.Handler {
	return v.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g, _ := verify.FromContext(r.Context())
		fmt.Fprint(w, "two anvils for ", g.Workload)
	}))
}

func begin(t *testing.T, c *sdk.Client) *sdk.Task {
	t.Helper()
	task, err := c.Begin(t.Context(), export)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func complete(t *testing.T, task *sdk.Task) {
	t.Helper()
	if _, err := task.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// get returns the status of an answer.
func get(t *testing.T, c *http.Client, url string) int {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// status asks with one token, and nothing that would get another.
func status(t *testing.T, url string, token *sdk.Token) int {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", token.Header())
	resp, err := http.DefaultTransport.(*http.Transport).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	defer resp.Body.Close()
	return resp.StatusCode
}

func token(t *testing.T, task *sdk.Task) *sdk.Token {
	t.Helper()
	token, err := task.Token(t.Context(), ordersRead)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// observed is a test that is watched by another: it runs to its end, and what failed it is kept.
type observed struct {
	cleanups []func()
	failures []string
}

type fatal struct{}

func observe(f func(tb *observed)) (failures string) {
	tb := &observed{}
	func() {
		defer func() {
			if p := recover(); p != nil && p != any(fatal{}) {
				panic(p)
			}
		}()
		f(tb)
	}()
	for i := len(tb.cleanups) - 1; i >= 0; i-- {
		tb.cleanups[i]()
	}
	return strings.Join(tb.failures, "\n")
}

func (o *observed) Helper()          {}
func (o *observed) Cleanup(f func()) { o.cleanups = append(o.cleanups, f) }
func (o *observed) Errorf(format string, args ...any) {
	o.failures = append(o.failures, fmt.Sprintf(format, args...))
}

func (o *observed) Fatalf(format string, args ...any) {
	o.Errorf(format, args...)
	panic(fatal{})
}

var _ brokertest.TB = (testing.TB)(nil)
