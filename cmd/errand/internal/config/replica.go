package config

import (
	"errors"
	"io"
	"log/slog"

	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/keys"
)

// Logger writes to out, at the level and in the format of the configuration.
func (c *Config) Logger(out io.Writer) *slog.Logger {
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	options := &slog.HandlerOptions{Level: levels[c.Log.Level]}
	if c.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(out, options))
	}
	return slog.New(slog.NewTextHandler(out, options))
}

// Replica is the configuration as the server wants it. The error is a Problem or Problems.
func (c *Config) Replica(log *slog.Logger) (server.Config, error) {
	inventory, err := registry.Load(c.Inventory)
	if err != nil {
		return server.Config{}, Problems{c.problem("inventory", "cannot be used: %v", err)}
	}
	source, err := c.identity(log)
	if err != nil {
		return server.Config{}, err
	}
	return server.Config{
		WorkloadAddr: c.Listeners.Workload, PublicAddr: c.Listeners.Public, OpsAddr: c.Listeners.Ops,
		OperatorAddr: c.Listeners.Operator, Operators: c.operators(func(string, string, ...any) {}), // checked by Load
		Issuer: c.Issuer, BrokerURL: c.BrokerURL,
		Identity: source, Withdrawal: c.Identity.Withdrawal, Registry: inventory, AuditLog: c.Audit.Log,
		Algorithm: keys.Algorithm(c.Keys.Algorithm), KeyPeriod: c.Keys.Period, Logger: log,
	}, nil
}

func (c *Config) identity(log *slog.Logger) (*identity.Source, error) {
	source := identity.FromWorkloadAPI(c.Identity.WorkloadAPI, log)
	if c.Identity.Certificate != "" {
		source = identity.FromFiles(identity.Files{Cert: c.Identity.Certificate, Key: c.Identity.Key, Bundle: c.Identity.Bundle}, log)
	}
	source.MaxSVIDLife, source.MaxAge = c.Identity.MaxSVIDLife, c.Identity.MaxAge
	return source, source.Federate(c.federation()...)
}

// serverFields are the keys of server.Config's fields.
var serverFields = map[string]string{
	"WorkloadAddr": "listeners.workload", "PublicAddr": "listeners.public", "OpsAddr": "listeners.ops",
	"OperatorAddr": "listeners.operator",
	"Issuer":       "issuer", "BrokerURL": "broker_url", "AuditLog": "audit.log",
}

// Blame turns an error of the server into a Problem of the key that it is about, if it is about one.
func (c *Config) Blame(err error) error {
	var bad *server.ConfigError
	if !errors.As(err, &bad) || serverFields[bad.Field] == "" {
		return err
	}
	return Problems{c.problem(serverFields[bad.Field], "cannot be used: %v", bad.Err)}
}

// BlameIdentity is Blame for an SVID that did not come.
func (c *Config) BlameIdentity(err error) error {
	if c.Identity.Certificate != "" {
		return Problems{c.problem("identity.certificate", "cannot be used: %v; the certificate, its key and the bundle must belong together", err)}
	}
	return Problems{c.problem("identity.workload_api", "has given no SVID: %v; is the agent running, and is this broker registered with it?", err)}
}
