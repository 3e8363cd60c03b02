package sdk

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// State of a task. All but Active are final.
type State string

// The states. Unknown is a task that the broker does not know (any more).
const (
	Active    State = wire.StateActive
	Completed State = wire.StateCompleted
	Failed    State = wire.StateFailed
	Canceled  State = wire.StateCanceled
	Lapsed    State = wire.StateLapsed  // heartbeats stopped
	Expired   State = wire.StateExpired // deadline
	Revoked   State = wire.StateRevoked // by an operator
	Unknown   State = wire.StateUnknown
)

// causeOf is the cause that goes with a final state.
func causeOf(s State) error {
	switch s {
	case Revoked:
		return ErrRevoked
	case Lapsed:
		return ErrLeaseLost
	case Expired:
		return ErrDeadline
	}
	return ErrTaskEnded
}

// Task is one live piece of work. It is safe for concurrent use, and its heartbeats are sent by the
// client.
type Task struct {
	client   *Client
	id, root string
	lease    time.Duration
	deadline time.Time // by the steady clock

	// A func, as of a Token, since a text could be printed by reflection.
	endKey func() string

	ctx    context.Context // for the caller; ends with the parent's, too
	life   context.Context // ends with the task alone
	cancel func(cause error)
	tokens cache

	mu      sync.Mutex // guards what follows
	state   State
	cause   error   // nil while the task is active
	known   bool    // the broker has said itself that the task is over
	renewed instant // when the last good heartbeat was sent
	touched time.Time
	beats   int // heartbeats on their way
	alarm   *time.Timer
	told    bool // the hook has been told of the end
	ending  *ending
}

// Format prints the task's ID, whatever the verb: the rest changes all the time, and is nobody's to
// read.
func (t *Task) Format(f fmt.State, _ rune) { fmt.Fprint(f, "task ", t.id) }

func newTask(c *Client, answer wire.BeginResponse, sent instant, parent context.Context) *Task {
	w, key := answer.Task, answer.EndKey
	t := &Task{
		endKey: func() string { return key },
		client: c, id: w.ID, root: w.Root, lease: time.Duration(w.LeaseSeconds) * time.Second,
		deadline: sent.steady.Add(w.Deadline.Sub(w.BegunAt)),
		state:    Active, renewed: sent, touched: c.clock().steady,
	}
	var cancel, endLife context.CancelCauseFunc
	t.ctx, cancel = context.WithCancelCause(parent)
	t.life, endLife = context.WithCancelCause(context.WithoutCancel(parent))
	t.cancel = func(cause error) {
		endLife(cause)
		cancel(cause)
	}
	t.tokens.slots = map[slotKey]*slot{}
	return t
}

// ID is the task's ID, tsk_…; put it into your own logs.
func (t *Task) ID() string { return t.id }

// Root is the ID of the outermost task that this one is part of.
func (t *Task) Root() string { return t.root }

// EndKey can do nothing but end this task, from anywhere, without an identity's say. It is a secret all
// the same; give it to whoever has to end the task should this process be gone.
func (t *Task) EndKey() string { return t.endKey() }

// Context ends as soon as the task is over, however that came. Its cause (context.Cause) is then
// ErrTaskEnded, ErrRevoked, ErrLeaseLost or ErrDeadline.
func (t *Task) Context() context.Context { return t.ctx }

// State is what this client knows. It is final as soon as Complete, Fail or Cancel is called.
func (t *Task) State() State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state
}

type contextKey struct{}

// NewContext puts a task into a context, for FromContext.
func NewContext(ctx context.Context, t *Task) context.Context {
	return context.WithValue(ctx, contextKey{}, t)
}

// FromContext returns the task that Do or NewContext has put into the context.
func FromContext(ctx context.Context) (*Task, bool) {
	t, ok := ctx.Value(contextKey{}).(*Task)
	return t, ok
}

// patienceOf is how long the client believes in a lease that it can't renew: two thirds, so that it
// has stopped before anybody else can take the task for dead.
func (t *Task) patience() time.Duration { return t.lease * 2 / 3 }

// watch sets the alarm for the moment at which the task is over if no heartbeat gets through.
func (t *Task) watch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cause == nil && t.alarm == nil {
		t.alarm = time.AfterFunc(t.left(t.client.clock()), t.check)
	}
}

// left is the time to the earlier of the deadline and the end of patience. The caller holds mu.
func (t *Task) left(now instant) time.Duration {
	return min(t.deadline.Sub(now.steady), t.renewed.steady.Add(t.patience()).Sub(now.steady))
}

// check ends the task if it is over by the steady clock, and sets the alarm again if not.
func (t *Task) check() {
	t.mu.Lock()
	now := t.client.clock()
	left := t.left(now)
	late := !now.steady.Before(t.deadline)
	if left > 0 && t.cause == nil && t.alarm != nil {
		t.alarm.Reset(left)
	}
	t.mu.Unlock()
	switch {
	case left > 0:
	case late:
		t.over(Expired, ErrDeadline, false)
	default:
		t.over(Lapsed, ErrLeaseLost, false)
	}
}

// over makes the task final, once: no token leaves any more and the contexts end. known says that
// the broker itself has told so.
func (t *Task) over(s State, cause error, known bool) {
	t.mu.Lock()
	t.known = t.known || known
	first := t.cause == nil
	if first {
		t.state, t.cause = s, cause
		if t.alarm != nil {
			t.alarm.Stop()
		}
	}
	tell := first && t.ending == nil
	t.mu.Unlock()
	if !first {
		return
	}
	t.client.forget(t)
	t.tokens.clear()
	t.cancel(cause)
	if tell {
		t.client.log.Warn("errand: task is over", "task", t.id, "state", s, "cause", cause)
		t.tell(s, Receipt{}, cause)
	}
}

// tell calls the hook, once.
func (t *Task) tell(s State, r Receipt, err error) {
	t.mu.Lock()
	first := !t.told
	t.told = true
	t.mu.Unlock()
	if hook := t.client.hooks.OnEnd; hook != nil && first {
		hook(context.WithoutCancel(t.life), t.id, s, r, err)
	}
}

// ended returns nil while the task is active.
func (t *Task) ended() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cause == nil {
		return nil
	}
	return &endedError{t.id, t.state, t.cause}
}

// feel takes what the broker has said about the task in answer to a heartbeat.
func (t *Task) feel(pulse wire.Pulse, sent instant) {
	if s := State(pulse.State); s != Active {
		t.over(s, causeOf(s), true)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !sent.steady.Before(t.renewed.steady) {
		t.renewed = sent
	}
}

func (t *Task) beatBegins() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.beats++
}

func (t *Task) beatEnds(now instant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.beats--
	t.touched = now.steady
}

// by is the latest moment at which the broker still takes the task for alive, if no further
// heartbeat is sent: a lease after the last one that may have reached it, or the deadline.
func (t *Task) by() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := t.touched
	if t.beats > 0 {
		last = t.client.clock().steady
	}
	if by := last.Add(t.lease); by.Before(t.deadline) {
		return by
	}
	return t.deadline
}

// alive returns nil if tokens may be handed out now. The alarm may be late when the process or the
// machine was stopped, so it compares the clocks itself. When the wall clock alone says that the
// lease is lost, the machine may have slept or the clock may have been set; the broker knows.
func (t *Task) alive(ctx context.Context) error {
	t.check()
	if err := t.ended(); err != nil || t.wallGap() < t.patience() {
		return err
	}
	if err := t.client.beat(ctx, []*Task{t}, patience); err != nil {
		return err
	}
	if err := t.ended(); err != nil || t.wallGap() < t.patience() {
		return err
	}
	return fmt.Errorf("%w: it has answered a heartbeat without the task", ErrUnavailable)
}

// wallGap is the time since the last good heartbeat by the wall clock.
func (t *Task) wallGap() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, wall := t.client.clock().since(t.renewed)
	return wall
}
