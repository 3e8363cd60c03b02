package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/operator"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

func newKeys() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "List, rotate and revoke the keys that sign tokens",
		Long: `keys is for operators: it calls the broker's operator listener, at --operator-url or
ERRAND_OPERATOR_URL, and only a broker that proves to be ERRAND_BROKER_ID. Who you are comes from the
Workload API at SPIFFE_ENDPOINT_SOCKET, or from the folder ERRAND_IDENTITY_DIR; the broker's
configuration gives that SPIFFE ID a role. With errand dev running:

  eval "$(errand dev env operator)"
  errand keys list

The exit code is 0 when it is done, 2 for a command line or an environment that makes no sense, 3 for
no such key, 4 for no identity, 5 for not allowed, 7 for too early, 8 for no answer from the broker, and
1 for all else.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().String("operator-url", "", "the operator listener (default "+operator.EnvURL+")")
	cmd.AddCommand(newKeysList(), newKeysRotate(), newKeysRevoke())
	return cmd
}

func newKeysList() *cobra.Command {
	return asOperator(&cobra.Command{
		Use:   "list",
		Short: "List the keys: next, active, retiring, and the last that are gone",
		Args:  noArgs,
	}, func(cmd *cobra.Command, c *operator.Client, _ []string) ([]byte, func(io.Writer) error, error) {
		var list wire.KeyList
		text, err := c.Get(cmd.Context(), wire.PathKeys, &list)
		return text, func(out io.Writer) error { return printKeys(out, list.Keys, time.Now()) }, err
	})
}

func newKeysRotate() *cobra.Command {
	var reason string
	cmd := asOperator(&cobra.Command{
		Use:   "rotate --reason WHY",
		Short: "Have the next key sign from now on",
		Long: `rotate has the next key sign from now on, before its time. Nothing dies by it: tokens of the key
before it stay good. To kill what a key has signed, revoke it.`,
		Args: noArgs,
	}, func(cmd *cobra.Command, c *operator.Client, _ []string) ([]byte, func(io.Writer) error, error) {
		var rotated wire.KeyRotation
		text, err := c.Post(cmd.Context(), wire.PathKeyRotate, wire.OperatorRequest{Reason: reason}, &rotated)
		return text, func(out io.Writer) error {
			_, err := fmt.Fprintf(out, "%s signs from now on\n", rotated.Active)
			return err
		}, err
	})
	needReason(cmd, &reason)
	return cmd
}

func newKeysRevoke() *cobra.Command {
	var reason string
	var yes bool
	cmd := asOperator(&cobra.Command{
		Use:   "revoke KID --reason WHY",
		Short: "Kill every token that a key has signed, and the key",
		Long: `revoke is for a key that is no longer secret. It is never used again, and every token that it has
signed is dead at every verifier that listens, within milliseconds. If it was the active key, the next
one signs at once; some verifiers have to fetch the keys again first.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return usage(cmd, "name one key by its kid, as errand keys list shows it")
			}
			return nil
		},
	}, func(cmd *cobra.Command, c *operator.Client, args []string) ([]byte, func(io.Writer) error, error) {
		if !yes {
			if err := confirm(cmd, "Every token that "+args[0]+" has signed will be dead, and it will sign nothing any more."); err != nil {
				return nil, nil, err
			}
		}
		path := strings.Replace(wire.PathKeyRevoke, "{id}", url.PathEscape(args[0]), 1)
		var done wire.KeyRevocation
		text, err := c.Post(cmd.Context(), path, wire.OperatorRequest{Reason: reason}, &done)
		return text, func(out io.Writer) error {
			_, err := fmt.Fprintf(out, "%s is revoked, and every token that it has signed is dead\n%s in the audit log, position %s of the feed\n", done.Key, done.Event, done.Feed)
			return err
		}, err
	})
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	needReason(cmd, &reason)
	return cmd
}

// kidWithDash is a kid that would be taken for flags: one in 64 begins with a dash.
var kidWithDash = regexp.MustCompile(`^-[A-Za-z0-9_-]{42}$`)

// shieldKid puts such a kid behind a --, so that what errand keys list shows can be pasted.
func shieldKid(args []string) []string {
	if len(args) < 2 || args[0] != "keys" || slices.Contains(args, "--") {
		return args
	}
	for i, arg := range args {
		if kidWithDash.MatchString(arg) && args[i-1] != "--reason" {
			return slices.Concat(args[:i], args[i+1:], []string{"--", arg})
		}
	}
	return args
}

// call is one call of the operator listener: the answer as it came, and how to print it for people.
type call func(*cobra.Command, *operator.Client, []string) (text []byte, print func(io.Writer) error, err error)

// asOperator makes a command of a call.
func asOperator(cmd *cobra.Command, do call) *cobra.Command {
	var output string
	outputFlag(cmd, &output)
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return checkOutput(cmd, output) }
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		at, err := cmd.Flags().GetString("operator-url")
		if err != nil {
			return err
		}
		c, err := operator.Open(cmd.Context(), operator.Config{URL: at, Getenv: os.Getenv})
		if errors.Is(err, operator.ErrConfig) {
			return usage(cmd, "%w", err)
		}
		if err != nil {
			return err
		}
		defer c.Close()
		text, show, err := do(cmd, c, args)
		var refused *operator.Refusal
		switch {
		case errors.As(err, &refused) && output == "json":
			_, _ = cmd.OutOrStdout().Write(refused.JSON)
			return err
		case err != nil:
			return err
		case output == "json":
			_, err = cmd.OutOrStdout().Write(text)
			return err
		}
		return show(cmd.OutOrStdout())
	}
	return cmd
}

// needReason adds --reason, which has no default.
func needReason(cmd *cobra.Command, reason *string) {
	cmd.Flags().StringVar(reason, "reason", "", "why, for the audit log")
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if strings.TrimSpace(*reason) == "" {
			return usage(cmd, "--reason is missing: say why; it goes into the audit log")
		}
		return before(cmd, args)
	}
}

// confirm asks on the terminal, and refuses where there is nobody to ask.
func confirm(cmd *cobra.Command, what string) error {
	nobody := usage(cmd, "--yes is missing, and there is no terminal to ask on")
	if in, ok := cmd.InOrStdin().(*os.File); ok {
		if mode, err := in.Stat(); err != nil || mode.Mode()&os.ModeCharDevice == 0 {
			return nobody
		}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s\nType yes to do it: ", what)
	answer, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if errors.Is(err, io.EOF) { // as from /dev/null
		fmt.Fprintln(cmd.ErrOrStderr())
		return nobody
	}
	if strings.TrimSpace(answer) != "yes" {
		return errors.New("nothing was done")
	}
	return nil
}

func printKeys(out io.Writer, keys []wire.Key, now time.Time) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "KID\tALGORITHM\tSTATE\tSINCE\tPUBLISHED UNTIL")
	for _, k := range keys {
		state, since, until := k.State, &k.CreatedAt, "-"
		for _, at := range []*time.Time{k.ActivatedAt, k.RetiredAt} {
			if at != nil {
				since = at
			}
		}
		if k.GoneAt != nil {
			until = k.GoneAt.Format(time.RFC3339)
		}
		if k.State == "gone" {
			since, until = k.GoneAt, "-"
		}
		if k.Revoked {
			state = "revoked"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", k.ID, k.Algorithm, state, ago(since, now), until)
	}
	return table.Flush()
}

// ago is how long ago something was, for people.
func ago(at *time.Time, now time.Time) string {
	if at == nil {
		return "-"
	}
	d := max(0, now.Sub(*at))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return fmt.Sprintf("%dd", d/(24*time.Hour))
}
