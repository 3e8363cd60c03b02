package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/cmd/errand/internal/config"
	"github.com/spf13/cobra"
)

const (
	// lookInterval is how often a replica that is starting is asked whether it is ready.
	lookInterval = 50 * time.Millisecond
	// complainInterval is how often it says what it is waiting for.
	complainInterval = 5 * time.Second
)

func newServe() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run one replica of the broker",
		Long: `serve runs one replica of the broker, as its configuration file says, until it gets SIGTERM or
SIGINT. It then says on /readyz that it is not ready, and serves on for as long as drain says, so
that balancers notice; then it sends those who follow the feed elsewhere, lets requests finish for
ten seconds, and ends. A second signal ends it at once. Logs go to stderr. Under systemd, Type=notify
is told when the replica is ready. A change of the file or the inventory counts from the next start.

  errand config init --out errand.yaml        the file, which is the manual
  errand config check --config errand.yaml    every mistake at once
  errand serve --config errand.yaml`,
		Args: noArgs,
	}
	sources := configFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		from, err := sources()
		if err != nil {
			return err
		}
		c, err := config.Load(from)
		if err != nil {
			return showProblems(cmd, err)
		}
		log := c.Logger(cmd.ErrOrStderr())
		server.TuneMemory()
		settings, release, err := c.Replica(cmd.Context(), log)
		if err != nil {
			return showProblems(cmd, err)
		}
		defer release()
		settings.Version = Version
		s, err := server.New(settings)
		if err != nil {
			return showProblems(cmd, c.Blame(err))
		}
		return showProblems(cmd, serve(cmd.Context(), c, s, log))
	}
	return cmd
}

// serve runs the replica until ctx ends or it fails.
func serve(ctx context.Context, c *config.Config, s *server.Server, log *slog.Logger) error {
	log.Info("errand "+Version, "issuer", s.Issuer(), "broker_url", s.BrokerURL(), "store", c.Store.Type, "inventory", c.Inventory, "audit_log", c.Audit.Log)
	if set := c.FromEnvironment(); len(set) > 0 {
		log.Info("taken from the environment, and not from the file", "variables", set)
	}
	at := s.Listening()
	operator := at["operator"]
	if operator == "" {
		operator = "off: nobody is named under operators"
	}
	log.Info("listening", "workload", at["workload"], "public", at["public"], "operator", operator, "ops", at["ops"])

	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- s.Run(running) }()

	starting, done := context.WithTimeout(running, c.Identity.Wait)
	defer done()
	log.Info("waiting for the replica's own SVID", "source", s.Config().Identity.String(), "for", c.Identity.Wait)
	if err := s.Config().Identity.Wait(starting); err != nil && ctx.Err() == nil {
		cancel()
		return errors.Join(<-ended, c.BlameIdentity(err))
	}
	go becomeReady(running, s, log)
	return wait(ctx, ended, hangup, log, c.Drain)
}

// wait returns when the replica has ended, and says meanwhile what the signals do.
func wait(ctx context.Context, ended <-chan error, hangup <-chan os.Signal, log *slog.Logger, drain time.Duration) error {
	stopping := ctx.Done()
	for {
		select {
		case err := <-ended:
			log.Info("ended")
			return err
		case <-hangup:
			log.Warn("SIGHUP changes nothing: start again to read the configuration and the inventory anew")
		case <-stopping:
			stopping = nil
			notify(log, "STOPPING=1")
			log.Info("stopping; a second signal ends at once", "drain", drain, "requests_may_take", server.ShutdownTimeout)
		}
	}
}

// becomeReady says when the replica is ready, and until then what it is waiting for.
func becomeReady(ctx context.Context, s *server.Server, log *slog.Logger) {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	said := time.Now()
	for {
		err := s.Ready()
		if err == nil {
			log.Info("ready")
			notify(log, "READY=1")
			return
		}
		if time.Since(said) > complainInterval {
			said = time.Now()
			log.Warn("not ready yet", "because", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// notify tells systemd, if it has started us (sd_notify(3)).
func notify(log *slog.Logger, state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(state))
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		log.Warn(fmt.Sprintf("systemd could not be told %s", state), "error", err)
	}
}
