package sdk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/errandhq/errand/sdk/wire"
)

const (
	// endBudget and endTries bound what is tried before an end is reported as not confirmed.
	endBudget   = 5 * time.Second
	endTries    = 3
	endPatience = 1500 * time.Millisecond

	// confirmEvery and confirmAtMost are the pauses between rounds of later tries.
	confirmEvery  = time.Second
	confirmAtMost = 30 * time.Second

	maxReason     = 1024 // bytes
	maxClass      = 200  // bytes
	closeReason   = "closed without an end"
	leavingReason = "the client was closed"
)

// Receipt is the broker's statement about one end. It is evidence: the audit log has the same under
// Event.
type Receipt struct {
	Event    string
	Task     string
	State    State // how the task ended first, whoever called for it
	Cause    string
	Reason   string
	EndedAt  time.Time
	Grants   int    // issued under the task, ever
	SubTasks int    // begun under it, ever
	Feed     string // the position in the feed that has this end; "" while it is not Durable

	// Of an end with WaitPropagated. Propagated is true when each verifier that the broker knows of the task's audiences has confirmed
	// that it refuses the task's tokens; Confirmed is how many these are. Pending are those that had not by then, at most 100, and
	// those that will refuse last first. All are zero when nothing can be said, as while the end is not Durable.
	Propagated bool
	Confirmed  int
	Pending    []PendingVerifier

	// Durable is false when the broker could not reach its store: the tokens are dead at the replica
	// that has answered and at the verifiers that listen to it, and it brings the end into the store
	// by itself. Until then the end lives in that replica's memory alone. Should the task have ended
	// by itself before, then that is what the broker's records say in the end, under another event.
	Durable bool
}

// PendingVerifier is a resource server that has not confirmed an end yet.
type PendingVerifier struct {
	ID        string // of the instance: its verify.Status has it
	Workload  string // its SPIFFE ID
	Audience  string
	RefusesAt time.Time // from then on it refuses by itself, if it hears nothing; by the broker's clock
}

// ending is the one end of a task.
type ending struct {
	request wire.EndRequest
	done    chan struct{} // closed when receipt and err are there
	receipt Receipt
	err     error   // of the first tries; guarded by the task's mu once done is closed
	parts   []*task // children that are over with the task, until it is known that it has ended; guarded by its mu
}

// Complete says that the work is done. All three ends kill every token of the task, and of tasks
// below it. The first one wins, and all calls return its receipt. ctx bounds only the wait: the end
// goes on without it. The error is an *EndError (ErrEndUnconfirmed) when the broker has not
// confirmed the end in 5 s; the client then goes on trying until it is closed. Or it is ErrAdopted: another
// process holds the task, and nothing has ended.
func (t *Task) Complete(ctx context.Context, opts ...EndOption) (Receipt, error) {
	return t.endAs(ctx, Completed, "", optionsOf(opts))
}

// Fail says that the work has failed. What the broker learns of cause is its Go type, or what its
// Class() string method returns; never its text, which may hold anything, unless WithErrorText says
// so. See Complete.
func (t *Task) Fail(ctx context.Context, cause error, opts ...EndOption) (Receipt, error) {
	o := optionsOf(opts)
	reason := class(cause)
	if o.errorText && cause != nil {
		reason += ": " + cause.Error()
	}
	return t.endAs(ctx, Failed, reason, o)
}

// EndOption changes how a task ends.
type EndOption func(*endOptions)

type endOptions struct {
	errorText bool
	wait      time.Duration
}

func optionsOf(opts []EndOption) (o endOptions) {
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// WithErrorText sends the text of the error after its kind, in at most 1024 bytes of both. It goes
// into the audit log: use it where you know what the text holds. In Do, call Fail with it yourself
// and return the error; the first end stays.
func WithErrorText() EndOption { return func(o *endOptions) { o.errorText = true } }

// WaitPropagated has the call return only when every verifier of the task's audiences has confirmed the end, or refuses by
// itself; or d has passed, rounded up to seconds and at most 30 s. The receipt then says who has. The end itself is as quick as
// ever, and does not fail when this does. In Do, see TaskSpec.WaitPropagated.
func WaitPropagated(d time.Duration) EndOption { return func(o *endOptions) { o.wait = d } }

// Cancel says that the work is not wanted any more, and why, in at most 1024 bytes. See Complete.
func (t *Task) Cancel(ctx context.Context, reason string, opts ...EndOption) (Receipt, error) {
	return t.endAs(ctx, Canceled, reason, optionsOf(opts))
}

// endAs ends the task, and waits for what the verifiers say if it is to.
func (t *task) endAs(ctx context.Context, s State, reason string, o endOptions) (Receipt, error) {
	receipt, err := t.end(ctx, s, reason)
	if err != nil || o.wait <= 0 || !receipt.Durable {
		return receipt, err
	}
	return t.propagate(ctx, receipt, o.wait), nil
}

// propagate asks for the same end once more, and waits with the answer: an end that is in force must not be late because
// somebody wants to know who has heard of it.
func (t *task) propagate(ctx context.Context, r Receipt, wait time.Duration) Receipt {
	t.mu.Lock()
	body := t.ending.request
	t.mu.Unlock()
	wait = min(wait, wire.MaxWait*time.Second)
	body.EndKey, body.WaitSeconds = t.endKey(), int((wait+time.Second-1)/time.Second)
	q := question{method: http.MethodPost, path: pathOf(wire.PathTaskEnd, t.id), body: body, patience: time.Duration(body.WaitSeconds)*time.Second + endPatience}
	ctx, cancel := context.WithTimeout(ctx, q.patience)
	defer cancel()
	var answer wire.Receipt
	err := again(ctx, endTries, func() error {
		answer = wire.Receipt{}
		_, err := t.client.ask(ctx, q, &answer)
		return err
	})
	if err != nil || answer.Task != t.id || answer.Propagation == nil {
		t.client.log.Warn("errand: nobody can say which verifiers have confirmed the end of a task", "task", t.id, "error", err)
		return r
	}
	p := answer.Propagation
	r.Confirmed, r.Propagated = p.Confirmed, len(p.Pending) == 0 && p.Others == 0
	for _, v := range p.Pending {
		r.Pending = append(r.Pending, PendingVerifier(v))
	}
	if !r.Propagated {
		t.client.log.Warn("errand: not every verifier has confirmed the end of a task", "task", t.id, "confirmed", r.Confirmed,
			"pending", len(p.Pending)+p.Others, "last_to_refuse", r.Pending[:min(1, len(r.Pending))])
	}
	return r
}

// Close cancels the task unless it has ended. It is for defer.
func (t *Task) Close() error { return t.close() }

func (t *task) close() error {
	t.mu.Lock()
	own := t.ending != nil
	t.mu.Unlock()
	if own || t.covered() {
		return nil
	}
	_, err := t.end(context.Background(), Canceled, closeReason)
	return err
}

// end begins the end, if nobody has, and waits for it.
func (t *task) end(ctx context.Context, s State, reason string) (Receipt, error) {
	t.mu.Lock()
	e := t.ending
	first := e == nil
	if first {
		e = &ending{request: wire.EndRequest{Outcome: string(s), Reason: cut(reason, maxReason), Holder: t.holder}, done: make(chan struct{})}
		t.ending = e
	}
	t.mu.Unlock()
	if first {
		t.client.settling(t, e)
		t.over(s, ErrTaskEnded, false)
		if !t.client.start(func() { t.settle(e) }) {
			e.err = fmt.Errorf("sdk: %w", ErrClosed)
			t.client.settled(t)
			close(e.done)
		}
	}
	select {
	case <-e.done:
		t.mu.Lock()
		defer t.mu.Unlock()
		return e.receipt, e.err
	case <-ctx.Done():
		return Receipt{}, &EndError{t.id, t.by(), context.Cause(ctx)}
	}
}

// settle tells the broker. What it does not confirm is left to the confirmations.
func (t *task) settle(e *ending) {
	ctx, cancel := context.WithTimeout(t.client.life, endBudget)
	defer cancel()
	receipt, err := t.askEnd(ctx, e, endTries)
	t.mu.Lock()
	known := t.known
	t.mu.Unlock()
	if errors.Is(err, ErrAdopted) {
		e.endParts(t)
	}
	if known || settles(err) {
		t.client.settled(t)
	} else {
		err = &EndError{t.id, t.by(), err}
	}
	t.tell(t.current(), receipt, err)
	t.mu.Lock()
	e.receipt, e.err = receipt, err
	t.mu.Unlock()
	close(e.done)
	if errors.Is(err, ErrEndUnconfirmed) {
		t.client.log.Warn("errand: the end of a task is not confirmed yet", "task", t.id, "error", err)
		nudge(t.client.late)
	}
}

// askEnd tells the broker, up to so many times, and takes over the state of its receipt.
func (t *task) askEnd(ctx context.Context, e *ending, tries int) (Receipt, error) {
	body := e.request
	body.EndKey = t.endKey()
	q := question{method: http.MethodPost, path: pathOf(wire.PathTaskEnd, t.id), body: body, patience: endPatience}
	var answer wire.Receipt
	err := again(ctx, tries, func() error {
		answer = wire.Receipt{}
		if err := t.elsewhere(); err != nil {
			return err
		}
		if _, err := t.client.ask(ctx, q, &answer); err != nil {
			return err
		}
		if answer.Task != t.id || State(answer.State) == Active || answer.State == "" {
			return fmt.Errorf("%w: it has answered an end with the receipt of something else", ErrUnavailable)
		}
		return nil
	})
	if errors.Is(err, ErrAdopted) {
		t.overBy(Adopted, "")
	}
	if err != nil {
		return Receipt{}, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state, t.known, t.why = State(answer.State), true, answer.Cause
	e.parts = nil
	return Receipt{
		Event: answer.Event, Task: answer.Task, State: State(answer.State), Cause: answer.Cause, Reason: answer.Reason,
		EndedAt: answer.EndedAt, Grants: answer.Grants, SubTasks: answer.SubTasks, Feed: answer.Feed, Durable: answer.Durable,
	}, nil
}

// settling keeps an end until it is settled.
func (c *Client) settling(t *task, e *ending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ends[t] = e
}

// settled forgets an end about which there is nothing more to ask.
func (c *Client) settled(t *task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ends, t)
}

// confirmations tries the unconfirmed ends again until the client is closed.
func (c *Client) confirmations() {
	wait := confirmEvery
	for {
		select {
		case <-c.life.Done():
			return
		case <-c.late:
		}
		for len(c.pending()) > 0 {
			if sleep(c.life, jitter(wait)) != nil {
				return
			}
			if wait = min(2*wait, confirmAtMost); c.confirm(c.life) {
				wait = confirmEvery
			}
		}
	}
}

// unsettled returns the ends that are still to be confirmed.
func (c *Client) unsettled() map[*task]*ending {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.ends)
}

// pending returns those of them that the first tries have not settled.
func (c *Client) pending() map[*task]*ending {
	all := c.unsettled()
	maps.DeleteFunc(all, func(_ *task, e *ending) bool {
		select {
		case <-e.done:
			return false
		default:
			return true
		}
	})
	return all
}

// confirm tries each unconfirmed end once, up to the first that the broker has no time for. It reports whether
// none is left of those that there were.
func (c *Client) confirm(ctx context.Context) bool {
	all := true
	for t, e := range c.pending() {
		receipt, err := t.askEnd(ctx, e, 1)
		if !settles(err) {
			all = false
			if errors.Is(err, ErrUnavailable) || errors.Is(err, ErrRateLimited) {
				return false
			}
			continue
		}
		if errors.Is(err, ErrAdopted) {
			e.endParts(t)
		}
		t.mu.Lock()
		e.receipt, e.err = receipt, err
		t.mu.Unlock()
		c.settled(t)
		c.log.Info("errand: the end of a task is settled after all", "task", t.id, "state", t.current())
	}
	return all
}

// enders is how many tasks Close ends at the same time.
const enders = 16

// errLeft is why an end that Close has left behind is not confirmed.
const errLeft = sentinel("the client was closed first")

// endAll ends what is open, and returns an error for each end that is not confirmed.
func (c *Client) endAll(ctx context.Context) error {
	tasks := c.unended()
	places := make(chan struct{}, enders)
	for _, t := range tasks {
		places <- struct{}{}
		go func() {
			defer func() { <-places }()
			_, _ = t.end(ctx, Canceled, leavingReason)
		}()
	}
	for range enders {
		places <- struct{}{}
	}
	c.awaitEnds(ctx) // others may have begun one just before
	c.confirm(ctx)
	c.awaitEnds(ctx) // of parts of what was adopted
	var failed []error
	for t := range c.unsettled() {
		failed = append(failed, &EndError{t.id, t.by(), errLeft})
	}
	return errors.Join(failed...)
}

// awaitEnds waits until the first tries of all ends are over.
func (c *Client) awaitEnds(ctx context.Context) {
	for _, e := range c.unsettled() {
		select {
		case <-e.done:
		case <-ctx.Done():
		}
	}
}

// unended returns the tasks that are open, also those that nobody has any more, less those that end
// with another one of them.
func (c *Client) unended() []*task {
	c.mu.Lock()
	defer c.mu.Unlock()
	open := maps.Clone(c.tasks)
	maps.Copy(open, c.leaks)
	return slices.DeleteFunc(slices.Collect(maps.Keys(open)), func(t *task) bool {
		_, goes := open[t.above]
		return goes
	})
}

// class is what may be told of an error: the kind that it says it is, or its type below wrappers
// that say nothing.
func class(err error) string {
	var kind interface{ Class() string }
	switch {
	case err == nil:
		return ""
	case errors.As(err, &kind):
		return cut(kind.Class(), maxClass)
	}
	for {
		name := fmt.Sprintf("%T", err)
		inner := errors.Unwrap(err)
		if name != "*fmt.wrapError" || inner == nil {
			return cut(name, maxClass)
		}
		err = inner
	}
}

// cut shortens a text to so many bytes of valid UTF-8.
func cut(s string, limit int) string {
	s = strings.ToValidUTF8(s, "")
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}
