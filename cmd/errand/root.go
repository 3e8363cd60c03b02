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

	"github.com/errandhq/errand/cmd/errand/internal/demo"
	"github.com/spf13/cobra"
)

// Version of the program.
const Version = "0.1.0-dev"

// Exit codes. A script can tell its own mistake from the broker's answer.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNotFound = 3
	exitPanic    = 4
)

// errFailed is a failure that has been shown already.
var errFailed = errors.New("failed")

// usageError is a command line that makes no sense.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// run is the program, but for the exit.
func run(args []string, stdout, stderr io.Writer) (code int) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Fprintf(stderr, "errand: this is a mistake in errand itself; please report it: %v\n%s", p, debug.Stack())
			code = exitPanic
		}
	}()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err != nil && !errors.Is(err, errFailed) {
		fmt.Fprintf(stderr, "errand: %v\n", err)
	}
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintln(stderr, "Run  errand --help  for what there is.")
		return exitUsage
	case errors.Is(err, demo.ErrNotRunning):
		return exitNotFound
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

First look:         errand demo     the life and death of a token, in ten seconds
Then try it:        errand dev      a local broker with a sample resource server`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newDemo(), newDev(), newVersion())
	return root
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

// noCommand is for what is not the name of a command.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q", args[0])
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		text += fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
	}
	return usageError{errors.New(text)}
}

// noArgs and exactArgs make a wrong number of arguments a usage error.
func noArgs(cmd *cobra.Command, args []string) error { return wrapUsage(cobra.NoArgs(cmd, args)) }

func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return wrapUsage(cobra.ExactArgs(n)(cmd, args)) }
}

func wrapUsage(err error) error {
	if err != nil {
		return usageError{err}
	}
	return nil
}
