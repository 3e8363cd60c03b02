package sdk

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

const (
	// beatsPerLease is how often the shortest lease is renewed before it is over.
	beatsPerLease = 3
	// maxBatch is how many tasks go into one request: as many as the broker takes.
	maxBatch = wire.MaxHeartbeat
	// beatAgain is the pause after a heartbeat that failed, and the least that one is waited for.
	beatAgain = time.Second
)

// heartbeats renews the leases of all tasks until the client is closed.
func (c *Client) heartbeats() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if wait, ok := c.untilBeat(); ok {
			timer.Reset(wait)
			due = timer.C
		}
		select {
		case <-c.life.Done():
			return
		case <-c.wake:
		case <-due:
			_ = c.beatAll() // it is in the log, and tried again
		}
	}
}

// untilBeat is how long there is to the next heartbeat, and false when there is no task.
func (c *Client) untilBeat() (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.beatAt.Sub(c.clock().steady), len(c.tasks) > 0
}

// beatAll sends the heartbeats of all tasks and plans the next.
func (c *Client) beatAll() error {
	start := c.clock().steady
	c.reportLeaks()
	tasks, interval := c.beating()
	var err error
	for len(tasks) > 0 && err == nil {
		n := min(len(tasks), maxBatch)
		err = c.beat(c.life, tasks[:n], min(patience, max(beatAgain, interval/beatsPerLease)))
		tasks = tasks[n:]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.beatAt = start.Add(jitter(interval)); err != nil {
		soon := min(beatAgain, interval/beatsPerLease)
		var e *Error
		if errors.Is(err, ErrRateLimited) && errors.As(err, &e) {
			soon = max(soon, min(e.RetryAfter, interval)) // the lease has room for one that comes later
		}
		c.beatAt = c.clock().steady.Add(jitter(soon))
	}
	return err
}

// beating returns the tasks and a third of the shortest lease.
func (c *Client) beating() (tasks []*task, interval time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for t := range c.tasks {
		tasks = append(tasks, t)
		if third := t.lease / beatsPerLease; interval == 0 || third < interval {
			interval = third
		}
	}
	return tasks, interval
}

// reportLeaks stops the heartbeats of tasks that nobody has any more, and that nobody has ended.
func (c *Client) reportLeaks() {
	c.mu.Lock()
	var leaked []*task
	for t := range c.tasks {
		if t.dropped.Load() {
			leaked = append(leaked, t)
			delete(c.tasks, t)
			c.leaks[t] = struct{}{}
		}
	}
	c.mu.Unlock()
	for _, t := range leaked {
		c.log.Error("errand: a task was dropped without an end; its heartbeats stop, and it lapses. Call Complete, Fail or Cancel, and defer Close", "task", t.id, "lease", t.lease)
		if c.hooks.OnLeak != nil {
			c.hooks.OnLeak(context.WithoutCancel(t.life), t.id)
		}
	}
}

// beat sends one heartbeat for at most maxBatch tasks, and ends those that the broker says are over.
func (c *Client) beat(ctx context.Context, tasks []*task, patience time.Duration) error {
	body, room := wire.HeartbeatRequest{}, maxNotes
	if slices.ContainsFunc(tasks, func(t *task) bool { return t.presence }) {
		body.Stream = c.streamOpen()
	}
	for _, t := range tasks {
		t.beatBegins()
		room -= len(strconv.Itoa(t.holder)) - 1
		body.Tasks = append(body.Tasks, wire.HeartbeatTask{ID: t.id, Note: t.takeNote(&room), Holder: t.holder})
	}
	sent := c.clock()
	var answer wire.HeartbeatResponse
	_, err := c.ask(ctx, question{method: http.MethodPost, path: wire.PathHeartbeats, body: body, patience: patience}, &answer)
	got := c.clock()
	pulses := map[string][]wire.Pulse{} // more than one of a task that this client has just adopted from itself
	if err == nil {
		for _, pulse := range answer.Tasks {
			pulses[pulse.ID] = append(pulses[pulse.ID], pulse)
		}
	}
	for i, t := range tasks {
		t.beatEnds(got)
		if err == nil || errors.Is(err, ErrInvalid) { // a note that the broker does not take must not stop the heartbeats
			t.dropNote(body.Tasks[i].Note)
		}
		if of := pulses[t.id]; len(of) > 0 {
			t.feel(of[0], sent, !t.presence || body.Stream != "")
			pulses[t.id] = of[1:]
		}
	}
	if c.hooks.OnHeartbeat != nil {
		c.hooks.OnHeartbeat(ctx, len(tasks), got.steady.Sub(sent.steady), err)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		c.log.Warn("errand: heartbeat failed", "tasks", len(tasks), "error", err)
	}
	return err
}
