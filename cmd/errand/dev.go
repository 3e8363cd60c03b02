package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/cmd/errand/internal/api"
	"github.com/errandhq/errand/cmd/errand/internal/demo"
	"github.com/spf13/cobra"
)

// startTimeout bounds how long a local environment may take to come up.
const startTimeout = 30 * time.Second

// devDir is the folder that errand dev and its sub-commands agree on without being told.
func devDir() string { return filepath.Join(os.TempDir(), fmt.Sprintf("errand-dev-%d", os.Getuid())) }

func newDev() *cobra.Command {
	var dir string
	var verbose bool
	config := demo.Config{}
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a local broker with a sample resource server until Ctrl-C",
		Long: `dev runs a broker for development, on loopback and in memory: a dev CA that serves one real
SPIFFE Workload API socket to each identity, the broker, and "orders", a sample resource
server. What errand dev env prints lets a program in another shell find all of it.

  errand dev                        in one shell
  eval "$(errand dev env report)"   in another: you are now the workload "report"
  errand doctor                     can it get tokens?

The workload "report" may ask for the scope orders:read at the audience "orders"; --inventory has others.
Tokens may be sent to the sample server, and to a server of your own on 127.0.0.1:8082. Every errand dev
has a CA of its own: after a restart, run dev env and dev svid again.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if verbose {
				config.Logger = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelDebug}))
			}
			return runDev(cmd, dir, config)
		},
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", "", "folder for sockets and the audit log (default "+devDir()+")")
	flags := cmd.Flags()
	flags.StringSliceVar(&config.Identities, "identity", []string{"report"}, "a workload to serve, and to register; repeat for more")
	flags.StringVar(&config.Inventory, "inventory", "", "an inventory file to use instead of the sample one")
	flags.StringVar(&config.WorkloadAddr, "workload-address", "127.0.0.1:8443", "the broker's workload listener")
	flags.StringVar(&config.PublicAddr, "public-address", "127.0.0.1:8444", "the broker's public listener")
	flags.StringVar(&config.OperatorAddr, "operator-address", "127.0.0.1:9443", "the broker's operator listener, for the identity operator")
	flags.StringVar(&config.OpsAddr, "ops-address", "127.0.0.1:9090", "metrics and readiness")
	flags.StringVar(&config.OrdersAddr, "orders-address", "127.0.0.1:8081", "the sample resource server")
	flags.BoolVarP(&verbose, "verbose", "v", false, "log every request to stderr")
	cmd.AddCommand(newDevEnv(&dir), newDevSVID(&dir), newDevIdentities(&dir))
	return cmd
}

func runDev(cmd *cobra.Command, dir string, config demo.Config) (err error) {
	ctx := cmd.Context()
	config.Version = Version
	if config.Dir, err = prepareDir(dir); err != nil {
		return err
	}
	if dir == "" {
		defer os.RemoveAll(config.Dir)
	}
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	local, err := demo.Start(starting, config)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w, with --workload-address, --public-address, --operator-address, --ops-address or --orders-address; 127.0.0.1:0 takes a free port", err)
	}
	if err != nil {
		return err
	}
	printDev(cmd.OutOrStdout(), config, local.Description, dir)
	err = local.Wait(ctx)
	return errors.Join(err, local.Close())
}

// prepareDir makes a folder that only this user can read, and refuses one that is in use.
func prepareDir(dir string) (string, error) {
	if dir == "" {
		dir = devDir()
	}
	if d, err := demo.Describe(dir); err == nil && d.Alive() {
		return "", fmt.Errorf("errand dev is running already, in %s: stop it first, or give this one a --dir of its own; beside another errand dev it also needs --workload-address, --public-address, --operator-address, --ops-address and --orders-address 127.0.0.1:0", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("no folder for the sockets: %w; choose one that you can write to with --dir, or set TMPDIR", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("the folder %s is open to others (mode %04o): run  chmod 700 %s  or choose another --dir", dir, info.Mode().Perm(), dir)
	}
	return dir, nil
}

func printDev(out io.Writer, config demo.Config, d demo.Description, dir string) {
	flag, kept := "", "removed at the end"
	if dir != "" {
		flag, kept = " --dir "+dir, "stays at the end"
	}
	first := "ID"
	if len(config.Identities) > 0 {
		first = config.Identities[0]
	}
	fmt.Fprintf(out, `errand %s dev: a local broker, loopback and memory only. Ctrl-C ends it.

  broker      %s   %s
  issuer      %s   keys, metadata, problem pages
  orders      %s   the sample resource server
  operators   %s   for the identity operator
  operations  %s/readyz   /metrics
  audit log   %s   %s
  workloads   %s

In another shell:
  eval "$(%s dev%s env %s)"     be that workload, for errand and for programs that use the SDK
  %s dev%s svid %s --out DIR    its certificate as files, for curl
  eval "$(%s dev%s env operator)"; %s grants list    be the operator, and see which tokens are out

sdk/README.md has the first hour: a service, a script and a test, step by step.
`, Version, d.BrokerURL, d.BrokerID, d.Issuer, d.OrdersURL, d.Operator, d.OpsURL, d.AuditLog, kept,
		strings.Join(config.Identities, " "), program(), flag, first, program(), flag, first, program(), flag, program())
}

// program is how this program was called, so that what is printed can be pasted. What go run has
// built is gone as soon as it ends.
func program() string {
	if strings.Contains(os.Args[0], "go-build") {
		return "go run ./cmd/errand"
	}
	return os.Args[0]
}

func newDevEnv(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "env ID",
		Short: "Print the exports that make a shell the workload ID",
		Long: `env prints export lines for a shell. With them a program that uses the SDK is the workload,
and a resource server that uses the verifier finds the broker. ID is the last part of a SPIFFE ID
or the whole of it: report, or spiffe://dev.errand/report.

  eval "$(errand dev env report)"`,
		Args: oneWorkload,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, socket, err := describe(*dir, args[0])
			if err != nil {
				return err
			}
			for _, v := range [][2]string{
				{"SPIFFE_ENDPOINT_SOCKET", socket}, {"ERRAND_BROKER_URL", d.BrokerURL}, {"ERRAND_BROKER_ID", d.BrokerID},
				{"ERRAND_ISSUER", d.Issuer}, {"ERRAND_OPERATOR_URL", d.Operator}, {"ERRAND_DEV_ORDERS", d.OrdersURL},
			} {
				if v[1] != "" { // errand dev identities has no broker to name
					fmt.Fprintf(cmd.OutOrStdout(), "export %s=%s\n", v[0], api.Quote(v[1]))
				}
			}
			return nil
		},
	}
}

func newDevSVID(dir *string) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "svid ID --out DIR",
		Short: "Write the workload's certificate, key and trust bundle as PEM files",
		Long: `svid writes svid.pem, svid_key.pem and svid_bundle.pem into a folder, for programs that take
files. They are good for half an hour to an hour, and as long as this errand dev runs: each one has
a CA of its own. Run it again for fresh ones.

  errand dev svid report --out .`,
		Args: oneWorkload,
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usage(cmd, "--out is missing: name the folder for the files")
			}
			_, socket, err := describe(*dir, args[0])
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), startTimeout)
			defer cancel()
			who, err := devmode.Open(ctx, socket)
			if err != nil {
				return err
			}
			defer who.Close()
			files, err := who.WriteFiles(out)
			for _, f := range files {
				fmt.Fprintln(cmd.OutOrStdout(), f)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "the folder; it is made when it is not there")
	return cmd
}

func describe(dir, id string) (demo.Description, string, error) {
	if dir == "" {
		dir = devDir()
	}
	d, err := demo.Describe(dir)
	if err == nil && !d.Alive() {
		err = fmt.Errorf("%w (the one of %s has ended): start one with  errand dev  in another shell", demo.ErrNotRunning, dir)
	}
	if err != nil {
		return d, "", err
	}
	socket, err := d.Socket(id)
	return d, socket, err
}
