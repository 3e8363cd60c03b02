package main

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/broker/audit"
	"github.com/errandhq/errand/cmd/errand/internal/api"
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
` + certificateHelp + `
The exit code is 0 when it is done, 2 for a command line or an environment that makes no sense, 3 for
no such key, 4 for no identity, 5 for not allowed, 7 for too early, 8 for no answer from the broker, and
1 for all else.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeysList(), newKeysRotate(), newKeysRevoke())
	return cmd
}

func newKeysList() *cobra.Command {
	a := &asking{at: api.Operator}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the keys: next, active, retiring, and the last that are gone",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list wire.KeyList
			text, err := a.send(cmd, api.Request{Method: http.MethodGet, Path: wire.PathKeys}, &list)
			if err != nil {
				return err
			}
			return keyTable(time.Now()).only(a.columns).show(cmd.OutOrStdout(), a.output, text, list.Keys...)
		},
	}
	a.flags(cmd, formats)
	columnsFlag(a, cmd, keyTable)
	return cmd
}

// said are the formats of a command that has done something.
var said = []string{"text", "json"}

func newKeysRotate() *cobra.Command {
	var reason string
	a := &asking{at: api.Operator}
	cmd := &cobra.Command{
		Use:   "rotate --reason WHY",
		Short: "Have the next key sign from now on",
		Long: `rotate has the next key sign from now on, before its time. Nothing dies by it: tokens of the key
before it stay good. To kill what a key has signed, revoke it.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var rotated wire.KeyRotation
			text, err := a.send(cmd, api.Request{Method: http.MethodPost, Path: wire.PathKeyRotate, Body: wire.OperatorRequest{Reason: reason}}, &rotated)
			return a.say(cmd, text, err, func() string { return rotated.Active + " signs from now on" })
		},
	}
	a.flags(cmd, said)
	needReason(cmd, &reason)
	return cmd
}

// say ends a command that has done something.
func (a *asking) say(cmd *cobra.Command, text []byte, err error, what func() string) error {
	if err != nil {
		return err
	}
	if a.output != "json" {
		_, err = plain{cmd.OutOrStdout()}.Write([]byte(what() + "\n"))
		return err
	}
	_, err = cmd.OutOrStdout().Write(audit.Printable(text))
	return err
}

func newKeysRevoke() *cobra.Command {
	var reason string
	var yes bool
	a := &asking{at: api.Operator}
	cmd := &cobra.Command{
		Use:   "revoke KID --reason WHY",
		Short: "Kill every token that a key has signed, and the key",
		Long: `revoke is for a key that is no longer secret. It is never used again, and every token that it has
signed is dead at every verifier that listens, within milliseconds. If it was the active key, the next
one signs at once; some verifiers have to fetch the keys again first. While the store is away it does so at
the broker that is asked and its verifiers, says so, and the rest is done when the store is back.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return usage(cmd, "name one key by its kid, as errand keys list shows it")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if !yes && !a.curl {
				if err := confirm(cmd, "Every token that "+args[0]+" has signed will be dead, and it will sign nothing any more."); err != nil {
					return err
				}
			}
			var done wire.KeyRevocation
			text, err := a.send(cmd, api.Request{Method: http.MethodPost, Path: pathOf(wire.PathKeyRevoke, args[0]), Body: wire.OperatorRequest{Reason: reason}}, &done)
			return a.say(cmd, text, err, func() string {
				if !done.Durable {
					return fmt.Sprintf("%s is revoked at this broker and at the verifiers that listen to it; its store is away, and the others are told as soon as that is back\n"+
						"%s in the audit log; repeat it then to be sure, or now at each of the other brokers", done.Key, done.Event)
				}
				return fmt.Sprintf("%s is revoked, and every token that it has signed is dead\n%s in the audit log, position %s of the feed", done.Key, done.Event, done.Feed)
			})
		},
	}
	a.flags(cmd, said)
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	needReason(cmd, &reason)
	return cmd
}

// pathOf puts an ID into one of wire's paths.
func pathOf(path, id string) string { return strings.Replace(path, "{id}", url.PathEscape(id), 1) }

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

// keyTable is how keys are shown.
func keyTable(now time.Time) table[wire.Key] {
	gone := func(k wire.Key) string {
		if k.State == "gone" {
			return ""
		}
		return rfc3339(k.GoneAt)
	}
	return table[wire.Key]{
		name: func(k wire.Key) string { return k.ID },
		columns: []column[wire.Key]{
			{head: "KID", cell: func(k wire.Key) string { return k.ID }},
			{head: "ALGORITHM", cell: func(k wire.Key) string { return k.Algorithm }},
			{head: "STATE", cell: stateOfKey},
			{head: "SINCE", cell: func(k wire.Key) string { return rfc3339(sinceOfKey(k)) }, people: func(k wire.Key) string { return ago(sinceOfKey(k), now) }},
			{head: "PUBLISHED UNTIL", cell: gone},
			{head: "CREATED", cell: func(k wire.Key) string { return rfc3339(&k.CreatedAt) }, wide: true},
		},
	}
}

func stateOfKey(k wire.Key) string {
	if k.Revoked {
		return "revoked"
	}
	return k.State
}

// sinceOfKey is when a key came into its state.
func sinceOfKey(k wire.Key) *time.Time {
	since := &k.CreatedAt
	for _, at := range []*time.Time{k.ActivatedAt, k.RetiredAt} {
		if at != nil {
			since = at
		}
	}
	if k.State == "gone" {
		return k.GoneAt
	}
	return since
}
