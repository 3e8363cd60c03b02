package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// certificateHelp is for operators who have no SPIFFE ID.
const certificateHelp = `
Without a SPIFFE ID, come with a certificate that the configuration lists under operators.certificates:
  ERRAND_OPERATOR_CERT  the certificate, in PEM
  ERRAND_OPERATOR_KEY   its key, in PEM; nobody else may read the file
  ERRAND_BUNDLE_FILE    the trust bundle of the broker's trust domain, in PEM
Where these are set a SPIFFE identity is not looked at.
`

// operatorsHelp is what the help of every operators' command ends with.
const operatorsHelp = `
This is for operators: it calls the broker's operator listener, at --operator-url or
ERRAND_OPERATOR_URL, and only a broker that proves to be ERRAND_BROKER_ID. Who you are comes from the
Workload API at SPIFFE_ENDPOINT_SOCKET, or from the folder ERRAND_IDENTITY_DIR; the broker's
configuration gives that SPIFFE ID a role. With errand dev running,  eval "$(errand dev env operator)".
` + certificateHelp + `
The exit code is 0 when it is done, 2 for a command line that makes no sense or a question that nobody
answers, 3 for no such thing, 4 for no identity, 5 for a role that is missing, 7 for a plan that does not
hold any more, 8 for no answer from the broker, and 1 for all else.`

func newGrants() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "grants",
		Short: "List the grants of all workloads, look at one, and watch them",
		Long: `grants shows which tokens are out: whose they are, at which audience, in which task, and for how long.
A grant is the broker's record of one token, and its ID is the token's jti. A grant is forgotten half a
minute after its token has expired.

  errand grants list --workload 'spiffe://example.org/fin/*' --audience orders
  errand grants watch --owner team-fin
` + operatorsHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newGrantsList(), newGrantsShow(), newGrantsWatch())
	return cmd
}

func grantListing() *listing[wire.GrantItem] {
	return &listing[wire.GrantItem]{asking: asking{at: api.Operator}, what: "grants", view: grantTable}
}

func newGrantsList() *cobra.Command {
	l := grantListing()
	cmd := &cobra.Command{
		Use:   "list [FILTERS]",
		Short: "List the live grants, or those that filters choose",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q, err := l.query(cmd)
			if err != nil {
				return err
			}
			return l.list(cmd, wire.PathGrants, q)
		},
	}
	l.flags(cmd, formats)
	columnsFlag(&l.asking, cmd, l.view)
	l.filters(cmd, wire.GrantLive, wire.GrantDead)
	l.limitFlag(cmd)
	return cmd
}

func newGrantsShow() *cobra.Command {
	a := &asking{at: api.Operator}
	cmd := &cobra.Command{
		Use:   "show GRANT",
		Short: "Show one grant",
		Args:  oneID("grant", "gnt_"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return showOne(a, cmd, pathOf(wire.PathGrant, args[0]), grantTable)
		},
	}
	a.flags(cmd, formats)
	completeArgs(cmd, grantIDs)
	return cmd
}

func newGrantsWatch() *cobra.Command {
	l := grantListing()
	w := &watching[wire.GrantItem]{listing: l, path: wire.PathGrants, since: func(g wire.GrantItem) time.Time { return g.IssuedAt }}
	cmd := &cobra.Command{
		Use:   "watch [FILTERS]",
		Short: "Watch the live grants, or those that filters choose, until Ctrl-C",
		Long:  "watch shows the grants as they come and go. " + watchHelp,
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return w.run(cmd) },
	}
	l.flags(cmd, watchFormats)
	columnsFlag(&l.asking, cmd, l.view)
	l.filters(cmd, wire.GrantLive, wire.GrantDead)
	return cmd
}

// grantTable is how grants are shown.
func grantTable(now time.Time) table[wire.GrantItem] {
	return table[wire.GrantItem]{
		name: func(g wire.GrantItem) string { return g.ID },
		columns: []column[wire.GrantItem]{
			{head: "GRANT", cell: func(g wire.GrantItem) string { return g.ID }},
			{head: "WORKLOAD", cell: func(g wire.GrantItem) string { return g.Workload }},
			{head: "AUDIENCE", cell: func(g wire.GrantItem) string { return g.Audience }},
			{head: "SCOPE", cell: func(g wire.GrantItem) string { return g.Scope }},
			{head: "STATE", cell: stateOfGrant},
			{head: "ISSUED", cell: func(g wire.GrantItem) string { return rfc3339(&g.IssuedAt) }, people: func(g wire.GrantItem) string { return ago(&g.IssuedAt, now) }},
			{head: "EXPIRES", cell: func(g wire.GrantItem) string { return rfc3339(&g.ExpiresAt) }, people: func(g wire.GrantItem) string { return ahead(&g.ExpiresAt, now) }},
			{head: "TASK", cell: func(g wire.GrantItem) string { return g.Task }},
			{head: "NAME", wide: true, cell: func(g wire.GrantItem) string { return g.TaskName }},
			{head: "OWNER", wide: true, cell: func(g wire.GrantItem) string { return g.Owner }},
			{head: "BINDING", wide: true, cell: func(g wire.GrantItem) string { return g.Binding }},
			{head: "PATH", wide: true, cell: func(g wire.GrantItem) string { return strings.Join(g.TaskPath, "/") }},
			{head: "DECISION", wide: true, cell: func(g wire.GrantItem) string { return g.DecisionID }},
			{head: "PURPOSE", wide: true, cell: func(g wire.GrantItem) string { return g.Purpose }},
		},
	}
}

// stateOfGrant says why a grant is dead, where its task does.
func stateOfGrant(g wire.GrantItem) string {
	switch {
	case g.Live:
		return wire.GrantLive
	case g.TaskState != wire.StateActive && g.TaskState != "":
		return fmt.Sprintf("%s (task %s)", wire.GrantDead, g.TaskState)
	}
	return wire.GrantDead
}
