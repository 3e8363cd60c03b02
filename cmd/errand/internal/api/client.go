// Package api is how the commands ask the broker: Environment says whom and as whom, Open makes a
// Client of the workload or the operator listener, Send asks, and Follow reads a stream of events. Curl
// writes a request down instead.
//
// It speaks mutual TLS with the caller's SVID, or an operator's certificate, to the one broker whose SPIFFE ID it
// was told, decodes the broker's refusals into *Refusal, and hands out every answer as it came. Nothing it prints
// or returns as an error has a token or an end key.
package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/sdk/verify/verifyspiffe"
	"github.com/errandhq/errand/sdk/wire"
)

// Bounds of a call.
const (
	CallTimeout = 15 * time.Second // of one replica
	MaxAnswer   = 8 << 20          // bytes; a page of the largest tasks has less
)

// ErrUnreachable: there is no answer, or none from the broker that was named.
var ErrUnreachable = errors.New("no answer from the broker")

// Refusal is the broker's own answer that it will not.
type Refusal struct {
	Problem wire.Problem
	JSON    []byte // the problem document as it came
}

// Name is the last segment of the problem's type.
func (r *Refusal) Name() string { return ProblemName(r.Problem) }

// Error has a line each for what, why, and what next.
func (r *Refusal) Error() string {
	p := r.Problem
	lines := []string{"the broker refused: " + p.Title, p.Detail}
	for _, what := range slices.Sorted(maps.Keys(p.Missing)) {
		lines = append(lines, "missing "+what+": "+p.Missing[what])
	}
	if len(p.Instead) > 0 {
		lines = append(lines, "would be granted: "+strings.Join(p.Instead, " "))
	}
	if p.DecisionID != "" {
		lines = append(lines, "decided by rule "+p.Rule+", "+p.DecisionID)
	}
	return strings.Join(append(lines, "See "+p.Type), "\n  ")
}

// Listener is one of the broker's that take an SVID.
type Listener int

// The listeners.
const (
	Workload Listener = iota
	Operator
)

func (l Listener) urls(e Environment) ([]string, error) {
	if l == Workload {
		return e.BrokerURLs()
	}
	at, err := e.OperatorURL()
	return []string{at}, err
}

// Client asks one broker. Close it in the end.
type Client struct {
	*Identity
	bases  []string
	http   *http.Client
	listed string // the SHA-256 of the operator's certificate that it comes with; "" for an SVID
}

// Open takes the caller's identity from the environment: at the operator listener the certificate in
// ERRAND_OPERATOR_CERT if that is set, and else the SPIFFE identity. It calls nobody yet. Errors: ErrConfig,
// ErrNoIdentity.
func Open(ctx context.Context, e Environment, at Listener) (*Client, error) {
	bases, err := at.urls(e)
	if err != nil {
		return nil, err
	}
	id, err := e.BrokerID()
	if err != nil {
		return nil, err
	}
	if at == Operator && e.HasCertificate() {
		return openCertificate(e, bases, id)
	}
	who, err := e.Identity(ctx)
	if err != nil {
		return nil, err
	}
	config, err := verifyspiffe.TLS(who, id.String())
	if err != nil {
		return nil, errors.Join(err, who.Release())
	}
	return &Client{Identity: who, bases: bases, http: overTLS(config)}, nil
}

// overTLS follows no redirect: that would be another place than the one that was named.
func overTLS(config *tls.Config) *http.Client {
	return &http.Client{
		Transport:     &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Close ends the connections and lets go of the identity.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return c.Release()
}

// Request is one question to the broker. Each may be sent again, to another replica.
type Request struct {
	Method, Path string
	Key          string // the Idempotency-Key
	Body         any    // nil: none
	EndKey       string // of the task, for the public listener; in no error and no log

	Stream bool // the answer is a stream of events, for Follow

	// Wait is how long the broker was asked to wait before it answers.
	Wait time.Duration

	// SecretFile has the value of the body's further member SecretMember. Curl has the shell read it, and
	// Send does not look at it.
	SecretMember, SecretFile string
}

// Send asks, decodes the answer into a value unless that is nil, and returns it as it came. Replicas that cannot be reached
// are passed over. Errors: *Refusal, ErrUnreachable.
func (c *Client) Send(ctx context.Context, r Request, into any) (text []byte, err error) {
	var body []byte
	if r.Body != nil {
		if body, err = json.Marshal(r.Body); err != nil {
			return nil, err
		}
	}
	var failed error
	for _, base := range c.bases {
		text, err := c.sendTo(ctx, base, r, body, into)
		if err == nil || !errors.Is(err, ErrUnreachable) || ctx.Err() != nil {
			return text, err
		}
		failed = joinLines(failed, err)
	}
	return nil, failed
}

func (c *Client) sendTo(ctx context.Context, base string, r Request, body []byte, into any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout+r.Wait)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, r.Method, strings.TrimSuffix(base, "/")+r.Path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", wire.TypeJSON)
	}
	if r.Key != "" {
		request.Header.Set(wire.HeaderIdempotencyKey, r.Key)
	}
	if r.EndKey != "" {
		request.Header.Set("Authorization", "EndKey "+r.EndKey)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.unreachable(err)
	}
	defer response.Body.Close()
	text, err := answer(response)
	if err != nil || into == nil {
		return text, err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return nil, fmt.Errorf("%w: what answers at %s is not the broker's listener: %w", ErrUnreachable, base, err)
	}
	return text, nil
}

// answer reads one to its end.
func answer(response *http.Response) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(response.Body, MaxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: its answer broke off: %v", ErrUnreachable, err)
	case len(text) > MaxAnswer:
		return nil, fmt.Errorf("%w: its answer has more than %d bytes", ErrUnreachable, MaxAnswer)
	}
	if response.StatusCode/100 != 2 {
		return nil, refusal(response, text)
	}
	return text, nil
}

func refusal(response *http.Response, text []byte) error {
	r := &Refusal{JSON: text}
	if response.Header.Get("Content-Type") != wire.TypeProblem || json.Unmarshal(text, &r.Problem) != nil || r.Problem.Type == "" {
		return fmt.Errorf("%w: what answers is not the broker's listener: %s", ErrUnreachable, response.Status)
	}
	return r
}

// Whoami asks the broker who the caller is.
func (c *Client) Whoami(ctx context.Context) (wire.Whoami, error) {
	var who wire.Whoami
	_, err := c.Send(ctx, Request{Method: http.MethodGet, Path: wire.PathWhoami}, &who)
	return who, err
}
