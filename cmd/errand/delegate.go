package main

import (
	"net/http"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func newTaskDelegate() *cobra.Command {
	var body wire.DelegationRequest
	var life time.Duration
	a := &asking{at: api.Workload}
	cmd := &cobra.Command{
		Use:   "delegate TASK --to ID --purpose WHY",
		Short: "Let another workload begin a task below one",
		Long: `delegate prints a handle, by which the workload that it names can begin one task below TASK. It is no
credential, and travels as you like: it is of use to nobody but that workload, by its own identity, and once.

  handle=$(errand task delegate "$task" --to spiffe://example.org/indexer --purpose "index v1.4" -o name)

The other one finds it in ERRAND_TASK_HANDLE, as errand task begin does, or is told it with --join:

  export ERRAND_TASK_HANDLE=$handle
  errand exec --task index --purpose "v1.4" --audience files --scope files:read -- ./index

It may have no more than TASK has, nor than what is named here, nor than it may have by itself. Its tokens
name both workloads, and die with TASK. A task of its own needs no handle; a task below TASK for this same
workload is  errand task begin --parent.  To try it:  errand dev --identity report --identity indexer`,
		Args: oneTask,
		RunE: func(cmd *cobra.Command, args []string) error {
			if body.To == "" || strings.TrimSpace(body.Purpose) == "" {
				return usage(cmd, "--to and --purpose are missing: say which workload may join, as spiffe://example.org/indexer, and why")
			}
			if _, err := spiffeid.FromString(body.To); err != nil {
				return usage(cmd, "--to is no SPIFFE ID, as spiffe://example.org/indexer: %w", err)
			}
			var err error
			if body.ExpiresIn, err = seconds(cmd, "for", life); err != nil {
				return err
			}
			var made wire.DelegationResponse
			text, err := a.send(cmd, api.Request{Method: http.MethodPost, Path: pathOf(wire.PathDelegations, args[0]), Body: body}, &made)
			if err != nil {
				return err
			}
			return delegationTable(time.Now()).show(cmd.OutOrStdout(), a.output, text, made)
		},
	}
	a.flags(cmd, formats)
	f := cmd.Flags()
	f.StringVar(&body.To, "to", "", "the workload that may join, by its SPIFFE ID")
	f.StringVar(&body.Purpose, "purpose", "", "why, for the audit log")
	f.StringArrayVar(&body.Audiences, "audience", nil, "an audience that its tokens may be for; repeat for more (default those of TASK that it may have)")
	f.StringArrayVar(&body.Scopes, "scope", nil, "a scope that they may have; repeat for more (default those of TASK)")
	f.DurationVar(&life, "for", 0, "how long it has to join, 1s to 24h (default 10m)")
	completeCeiling(cmd)
	return cmd
}

// delegationTable is how delegations are shown. The handle is what they are called by.
func delegationTable(now time.Time) table[wire.DelegationResponse] {
	return table[wire.DelegationResponse]{
		name: func(d wire.DelegationResponse) string { return d.Handle },
		columns: []column[wire.DelegationResponse]{
			{head: "DELEGATION", cell: func(d wire.DelegationResponse) string { return d.ID }},
			{head: "EXPIRES", cell: func(d wire.DelegationResponse) string { return rfc3339(&d.ExpiresAt) }, people: func(d wire.DelegationResponse) string { return ahead(&d.ExpiresAt, now) }},
			{head: "HANDLE", cell: func(d wire.DelegationResponse) string { return d.Handle }},
		},
	}
}

// handleIn is the handle that a text has which came from a flag or a variable.
func handleIn(cmd *cobra.Command, from, text string) (sdk.Handle, error) {
	h, err := sdk.ParseHandle(text)
	if err != nil {
		return "", usage(cmd, "%s has no handle; give what errand task delegate has printed with -o name, whole: it begins with hdl_, and has a dot", from)
	}
	return h, nil
}
