package sdk_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"

	"github.com/errandhq/errand/sdk"
)

// trace is a base that counts, as tools for traces do.
type trace struct {
	http.RoundTripper
	sent int
}

func (t *trace) RoundTrip(r *http.Request) (*http.Response, error) {
	t.sent++
	return t.RoundTripper.RoundTrip(r)
}

// Transport with hosts of the caller's: these alone count, whatever the broker names.
func TestTransportWithHosts(t *testing.T) {
	s := newShop(t)
	mine := "127.0.0.1:1"
	for hosts, want := range map[string]error{s.at.Host: nil, mine: sdk.ErrHost} {
		client := &http.Client{Transport: s.task.Transport(nil, ordersRead, sdk.WithHosts(hosts))}
		resp, err := client.Get(s.at.String())
		if err == nil {
			resp.Body.Close()
		}
		if !errors.Is(err, want) || want != nil && !strings.Contains(err.Error(), mine) {
			t.Errorf("%s: got %v", hosts, err)
		}
	}
	s.mu.Lock()
	s.hosts = []string{"nowhere.internal"}
	s.mu.Unlock()
	s.task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}, Fresh: true})
	if _, err := s.get(t, s.at.String()); !errors.Is(err, sdk.ErrHost) {
		t.Errorf("without the option: %v", err)
	}
	client := &http.Client{Transport: s.task.Transport(nil, ordersRead, sdk.WithHosts(s.at.Host))}
	must(client.Get(s.at.String()))(t).Body.Close()
	if _, err := (&http.Client{Transport: s.task.Transport(nil, ordersRead, sdk.WithHosts())}).Get(s.at.String()); !errors.Is(err, sdk.ErrHost) {
		t.Errorf("no host at all: %v", err)
	}
	if n := len(s.orders.got()); n != 2 {
		t.Errorf("%d requests got through; want 2", n)
	}
}

// A base that cannot present the certificate gets no token that is bound to it; one that does, or that
// nobody can see into, is used.
func TestTransportWithABase(t *testing.T) {
	s := newShop(t)
	mine := func(edit func(*tls.Config)) *http.Transport {
		config := tlsconfig.MTLSClientConfig(s.who, s.who, tlsconfig.AuthorizeAny())
		edit(config)
		transport := &http.Transport{TLSClientConfig: config}
		t.Cleanup(transport.CloseIdleConnections)
		return transport
	}
	other := must(s.ca.Issue(ordersID, 0))(t)
	static := func(raw []byte, key any) *http.Transport {
		return mine(func(c *tls.Config) {
			c.GetClientCertificate = nil
			c.Certificates = []tls.Certificate{{Certificate: [][]byte{raw}, PrivateKey: key}}
		})
	}
	for name, c := range map[string]struct {
		base http.RoundTripper
		want error
		says string
	}{
		"a source":         {mine(func(*tls.Config) {}), nil, ""},
		"the certificate":  {static(s.who.svid.Certificates[0].Raw, s.who.svid.PrivateKey), nil, ""},
		"another one":      {static(other.Certificates[0].Raw, other.PrivateKey), sdk.ErrUnbound, "another one"},
		"none":             {mine(func(c *tls.Config) { c.GetClientCertificate = nil }), sdk.ErrUnbound, "no certificate"},
		"no configuration": {http.DefaultTransport, sdk.ErrUnbound, "no certificate"},
		"a wrapper":        {&trace{RoundTripper: mine(func(*tls.Config) {})}, nil, ""},
		"wrapped around":   {nil, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(s.orders.got())
			var transport http.RoundTripper = s.task.Transport(c.base, ordersRead)
			if c.base == nil {
				transport = &trace{RoundTripper: transport}
			}
			resp, err := (&http.Client{Transport: transport}).Post(s.at.String(), "text/plain", strings.NewReader("hello"))
			if err == nil {
				resp.Body.Close()
			}
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("got %v", err)
			}
			got := s.orders.got()[before:]
			if want := c.want == nil; (len(got) == 1) != want || want && (got[0].leaf != leafOf(s.who.svid) || got[0].authorization != bearer(1) || got[0].body != "hello") {
				t.Errorf("the server got %+v", got)
			}
		})
	}
}

// A token that is not bound goes over any base.
func TestTransportWithABaseAndATokenThatIsNotBound(t *testing.T) {
	w := newWorld(t)
	w.binding = "none"
	server := httptest.NewTLSServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		fmt.Fprint(rw, r.Header.Get("Authorization"))
	}))
	defer server.Close()
	w.hosts = []string{strings.TrimPrefix(server.URL, "https://")}
	task := begin(t, w.client(t), spec)
	resp := must((&http.Client{Transport: task.Transport(server.Client().Transport, ordersRead)}).Get(server.URL))(t)
	defer resp.Body.Close()
	if body := must(io.ReadAll(resp.Body))(t); string(body) != bearer(1) {
		t.Errorf("the server got %q", body)
	}
}

// The response of an http.RoundTripper is the server's, also a 403; CheckScope makes an error of it.
func TestInsufficientScopeIsAnErrorOfCheckScope(t *testing.T) {
	for header, want := range map[string][]string{
		`Bearer error="insufficient_scope", scope="orders:write orders:admin"`:                                       {"orders:write", "orders:admin"},
		`Basic realm="a, b", bearer realm="x\"y", error_description="no, not so", ERROR=insufficient_scope, scope=w`: {"w"},
		`Bearer error="insufficient_scope"`:                                                                          {},
		`Bearer error="invalid_token", scope="x"`:                                                                    nil,
		`Basic error="insufficient_scope", scope="x"`:                                                                nil,
		"": nil,
	} {
		t.Run(header, func(t *testing.T) {
			s := newShop(t)
			s.orders.answer = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("WWW-Authenticate", header)
				w.WriteHeader(http.StatusForbidden)
			}
			resp := must(s.task.HTTPClient("orders", "orders:read").Get(s.at.String()))(t)
			defer resp.Body.Close()
			err := sdk.CheckScope(resp)
			var e *sdk.InsufficientScope
			if errors.As(err, &e) != (want != nil) {
				t.Fatalf("got %v", err)
			}
			if want == nil {
				return
			}
			if e.Audience != "orders" || !slices.Equal(e.Scopes, want) || !slices.Equal(e.Had, []string{"orders:read"}) {
				t.Errorf("got %+v", e)
			}
			for _, text := range append(want, "orders", "orders:read") {
				if !strings.Contains(e.Error(), text) {
					t.Errorf("%q does not say %q", e, text)
				}
			}
			if n := len(s.orders.got()); n != 1 {
				t.Errorf("%d requests; a scope that lacks is not mended by another try", n)
			}
		})
	}
	if sdk.CheckScope(nil) != nil || sdk.CheckScope(&http.Response{StatusCode: 200}) != nil {
		t.Error("an error of nothing")
	}
	foreign := &http.Response{StatusCode: 403, Header: http.Header{"Www-Authenticate": {`Bearer error="insufficient_scope"`}}}
	if err := sdk.CheckScope(foreign); err == nil {
		t.Error("no error of a response of another client")
	}
}

// What the caller gets to see of a request has no token: not the response's request, and not what a
// redirect makes of it.
func TestResponseDoesNotShowTheToken(t *testing.T) {
	s := newShop(t)
	s.orders.answer = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/a" {
			http.Redirect(w, r, "/b", http.StatusFound)
		}
	}
	resp := must(s.task.HTTPClient("orders", "orders:read").Get(s.at.String() + "/a"))(t)
	resp.Body.Close()
	if got := s.orders.got(); len(got) != 2 || got[1].authorization != bearer(1) {
		t.Errorf("the server got %+v", got)
	}
	for r := resp; r != nil; r = r.Request.Response {
		if text := fmt.Sprintf("%+v %+v", r, r.Request); strings.Contains(text, bearer(1)) || r.Request.Header.Get("Authorization") != "" {
			t.Errorf("the token is in %s", text)
		}
	}
}
