package sdk

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// Adopt takes over a task that another process of this workload has begun: a supervisor from a worker that has
// died, or the other way round. From then on this client looks after it, and ends it; the one before learns
// that from its stream of events, or its next heartbeat. There its Context ends with ErrAdopted, it gets no
// tokens any more, and nothing that it does ends the task: neither the return of Do, nor Close, nor an end that
// is still to be confirmed. Tokens that are out stay good. What the one before has begun below the task goes on
// there, until it or the task is ended.
//
// It must come before the lease of the task is over, of which it then has a whole one, or with presence five
// seconds until the stream is there. The task has no parent in this client, whatever its Parent. ctx bounds
// Adopt alone; if it ends before there is an answer, the task may be nobody's, and lapses unless it is adopted
// again. Errors: as of Begin; ErrNotFound for a task of another workload, ErrTaskEnded for one that is over.
func (c *Client) Adopt(ctx context.Context, taskID string) (*Task, error) {
	if taskID == "" {
		return nil, fmt.Errorf("sdk: %w: the task's ID is empty", ErrInvalid)
	}
	if err := c.reserve(true); err != nil { // it may have presence
		return nil, err
	}
	begun, err := c.askAdopt(ctx, taskID)
	if err != nil {
		c.unreserve(true)
		c.denied(ctx, err)
		return nil, err
	}
	w := begun.answer.Task
	t := newTask(c, begun.answer, begun.last, context.WithoutCancel(ctx), nil)
	t.deadline = begun.last.steady.Add(w.Deadline.Sub(adoptedAt(w)))
	t.purpose, t.parent, t.presence = w.Purpose, parentIn(w.Path), w.Presence
	if !t.presence {
		c.notPresent()
	}
	if !c.take(t) {
		return nil, t.tooLate(ctx)
	}
	c.displace(t)
	return t.hand(nil)
}

// askAdopt may adopt the task more than once; the last answer is the one that counts.
func (c *Client) askAdopt(ctx context.Context, id string) (begun, error) {
	begun, err := c.askBegin(ctx, question{method: http.MethodPost, path: pathOf(wire.PathTaskAdopt, id)})
	if w := begun.answer.Task; err == nil && (w.ID != id || w.Holder < 2) {
		return begun, fmt.Errorf("%w: it has answered an adoption with something else", ErrUnavailable)
	}
	return begun, err
}

// attachTime is how long a task with presence may be without a stream at first.
const attachTime = 5 * time.Second

// adoptedAt is when the broker has answered, by its clock: its lease began then.
func adoptedAt(w wire.Task) time.Time {
	lease := time.Duration(w.LeaseSeconds) * time.Second
	if w.Presence {
		lease = min(lease, attachTime)
	}
	return w.LeaseExpiresAt.Add(-lease)
}

// parentIn is the last but one of a path.
func parentIn(path []string) string {
	if len(path) < 2 {
		return ""
	}
	return path[len(path)-2]
}

// displace is for a client that has adopted a task from itself: of several Tasks of one ID, the last holder's
// is the one.
func (c *Client) displace(t *task) {
	c.mu.Lock()
	var same []*task
	last := t.holder
	for other := range c.tasks {
		if other.id == t.id {
			same = append(same, other)
			last = max(last, other.holder)
		}
	}
	c.mu.Unlock()
	for _, other := range same {
		if other.holder < last {
			other.overBy(Adopted, "")
		}
	}
}

// name is what the task is followed by: whoever held it is told when somebody else adopts it.
func (t *task) name() string {
	if t.holder == 0 {
		return t.id
	}
	return fmt.Sprintf("%s:%d", t.id, t.holder)
}

// elsewhere returns nil unless another process holds the task.
func (t *task) elsewhere() error {
	if t.current() != Adopted {
		return nil
	}
	return t.ended()
}

const elsewhereReason = "the task above was to end, and has been adopted"

// endParts ends what was over with the task for this client alone, since the task goes on: whoever adopts it
// does not know of that.
func (e *ending) endParts(t *task) {
	t.mu.Lock()
	parts := e.parts
	e.parts = nil
	t.mu.Unlock()
	now, cancel := context.WithCancel(context.Background())
	cancel() // nobody waits for it
	for _, part := range parts {
		_, _ = part.end(now, Canceled, elsewhereReason)
	}
}

// settles reports whether there is nothing more to ask about an end.
func settles(err error) bool {
	return err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrAdopted)
}
