package sdk

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// State of a task. All but Active are final.
type State string

// The states. Unknown is a task that the broker does not know (any more), and Adopted one that goes on and is
// another process's.
const (
	Active    State = wire.StateActive
	Completed State = wire.StateCompleted
	Failed    State = wire.StateFailed
	Canceled  State = wire.StateCanceled
	Lapsed    State = wire.StateLapsed  // heartbeats stopped
	Expired   State = wire.StateExpired // deadline
	Revoked   State = wire.StateRevoked // by an operator, or with its identity
	Unknown   State = wire.StateUnknown
	Adopted   State = wire.StateAdopted
)

// causeParent is the broker's cause of the end of a task whose parent has ended.
const causeParent = "parent"

// causeOf is the cause that goes with a final state and what the broker says of it.
func causeOf(s State, why string) error {
	switch {
	case why == causeParent:
		return ErrParentEnded
	case s == Adopted:
		return ErrAdopted
	case s == Revoked:
		return ErrRevoked
	case s == Lapsed:
		return ErrLeaseLost
	case s == Expired:
		return ErrDeadline
	}
	return ErrTaskEnded
}

// Task is one live piece of work. It is safe for concurrent use, and its heartbeats are sent by the
// client. One that nobody has any more, and that has not been ended, is a mistake: the client says so
// in its log and to Hooks.OnLeak, and sends no more heartbeats, so that the task lapses.
type Task struct {
	// The client itself keeps only what is below, so that it can notice that.
	*task
	up *Task // who has a child has not dropped what it is part of
}

// task is what there is to a Task.
type task struct {
	client   *Client
	above    *task // the parent, if this client has it
	id, root string
	parent   string // its ID; "" for a root
	holder   int    // that this client is; 0 when the broker does not say
	purpose  string
	lease    time.Duration
	deadline time.Time     // by the steady clock
	began    time.Time     // as timers go
	presence bool          // it ends with the stream that follows it
	wait     time.Duration // for verifiers, when Do ends it
	dropped  atomic.Bool   // nobody has the Task any more

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
	renewed instant // when the last heartbeat that has renewed the lease was sent
	touched time.Time
	beats   int    // heartbeats on their way
	note    string // for the next of them
	alarm   *time.Timer
	told    bool   // the hook has been told of the end
	why     string // the broker's cause of the end
	ending  *ending

	children map[*task]struct{} // that are not over
}

// Format prints the task's ID, whatever the verb: the rest changes all the time, and is nobody's to
// read.
func (t *Task) Format(f fmt.State, _ rune) { fmt.Fprint(f, "task ", t.id) }

func newTask(c *Client, answer wire.BeginResponse, sent instant, base context.Context, above *task) *task {
	w, key := answer.Task, answer.EndKey
	t := &task{
		endKey: func() string { return key },
		client: c, above: above, id: w.ID, root: w.Root, holder: w.Holder, lease: time.Duration(w.LeaseSeconds) * time.Second,
		deadline: sent.steady.Add(w.Deadline.Sub(w.BegunAt)),
		state:    Active, renewed: sent, touched: c.clock().steady, began: time.Now(),
	}
	var endWork, endLife context.CancelCauseFunc
	t.ctx, endWork = context.WithCancelCause(base)
	t.life, endLife = context.WithCancelCause(context.WithoutCancel(base))
	alone := func() bool { return true }
	if above != nil {
		alone = context.AfterFunc(above.ctx, func() {
			cause := context.Cause(above.ctx)
			switch {
			case cause == ErrAdopted && above.current() == Adopted:
				return // it goes on, and what this process has begun below it, too
			case above.ended() != nil:
				cause = ErrParentEnded
			}
			endWork(cause)
		})
	}
	t.cancel = func(cause error) {
		alone()
		endLife(cause)
		endWork(cause)
	}
	t.tokens.slots = map[slotKey]*slot{}
	return t
}

// ID is the task's ID, tsk_…; put it into your own logs.
func (t *Task) ID() string { return t.id }

// Parent is the ID of the task that this one is a child of, and "" for a root.
func (t *Task) Parent() string { return t.parent }

// Root is the ID of the outermost task that this one is part of.
func (t *Task) Root() string { return t.root }

// Context ends as soon as the task is over, however that came. Its cause (context.Cause) is then
// ErrTaskEnded, ErrRevoked, ErrLeaseLost, ErrDeadline, or ErrAdopted when the task goes on and is another
// process's, and of a child ErrParentEnded when it has ended with its parent.
func (t *Task) Context() context.Context { return t.ctx }

// State is what this client knows. It is final as soon as Complete, Fail or Cancel is called.
func (t *Task) State() State { return t.current() }

// EndKey is a secret that can end this task, and do nothing else, also while the broker cannot reach
// its store. The client sends it by itself. Give it to whoever is to end the task when this process
// no longer can, such as the last step of a pipeline: as the end_key of an end with the SVID of the same
// workload, or, where there is none any more, at the broker's public listener (errand task end --end-key-file).
func (t *Task) EndKey() string { return t.endKey() }

func (t *task) current() State {
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
func (t *task) patience() time.Duration { return t.lease * 2 / 3 }

// watch sets the alarm for the moment at which the task is over if no heartbeat gets through.
func (t *task) watch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cause == nil && t.alarm == nil {
		t.alarm = time.AfterFunc(t.left(t.client.clock()), t.check)
	}
}

// left is the time to the earlier of the deadline and the end of patience. The caller holds mu.
func (t *task) left(now instant) time.Duration {
	return min(t.deadline.Sub(now.steady), t.renewed.steady.Add(t.patience()).Sub(now.steady))
}

// check ends the task if it is over by the steady clock, and sets the alarm again if not.
func (t *task) check() {
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
func (t *task) over(s State, cause error, known bool) {
	t.mu.Lock()
	first := t.cause == nil
	if first || s == Adopted && !t.known { // whatever this client had made of it
		t.state, t.cause = s, cause
	}
	if first && t.alarm != nil {
		t.alarm.Stop()
	}
	t.known = t.known || known && s != Adopted
	tell := first && t.ending == nil
	t.mu.Unlock()
	if !first {
		return
	}
	t.client.forget(t)
	t.leave()
	t.tokens.clear()
	if s != Adopted {
		t.endChildren() // before its own context, of which theirs may be children
	}
	t.cancel(cause)
	if tell {
		level := slog.LevelWarn
		if cause == ErrParentEnded || s == Adopted {
			level = slog.LevelInfo // that one has been told of; and somebody wants it so
		}
		t.client.log.Log(context.WithoutCancel(t.life), level, "errand: task is over", "task", t.id, "state", s, "cause", cause)
		t.tell(s, Receipt{}, cause)
	}
}

// overBy is over with what the broker has said.
func (t *task) overBy(s State, why string) { t.overFor(s, why, true) }

// overFor is over with the broker's cause.
func (t *task) overFor(s State, why string, known bool) {
	t.mu.Lock()
	if t.cause == nil {
		t.why = why
	}
	t.mu.Unlock()
	t.over(s, causeOf(s, why), known)
}

// tell calls the hook, once.
func (t *task) tell(s State, r Receipt, err error) {
	t.mu.Lock()
	first := !t.told
	t.told = true
	t.mu.Unlock()
	if hook := t.client.hooks.OnEnd; hook != nil && first {
		hook(context.WithoutCancel(t.life), t.id, s, r, err)
	}
}

// ended returns nil while the task is active.
func (t *task) ended() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cause == nil {
		return nil
	}
	return &endedError{t.id, t.state, t.cause, t.why}
}

// feel takes what the broker has said about the task in answer to a heartbeat, which renews the lease or, of a task
// with presence without a stream, does not.
func (t *task) feel(pulse wire.Pulse, sent instant, renews bool) {
	if s := State(pulse.State); s != Active {
		t.overBy(s, pulse.Cause)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if renews && !sent.steady.Before(t.renewed.steady) {
		t.renewed = sent
	}
}

// attached is told that the task with presence has a stream, which was asked for then and is as good as a heartbeat.
func (t *task) attached(sent instant) {
	now := t.client.clock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.renewed, t.touched = sent, now.steady
}

func (t *task) beatBegins() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.beats++
}

func (t *task) beatEnds(now instant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.beats--
	t.touched = now.steady
}

// by is the latest moment at which the broker still takes the task for alive, if no further
// heartbeat is sent: a lease after the last one that may have reached it, or the deadline.
func (t *task) by() time.Time {
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
func (t *task) alive(ctx context.Context) error {
	t.check()
	if err := t.ended(); err != nil || t.wallGap() < t.patience() {
		return err
	}
	if err := t.client.beat(ctx, []*task{t}, patience); err != nil {
		return err
	}
	if err := t.ended(); err != nil || t.wallGap() < t.patience() {
		return err
	}
	return fmt.Errorf("%w: it has answered a heartbeat without the task", ErrUnavailable)
}

// wallGap is the time since the last good heartbeat by the wall clock.
func (t *task) wallGap() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, wall := t.client.clock().since(t.renewed)
	return wall
}
