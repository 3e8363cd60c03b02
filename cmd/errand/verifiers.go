package main

import (
	"net/http"
	"strconv"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

func newVerifiers() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verifiers",
		Short: "List the resource servers that listen to the feed of what has ended",
		Long: `verifiers shows which resource servers would refuse a token at once when its task ends: those that listen
to the feed of what has ended. Each confirms what it has heard, which errand revoke --wait waits for.
` + operatorsHelp,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newVerifiersList())
	return cmd
}

func newVerifiersList() *cobra.Command {
	a := &asking{at: api.Operator}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the verifiers, and how far each has heard",
		Long: `list shows the verifiers that any replica has heard from within a minute:

  BEHIND          changes of the feed that it has not confirmed; those of other audiences take some seconds
  SEEN            when it was heard last; it speaks every 15 s at least
  REFUSES AFTER   for how long it accepts tokens without news of the feed; "never" means until they expire`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var list wire.VerifierList
			text, err := a.send(cmd, api.Request{Method: http.MethodGet, Path: wire.PathVerifiers}, &list)
			if err != nil {
				return err
			}
			return verifierTable(time.Now()).only(a.columns).show(cmd.OutOrStdout(), a.output, text, list.Verifiers...)
		},
	}
	a.flags(cmd, formats)
	columnsFlag(a, cmd, verifierTable)
	return cmd
}

// verifierTable is how verifiers are shown.
func verifierTable(now time.Time) table[wire.Verifier] {
	refuses := func(v wire.Verifier) string {
		if v.MaxStale == 0 {
			return "never"
		}
		return (time.Duration(v.MaxStale) * time.Second).String()
	}
	return table[wire.Verifier]{
		name: func(v wire.Verifier) string { return v.ID },
		columns: []column[wire.Verifier]{
			{head: "ID", cell: func(v wire.Verifier) string { return v.ID }},
			{head: "WORKLOAD", cell: func(v wire.Verifier) string { return v.Workload }},
			{head: "AUDIENCE", cell: func(v wire.Verifier) string { return v.Audience }},
			{head: "BEHIND", cell: func(v wire.Verifier) string { return strconv.FormatUint(v.Behind, 10) }},
			{head: "SEEN", cell: func(v wire.Verifier) string { return rfc3339(&v.SeenAt) }, people: func(v wire.Verifier) string { return ago(&v.SeenAt, now) }},
			{head: "REFUSES AFTER", cell: refuses},
			{head: "POSITION", cell: func(v wire.Verifier) string { return v.Position }, wide: true},
			{head: "VERSION", cell: func(v wire.Verifier) string { return v.Version }, wide: true},
		},
	}
}
