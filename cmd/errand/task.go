package main

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// maxEndKey is the most that is read of a file with an end key, in bytes.
const maxEndKey = 4 << 10

func newTask() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "task",
		Short: "Begin a task, look at it, and end it; as an operator, look at all",
		Long: `task is for scripts and CI jobs whose steps are processes of their own: one begins a task, others get
tokens in it, and the last one ends it, whatever came in between. Every token of the task is dead then.

  task=$(errand task begin --task release --purpose "v1.4" --lease 10m --end-key-file end.key -o name)
  errand token --in "$task" --audience registry --scope images:push | ./push
  errand task end "$task" --outcome completed

Nobody sends heartbeats for such a task, so it lives no longer than its lease, 10m at most. For a longer
job use errand exec, which does, or the SDK. list, tree and watch are for operators, and show all workloads'
tasks; what they need, their own help says. Who you are comes from SPIFFE_ENDPOINT_SOCKET or
ERRAND_IDENTITY_DIR, and the broker from ERRAND_BROKER_URL and ERRAND_BROKER_ID. The exit code is 0 when
it is done, 2 for a command line or an environment that makes no sense, 3 for no such task, 4 for no
identity, 5 for denied by policy, 6 for quarantined, 7 for a task that has ended or a handle that is
used up, 8 for no answer from the broker, and 1 for all else.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTaskBegin(), newTaskShow(), newTaskEnd(), newTaskDelegate(), newTaskList(), newTaskTree(), newTaskWatch())
	return cmd
}

const taskBeginLong = `begin begins a task and prints it. What ends it later may have lost the identity by then, as the last step of
a CI job: --env-file writes a new file with all that  errand task end --env-file  needs; for that
ERRAND_ISSUER must be set now. --end-key-file writes the task's end key alone, and with --print -o json it is in
the answer. That key can end this task, also while the broker cannot reach its store, and do nothing else.

With --parent it is a part of another task of this workload: it may have no more than that one, has what that
one has if no audience and scope is named, and ends with it at the latest. With --join, or a handle in
ERRAND_TASK_HANDLE, it is a part of another workload's task, which has made the handle with errand task
delegate. A handle is good for one task, and for this workload alone; --no-parent begins a task without it.

--ref says what the task is in another system: when a source of the broker's inventory, as errand-k8s or a CI
system, says that this has ended, the task ends. By --label, and by --ref, operators find it. --ticket is in
the audit log.`

func newTaskBegin() *cobra.Command {
	var body wire.BeginRequest
	var lease, deadline time.Duration
	var file, env string
	var below place
	var about attributes
	var print bool
	a := &asking{at: api.Workload}
	cmd := &cobra.Command{
		Use:   "begin --task NAME --purpose WHY",
		Short: "Begin a task that another command ends",
		Long:  taskBeginLong,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if strings.TrimSpace(body.Name) == "" || strings.TrimSpace(body.Purpose) == "" {
				return usage(cmd, "--task and --purpose are missing: say what kind of work it is, and why")
			}
			err := about.request(cmd, &body)
			if err != nil {
				return err
			}
			if body.LeaseSeconds, err = seconds(cmd, "lease", lease); err != nil {
				return err
			}
			if body.DeadlineSeconds, err = seconds(cmd, "deadline", deadline); err != nil {
				return err
			}
			request, err := below.request(cmd, body)
			if err != nil {
				return err
			}
			later, err := newEnvFile(cmd, a, env)
			if err != nil {
				return err
			}
			var begun wire.BeginResponse
			text, err := withEndKey(cmd, a, file, request, &begun)
			err = below.about(err)
			if err = later.close(begun, err); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "errand: %s lives until %s, since nobody sends heartbeats for it; errand exec does, for as long as a command runs\n",
				begun.Task.ID, rfc3339(due(begun.Task)))
			if !print {
				if text, err = member(text, "task"); err != nil {
					return err
				}
			}
			return taskTable(time.Now()).show(cmd.OutOrStdout(), a.output, text, begun.Task)
		},
	}
	a.flags(cmd, formats)
	f := cmd.Flags()
	taskFlags(cmd, &body.Name, &body.Purpose)
	f.StringArrayVar(&body.Audiences, "audience", nil, "an audience that its tokens may be for; repeat for more (default what policy allows)")
	f.StringArrayVar(&body.Scopes, "scope", nil, "a scope that they may have; repeat for more (default what policy allows)")
	below.flags(cmd)
	f.DurationVar(&lease, "lease", maxLease, "how long it lives without a heartbeat, 5s to 10m")
	f.DurationVar(&deadline, "deadline", 0, "when it ends whatever happens, 5s to 24h (default 1h)")
	f.BoolVar(&print, "print", false, "have the end key in -o json and -o yaml, too")
	endKeyFlag(cmd, &file)
	about.flags(cmd)
	f.StringVar(&env, "env-file", "", "a new file with all that errand task end needs where there is no identity")
	completeCeiling(cmd)
	return cmd
}

// seconds is nil for none. The bounds are the broker's.
func seconds(cmd *cobra.Command, flag string, d time.Duration) (*int64, error) {
	if d%time.Second != 0 || d < 0 {
		return nil, usage(cmd, "--%s is %s; it must be whole seconds", flag, d)
	}
	if d == 0 {
		return nil, nil
	}
	n := int64(d / time.Second)
	return &n, nil
}

func newTaskShow() *cobra.Command {
	var operator bool
	var operatorURL string
	a := &asking{at: api.Workload}
	cmd := &cobra.Command{
		Use:   "show TASK",
		Short: "Show how a task is",
		Long: `show shows a task of this workload. With --operator it shows any workload's, from the operator listener at
--operator-url or ERRAND_OPERATOR_URL, for whom the broker's configuration gives the role viewer.`,
		Args: oneTask,
		RunE: func(cmd *cobra.Command, args []string) error {
			if operator {
				a.at, a.url = api.Operator, operatorURL
				return showOne(a, cmd, pathOf(wire.PathTask, args[0]), taskItemTable)
			}
			var task wire.Task
			text, err := a.send(cmd, api.Request{Method: http.MethodGet, Path: pathOf(wire.PathTask, args[0])}, &task)
			if err != nil {
				return err
			}
			return taskTable(time.Now()).show(cmd.OutOrStdout(), a.output, text, task)
		},
	}
	a.flags(cmd, formats)
	cmd.Flags().BoolVar(&operator, "operator", false, "show any workload's task, as an operator")
	operatorURLFlag(cmd, &operatorURL)
	return cmd
}

func oneTask(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || !strings.HasPrefix(args[0], "tsk_") {
		return usage(cmd, "name one task by its ID, as tsk_00gybxqbdwiuxgoxp7eqvjcyoumu")
	}
	return nil
}

func newTaskEnd() *cobra.Command {
	body := wire.EndRequest{}
	e := &ending{asking: asking{at: api.Workload}}
	cmd := &cobra.Command{
		Use:   "end TASK [--outcome completed|failed|canceled]",
		Short: "End a task, and kill every token that it had",
		Long: `end says that the work of a task is over, and how. Every token of it, and of the tasks below it, is dead
at every verifier that listens, within milliseconds. The first end is the one that counts: every later one
gets its receipt, and stderr says when that is not the outcome that you gave. Repeating is safe.

With the end key that errand task begin or errand token has written, it works also while the broker cannot
reach its store; stderr says so then. And it works without an identity, at the broker's public listener, for
whoever has ERRAND_ISSUER, ERRAND_BROKER_ID, ERRAND_WORKLOAD (whose the task is) and ERRAND_BUNDLE_FILE (the
trust bundle, in PEM), or one file with all of it, which errand task begin --env-file has written:

  errand task begin --task build --purpose "run 7" --env-file task.env
  errand task end --env-file task.env --outcome failed

With --wait it waits until every verifier of the task's audiences has confirmed that it refuses the tokens.
stderr says how many have, and from when on each of the others refuses them by itself; -o json has that under
propagation. The code is 0 either way, since the task is over. The public listener does not wait.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if e.envFile != "" && len(args) > 0 {
				return usage(cmd, "--env-file names the task already: leave out %q", args[0])
			}
			if e.envFile != "" {
				return nil
			}
			return oneTask(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := e.task(cmd, args)
			if err != nil {
				return err
			}
			if body.WaitSeconds, err = waitSeconds(cmd, e.wait); err != nil {
				return err
			}
			var receipt wire.Receipt
			text, err := e.end(cmd, id, body, &receipt)
			if err != nil {
				return err
			}
			e.tell(cmd.ErrOrStderr(), body, receipt)
			return receipts.show(cmd.OutOrStdout(), e.output, text, receipt)
		},
	}
	e.flags(cmd, formats)
	f := cmd.Flags()
	f.StringVar(&body.Outcome, "outcome", wire.StateCompleted, "completed, failed or canceled")
	f.StringVar(&body.Reason, "reason", "", "why, for the audit log")
	f.StringVar(&e.keyFile, "end-key-file", "", "a file with the task's end key")
	f.StringVar(&e.envFile, "env-file", "", "a file that errand task begin --env-file has written, in place of TASK")
	waitFlag(cmd, &e.wait)
	outcomes := []string{wire.StateCompleted, wire.StateFailed, wire.StateCanceled}
	_ = cmd.RegisterFlagCompletionFunc("outcome", cobra.FixedCompletions(outcomes, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
	return cmd
}

// readEndKey reads one from a file.
func readEndKey(file string) (string, error) {
	text, err := api.ReadFile(file, maxEndKey)
	key := strings.TrimSpace(string(text))
	if err == nil && (key == "" || strings.ContainsAny(key, " \r\n")) {
		err = errors.New(file + " does not have one line with an end key, as --end-key-file writes it")
	}
	return key, err
}

// due is when a task ends if nothing more happens, and nil when it has ended.
func due(t wire.Task) *time.Time {
	switch {
	case t.EndedAt != nil:
		return nil
	case t.Deadline.Before(t.LeaseExpiresAt):
		return &t.Deadline
	}
	return &t.LeaseExpiresAt
}

// taskTable is how tasks are shown.
func taskTable(now time.Time) table[wire.Task] {
	return table[wire.Task]{
		name: func(t wire.Task) string { return t.ID },
		columns: []column[wire.Task]{
			{head: "TASK", cell: func(t wire.Task) string { return t.ID }},
			{head: "NAME", cell: func(t wire.Task) string { return t.Name }},
			{head: "STATE", cell: func(t wire.Task) string { return t.State }},
			{head: "BEGUN", cell: func(t wire.Task) string { return rfc3339(&t.BegunAt) }, people: func(t wire.Task) string { return ago(&t.BegunAt, now) }},
			{head: "ENDED", cell: func(t wire.Task) string { return rfc3339(t.EndedAt) }, people: func(t wire.Task) string { return ago(t.EndedAt, now) }},
			{head: "ENDS", cell: func(t wire.Task) string { return rfc3339(due(t)) }, people: func(t wire.Task) string { return ahead(due(t), now) }},
			{head: "CAUSE", wide: true, cell: func(t wire.Task) string { return t.Cause }},
			{head: "WORKLOAD", wide: true, cell: func(t wire.Task) string { return t.Workload }},
			{head: "AUDIENCES", wide: true, cell: func(t wire.Task) string { return strings.Join(t.Audiences, " ") }},
			{head: "SCOPES", wide: true, cell: func(t wire.Task) string { return strings.Join(t.Scopes, " ") }},
			{head: "PURPOSE", wide: true, cell: func(t wire.Task) string { return t.Purpose }},
		},
	}
}

// receipts is how they are shown.
var receipts = table[wire.Receipt]{
	name: func(r wire.Receipt) string { return r.Event },
	columns: []column[wire.Receipt]{
		{head: "TASK", cell: func(r wire.Receipt) string { return r.Task }},
		{head: "STATE", cell: func(r wire.Receipt) string { return r.State }},
		{head: "GRANTS", cell: func(r wire.Receipt) string { return fmt.Sprint(r.Grants) }},
		{head: "SUB-TASKS", cell: func(r wire.Receipt) string { return fmt.Sprint(r.SubTasks) }},
		{head: "DURABLE", cell: func(r wire.Receipt) string { return fmt.Sprint(r.Durable) }},
		{head: "EVENT", cell: func(r wire.Receipt) string { return r.Event }},
		{head: "CAUSE", wide: true, cell: func(r wire.Receipt) string { return r.Cause }},
		{head: "ENDED", wide: true, cell: func(r wire.Receipt) string { return rfc3339(&r.EndedAt) }},
		{head: "FEED", wide: true, cell: func(r wire.Receipt) string { return r.Feed }},
		{head: "REASON", wide: true, cell: func(r wire.Receipt) string { return r.Reason }},
		{head: "CONFIRMED", wide: true, cell: func(r wire.Receipt) string {
			if r.Propagation == nil {
				return ""
			}
			return fmt.Sprint(r.Propagation.Confirmed)
		}},
		{head: "PENDING", wide: true, cell: func(r wire.Receipt) string {
			if r.Propagation == nil {
				return ""
			}
			return fmt.Sprint(len(r.Propagation.Pending) + r.Propagation.Others)
		}},
	},
}
