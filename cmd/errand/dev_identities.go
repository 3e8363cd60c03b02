package main

import (
	"fmt"
	"os"

	"github.com/errandhq/errand/cmd/errand/internal/demo"
	"github.com/spf13/cobra"
)

func newDevIdentities(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "identities NAME...",
		Short: "Serve only SPIFFE identities, for brokers that you start yourself",
		Long: `identities runs the dev CA alone: a real SPIFFE Workload API socket for each name, until Ctrl-C. It
stands in for SPIRE on a machine where you try errand serve. Its folder has the sockets, as
errand.sock for the name errand; dev env and dev svid work on it.

  errand dev identities errand report orders --dir ids
  SPIFFE_ENDPOINT_SOCKET=unix://$PWD/ids/errand.sock errand serve --config errand.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(cmd, "name at least one identity, as errand or report")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, names []string) error {
			at, err := prepareDir(*dir)
			if err != nil {
				return err
			}
			if *dir == "" {
				defer os.RemoveAll(at)
			}
			return demo.Identities(cmd.Context(), at, names, func(d demo.Description) {
				for _, name := range names {
					fmt.Fprintf(cmd.OutOrStdout(), "%-34s %s\n", "spiffe://"+demo.TrustDomain+"/"+name, d.Sockets[name])
				}
			})
		},
	}
}
