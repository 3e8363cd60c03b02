package sdk

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
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

	Lease    time.Duration // the task ends when heartbeats are missing for so long; 30 s when zero, 5 s to 10 min
	Deadline time.Duration // from Begin, the task ends then whatever happens; 1 h when zero, 5 s to 24 h
}

// maxBegin bounds how long Begin tries when its context has no earlier end.
const maxBegin = 30 * time.Second

// Begin begins a task that the caller ends. Use it where the work is not one function call:
// defer task.Close() and call Complete on success. ctx bounds Begin alone, and the task has its
// values. A broker that is not available is tried again until ctx ends, for 30 s at most; however
// often it is tried, one task begins. Errors: *Error, ErrUnavailable, ErrNoIdentity, ErrQuota,
// ErrClosed.
func (c *Client) Begin(ctx context.Context, spec TaskSpec) (*Task, error) {
	return c.begin(ctx, context.WithoutCancel(ctx), spec)
}

// begin makes a task whose Context is a child of parent.
func (c *Client) begin(ctx, parent context.Context, spec TaskSpec) (*Task, error) {
	body := wire.BeginRequest{Name: spec.Name, Purpose: spec.Purpose, Audiences: spec.Audiences, Scopes: spec.Scopes}
	var err error
	if body.LeaseSeconds, err = seconds("Lease", spec.Lease); err != nil {
		return nil, err
	}
	if body.DeadlineSeconds, err = seconds("Deadline", spec.Deadline); err != nil {
		return nil, err
	}
	if err := c.reserve(); err != nil {
		return nil, err
	}
	key := rand.Text()
	answer, sent, tries, err := c.askBegin(ctx, key, body)
	if err != nil {
		c.unreserve()
		c.denied(ctx, err)
		if ctx.Err() != nil {
			c.abandon(key, body)
		}
		return nil, err
	}
	t := newTask(c, answer, sent, parent)
	if !c.adopt(t) {
		// Close came in between.
		_, err := t.end(context.WithoutCancel(ctx), Canceled, "the client was closed")
		return nil, errors.Join(fmt.Errorf("sdk: %w", ErrClosed), err)
	}
	if tries > 1 {
		// The lease may have begun with the first try, and have little left.
		_ = c.beat(ctx, []*Task{t}, patience)
	}
	t.watch()
	if err := t.ended(); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// abandon ends a task that may have begun although its caller has left: the same begin once more
// finds it, and if there is none its own is the one to end.
func (c *Client) abandon(key string, body wire.BeginRequest) {
	c.start(func() {
		answer, sent, _, err := c.askBegin(c.life, key, body)
		if err == nil {
			_ = newTask(c, answer, sent, c.life).Close()
		}
	})
}

// askBegin returns the moment before the first try, which is when the lease began at the earliest.
func (c *Client) askBegin(ctx context.Context, key string, body wire.BeginRequest) (answer wire.BeginResponse, sent instant, tries int, err error) {
	ctx, cancel := context.WithTimeout(ctx, maxBegin)
	defer cancel()
	q := question{method: http.MethodPost, path: wire.PathTasks, key: key, body: body}
	sent = c.clock()
	err = again(ctx, 0, func() error {
		tries++
		answer = wire.BeginResponse{}
		if _, err := c.ask(ctx, q, &answer); err != nil {
			return err
		}
		if answer.Task.ID == "" || answer.Task.LeaseSeconds <= 0 {
			return fmt.Errorf("%w: it has answered a begin without a task", ErrUnavailable)
		}
		return nil
	})
	return answer, sent, tries, err
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
func (c *Client) reserve() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != open {
		return fmt.Errorf("sdk: %w", ErrClosed)
	}
	if len(c.tasks)+c.beginning >= c.maxTasks {
		return fmt.Errorf("sdk: %w: at most %d tasks at once; end some first", ErrQuota, c.maxTasks)
	}
	c.beginning++
	return nil
}

func (c *Client) unreserve() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beginning--
}

// adopt takes the task into the heartbeats, unless the client is being closed.
func (c *Client) adopt(t *Task) bool {
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
	c.tasks[t] = struct{}{}
	nudge(c.wake)
	return true
}

// forget takes a task that is over out of the heartbeats.
func (c *Client) forget(t *Task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.tasks, t)
}
