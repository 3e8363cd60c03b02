package config

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"

	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/store/redis"
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

// Replica is the configuration as the server wants it, once the store answers. Close what it has
// opened when the server has ended. An error about a key is Problems.
func (c *Config) Replica(ctx context.Context, log *slog.Logger) (_ server.Config, close func() error, err error) {
	out, err := c.local(log)
	if err != nil || c.Store.Type != "redis" {
		return out, func() error { return nil }, err
	}
	seal, err := keys.LoadSeal(c.Keys.KeyFile)
	if err != nil {
		return out, nil, Problems{c.problem("keys.key_file", "cannot be used: %v", err)}
	}
	store, err := c.redis(ctx, log)
	if err != nil {
		return out, nil, err
	}
	out.Store, out.SharedKeys = store, &server.SharedKeys{Record: store.Record("keys"), Seal: seal}
	return out, store.Close, nil
}

// redisKeys turns the fields that errors of the store name into keys.
var redisKeys = strings.NewReplacer(
	"Config.URL", "store.redis.url", "Config.PasswordFile", "store.redis.password_file",
	"Config.SentinelPasswordFile", "store.redis.sentinel_password_file", "Config.CAFile", "store.redis.ca_file",
	"Config.CertFile", "store.redis.certificate_file", "Config.KeyFile", "store.redis.key_file",
	"Config.Deployment", "store.redis.deployment", "Config.Prefix", "store.redis.prefix", "Config.Shards", "store.redis.shards",
)

// redis opens the store.
func (c *Config) redis(ctx context.Context, log *slog.Logger) (*redis.Store, error) {
	settings, err := c.redisConfig(log)
	if err != nil {
		return nil, err
	}
	store, err := redis.New(ctx, settings)
	if err != nil {
		return nil, Problems{c.problem("store.redis.url", "is %s, and that cannot be used: %s", maskedURL(settings.URL), redisKeys.Replace(err.Error()))}
	}
	return store, nil
}

func (c *Config) redisConfig(log *slog.Logger) (redis.Config, error) {
	r := c.Store.Redis
	out := redis.Config{URL: r.URL, Deployment: r.Deployment, Prefix: r.Prefix, Shards: r.Shards, Logger: log}
	for _, file := range []struct {
		key, path string
		into      *string
	}{
		{"store.redis.password_file", r.PasswordFile, &out.PasswordFile},
		{"store.redis.sentinel_password_file", r.SentinelPasswordFile, &out.SentinelPasswordFile},
		{"store.redis.ca_file", r.CAFile, &out.CAFile}, {"store.redis.certificate_file", r.CertificateFile, &out.CertFile},
		{"store.redis.key_file", r.KeyFile, &out.KeyFile},
	} {
		path, err := secretFile(file.path)
		if err != nil {
			return out, Problems{c.problem(file.key, "%v", err)}
		}
		*file.into = path
	}
	return out, nil
}

// local is what needs no store.
func (c *Config) local(log *slog.Logger) (server.Config, error) {
	inventory, err := registry.Load(c.Inventory)
	if err != nil {
		return server.Config{}, c.inventoryProblems(err)
	}
	source, err := c.identity(log)
	if err != nil {
		return server.Config{}, err
	}
	operators, certificates := c.operators(func(string, string, ...any) {}) // checked by Load
	l := c.Limits
	return server.Config{
		WorkloadAddr: c.Listeners.Workload, PublicAddr: c.Listeners.Public, OpsAddr: c.Listeners.Ops,
		OperatorAddr: c.Listeners.Operator, Operators: operators, OperatorCertificates: certificates,
		Issuer: c.Issuer, BrokerURL: c.BrokerURL,
		Identity: source, Withdrawal: c.Identity.Withdrawal, Registry: inventory, AuditLog: c.Audit.Log,
		Limits: httpapi.Limits{
			IssueRate: l.IssueRate, IssueBurst: l.IssueBurst, Rate: l.Rate, Burst: l.Burst, Issuing: l.Issuing, Others: l.Others,
			Connections: l.Connections, PerAddress: l.ConnectionsOfAddress, Handshakes: l.Handshakes, HandshakeTime: l.HandshakeTime, ConnectionAge: l.ConnectionAge,
		},
		Drain:     c.Drain,
		Algorithm: keys.Algorithm(c.Keys.Algorithm), KeyPeriod: c.Keys.Period, Logger: log,
	}, nil
}

func (c *Config) identity(log *slog.Logger) (*identity.Source, error) {
	source := identity.FromWorkloadAPI(c.Identity.WorkloadAPI, log)
	if c.Identity.Certificate != "" {
		source = identity.FromFiles(c.identityFiles(), log)
	}
	source.MaxSVIDLife, source.MaxAge = c.Identity.MaxSVIDLife, c.Identity.MaxAge
	return source, source.Federate(c.federation()...)
}

func (c *Config) identityFiles() identity.Files {
	return identity.Files{Cert: c.Identity.Certificate, Key: c.Identity.Key, Bundle: c.Identity.Bundle}
}

// serverFields are the keys of server.Config's fields.
var serverFields = map[string]string{
	"WorkloadAddr": "listeners.workload", "PublicAddr": "listeners.public", "OpsAddr": "listeners.ops",
	"OperatorAddr": "listeners.operator",
	"Issuer":       "issuer", "BrokerURL": "broker_url", "AuditLog": "audit.log", "SharedKeys": "keys.key_file",
	"Drain": "drain",
}

// Blame turns an error of the server into a Problem of the key that it is about, if it is about one.
func (c *Config) Blame(err error) error {
	var bad *server.ConfigError
	if !errors.As(err, &bad) || serverFields[bad.Field] == "" {
		return err
	}
	return Problems{c.problem(serverFields[bad.Field], "cannot be used: %v", bad.Err)}
}

// unfit is what is said of files that are no identity.
const unfit = "cannot be used: %v; the certificate, its key and the bundle must belong together"

// BlameIdentity is Blame for an SVID that did not come.
func (c *Config) BlameIdentity(err error) error {
	if c.Identity.Certificate != "" {
		return Problems{c.problem("identity.certificate", unfit, err)}
	}
	return Problems{c.problem("identity.workload_api", "has given no SVID: %v; is the agent running, and is this broker registered with it?", err)}
}
