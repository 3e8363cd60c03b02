package sdk

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

const (
	// MaxAnswer is the longest body that is read from the broker, in bytes.
	MaxAnswer = 1 << 20

	patience   = 5 * time.Second // for one answer of one replica
	firstPause = 100 * time.Millisecond
	maxPause   = 2 * time.Second
	maxAdvised = 5 * time.Second // what is waited for because of a Retry-After

	maxRetryAfter = 24 * 60 * 60 // seconds, of what is told to the caller
)

// question is one request to the broker.
type question struct {
	method   string
	path     string
	key      string // Idempotency-Key
	body     any
	media    string        // of the body; wire.TypeJSON when empty
	patience time.Duration // for each replica; patience when zero
}

// pathOf puts an ID into one of wire's paths.
func pathOf(path, id string) string {
	return strings.Replace(path, "{id}", url.PathEscape(id), 1)
}

// ask sends a question to the replica that answered last, and to the others if that is not
// available. It reads the answer into out and returns the generation that the answer came over.
// Every question may be repeated. Errors: ErrNoIdentity, ErrUnavailable, ErrBrokerID when nobody who
// answers is the broker, *Error, or that of ctx.
func (c *Client) ask(ctx context.Context, q question, out any) (*generation, error) {
	g, err := c.links.use()
	if err != nil {
		return nil, err
	}
	var body []byte
	if q.body != nil {
		if body, err = json.Marshal(q.body); err != nil {
			return nil, fmt.Errorf("sdk: %w", err)
		}
	}
	if q.patience == 0 {
		q.patience = patience
	}
	var failed line
	first := int(c.preferred.Load())
	for i := range c.bases {
		n := (first + i) % len(c.bases)
		err := c.askOne(ctx, g, c.bases[n], q, body, out)
		if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrBrokerID) {
			if ctx.Err() == nil {
				c.preferred.Store(int32(n))
			}
			return g, err
		}
		failed = append(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	if len(failed) == 1 {
		return g, failed[0]
	}
	return g, failed
}

// askOne asks one replica. All that is not an answer to the question is ErrUnavailable, except that
// the caller has gone.
func (c *Client) askOne(ctx context.Context, g *generation, base *url.URL, q question, body []byte, out any) error {
	attempt, cancel := context.WithTimeoutCause(ctx, q.patience, fmt.Errorf("no answer in %s", q.patience))
	defer cancel()
	req, err := http.NewRequestWithContext(attempt, q.method, base.JoinPath(q.path).String(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("sdk: %w", err)
	}
	if q.body != nil {
		req.Header.Set("Content-Type", cmp.Or(q.media, wire.TypeJSON))
	}
	if q.key != "" {
		req.Header.Set(wire.HeaderIdempotencyKey, q.key)
	}
	req.Header.Set("Accept", wire.TypeJSON+", "+wire.TypeProblem)
	resp, err := g.broker.RoundTrip(req)
	var text []byte
	if err == nil {
		defer resp.Body.Close()
		text, err = io.ReadAll(io.LimitReader(resp.Body, MaxAnswer+1))
	}
	var other *impostor
	switch {
	case errors.As(err, &other):
		return fmt.Errorf("%s: %w", base.Host, other)
	case err != nil && errors.Is(ctx.Err(), context.Canceled):
		return context.Cause(ctx)
	case err != nil && attempt.Err() != nil:
		return fmt.Errorf("%w: %s: %w", ErrUnavailable, base.Host, context.Cause(attempt))
	case err != nil:
		return fmt.Errorf("%w: %s: %w", ErrUnavailable, base.Host, err)
	case len(text) > MaxAnswer:
		return fmt.Errorf("%w: %s: an answer of more than %d bytes", ErrUnavailable, base.Host, MaxAnswer)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return problem(resp, text)
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("%w: %s: an answer that cannot be read: %w", ErrUnavailable, base.Host, err)
	}
	return nil
}

// problem makes an Error of what is not a success, also when a proxy answered in its own words.
func problem(resp *http.Response, text []byte) *Error {
	var p wire.Problem
	// What cannot be read leaves the status, which is enough.
	if err := json.Unmarshal(text, &p); err != nil {
		p = wire.Problem{}
	}
	e := &Error{
		Status: resp.StatusCode, Type: p.Type, Title: p.Title, Detail: p.Detail, Field: p.Field,
		Decision: p.DecisionID, Rule: p.Rule, Missing: p.Missing, Instead: p.Instead,
		State: State(p.State), Cause: p.Cause, Request: p.RequestID,
	}
	if e.Title == "" {
		e.Title = http.StatusText(resp.StatusCode)
	}
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
		e.RetryAfter = time.Duration(min(n, maxRetryAfter)) * time.Second
	}
	return e
}

// again calls f until it answers something else than ErrUnavailable or ErrRateLimited, or ctx has
// ended. So many answers of ErrUnavailable as tries are the last word; zero is no bound. A broker that
// wants less of us has said when it takes more, and that is waited for as long as ctx lasts. When that
// is over, the error is the last answer there was, or else what came instead of one, and ctx's.
func again(ctx context.Context, tries int, f func() error) error {
	var last error
	for try, failed := 1, 0; ; try++ {
		err := f()
		switch {
		case ctx.Err() != nil && errors.Is(err, context.Cause(ctx)): // it was cut short
			if last == nil || answered(err) {
				return err
			}
			return line{last, err}
		case errors.Is(err, ErrRateLimited):
		case errors.Is(err, ErrUnavailable):
			if failed++; failed == tries {
				return err
			}
		default:
			return err
		}
		if answered(err) || !answered(last) {
			last = err
		}
		if over := sleep(ctx, pause(try, err)); over != nil {
			return line{last, over}
		}
	}
}

// answered reports whether the broker has said so.
func answered(err error) bool { return errors.As(err, new(*Error)) }

// pause doubles from try to try. It is between half and all of that at random, and not less than
// the broker has asked for.
func pause(try int, err error) time.Duration {
	d := min(maxPause, firstPause<<min(try-1, 10))
	d = d/2 + rand.N(d/2)
	var e *Error
	if errors.As(err, &e) {
		d = max(d, min(e.RetryAfter, maxAdvised))
	}
	return d
}
