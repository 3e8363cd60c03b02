package verifyecho_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"go.uber.org/goleak"

	"github.com/errandhq/errand/sdk/brokertest"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/verify/verifyecho"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func list(c echo.Context) error {
	return c.String(http.StatusOK, "two anvils for "+verifyecho.Grant(c).Workload)
}

// TestSameAsVerify: what echo answers is what net/http would.
func TestSameAsVerify(t *testing.T) {
	b := brokertest.New(t)
	v := b.Verifier("orders")
	e := echo.New()
	e.GET("/orders", list, verifyecho.Require(v, "orders:read"))
	plain := v.Require("orders:read")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g, _ := verify.FromContext(r.Context())
		w.Header().Set("Content-Type", echo.MIMETextPlainCharsetUTF8)
		fmt.Fprint(w, "two anvils for "+g.Workload)
	}))
	for name, c := range map[string]struct {
		edit func(*http.Request)
		want int
	}{
		"good":        {func(r *http.Request) { b.Sign(r, verify.Grant{Audience: "orders", Scopes: []string{"orders:read"}}) }, 200},
		"nothing":     {func(*http.Request) {}, 401},
		"two headers": {func(r *http.Request) { r.Header["Authorization"] = []string{"Bearer x", "Bearer y"} }, 401},
		"a scope too few": {func(r *http.Request) {
			b.Sign(r, verify.Grant{Audience: "orders", Scopes: []string{"orders:write"}})
		}, 403},
	} {
		r := httptest.NewRequest(http.MethodGet, "/orders", nil)
		c.edit(r)
		got, want := httptest.NewRecorder(), httptest.NewRecorder()
		e.ServeHTTP(got, r)
		plain.ServeHTTP(want, r)
		if got.Code != c.want || got.Code != want.Code || got.Body.String() != want.Body.String() || fmt.Sprint(got.Header()) != fmt.Sprint(want.Header()) {
			t.Errorf("%s: echo %d %s %v\nnet/http %d %s %v", name, got.Code, got.Body, got.Header(), want.Code, want.Body, want.Header())
		}
	}
}

// TestHandlersError reaches echo.
func TestHandlersError(t *testing.T) {
	b := brokertest.New(t)
	e := echo.New()
	e.GET("/orders", func(echo.Context) error { return echo.NewHTTPError(http.StatusTeapot, "no anvils") }, verifyecho.Middleware(b.Verifier("orders")))
	r, w := httptest.NewRequest(http.MethodGet, "/orders", nil), httptest.NewRecorder()
	b.Sign(r, verify.Grant{Audience: "orders", Scopes: []string{"orders:read"}})
	e.ServeHTTP(w, r)
	if w.Code != http.StatusTeapot {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestEndsARunningRequest revokes the grant while the handler works for it.
func TestEndsARunningRequest(t *testing.T) {
	b := brokertest.New(t)
	e := echo.New()
	started, why := make(chan string), make(chan error, 1)
	e.GET("/orders", func(c echo.Context) error {
		started <- verifyecho.Grant(c).ID
		<-c.Request().Context().Done()
		why <- context.Cause(c.Request().Context())
		return nil
	}, verifyecho.Require(b.Verifier("orders"), "orders:read"))
	r := httptest.NewRequest(http.MethodGet, "/orders", nil)
	b.Sign(r, verify.Grant{Audience: "orders", Scopes: []string{"orders:read"}})
	done, w := make(chan struct{}), httptest.NewRecorder()
	go func() {
		defer close(done)
		e.ServeHTTP(w, r)
	}()
	b.Revoke(<-started)
	if err := <-why; !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("the context ended with %v", err)
	}
	if <-done; w.Code != http.StatusUnauthorized {
		t.Errorf("the client got %d %s", w.Code, w.Body)
	}
}

// zeroes are endless.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { return len(p), nil }

// TestP1_DownloadEnds: so does a handler that writes to a client that reads no more.
func TestP1_DownloadEnds(t *testing.T) {
	b := brokertest.New(t)
	e := echo.New()
	started, why := make(chan string, 1), make(chan error, 1)
	e.GET("/orders", func(c echo.Context) error {
		started <- verifyecho.Grant(c).ID
		err := c.Stream(http.StatusOK, echo.MIMEOctetStream, zeroes{})
		why <- err
		return err
	}, verifyecho.Require(b.Verifier("orders"), "orders:read"))
	server := httptest.NewServer(e)
	t.Cleanup(server.Close)
	r, err := http.NewRequest(http.MethodGet, server.URL+"/orders", nil)
	if err != nil {
		t.Fatal(err)
	}
	b.Sign(r, verify.Grant{Audience: "orders", Scopes: []string{"orders:read"}})
	response, err := server.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b.Revoke(<-started)
	select {
	case err := <-why:
		if !errors.Is(err, verify.ErrRevoked) {
			t.Errorf("the handler got %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the handler still writes")
	}
	if _, err := io.Copy(io.Discard, response.Body); err == nil {
		t.Error("for the client the answer is complete")
	}
}

// TestWhatIsAroundIt sees the answer, and writes to what it has always written to.
func TestWhatIsAroundIt(t *testing.T) {
	b := brokertest.New(t)
	e := echo.New()
	require := verifyecho.Require(b.Verifier("orders"), "orders:read")
	e.Use(func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			before := c.Response()
			err := next(c)
			if got := c.Response(); got != before || !got.Committed || got.Status != http.StatusAccepted || got.Size != 5 {
				t.Errorf("after the handler: %+v", got)
			}
			return err
		}
	})
	e.GET("/orders", func(c echo.Context) error { return c.String(http.StatusAccepted, "later") }, require)
	r := httptest.NewRequest(http.MethodGet, "/orders", nil)
	b.Sign(r, verify.Grant{Audience: "orders", Scopes: []string{"orders:read"}})
	e.ServeHTTP(httptest.NewRecorder(), r)
}

func TestGrantWithoutMiddleware(t *testing.T) {
	c := echo.New().NewContext(httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder())
	if g := verifyecho.Grant(c); g != nil {
		t.Errorf("a grant from nowhere: %v", g)
	}
}

func ExampleRequire() {
	b, stop := brokertest.Start() // in a service, v is from verify.New
	defer stop()
	v := b.Verifier("orders")

	e := echo.New()
	e.GET("/orders", func(c echo.Context) error {
		return c.String(http.StatusOK, "two anvils for "+verifyecho.Grant(c).Workload)
	}, verifyecho.Require(v, "orders:read"))

	r, w := httptest.NewRequest(http.MethodGet, "/orders", nil), httptest.NewRecorder()
	b.Sign(r, verify.Grant{Workload: "export", Audience: "orders", Scopes: []string{"orders:read"}})
	e.ServeHTTP(w, r)
	fmt.Println(w.Code, w.Body)
	// Output: 200 two anvils for spiffe://test/export
}
