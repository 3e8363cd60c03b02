package sdk

import (
	"context"
	"errors"
)

// Reasons of ends that have no class of error.
const (
	panicReason    = "panic"
	exitReason     = "runtime.Goexit"
	canceledReason = "context canceled"
	timeoutReason  = "context deadline exceeded"
)

// Do runs fn inside a task, and always ends the task before it returns: as completed when fn
// returns nil, as canceled when it returns an error and ctx has ended, as failed when it returns
// another error or panics. A panic continues. The end does not depend on ctx.
//
// The context that fn gets has the task (FromContext), and ends with ctx or as soon as the task is
// over for another reason; its cause is then ErrRevoked, ErrLeaseLost, ErrDeadline, ErrAdopted or ErrTaskEnded.
//
// The error is that of Begin, or fn's, joined with ErrEndUnconfirmed when the broker has not
// confirmed the end (the *EndError says by when the tokens are dead all the same), with ErrTaskEnded when
// somebody else had ended the task first, and with ErrAdopted when another process has adopted it: the task
// goes on then, and this end has not been made.
func (c *Client) Do(ctx context.Context, spec TaskSpec, fn func(context.Context, *Task) error) error {
	task, err := c.begin(ctx, ctx, origin{}, spec.or(c.defaults))
	if err != nil {
		return err
	}
	return task.do(ctx, fn)
}

// do runs fn in a task that has just begun, and ends it.
func (t *Task) do(ctx context.Context, fn func(context.Context, *Task) error) error {
	returned := false
	defer func() {
		if returned {
			return
		}
		p := recover()
		reason := panicReason
		if p == nil {
			reason = exitReason
		}
		// Nobody is left to be told; the client logs what is not confirmed.
		_, _ = t.endAs(context.WithoutCancel(ctx), Failed, reason, endOptions{wait: t.wait})
		if p != nil {
			panic(p) // from below the frames of the first one, so that its trace is whole
		}
	}()
	err := fn(NewContext(t.Context(), t), t)
	returned = true
	return t.finish(ctx, err)
}

// Run is Do for a function with a result. The result is fn's, also when the error is not nil.
func Run[T any](ctx context.Context, c *Client, spec TaskSpec, fn func(context.Context, *Task) (T, error)) (T, error) {
	var result T
	err := c.Do(ctx, spec, func(ctx context.Context, task *Task) (err error) {
		result, err = fn(ctx, task)
		return err
	})
	return result, err
}

// finish ends the task with what the work has returned. An end that fn has made itself stays.
func (t *task) finish(ctx context.Context, err error) error {
	state, reason := Completed, ""
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		state, reason = Canceled, timeoutReason
	case err != nil && ctx.Err() != nil:
		state, reason = Canceled, canceledReason
	case err != nil:
		state, reason = Failed, class(err)
	}
	t.mu.Lock()
	own := t.ending != nil
	t.mu.Unlock()
	var endErr error
	if own || !t.covered() {
		_, endErr = t.endAs(context.WithoutCancel(ctx), state, reason, endOptions{wait: t.wait})
	}
	// A receipt with another state: somebody else was first.
	if actual := t.current(); !own && endErr == nil && (actual != state || t.reason() == causeParent) {
		endErr = &endedError{t.id, actual, causeOf(actual, t.reason()), t.reason()}
	}
	switch {
	case endErr == nil:
		return err
	case err == nil:
		return endErr
	}
	return errors.Join(err, endErr)
}

func (t *task) reason() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.why
}
