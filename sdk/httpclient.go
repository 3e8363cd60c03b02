package sdk

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// maxDrain is how much of a refusal is read so that its connection can be used again, in bytes.
const maxDrain = 64 << 10

// HTTPClient returns a client that sends a token for the audience with every request. It connects
// over mutual TLS with the workload's SVID, without a proxy, and only to the servers that the broker
// names for the audience by their SPIFFE IDs; where it names none, to any of the workload's trust
// domain.
//
// The token goes only to hosts that the broker names for the audience, over https, or over http to a
// loopback address; other requests fail with ErrHost before anything is sent. A redirect to another
// host is followed without the token. When a server answers 401 with error="invalid_token", the
// request is sent once more with a new token, if its body can be had again (http.Request.GetBody).
// After the task has ended, requests that have not been sent fail with ErrTaskEnded.
func (t *Task) HTTPClient(audience string, scopes ...string) *http.Client {
	return &http.Client{Transport: &carrier{t, TokenRequest{Audience: audience, Scopes: scopes}}}
}

// carrier is an http.RoundTripper that adds a token.
type carrier struct {
	task *Task
	ask  TokenRequest
}

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
	_, _ = io.CopyN(io.Discard, resp.Body, maxDrain)
	resp.Body.Close()
	key, err := c.ask.key()
	if err != nil {
		return nil, err
	}
	c.task.tokens.reject(key, token.GrantID)
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
	if req.URL.Scheme != "https" && !(req.URL.Scheme == "http" && isLoopback(req.URL.Hostname())) {
		return nil, fmt.Errorf("sdk: %w: %s://%s; a token is sent over https only, or over http to a loopback address", ErrHost, req.URL.Scheme, req.URL.Host)
	}
	token, err := c.task.Token(req.Context(), c.ask)
	if err != nil {
		return nil, err
	}
	if wandered(req) {
		return nil, nil
	}
	named := *req.URL
	if req.Host != "" {
		named.Host = req.Host
	}
	for _, u := range []*url.URL{req.URL, &named} {
		if !listed(token.Hosts, u) {
			return nil, fmt.Errorf("sdk: %w: the broker names %q as hosts of %s, and %s is none of them; add it to the registration of the audience", ErrHost, token.Hosts, c.ask.Audience, hostPort(u))
		}
	}
	return token, nil
}

// send uses the connections that have the certificate of the token.
func (c *carrier) send(req *http.Request, body io.ReadCloser, token *Token) (*http.Response, error) {
	g, err := c.task.client.links.use()
	if err != nil {
		if body != nil {
			body.Close()
		}
		return nil, err
	}
	out := req.Clone(req.Context())
	out.Body = body
	out.Header.Del("Authorization")
	var servers []string
	if token != nil {
		out.Header.Set("Authorization", token.Header())
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
	return transport.RoundTrip(out)
}

// wandered reports whether a chain of redirects has been at another host, also if it is back: that
// one has chosen the request.
func wandered(req *http.Request) bool {
	here := hostPort(req.URL)
	for req.Response != nil && req.Response.Request != nil {
		if req = req.Response.Request; hostPort(req.URL) != here {
			return true
		}
	}
	return false
}

// hostPort is the host of a URL in lower case with its port, also where that is the default.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = "443"
		if u.Scheme == "http" {
			port = "80"
		}
	}
	return net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// listed looks a URL up in hosts as the broker names them: host or host:port, where no port is 443.
func listed(hosts []string, u *url.URL) bool {
	want := hostPort(u)
	for _, host := range hosts {
		name, port, err := net.SplitHostPort(host)
		if err != nil {
			name, port = strings.Trim(host, "[]"), "443"
		}
		if net.JoinHostPort(strings.ToLower(name), port) == want {
			return true
		}
	}
	return false
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

// rejected reports a 401 that says that the token was the reason (RFC 6750 §3.1).
func rejected(resp *http.Response) bool {
	if resp.StatusCode != http.StatusUnauthorized {
		return false
	}
	for _, challenge := range resp.Header.Values("WWW-Authenticate") {
		challenge = strings.ToLower(challenge)
		_, params, ok := strings.Cut(" "+challenge, " bearer ")
		if !ok {
			continue
		}
		for param := range strings.SplitSeq(params, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(param), "=")
			if strings.TrimSpace(name) == "error" && strings.Trim(strings.TrimSpace(value), `"`) == "invalid_token" {
				return true
			}
		}
	}
	return false
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
