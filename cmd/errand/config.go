package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/errandhq/errand/cmd/errand/internal/config"
	"github.com/spf13/cobra"
)

// envConfig names the configuration file where no flag does.
const envConfig = "ERRAND_CONFIG"

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Write, check and show the configuration of errand serve",
		Long: `config is about the YAML file of errand serve.

  errand config init --out errand.yaml        the commented file, which is the manual
  errand config check --config errand.yaml    every mistake at once, with its line
  errand config show --config errand.yaml     the values in force, and where each came from`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConfigInit(), newConfigCheck(), newConfigShow())
	return cmd
}

// configFlags adds --config and --set, and returns what makes Sources of them.
func configFlags(cmd *cobra.Command) func() (config.Sources, error) {
	var file string
	var set []string
	cmd.Flags().StringVar(&file, "config", "", "the configuration file (default "+envConfig+")")
	cmd.Flags().StringArrayVar(&set, "set", nil, "key=value, which counts more than the environment and the file; repeat for more")
	return func() (config.Sources, error) {
		if file == "" {
			file = os.Getenv(envConfig)
		}
		if file == "" {
			return config.Sources{}, usage(cmd, "--config is missing: name the configuration file; write one with  errand config init --out errand.yaml")
		}
		return config.Sources{File: file, Environ: os.Environ(), Set: set}, nil
	}
}

func newConfigInit() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Print the commented configuration file, which is the manual",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				_, err := io.WriteString(cmd.OutOrStdout(), config.Example())
				return err
			}
			file, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s is there already, and is left as it is; name another file, or move it away", out)
			}
			if err != nil {
				return err
			}
			_, err = io.WriteString(file, config.Example())
			if err = errors.Join(err, file.Close()); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s is written. Give the keys that are not commented out your values, then  errand config check --config %s\n", out, out)
			return nil
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "write to this new file instead")
	return cmd
}

func newConfigCheck() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Find every mistake that can be found before a start",
		Long: `check reads the configuration as errand serve would, and looks at the files that it names. It
connects to nothing. Each mistake is one line: the place, the key, what is wrong and how to mend it.`,
		Args: noArgs,
	}
	sources := configFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		from, err := sources()
		if err != nil {
			return err
		}
		c, err := config.Load(from)
		if c != nil {
			err = errors.Join(err, c.CheckFiles())
		}
		if err != nil {
			return showProblems(cmd, err)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s is good\n", from.File)
		if set := c.FromEnvironment(); len(set) > 0 {
			// A shell that was a client's has ERRAND_ISSUER and the like, which nobody looks for here.
			fmt.Fprintf(cmd.ErrOrStderr(), "errand: taken from the environment, and not from the file: %s\n", strings.Join(set, " "))
		}
		return nil
	}
	return cmd
}

func newConfigShow() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "show --config FILE",
		Short: "Show the values in force, and where each came from",
		Args:  noArgs,
	}
	sources := configFlags(cmd)
	outputFlag(cmd, &output, []string{"table", "json"})
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		from, err := sources()
		if err != nil {
			return err
		}
		c, err := config.Load(from)
		if c != nil {
			err = errors.Join(err, showConfig(cmd.OutOrStdout(), c, output))
		}
		if err != nil {
			return showProblems(cmd, err)
		}
		return nil
	}
	return cmd
}

func showConfig(out io.Writer, c *config.Config, output string) error {
	if output == "json" {
		return printJSON(out, c.Show())
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "KEY\tVALUE\tSOURCE")
	for _, s := range c.Show() {
		fmt.Fprintf(table, "%s\t%s\t%s\n", s.Key, orDash(s.Value), s.Source)
	}
	return table.Flush()
}

// showProblems prints mistakes of the configuration, one a line. Any other error is returned as it is.
func showProblems(cmd *cobra.Command, err error) error {
	var problems config.Problems
	if !errors.As(err, &problems) {
		return err
	}
	fmt.Fprintln(cmd.ErrOrStderr(), err)
	return errFailed
}

func printJSON(out io.Writer, v any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
