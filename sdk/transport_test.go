package sdk_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/sdk"
)

var foreignDomain = spiffeid.RequireTrustDomainFromString("elsewhere.org")

// orders is a resource server that writes down what it gets.
type orders struct {
	mu     sync.Mutex
	seen   []seen
	answer http.HandlerFunc
	conns  int // that are open
}

func (o *orders) watch(_ net.Conn, s http.ConnState) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch s {
	case http.StateNew:
		o.conns++
	case http.StateClosed, http.StateHijacked:
		o.conns--
	}
}

func (o *orders) open() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.conns
}

type seen struct {
	authorization string
	leaf          [sha256.Size]byte
	body          string
	remote        string
}

func (o *orders) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s := seen{authorization: strings.Join(r.Header.Values("Authorization"), "|"), body: string(body), remote: r.RemoteAddr}
	if r.TLS != nil {
		s.leaf = sha256.Sum256(r.TLS.PeerCertificates[0].Raw)
	}
	o.mu.Lock()
	o.seen = append(o.seen, s)
	answer := o.answer
	o.mu.Unlock()
	if answer != nil {
		answer(w, r)
	}
}

func (o *orders) got() []seen {
	o.mu.Lock()
	defer o.mu.Unlock()
	return append([]seen(nil), o.seen...)
}

// shop is a world with a resource server, and a task in it.
type shop struct {
	*world
	orders
	at   *url.URL
	task *sdk.Task
}

func newShop(t *testing.T) *shop {
	s := &shop{world: newWorld(t)}
	s.at = serve(t, &s.orders, must(s.ca.Issue(ordersID, 0))(t), s.ca.Bundle())
	s.hosts = []string{s.at.Host}
	s.task = begin(t, s.client(t), spec)
	return s
}

func (s *shop) get(t *testing.T, u string) (*http.Response, error) {
	t.Helper()
	resp, err := s.task.HTTPClient("orders", "orders:read").Get(u)
	if err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	return resp, err
}

func bearer(n int) string { return "Bearer " + secretOf(fmt.Sprintf("gnt_00%026d", n)) }

func TestHTTPClientSendsTheToken(t *testing.T) {
	s := newShop(t)
	req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, s.at.String()+"/orders", strings.NewReader("hello")))(t)
	req.Header.Set("Authorization", "Basic something-else")
	resp := must(s.task.HTTPClient("orders").Do(req))(t)
	resp.Body.Close()
	got := s.orders.got()
	if len(got) != 1 || got[0].authorization != bearer(1) || got[0].body != "hello" {
		t.Fatalf("the server got %+v", got)
	}
	if got[0].leaf != s.fake.got(tokens)[0].leaf {
		t.Error("the token is presented with another certificate than it was asked for with")
	}
	if h := req.Header.Get("Authorization"); h != "Basic something-else" {
		t.Errorf("the caller's request was changed: %q", h)
	}
}

func TestTokenGoesOnlyToTheHostsThatTheBrokerNames(t *testing.T) {
	s := newShop(t)
	foreign := &orders{}
	at := serve(t, foreign, must(s.ca.Issue(ordersID, 0))(t), s.ca.Bundle())
	_, port, _ := strings.Cut(s.at.Host, ":")
	for name, u := range map[string]string{
		"another port":     at.String(),
		"another name":     "https://localhost:" + port,
		"plain, elsewhere": "http://orders.internal:" + port,
		"user at host":     "https://" + s.at.Host + "@" + at.Host,
		"a file":           "file:///etc/passwd",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := s.get(t, u); !errors.Is(err, sdk.ErrHost) {
				t.Errorf("got %v", err)
			}
		})
	}
	req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, s.at.String(), nil))(t)
	req.Host = "somebody.else"
	if _, err := s.task.HTTPClient("orders").Do(req); !errors.Is(err, sdk.ErrHost) {
		t.Errorf("with another Host header: %v", err)
	}
	if len(foreign.got())+len(s.orders.got()) != 0 {
		t.Error("something was sent")
	}
}

func TestHostsAsTheBrokerNamesThem(t *testing.T) {
	s := newShop(t)
	_, port, _ := strings.Cut(s.at.Host, ":")
	for _, c := range []struct {
		hosts []string
		u     string
		ok    bool
	}{
		{[]string{"127.0.0.1:" + port}, s.at.String(), true},
		{[]string{"LOCALHOST:" + port}, "https://localhost:" + port, true},
		{[]string{"localhost:" + port}, "https://LocalHost:" + port, true},
		{[]string{"127.0.0.1"}, s.at.String(), false}, // which is port 443
		{[]string{}, s.at.String(), false},
		{[]string{"", ":", "[", "*", "*:" + port, "https://127.0.0.1:" + port}, s.at.String(), false},
	} {
		s.mu.Lock()
		s.hosts = c.hosts
		s.mu.Unlock()
		must(s.task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}, Fresh: true}))(t)
		if _, err := s.get(t, c.u); (err == nil) != c.ok || err != nil && !errors.Is(err, sdk.ErrHost) {
			t.Errorf("%q to %s: %v", c.hosts, c.u, err)
		}
	}
}

func TestPlainHTTPGoesToLoopbackAlone(t *testing.T) {
	s := newShop(t)
	plain := &orders{}
	server := httptest.NewServer(plain)
	defer server.Close()
	s.mu.Lock()
	s.hosts = []string{strings.TrimPrefix(server.URL, "http://")}
	s.mu.Unlock()
	must(s.get(t, server.URL))(t)
	if got := plain.got(); len(got) != 1 || got[0].authorization != bearer(1) {
		t.Errorf("the server got %+v", got)
	}
}

func TestRedirectsLoseTheToken(t *testing.T) {
	s := newShop(t)
	other := &orders{}
	at := serve(t, other, must(s.ca.Issue(ordersID, 0))(t), s.ca.Bundle())
	// Even when both are hosts of the audience: the first must not pass it on.
	s.mu.Lock()
	s.hosts = []string{s.at.Host, at.Host}
	s.mu.Unlock()
	s.orders.answer = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/there" {
			http.Redirect(w, r, "/here", http.StatusFound)
		} else {
			http.Redirect(w, r, at.String(), http.StatusTemporaryRedirect)
		}
	}
	other.answer = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/end" {
			http.Redirect(w, r, "/end", http.StatusFound)
		}
	}
	must(s.get(t, s.at.String()+"/there"))(t)
	for i, got := range s.orders.got() {
		if got.authorization != bearer(1) {
			t.Errorf("request %d to the host itself has %q", i, got.authorization)
		}
	}
	if got := other.got(); len(got) != 2 || got[0].authorization != "" || got[1].authorization != "" {
		t.Errorf("the other host got %+v", got)
	}
	// And not to plain http at all.
	s.orders.answer = func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://orders.internal/", http.StatusFound)
	}
	if _, err := s.get(t, s.at.String()); !errors.Is(err, sdk.ErrHost) {
		t.Errorf("got %v", err)
	}
}

// TestOnlyTheNamedServersGetTheToken: another workload of the trust domain may answer at the address.
func TestOnlyTheNamedServersGetTheToken(t *testing.T) {
	s := newShop(t)
	s.mu.Lock()
	s.servers = []string{ordersID.String()}
	s.mu.Unlock()
	must(s.get(t, s.at.String()))(t)
	impostor := &orders{}
	at := serve(t, impostor, must(s.ca.Issue(spiffeid.RequireFromString("spiffe://example.org/ci/untrusted"), 0))(t), s.ca.Bundle())
	s.mu.Lock()
	s.hosts = []string{at.Host}
	s.mu.Unlock()
	must(s.task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}, Fresh: true}))(t)
	if _, err := s.get(t, at.String()); err == nil || len(impostor.got()) != 0 {
		t.Errorf("the impostor got %+v, %v", impostor.got(), err)
	}
}

// TestARedirectThereAndBackLosesTheToken: the host in between has chosen the request.
func TestARedirectThereAndBackLosesTheToken(t *testing.T) {
	s := newShop(t)
	other := &orders{}
	at := serve(t, other, must(s.ca.Issue(ordersID, 0))(t), s.ca.Bundle())
	s.mu.Lock()
	s.hosts = []string{s.at.Host, at.Host}
	s.mu.Unlock()
	s.orders.answer = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/go" {
			http.Redirect(w, r, at.String(), http.StatusTemporaryRedirect)
		}
	}
	other.answer = func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, s.at.String()+"/admin/delete-all", http.StatusTemporaryRedirect)
	}
	must(s.get(t, s.at.String()+"/go"))(t)
	got := s.orders.got()
	if len(got) != 2 || got[0].authorization == "" || got[1].authorization != "" {
		t.Errorf("the host got %+v", got)
	}
}

func TestServersOfOtherTrustDomainsAreRefused(t *testing.T) {
	s := newShop(t)
	for name, ca := range map[string]*devmode.CA{
		"another domain": must(devmode.NewCA("elsewhere.org", devmode.Options{}))(t),
		"another CA":     must(devmode.NewCA("example.org", devmode.Options{}))(t),
	} {
		t.Run(name, func(t *testing.T) {
			impostor := &orders{}
			at := serve(t, impostor, must(ca.Issue(spiffeid.RequireFromPath(ca.TrustDomain(), "/orders"), 0))(t), s.ca.Bundle())
			s.mu.Lock()
			s.hosts = []string{at.Host}
			s.mu.Unlock()
			must(s.task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}, Fresh: true}))(t)
			if _, err := s.get(t, at.String()); err == nil || len(impostor.got()) != 0 {
				t.Errorf("got %v", err)
			}
		})
	}
}

// challenge answers 401 as long as the token is one of the first n.
func challenge(n int, header string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for i := range n {
			if r.Header.Get("Authorization") == bearer(i+1) {
				w.Header().Set("WWW-Authenticate", header)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
		}
	}
}

const invalidToken = `Bearer realm="x", error="invalid_token", error_description="revoked"`

func TestRejectedTokenIsReplacedOnce(t *testing.T) {
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		body   io.Reader
		status int
		sent   int
	}{
		"once":                   {challenge(1, invalidToken), nil, 200, 2},
		"with a body":            {challenge(1, invalidToken), strings.NewReader("hello"), 200, 2},
		"again and again":        {challenge(9, invalidToken), nil, 401, 2},
		"body that is gone":      {challenge(1, invalidToken), io.MultiReader(strings.NewReader("hello")), 401, 1},
		"for another reason":     {challenge(1, `Bearer error="insufficient_scope"`), nil, 401, 1},
		"by another scheme":      {challenge(1, `Basic realm="x", error="invalid_token"`), nil, 401, 1},
		"with a look-alike":      {challenge(1, `Bearer x_error="invalid_token"`), nil, 401, 1},
		"in other letters":       {challenge(1, `bearer Error=invalid_token`), nil, 200, 2},
		"without any challenges": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, nil, 401, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShop(t)
			s.orders.answer = c.answer
			req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, s.at.String(), c.body))(t)
			resp := must(s.task.HTTPClient("orders").Do(req))(t)
			defer resp.Body.Close()
			got := s.orders.got()
			if resp.StatusCode != c.status || len(got) != c.sent {
				t.Fatalf("status %d after %d requests; want %d after %d", resp.StatusCode, len(got), c.status, c.sent)
			}
			for i, g := range got {
				if g.authorization != bearer(i+1) || c.body != nil && g.body != "hello" {
					t.Errorf("request %d was %+v", i, g)
				}
			}
		})
	}
}

// A hundred requests that are refused with one token make the client ask for one new token.
func TestRejectionOfOneGrantCausesOneRefresh(t *testing.T) {
	s := newShop(t)
	s.orders.answer = challenge(1, invalidToken)
	client := s.task.HTTPClient("orders")
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			resp, err := client.Get(s.at.String())
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("status %d", resp.StatusCode)
			}
		})
	}
	all.Wait()
	if n := len(s.fake.got(tokens)); n != 2 {
		t.Errorf("%d tokens were asked for; want 2", n)
	}
}

// TestServerThatRefusesEverything: it does not have the client use up the tokens that the broker has for
// this workload, which needs them elsewhere.
func TestServerThatRefusesEverything(t *testing.T) {
	s := newShop(t)
	s.orders.answer = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", invalidToken)
		w.WriteHeader(http.StatusUnauthorized)
	}
	began := time.Now()
	client := s.task.HTTPClient("orders")
	for range 100 {
		resp := must(client.Get(s.at.String()))(t)
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusUnauthorized {
			t.Fatalf("%d, %v", resp.StatusCode, err)
		}
		resp.Body.Close()
	}
	if n, most := len(s.fake.got(tokens)), 2+int(time.Since(began)/time.Second); n > most {
		t.Errorf("%d tokens were asked for; at most %d were to be", n, most)
	}
}

func TestTransportFailsWhatIsNotSentWhenTheTaskEnds(t *testing.T) {
	s := newShop(t)
	s.orders.answer = challenge(1, invalidToken)
	s.set(s.task.ID(), "revoked")
	s.fake.on(tokens, nil)
	s.set(s.task.ID(), "active")
	must(s.task.Token(t.Context(), sdk.TokenRequest{Audience: "orders", Scopes: []string{"orders:read"}}))(t)
	s.set(s.task.ID(), "revoked")
	if _, err := s.get(t, s.at.String()); !errors.Is(err, sdk.ErrRevoked) || !errors.Is(err, sdk.ErrTaskEnded) {
		t.Errorf("got %v", err)
	}
	if _, err := s.get(t, s.at.String()); !errors.Is(err, sdk.ErrTaskEnded) || len(s.orders.got()) != 1 {
		t.Errorf("got %v; the server got %d requests", err, len(s.orders.got()))
	}
}

// A new SVID: new requests go over new connections, with a token for that certificate. The old
// connections go away, but not under a request.
func TestRotationMakesNewConnections(t *testing.T) {
	s := newShop(t)
	release := make(chan struct{})
	s.orders.answer = func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			w.WriteHeader(200)
			_ = http.NewResponseController(w).Flush()
			<-release
			fmt.Fprint(w, "whole")
		}
	}
	client := s.task.HTTPClient("orders", "orders:read")
	slow := must(client.Get(s.at.String() + "/slow"))(t)
	must(s.get(t, s.at.String()))(t)
	s.who.change(func(i *identity) { i.svid = must(s.ca.Issue(reportID, 0))(t) })
	must(s.get(t, s.at.String()))(t)
	eventually(t, "there is a token for the new certificate", func() bool {
		return must(s.task.Token(t.Context(), ordersRead))(t).SVID() == must(s.who.GetX509SVID())(t)
	})
	must(s.get(t, s.at.String()))(t)
	must(s.get(t, s.at.String()))(t)
	close(release)
	body := must(io.ReadAll(slow.Body))(t)
	slow.Body.Close()
	if string(body) != "whole" {
		t.Errorf("the request that was running got %q", body)
	}
	eventually(t, "the old connections are closed", func() bool { return s.orders.open() == 1 })
	got := s.orders.got()
	if len(got) != 5 {
		t.Fatalf("%d requests", len(got))
	}
	asked := s.fake.got(tokens)
	if len(asked) != 2 || asked[0].leaf == asked[1].leaf {
		t.Fatalf("%d tokens were asked for", len(asked))
	}
	for i, want := range []int{1, 1, 1, 2, 2} {
		if got[i].authorization != bearer(want) || got[i].leaf != asked[want-1].leaf {
			t.Errorf("request %d has %q with the certificate of token %v", i, got[i].authorization, got[i].leaf == asked[0].leaf)
		}
	}
	if got[1].remote == got[3].remote || got[3].remote != got[4].remote {
		t.Errorf("the connections are %s, %s and %s", got[1].remote, got[3].remote, got[4].remote)
	}
}

// An authority that is no longer trusted takes its connections with it.
func TestRemovedAuthorityEndsConnections(t *testing.T) {
	s := newShop(t)
	must(s.get(t, s.at.String()))(t)
	other := must(devmode.NewCA("example.org", devmode.Options{}))(t)
	s.who.change(func(i *identity) { i.bundle = other.Bundle() })
	if _, err := s.get(t, s.at.String()); err == nil || len(s.orders.got()) != 1 {
		t.Errorf("got %v; the server got %d requests", err, len(s.orders.got()))
	}
}

// The broker may be of a federated trust domain. That makes nobody else of it a server.
func TestFederatedBroker(t *testing.T) {
	w := newWorld(t)
	foreign := must(devmode.NewCA(foreignDomain.Name(), devmode.Options{}))(t)
	id := spiffeid.RequireFromPath(foreignDomain, "/errand")
	trust := x509bundle.NewSet(w.ca.Bundle(), foreign.Bundle())
	at := serve(t, w.fake, must(foreign.Issue(id, 0))(t), w.ca.Bundle())
	client := w.client(t, sdk.WithBroker(at.String()), sdk.WithBrokerID(id), sdk.WithIdentity(sdk.FromSource(w.who, trust)))
	server := &orders{}
	orders := serve(t, server, must(foreign.Issue(spiffeid.RequireFromPath(foreignDomain, "/orders"), 0))(t), w.ca.Bundle())
	w.hosts = []string{orders.Host}
	if _, err := begin(t, client, spec).HTTPClient("orders").Get(orders.String()); err == nil || len(server.got()) != 0 {
		t.Errorf("got %v", err)
	}
}
