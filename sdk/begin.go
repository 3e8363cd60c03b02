package sdk

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"runtime"
	"slices"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// TaskSpec says what a piece of work is for, and the most that it may ask for.
type TaskSpec struct {
	Name    string // the stable kind of work, as "nightly-invoice-export"; required
	Purpose string // why, for the audit log; required

	// The ceiling: tokens can only narrow it. Empty means what the policy allows.
	Audiences []string
	Scopes    []string

	// Details are authorization details (RFC 9396), and part of the ceiling: JSON objects, each with a
	// "type" that one of the audiences knows. Empty means none. At most 16.
	Details []json.RawMessage

	Ticket string            // a change or incident reference
	Ref    Ref               // what the task is in another system
	Labels map[string]string // for search; at most 16

	// Context is what the policy may look at when it decides, as the intent, the model, the name of
	// a tool. It is in the audit log with the decision, so it must have no secrets.
	Context map[string]any

	// Parent is a task of this workload that another process has begun, by its ID: this one is then a child
	// of it, as of Task.Child, and ends with it. Child and DoChild have a parent already.
	Parent string

	// Presence ends the task within two seconds when this process dies, or loses its connection to the broker,
	// instead of when its lease is over: it has then lapsed. A broker that stops or restarts ends nothing, unless the
	// client finds no replica that listens to it while the lease lasts, which heartbeats do not extend then. It is
	// for work that must not go on unattended; at most 256 such tasks of a client at once.
	Presence bool

	// WaitPropagated has Do and DoChild return only when the resource servers have confirmed the end, as the EndOption of that
	// name; for so long at most. What they have not confirmed is logged, and no error: the task has ended all the same.
	WaitPropagated time.Duration

	Lease    time.Duration // the task ends when heartbeats are missing for so long; 30 s when zero, 5 s to 10 min
	Deadline time.Duration // from Begin, the task ends then whatever happens; 1 h when zero, 5 s to 24 h

	// Tokens are asked for in the same request as the task, which begins with all of them or does not
	// begin; Token then finds them in memory. At most 16. Nil is the only token that the task can have
	// where it names one audience and one scope, and else none; for none in any case, give an empty
	// slice. So a task that uses one token takes two requests to the broker, its begin and its end.
	Tokens []TokenRequest
}

// Ref names an object in another system, so that whoever watches that can end the task:
// {Kind: "k8s/job", ID: "<uid>"}, {Kind: "github/run", ID: "8812/1"}.
type Ref struct {
	Kind, ID string // both, or neither
	URL      string // where people look at it; may be empty
}

// WithDefaults gives each task what its own TaskSpec leaves at zero, field by field: a lease, an
// audience, or a purpose that a whole program has.
func WithDefaults(spec TaskSpec) Option { return func(c *config) { c.defaults = spec } }

// or is the spec with the fields of defaults where it has none.
func (s TaskSpec) or(defaults TaskSpec) TaskSpec {
	into, from := reflect.ValueOf(&s).Elem(), reflect.ValueOf(defaults)
	for i := range into.NumField() {
		if into.Field(i).IsZero() {
			into.Field(i).Set(from.Field(i))
		}
	}
	return s
}

// firstTokens are what the task asks for when it begins.
func (s TaskSpec) firstTokens() (keys []slotKey, err error) {
	asks := s.Tokens
	if asks == nil && len(s.Audiences) == 1 && len(s.Scopes) == 1 {
		asks = []TokenRequest{{Audience: s.Audiences[0], Scopes: s.Scopes}}
	}
	for _, ask := range asks {
		key, err := ask.key()
		if err != nil {
			return nil, err
		}
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	return keys, nil
}

// maxBegin bounds how long Begin tries when its context has no earlier end.
const maxBegin = 30 * time.Second

// Begin begins a task that the caller ends. Use it where the work is not one function call:
// defer task.Close() and call Complete on success. ctx bounds Begin alone, and the task has its
// values. A broker that is not available is tried again until ctx ends, for 30 s at most; however
// often it is tried, one task begins. Errors: *Error, ErrUnavailable, ErrRateLimited, ErrNoIdentity,
// ErrQuota, ErrInvalid, ErrBrokerID, ErrClosed.
func (c *Client) Begin(ctx context.Context, spec TaskSpec) (*Task, error) {
	return c.begin(ctx, context.WithoutCancel(ctx), origin{}, spec.or(c.defaults))
}

// origin is where a task begins: below another one of this client, by a handle, or where its spec says.
type origin struct {
	above  *Task
	handle Handle
}

// begin makes a task whose Context is a child of base.
func (c *Client) begin(ctx, base context.Context, from origin, spec TaskSpec) (*Task, error) {
	keys, err := spec.firstTokens()
	if err != nil {
		return nil, err
	}
	body, err := spec.request(keys)
	if err != nil {
		return nil, err
	}
	if err := c.reserve(spec.Presence); err != nil {
		return nil, err
	}
	q := question{method: http.MethodPost, path: spec.path(), key: rand.Text(), body: body}
	if from.handle != "" {
		q.path, q.body = wire.PathJoins, wire.JoinRequest{Handle: string(from.handle), BeginRequest: body}
	}
	begun, err := c.askBegin(ctx, q)
	if err != nil {
		c.unreserve(spec.Presence)
		c.denied(ctx, err)
		if ctx.Err() != nil && begun.tries > 0 {
			c.abandon(q)
		}
		return nil, err
	}
	var up *task
	if from.above != nil {
		up = from.above.task
	}
	t := newTask(c, begun.answer, begun.first, base, up)
	t.purpose, t.parent, t.presence = spec.Purpose, spec.Parent, spec.Presence
	t.wait = spec.WaitPropagated
	if w := begun.answer.Task; from.handle != "" {
		t.purpose, t.parent = w.Purpose, parentIn(w.Path)
	}
	if !c.take(t) {
		return nil, t.tooLate(ctx)
	}
	t.join()
	t.keep(keys, begun)
	if begun.tries > 1 {
		// The lease may have begun with the first try, and have little left.
		_ = c.beat(ctx, []*task{t}, patience)
	}
	return t.hand(from.above)
}

// tooLate is for a task that has come when the client was being closed.
func (t *task) tooLate(ctx context.Context) error {
	_, err := t.end(context.WithoutCancel(ctx), Canceled, leavingReason)
	return errors.Join(fmt.Errorf("sdk: %w", ErrClosed), err)
}

// hand gives the task to the caller.
func (t *task) hand(above *Task) (*Task, error) {
	t.watch()
	if err := t.ended(); err != nil {
		return nil, errors.Join(err, t.close())
	}
	held := &Task{task: t, up: above}
	// The runtime's goroutine only leaves a mark, which the next heartbeat finds.
	runtime.AddCleanup(held, func(t *task) { t.dropped.Store(true) }, t)
	return held, nil
}

// path is where to ask for the task.
func (s TaskSpec) path() string {
	if s.Parent == "" {
		return wire.PathTasks
	}
	return pathOf(wire.PathTaskChildren, s.Parent)
}

// request is the spec as the broker wants it.
func (s TaskSpec) request(tokens []slotKey) (body wire.BeginRequest, err error) {
	body = wire.BeginRequest{Name: s.Name, Purpose: s.Purpose, Audiences: s.Audiences, Scopes: s.Scopes}
	body.AuthorizationDetails, body.Ticket, body.Labels = s.Details, s.Ticket, s.Labels
	body.Presence = s.Presence
	if s.Ref != (Ref{}) {
		ref := wire.Ref(s.Ref)
		body.Ref = &ref
	}
	if s.Context != nil {
		if body.Context, err = json.Marshal(s.Context); err != nil {
			return body, fmt.Errorf("sdk: %w: TaskSpec.Context is not JSON: %w", ErrInvalid, err)
		}
	}
	if _, err := compactDetails("TaskSpec.Details", s.Details); err != nil {
		return body, err
	}
	for _, key := range tokens {
		body.Tokens = append(body.Tokens, key.request())
	}
	if body.LeaseSeconds, err = seconds("Lease", s.Lease); err != nil {
		return body, err
	}
	body.DeadlineSeconds, err = seconds("Deadline", s.Deadline)
	return body, err
}

// keep puts the first tokens where Token finds them. One that cannot be used is asked for again there.
func (t *task) keep(keys []slotKey, begun begun) {
	if len(begun.answer.Tokens) != len(keys) {
		return // a repeated begin leaves out what has expired
	}
	for i, key := range keys {
		token, err := newToken(begun.answer.Tokens[i], begun.from, begun.last)
		if err != nil {
			t.client.log.Warn("errand: a first token cannot be used", "task", t.id, "audience", key.audience, "error", err)
			continue
		}
		// It is also the answer to who asks for its scopes by name, and, if it has all that the task
		// has, to who names none.
		also := []slotKey{key}
		if granted, err := (TokenRequest{Audience: key.audience, Scopes: token.Scopes, TTL: key.ttl}).key(); err == nil {
			granted.details = key.details
			also = append(also, granted)
			if all := begun.answer.Task; len(all.Audiences) == 1 && slices.Equal(all.Scopes, token.Scopes) {
				granted.scopes = ""
				also = append(also, granted)
			}
		}
		t.tokens.put(also, token, t.client.clock())
	}
}

// abandon ends a task that may have begun although its caller has left: the same begin once more
// finds it, and if there is none its own is the one to end.
func (c *Client) abandon(q question) {
	c.start(func() {
		begun, err := c.askBegin(c.life, q)
		if err == nil {
			_ = newTask(c, begun.answer, begun.first, c.life, nil).close()
		}
	})
}

// begun is the answer to a begin.
type begun struct {
	answer wire.BeginResponse
	from   *generation // whose connection it came over

	// The lease began with the first try at the earliest; what is said of the tokens counts from the
	// last one. Tries that came over the rate do not count: they have begun nothing.
	first, last instant
	tries       int
}

func (c *Client) askBegin(ctx context.Context, q question) (b begun, err error) {
	ctx, cancel := context.WithTimeout(ctx, maxBegin)
	defer cancel()
	err = again(ctx, 0, func() (err error) {
		b.last, b.answer = c.clock(), wire.BeginResponse{}
		if b.tries == 0 {
			b.first = b.last
		}
		if b.from, err = c.ask(ctx, q, &b.answer); !errors.Is(err, ErrRateLimited) {
			b.tries++
		}
		if err != nil {
			return err
		}
		if b.answer.Task.ID == "" || b.answer.Task.LeaseSeconds <= 0 {
			return fmt.Errorf("%w: it has answered a begin without a task", ErrUnavailable)
		}
		return nil
	})
	return b, err
}

// seconds is nil for zero, which is the default.
func seconds(field string, d time.Duration) (*int64, error) {
	if d == 0 {
		return nil, nil
	}
	if d < 0 || d%time.Second != 0 {
		return nil, fmt.Errorf("sdk: %w: %s is %s; it must be whole seconds, or zero for the default", ErrInvalid, field, d)
	}
	n := int64(d / time.Second)
	return &n, nil
}

// reserve keeps a place for a task that is about to come.
func (c *Client) reserve(presence bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != open {
		return fmt.Errorf("sdk: %w", ErrClosed)
	}
	if len(c.tasks)+len(c.leaks)+c.beginning >= c.maxTasks {
		return fmt.Errorf("sdk: %w: at most %d tasks at once; end some first", ErrQuota, c.maxTasks)
	}
	if presence && c.present >= wire.MaxFollowed {
		return fmt.Errorf("sdk: %w: at most %d tasks with presence at once; end some first", ErrQuota, wire.MaxFollowed)
	}
	c.beginning++
	if presence {
		c.present++
	}
	return nil
}

func (c *Client) unreserve(presence bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beginning--
	if presence {
		c.present--
	}
}

// notPresent gives a place for a task with presence back.
func (c *Client) notPresent() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.present--
}

// take takes the task into the heartbeats, unless the client is being closed.
func (c *Client) take(t *task) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beginning--
	if c.state != open {
		return false
	}
	at := c.clock().steady.Add(jitter(t.lease / beatsPerLease))
	if len(c.tasks) == 0 || at.Before(c.beatAt) {
		c.beatAt = at
	}
	if len(c.tasks) == 0 || t.presence {
		nudge(c.news)
	}
	c.tasks[t] = struct{}{}
	nudge(c.wake)
	return true
}

// forget takes a task that is over out of the heartbeats.
func (c *Client) forget(t *task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, open := c.tasks[t]
	_, leaked := c.leaks[t]
	if t.presence && (open || leaked) {
		c.present--
	}
	delete(c.tasks, t)
	delete(c.leaks, t)
}
