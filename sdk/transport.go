package sdk

import (
	"context"
	"fmt"
	"io"
	"net/http"
)

// maxDrain is how much of a refusal is read so that its connection can be used again, in bytes.
const maxDrain = 64 << 10

// HTTPClient returns a client that sends a token for the audience with every request, over mutual TLS
// with the workload's SVID. It is an http.Client of Transport(nil, …), which says what that does.
func (t *Task) HTTPClient(audience string, scopes ...string) *http.Client {
	return &http.Client{Transport: t.Transport(nil, TokenRequest{Audience: audience, Scopes: scopes})}
}

// Transport returns an http.RoundTripper that sends a token with every request.
//
// With base nil it connects over mutual TLS with the workload's SVID, without a proxy, and only to
// the servers that the broker names for the audience by their SPIFFE IDs; where it names none, to any
// of the workload's trust domain. To add traces or metrics, wrap what Transport returns.
//
// A base of your own makes the connections, and decides alone who may be at their other end. It has
// to present the certificate that the token is bound to (Token.SVID), if it is: an *http.Transport
// that presents none or another one gets no such token, and the request fails with ErrUnbound. What
// other bases do cannot be seen from here; the server answers 401 then.
//
// The token goes only to hosts that the broker names for the audience, or to those of WithHosts, over
// https, or over http to a loopback address; other requests fail with ErrHost before anything is
// sent. A redirect to another host is followed without the token, also if it leads back. When a server
// answers 401 with error="invalid_token", the request is sent once more with a new token, if its
// body can be had again (http.Request.GetBody); callers that were refused the same token share one
// request for the next, of which there is one a second. Any other answer is handed on as it is: see CheckScope for a 403. After the
// task has ended, requests that have not been sent fail with ErrTaskEnded.
func (t *Task) Transport(base http.RoundTripper, req TokenRequest, opts ...TransportOption) http.RoundTripper {
	c := &carrier{task: t, base: base, ask: req}
	for _, opt := range opts {
		opt(c)
	}
	return c
}

// TransportOption configures Transport.
type TransportOption func(*carrier)

// WithHosts replaces the hosts that the broker names for the audience: host or host:port, where no
// port is 443.
func WithHosts(hosts ...string) TransportOption {
	return func(c *carrier) { c.hosts = append([]string{}, hosts...) }
}

// carrier is an http.RoundTripper that adds a token.
type carrier struct {
	task  *Task
	base  http.RoundTripper
	ask   TokenRequest
	hosts []string // nil: those that the broker names
}

// carriedKey is where the context of a response's request has the token, for CheckScope.
type carriedKey struct{}

// RoundTrip implements http.RoundTripper.
func (c *carrier) RoundTrip(req *http.Request) (*http.Response, error) {
	token, err := c.token(req)
	if err != nil {
		closeBody(req)
		return nil, err
	}
	resp, err := c.send(req, req.Body, token)
	if err != nil || token == nil || !rejected(resp) {
		return resp, err
	}
	body, ok := rewind(req)
	if !ok {
		return resp, nil
	}
	if key, err := c.ask.key(); err != nil || !c.task.tokens.reject(key, token.GrantID, c.task.client.clock()) {
		if body != nil {
			body.Close()
		}
		return resp, nil
	}
	_, _ = io.CopyN(io.Discard, resp.Body, maxDrain)
	resp.Body.Close()
	if token, err = c.token(req); err != nil {
		if body != nil {
			body.Close()
		}
		return nil, err
	}
	return c.send(req, body, token)
}

// token returns the token for a request, nil when it has been redirected to another host, and an
// error when it must not be sent at all.
func (c *carrier) token(req *http.Request) (*Token, error) {
	if err := secure(req.URL); err != nil {
		return nil, err
	}
	token, err := c.task.Token(req.Context(), c.ask)
	if err != nil {
		return nil, err
	}
	if wandered(req) {
		return nil, nil
	}
	hosts := token.Hosts
	if c.hosts != nil {
		hosts = c.hosts
	}
	return token, allowed(req, c.ask.Audience, hosts)
}

// send sends a request with the token, and leaves no trace of it in what the caller can see.
func (c *carrier) send(req *http.Request, body io.ReadCloser, token *Token) (*http.Response, error) {
	out := req.Clone(req.Context())
	out.Body = body
	out.Header.Del("Authorization")
	if token != nil {
		out.Header.Set("Authorization", token.Header())
	}
	var resp *http.Response
	var err error
	if c.base == nil {
		resp, err = c.task.client.links.carry(out, token)
	} else if err = presents(c.base, out.URL.Scheme, token); err == nil {
		resp, err = c.base.RoundTrip(out)
	} else {
		closeBody(out)
	}
	if resp != nil {
		resp.Request = req.WithContext(context.WithValue(req.Context(), carriedKey{}, token))
	}
	return resp, err
}

// carry sends a request over the connections that have the certificate of the token.
func (l *links) carry(out *http.Request, token *Token) (*http.Response, error) {
	g, err := l.use()
	if err != nil {
		closeBody(out)
		return nil, err
	}
	var servers []string
	if token != nil {
		servers = token.Servers
		if from := token.from(); token.Bound && from.leaf != g.leaf {
			g = from // the SVID was replaced a moment ago
		}
	}
	out.Close = out.Close || g.retired.Load()
	transport, err := g.to(servers)
	if err != nil {
		closeBody(out)
		return nil, err
	}
	resp, err := transport.RoundTrip(out)
	if g.retired.Load() {
		g.retire() // a transport that was used again keeps idle connections again
	}
	return resp, err
}

// presents refuses a base of which it can be seen that it does not present the certificate that the
// token is bound to. Plain http presents none, and is for loopback alone.
func presents(base http.RoundTripper, scheme string, token *Token) error {
	transport, ok := base.(*http.Transport)
	if !ok || token == nil || !token.Bound || scheme != "https" || transport.DialTLSContext != nil {
		return nil
	}
	what := "presents no certificate"
	if config := transport.TLSClientConfig; config != nil {
		if config.GetClientCertificate != nil {
			return nil // it may
		}
		for _, cert := range config.Certificates {
			if len(cert.Certificate) > 0 && string(cert.Certificate[0]) == string(token.SVID().Certificates[0].Raw) {
				return nil
			}
			what = "presents another one"
		}
	}
	return fmt.Errorf("sdk: %w: %s is bound to that of %s, and the base transport %s; give Transport no base, or one that presents Token.SVID", ErrUnbound, token, token.SVID().ID, what)
}

// rewind returns the request's body from its beginning, and false if it cannot be had again.
func rewind(req *http.Request) (io.ReadCloser, bool) {
	if req.Body == nil || req.Body == http.NoBody {
		return req.Body, true
	}
	if req.GetBody == nil {
		return nil, false
	}
	body, err := req.GetBody()
	return body, err == nil
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}
