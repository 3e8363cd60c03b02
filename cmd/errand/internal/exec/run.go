//go:build unix

package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/errandhq/errand/sdk"
)

// passed are the signals that go on to the command; those of enders say that it is to end.
var (
	enders = []os.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP}
	passed = slices.Concat(enders, []os.Signal{syscall.SIGUSR1, syscall.SIGUSR2})
)

// closeBudget bounds the last try to confirm an end.
const closeBudget = 3 * time.Second

// run is one command in its task.
type run struct {
	Config
	signals  chan os.Signal
	terminal *terminal
	client   *sdk.Client
	task     *sdk.Task
	begun    time.Time
	gifts    gifts
	child    *child

	endFeed  context.CancelFunc
	feeding  sync.WaitGroup
	canceled os.Signal // that asked for the end
	typed    os.Signal // likewise, on the terminal; the command decides what it means
	ended    error     // why the task ended before the command did
}

// Run runs the command inside a task and returns the exit code that errand is to have: the command's own,
// or one of the codes above with an error that says why. An error beside the command's own code is about
// what came after it. ctx bounds the start alone.
func Run(ctx context.Context, c Config) (int, error) {
	if c.Input == nil {
		c.Input = os.Stdin
	}
	r := &run{Config: c, signals: make(chan os.Signal, 16)}
	if err := r.Check(); err != nil {
		return CodeFailed, err
	}
	path, code, err := find(c.Command[0])
	if err != nil {
		return code, err
	}
	// What was ignored when this process was started, as by nohup, stays so for the command.
	signal.Notify(r.signals, heeded(passed)...)
	defer signal.Stop(r.signals)
	// Without this, nobody reading the standard error would be the death of the command.
	if pipe := make(chan os.Signal, 1); !signal.Ignored(syscall.SIGPIPE) {
		signal.Notify(pipe, syscall.SIGPIPE)
		defer signal.Stop(pipe)
	}
	r.terminal = openTerminal()
	defer r.terminal.close()
	code, err = r.inTask(ctx, path)
	if r.typed == syscall.SIGINT && code == 128+int(syscall.SIGINT) {
		if err != nil {
			r.say("%v", err)
		}
		dieOf(syscall.SIGINT)
	}
	return code, err
}

// heeded are those that are not ignored. SIGTERM always is among them, since of no signals Notify makes
// all.
func heeded(list []os.Signal) []os.Signal {
	return slices.DeleteFunc(slices.Clone(list), func(s os.Signal) bool { return s != syscall.SIGTERM && signal.Ignored(s) })
}

// inTask is the life of the task.
func (r *run) inTask(ctx context.Context, path string) (code int, err error) {
	starting, stop := signal.NotifyContext(ctx, heeded(enders)...)
	defer stop()
	waiting := &waiting{say: r.say}
	r.client, err = sdk.New(starting, append(r.Options, sdk.WithLogger(slog.New(waiting)))...)
	waiting.over.Store(true)
	if err != nil {
		return r.interrupted(starting, err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeBudget)
		defer cancel()
		// An end that is not confirmed has been told already.
		if failed := r.client.Close(closing); failed != nil && !errors.Is(failed, sdk.ErrEndUnconfirmed) {
			err = errors.Join(err, failed)
		}
	}()
	r.begun = time.Now()
	if err = r.begin(starting); err != nil {
		return r.interrupted(starting, r.aboutParent(err))
	}
	code, err = r.start(starting, path)
	stop()
	if err != nil {
		r.endFeeding()
		return code, errors.Join(err, r.gifts.close(), r.end(code, err))
	}
	r.watch()
	code, reason := r.child.finish()
	r.hear(code)
	err = errors.Join(r.gifts.close(), r.end(code, outcome(reason)))
	if r.ended != nil && r.OnEnd != Ignore {
		code = CodeEnded
	}
	return code, err
}

// begin has the task: a new one with all tokens, or none, or one that is there.
func (r *run) begin(ctx context.Context) (err error) {
	for _, ask := range r.Asks {
		r.Task.Tokens = append(r.Task.Tokens, r.request(ask))
	}
	switch {
	case r.Adopt != "":
		r.task, err = r.client.Adopt(ctx, r.Adopt)
	case r.Join != "":
		r.task, err = r.client.Join(ctx, r.Join, r.Task)
	default:
		r.task, err = r.client.Begin(ctx, r.Task)
	}
	return err
}

// aboutParent says what to do about a refusal that may be for the task outside.
func (r *run) aboutParent(err error) error {
	switch {
	case r.Join != "" && errors.Is(err, sdk.ErrHandleUsed) && os.Getenv(EnvTaskHandle) != "":
		return fmt.Errorf("%w. A handle is good for one task; --no-parent begins one that does without what is in %s", err, EnvTaskHandle)
	case r.Task.Parent == "":
		return err
	}
	for _, its := range []error{sdk.ErrNotFound, sdk.ErrTaskEnded, sdk.ErrScopeExceeded} {
		if errors.Is(err, its) {
			return fmt.Errorf("%w. The task was to be a part of %s, which is in %s; --no-parent begins one of its own", err, r.Task.Parent, EnvTaskID)
		}
	}
	return err
}

// interrupted is how a start ends: by a signal, or with an error.
func (r *run) interrupted(starting context.Context, err error) (int, error) {
	if starting.Err() != nil {
		select {
		case s := <-r.signals:
			r.canceled = s
			return 128 + int(s.(syscall.Signal)), fmt.Errorf("%s before the command was started", s)
		case <-time.After(time.Second): // it was no signal
		}
	}
	return CodeFailed, err
}

// start lays out the gifts and starts the command.
func (r *run) start(ctx context.Context, path string) (int, error) {
	if err := r.give(ctx); err != nil {
		return r.interrupted(ctx, err)
	}
	if ctx.Err() != nil {
		return r.interrupted(ctx, ctx.Err())
	}
	shared := r.terminal != nil
	if shared {
		adopt()
	}
	var err error
	r.child, err = startChild(path, r.Command, r.gifts.env, r.gifts.files, shared)
	r.gifts.closeFiles()
	if err != nil {
		return startCode(err), fmt.Errorf("%s: %w", r.Command[0], reason(err))
	}
	if r.gifts.pump != nil {
		go r.gifts.pump()
	}
	feeding, cancel := context.WithCancel(context.Background())
	r.endFeed = cancel
	for _, s := range r.gifts.supplies {
		r.feeding.Go(func() { s.keep(feeding) })
	}
	return 0, nil
}

func (r *run) endFeeding() {
	if r.endFeed != nil {
		r.endFeed()
	}
	r.feeding.Wait()
}

// watch returns when the command has exited.
func (r *run) watch() {
	defer r.endFeeding()
	orphans := make(chan os.Signal, 1)
	signal.Notify(orphans, syscall.SIGCHLD)
	defer signal.Stop(orphans)
	over := r.task.Context().Done()
	var late <-chan time.Time
	for {
		select {
		case <-r.child.exited:
			if r.ended != nil && r.OnEnd != Ignore {
				r.child.signalAll(syscall.SIGKILL) // what it has left behind
			}
			return
		case s := <-r.signals:
			r.pass(s)
		case <-orphans:
			reapOthers(r.child.process.Pid)
		case <-over:
			over = nil
			late = r.takeBack()
		case <-late:
			r.say("%s did not end in %s; it gets SIGKILL", r.Command[0], r.Grace)
			r.child.signalAll(syscall.SIGKILL)
		}
	}
}

// pass sends a signal on, unless the terminal has done so.
func (r *run) pass(s os.Signal) {
	if r.note(s) {
		r.child.signal(s)
	}
}

// note remembers that somebody wants the end, and reports whether the command is still to be told.
func (r *run) note(s os.Signal) bool {
	if (s == syscall.SIGINT || s == syscall.SIGQUIT) && r.terminal.foreground() {
		r.typed = s
		return false
	}
	if slices.Contains(enders, s) {
		r.canceled = s
	}
	return true
}

// sameSignal is how long a signal that has killed the command may take to get here, if it was for both.
const sameSignal = 200 * time.Millisecond

// hear looks for the signals that came when the command was about to exit.
func (r *run) hear(code int) {
	wait := time.Millisecond
	if code > 128 && slices.Contains(enders, os.Signal(syscall.Signal(code-128))) && r.canceled == nil && r.typed == nil {
		wait = sameSignal
	}
	for {
		select {
		case s := <-r.signals:
			r.note(s)
			wait = time.Millisecond
		case <-time.After(wait):
			return
		}
	}
}

// takeBack is for a task that has ended before the command: first the files go, then the command.
func (r *run) takeBack() (late <-chan time.Time) {
	r.ended = context.Cause(r.task.Context())
	r.endFeeding()
	if err := r.gifts.close(); err != nil {
		r.say("%v", err)
	}
	switch {
	case r.OnEnd == Ignore:
		r.say("%v: %s goes on without tokens", r.ended, r.Command[0])
	case r.OnEnd == Kill || r.Grace == 0:
		r.say("%v: %s gets SIGKILL", r.ended, r.Command[0])
		r.child.signalAll(syscall.SIGKILL)
	default:
		r.say("%v: %s gets SIGTERM, and SIGKILL after %s", r.ended, r.Command[0], r.Grace)
		r.child.signalAll(syscall.SIGTERM)
		r.child.signalAll(syscall.SIGCONT) // one that is stopped would not notice
		late = time.After(r.Grace)
	}
	return late
}

// outcome is how the command has ended, in the words of os.ProcessState. The broker is told it as the
// reason of a failure.
type outcome string

func (o outcome) Error() string { return "the command ended with " + string(o) }

// Class is what the broker is told.
func (o outcome) Class() string { return string(o) }

// end tells the broker how the task went. Another signal ends the wait for its answer.
func (r *run) end(code int, how error) error {
	ctx, stop := signal.NotifyContext(context.Background(), heeded(enders)...)
	defer stop()
	if r.canceled == nil && code != 0 {
		r.canceled = r.typed
	}
	var receipt sdk.Receipt
	var err error
	want := sdk.Completed
	switch {
	case r.ended != nil:
		// Also a lease that is lost here may be alive there.
		return r.task.Close()
	case r.canceled != nil:
		want = sdk.Canceled
		receipt, err = r.task.Cancel(ctx, "signal: "+r.canceled.String())
	case code == 0:
		receipt, err = r.task.Complete(ctx)
	default:
		want = sdk.Failed
		receipt, err = r.task.Fail(ctx, how)
	}
	if err == nil && receipt.State != want && receipt.State != "" {
		r.say("the task had ended before, as %s", receipt.State)
	}
	return err
}

// dieOf ends this process as the signal would have, for a shell that asks whether Ctrl-C has ended it,
// and stops its script then. It returns if that cannot be.
func dieOf(s syscall.Signal) {
	signal.Reset(s)
	_ = syscall.Kill(os.Getpid(), s)
	time.Sleep(100 * time.Millisecond) // the signal comes to any of the threads
}

// say writes a line for people.
func (r *run) say(format string, args ...any) {
	_, _ = io.WriteString(r.Stderr, "errand: "+fmt.Sprintf(format, args...)+"\n")
}
