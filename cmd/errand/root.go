package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/cmd/errand/internal/demo"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// Version of the program.
const Version = "0.1.0-dev"

// Exit codes. A script can tell its own mistake from the broker's answer.
const (
	exitOK           = 0
	exitFailed       = 1
	exitUsage        = 2 // or nobody to ask
	exitNotFound     = 3
	exitNoIdentity   = 4
	exitDenied       = 5
	exitLocked       = 6 // quarantined
	exitPrecondition = 7
	exitUnreachable  = 8
	exitRefused      = 9 // verify: the token would not be accepted

	exitPanic       = 70  // as sysexits.h has it for a fault of the program
	exitInterrupted = 130 // as a shell reports Ctrl-C
)

// errInterrupted is Ctrl-C before the end.
var errInterrupted = errors.New("interrupted")

// errFailed is a failure that has been shown already.
var errFailed = errors.New("failed")

// usageError is a command line that makes no sense.
type usageError struct {
	command string // whose help to read
	err     error
}

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// run is the program, but for the exit.
func run(args []string, stdout, stderr io.Writer) (code int) {
	stderr = plain{stderr} // what the broker and the environment say is in it
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(stderr, "errand: this is a mistake in errand itself; please report it: %v\n%s", p, debug.Stack())
			code = exitPanic
		}
	}()
	heeded := []os.Signal{syscall.SIGTERM}
	if !signal.Ignored(os.Interrupt) { // as in the background of a script; a program that exec starts is not to notice
		heeded = append(heeded, os.Interrupt)
	}
	ctx, stop := signal.NotifyContext(context.Background(), heeded...)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends at once
	root := newRoot()
	root.SetArgs(shieldKid(args))
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !errors.Is(err, errFailed) && !errors.Is(err, errNotAsked) {
		fmt.Fprintf(stderr, "errand: %v\n", err)
	}
	var usage usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(stderr, "Run  %s --help  for what there is.\n", usage.command)
	} else if errors.Is(err, api.ErrUnreachable) {
		fmt.Fprintln(stderr, "Run  errand doctor  for what is in the way.")
	}
	return exitCodeOf(err)
}

// exitCodes of the broker's refusals; any other is exitFailed.
var exitCodes = map[string]int{
	wire.ProblemInvalid: exitUsage, wire.ProblemNotFound: exitNotFound, wire.ProblemUnauthenticated: exitNoIdentity, wire.ProblemBadEndKey: exitNoIdentity,
	wire.ProblemDenied: exitDenied, wire.ProblemScopeExceeded: exitDenied, wire.ProblemUnregistered: exitDenied, wire.ProblemRoleRequired: exitDenied,
	wire.ProblemQuarantined: exitLocked,
	wire.ProblemTooEarly:    exitPrecondition, wire.ProblemTaskEnded: exitPrecondition, wire.ProblemAdopted: exitPrecondition,
	wire.ProblemNotDelegate: exitDenied, wire.ProblemHandleUsed: exitPrecondition, wire.ProblemHandleExpired: exitPrecondition,
	wire.ProblemIdempotencyMismatch: exitPrecondition,
	wire.ProblemPlanChanged:         exitPrecondition, wire.ProblemPlanExpired: exitPrecondition,
	wire.ProblemRateLimited: exitUnreachable, wire.ProblemOverloaded: exitUnreachable,
	wire.ProblemStoreUnavailable: exitUnreachable, wire.ProblemAuditUnavailable: exitUnreachable, wire.ProblemNotReady: exitUnreachable,
}

// codedError is an error that knows its exit code.
type codedError struct {
	code int
	err  error
}

func (e codedError) Error() string { return e.err.Error() }
func (e codedError) Unwrap() error { return e.err }

func exitCodeOf(err error) int {
	var usage usageError
	var coded codedError
	var refused *api.Refusal
	switch {
	case err == nil || errors.Is(err, errNotAsked):
		return exitOK
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.Is(err, demo.ErrNotRunning):
		return exitNotFound
	case errors.Is(err, api.ErrNoIdentity):
		return exitNoIdentity
	case errors.Is(err, api.ErrUnreachable):
		return exitUnreachable
	case errors.As(err, &refused) && exitCodes[refused.Name()] != 0:
		return exitCodes[refused.Name()]
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "errand",
		Short: "Credentials that end when the work ends",
		Long: `errand is a credential broker. A workload proves who it is with its SPIFFE identity,
says which task it is about to do, and gets short-lived tokens for that task only.
When the task ends, however it ends, its tokens are dead at every verifier.

First look:         errand demo     the life and death of a token, in a quarter of a minute
Then try it:        errand dev      a local broker with a sample resource server
For any program:    errand exec     run it inside a task
For scripts:        errand token    one token; with errand task several commands share a task
As an operator:     errand grants   what is out; errand revoke kills it, errand quarantine keeps it dead
When it fails:      errand doctor   what keeps you from a token; errand verify judges one
In production:      errand serve    one replica; errand config init has the manual`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       Version + revision(),
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, "%w", err) })
	root.SetVersionTemplate("errand {{.Version}}\n")
	root.AddCommand(newDemo(), newDev(), newServe(), newExec(), newConfig(), newKeys(), newToken(), newTask(), newGrants(), newRevoke(), newRevocations(), newLock(), newQuarantine(), newVerifiers(), newVerify(), newDoctor(), newCompletion(), newVersion())
	refuseHelp(root)
	return root
}

// refuseHelp has errand help refuse a command that there is not, as errand itself does.
func refuseHelp(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, err := root.Find([]string{"help"})
	if err != nil {
		panic("cobra has no help command: " + err.Error())
	}
	help.Args = func(_ *cobra.Command, args []string) error {
		about, rest, err := root.Find(args)
		if err == nil && len(rest) > 0 {
			err = unknownCommand(about, rest[0])
		}
		return err
	}
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(cmd.OutOrStdout(), "errand %s%s\n", Version, revision())
			return nil
		},
	}
}

// revision is the commit that the program was built from, when the build knows it.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	out := " " + info.GoVersion
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			out += " " + s.Value[:min(12, len(s.Value))]
		}
	}
	return out
}

// usage is a mistake in the command line of cmd.
func usage(cmd *cobra.Command, format string, args ...any) error {
	return usageError{cmd.CommandPath(), fmt.Errorf(format, args...)}
}

// noArgs is for commands that take none. What is there instead is perhaps a command misspelt.
func noArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case !cmd.HasAvailableSubCommands():
		return usage(cmd, "%s takes no argument, and got %q", cmd.CommandPath(), args[0])
	}
	return unknownCommand(cmd, args[0])
}

// unknownCommand is a name that no command below cmd has.
func unknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return usage(cmd, "unknown command %q; did you mean %s?", name, strings.Join(near, " or "))
	}
	return usage(cmd, "unknown command %q", name)
}

// oneWorkload is for commands that are about one.
func oneWorkload(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usage(cmd, "name one workload, as in  %s report", cmd.CommandPath())
	}
	return nil
}
