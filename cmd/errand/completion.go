package main

import (
	"context"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/spf13/cobra"
)

// completionBudget is how long somebody who has pressed Tab waits for the broker.
const completionBudget = 300 * time.Millisecond

func newCompletion() *cobra.Command {
	shells := map[string]func(*cobra.Command, io.Writer) error{
		"bash":       func(root *cobra.Command, out io.Writer) error { return root.GenBashCompletionV2(out, true) },
		"zsh":        func(root *cobra.Command, out io.Writer) error { return root.GenZshCompletion(out) },
		"fish":       func(root *cobra.Command, out io.Writer) error { return root.GenFishCompletion(out, true) },
		"powershell": func(root *cobra.Command, out io.Writer) error { return root.GenPowerShellCompletionWithDesc(out) },
	}
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Print the script that completes errand's commands in a shell",
		Long: `completion prints a script for your shell. It completes commands and flags, and asks the broker, for a
third of a second at most, which audiences and scopes you may name; for an operator, which tasks, grants
and locks there are.

  bash         echo 'source <(errand completion bash)' >> ~/.bashrc
               (needs the package bash-completion)
  zsh          errand completion zsh > "${fpath[1]}/_errand"
               (needs  autoload -U compinit; compinit  in ~/.zshrc)
  fish         errand completion fish > ~/.config/fish/completions/errand.fish
  powershell   errand completion powershell | Out-String | Invoke-Expression

What is there already stays; a new shell knows it.`,
		ValidArgs: slices.Sorted(maps.Keys(shells)),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || shells[args[0]] == nil {
				return usage(cmd, "name one shell: bash, zsh, fish or powershell")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return shells[args[0]](cmd.Root(), cmd.OutOrStdout()) },
	}
}

// completeCeiling completes --audience and --scope with what the caller may ask for.
func completeCeiling(cmd *cobra.Command) {
	complete(cmd, "audience", func(_ *cobra.Command, who wire.Whoami) []string {
		return slices.Collect(maps.Keys(who.Ceiling))
	})
	complete(cmd, "scope", func(cmd *cobra.Command, who wire.Whoami) []string {
		named := flagValues(cmd, "audience")
		var all []string
		for audience, scopes := range who.Ceiling {
			if len(named) == 0 || slices.Contains(named, audience) {
				all = append(all, scopes...)
			}
		}
		return all
	})
}

// flagValues are those of a flag that is given once or more often.
func flagValues(cmd *cobra.Command, name string) []string {
	if all, err := cmd.Flags().GetStringArray(name); err == nil {
		return all
	}
	if one, err := cmd.Flags().GetString(name); err == nil && one != "" {
		return []string{one}
	}
	return nil
}

// complete completes a flag with what the broker says, and with nothing when it does not in time.
func complete(cmd *cobra.Command, flag string, from func(*cobra.Command, wire.Whoami) []string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		who, ok := quickWhoami(cmd)
		if !ok {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		values := from(cmd, who)
		slices.Sort(values)
		return slices.Compact(values), cobra.ShellCompDirectiveNoFileComp
	}) // the flag is there
}

func quickWhoami(cmd *cobra.Command) (wire.Whoami, bool) {
	ctx, cancel := quickly(cmd)
	defer cancel()
	a := asking{at: api.Workload}
	a.url, _ = cmd.Flags().GetString("broker-url") // or else the environment's
	c, err := api.Open(ctx, a.environment(), api.Workload)
	if err != nil {
		return wire.Whoami{}, false
	}
	who, err := c.Whoami(ctx)
	_ = c.Close() // there is nobody to tell
	return who, err == nil
}

// quickly bounds a question that somebody waits for who has pressed Tab.
func quickly(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	return context.WithTimeout(ctx, completionBudget)
}
