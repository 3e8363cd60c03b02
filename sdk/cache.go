package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

const (
	// MaxCached bounds the tokens that one task keeps in memory.
	MaxCached = 256

	issueTries   = 3
	issueBudget  = 10 * time.Second
	refreshAgain = time.Second // after a renewal that failed while the old token was still good
	rejectAgain  = time.Second // between tokens that are asked for since a server has refused the one before
)

// TokenRequest narrows the task's ceiling to what one call needs.
type TokenRequest struct {
	Audience string            // required
	Scopes   []string          // none: those of the task's that the audience knows
	Details  []json.RawMessage // each says the same as one of the task's; none: none
	TTL      time.Duration     // the most that the token lives; 60 s when zero, whole seconds; the policy may shorten it
	Fresh    bool              // pass over the tokens in memory
}

// cache has the tokens of one task.
type cache struct {
	mu    sync.Mutex
	slots map[slotKey]*slot
}

// slotKey is what makes tokens interchangeable.
type slotKey struct {
	audience string
	scopes   string // sorted, once each
	details  string // a JSON list, sorted, once each; "" for none
	ttl      time.Duration
}

// slot has the tokens of one key: the one in use, and the request for the next.
type slot struct {
	token  *Token
	flight *flight
	hold   time.Time // no renewal before, by the steady clock
	bear   time.Time // likewise, no replacement of a token that a server has refused
}

// flight is one request that all callers wait for.
type flight struct {
	from  *generation
	done  chan struct{}
	token *Token
	err   error
}

// Token returns a token. One that is in memory and good for a while is handed out at once; it is
// renewed in the background after two thirds of its life, and in its last tenth callers wait for
// the new one. Callers that want the same share one request. Once the task has ended, the error is
// always ErrTaskEnded, or ErrAdopted when another process has it. Other errors: *Error, ErrUnavailable,
// ErrRateLimited, ErrNoIdentity, and that of ctx.
func (t *Task) Token(ctx context.Context, req TokenRequest) (*Token, error) {
	start := t.client.clock()
	if err := t.alive(ctx); err != nil {
		return nil, err
	}
	key, err := req.key()
	if err != nil {
		return nil, err
	}
	token, cached, err := t.obtain(ctx, key, req.Fresh)
	// It may have ended in the meantime.
	if ended := t.ended(); ended != nil {
		return nil, ended
	}
	if err != nil {
		t.client.denied(ctx, err)
		return nil, err
	}
	if hook := t.client.hooks.OnIssue; hook != nil {
		hook(ctx, token, cached, t.client.clock().steady.Sub(start.steady))
	}
	return token, nil
}

func (r TokenRequest) key() (slotKey, error) {
	if r.Audience == "" {
		return slotKey{}, fmt.Errorf("sdk: %w: TokenRequest.Audience is empty; a token is for one audience", ErrInvalid)
	}
	if _, err := seconds("TokenRequest.TTL", r.TTL); err != nil {
		return slotKey{}, err
	}
	scopes := slices.Compact(slices.Sorted(slices.Values(r.Scopes)))
	for _, scope := range scopes {
		if scope == "" || strings.ContainsAny(scope, " \t\r\n") {
			return slotKey{}, fmt.Errorf("sdk: %w: TokenRequest.Scopes has %q; each is one word", ErrInvalid, scope)
		}
	}
	details, err := compactDetails("TokenRequest.Details", r.Details)
	return slotKey{r.Audience, strings.Join(scopes, " "), details, r.TTL}, err
}

// compactDetails writes details as one JSON list, in an order of its own, and "" for none.
func compactDetails(field string, list []json.RawMessage) (string, error) {
	if len(list) == 0 {
		return "", nil
	}
	var texts []string
	for _, detail := range list {
		text, err := json.Marshal(detail)
		if err != nil {
			return "", fmt.Errorf("sdk: %w: %s has something that is not JSON: %w", ErrInvalid, field, err)
		}
		texts = append(texts, string(text))
	}
	slices.Sort(texts)
	return "[" + strings.Join(slices.Compact(texts), ",") + "]", nil
}

// request is the key as the broker wants it.
func (k slotKey) request() wire.TokenRequest {
	body := wire.TokenRequest{Audience: k.audience, Scopes: strings.Fields(k.scopes)}
	if k.details != "" {
		_ = json.Unmarshal([]byte(k.details), &body.AuthorizationDetails) // it was written by compactDetails
	}
	if k.ttl > 0 {
		n := int64(k.ttl / time.Second)
		body.TTLSeconds = &n
	}
	return body
}

// obtain takes a token from memory, or waits for one.
func (t *task) obtain(ctx context.Context, key slotKey, fresh bool) (token *Token, cached bool, err error) {
	g, err := t.client.links.use()
	if err != nil {
		return nil, false, err
	}
	token, f := t.tokens.pick(t, key, g, fresh)
	if token != nil {
		return token, true, nil
	}
	select {
	case <-f.done:
		return f.token, false, f.err
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
}

// pick returns a token that can be presented, or the request to wait for.
func (c *cache) pick(t *task, key slotKey, g *generation, fresh bool) (*Token, *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := t.client.clock()
	s := c.slot(key, now)
	if !fresh && s.token != nil && s.token.presentable(now, g) {
		if s.token.due(now, g) && s.flight == nil && !now.steady.Before(s.hold) {
			c.launch(t, key, s, g)
		}
		return s.token, nil
	}
	// A request that was made with another SVID brings a token for that one.
	if s.flight == nil || s.flight.from.leaf != g.leaf {
		c.launch(t, key, s, g)
	}
	return nil, s.flight
}

// put keeps a token that came with the task.
func (c *cache) put(keys []slotKey, token *Token, now instant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range keys {
		c.slot(key, now).token = token
	}
}

// slot finds the key's slot, or makes room for it.
func (c *cache) slot(key slotKey, now instant) *slot {
	if s := c.slots[key]; s != nil {
		return s
	}
	s := &slot{}
	if len(c.slots) < MaxCached || c.evict(now) {
		c.slots[key] = s
	}
	return s
}

// evict drops the token that has the least life left. It returns false when all slots wait for one.
func (c *cache) evict(now instant) bool {
	var oldest slotKey
	found, least := false, time.Duration(0)
	for key, s := range c.slots {
		if s.flight != nil || s.token == nil {
			continue
		}
		if left := s.token.life - s.token.age(now); !found || left < least {
			found, oldest, least = true, key, left
		}
	}
	if found {
		delete(c.slots, oldest)
	}
	return found
}

// launch asks for a token on behalf of everybody who waits for the slot. The caller holds mu.
func (c *cache) launch(t *task, key slotKey, s *slot, g *generation) {
	f := &flight{from: g, done: make(chan struct{})}
	s.flight = f
	fly := func() {
		f.token, f.err = t.issue(key)
		if c.land(t, key, s, f) {
			t.client.log.Warn("errand: a token was not renewed; the old one is used while it lasts", "task", t.id, "audience", key.audience, "error", f.err)
		}
		close(f.done)
	}
	if !t.client.start(fly) {
		f.err = fmt.Errorf("sdk: %w", ErrClosed)
		s.flight = nil
		close(f.done)
	}
}

// land puts what a flight has brought into its slot. It reports whether that was nothing, and an
// older token is there still.
func (c *cache) land(t *task, key slotKey, s *slot, f *flight) (behind bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.flight == f {
		s.flight = nil
	}
	switch {
	case f.err == nil:
		s.token = f.token
	case s.token == nil && s.flight == nil && c.slots[key] == s:
		delete(c.slots, key)
	case s.token != nil:
		s.hold = t.client.clock().steady.Add(refreshAgain)
		return true
	}
	return false
}

// reject forgets a token that a server has refused, and no other: of a hundred callers that were
// refused with the same one, the first makes room for the next. It reports whether there is another to be
// had: a server that refuses everything must not use up what the broker has for this workload.
func (c *cache) reject(key slotKey, grant string, now instant) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.slots[key]
	if s == nil || s.token == nil || s.token.GrantID != grant {
		return true
	}
	if now.steady.Before(s.bear) {
		return false
	}
	s.token, s.bear = nil, now.steady.Add(rejectAgain)
	return true
}

// clear forgets all tokens.
func (c *cache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.slots)
}

// issue asks the broker for a token. It does not depend on the caller, who may leave.
func (t *task) issue(key slotKey) (*Token, error) {
	ctx, cancel := context.WithTimeout(t.life, issueBudget)
	defer cancel()
	stop := context.AfterFunc(t.client.life, cancel)
	defer stop()
	body := key.request()
	var token *Token
	err := again(ctx, issueTries, func() error {
		sent := t.client.clock()
		var answer wire.TokenResponse
		from, err := t.client.ask(ctx, question{method: http.MethodPost, path: pathOf(wire.PathTaskTokens, t.id), body: body}, &answer)
		if err != nil {
			return err
		}
		if token, err = newToken(answer, from, sent); err == nil && token.old(t.client.clock()) {
			err = fmt.Errorf("%w: its token was too old when it came", ErrUnavailable)
		}
		return err
	})
	var e *Error
	switch {
	case errors.Is(err, ErrNotFound):
		t.overBy(Unknown, "")
	case errors.Is(err, ErrTaskEnded) && errors.As(err, &e):
		t.overBy(e.State, e.Cause)
	}
	if err != nil {
		return nil, err
	}
	return token, nil
}
