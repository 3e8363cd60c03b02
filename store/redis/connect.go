package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// limits are how long Redis may take, and a list.
type limits struct {
	dial time.Duration // with the TLS handshake
	pool time.Duration // for a connection when all are in use
	call time.Duration
	send time.Duration // for all of these together

	rounds int // runs of a script that one List makes, in each of which it looks at 100 things
}

// usual are the limits outside of tests. An issue must be refused within a second when there is no
// answer.
var usual = limits{
	dial: 300 * time.Millisecond, pool: 300 * time.Millisecond, call: 500 * time.Millisecond, send: 900 * time.Millisecond,
	rounds: 100,
}

// poolSize bounds the connections to a server. Lanes use few of them; each Watch uses one, or on a
// cluster one for each shard.
const poolSize = 64

// connect makes a client, which connects when it is used. Nothing is retried by itself: a script that
// may have run is the caller's to repeat.
func connect(c Config) (client redis.UniversalClient, cluster bool, err error) {
	logging.Disable() // all that it says is in the errors, too
	scheme, rest, _ := strings.Cut(c.URL, "://")
	scheme, kind, _ := strings.Cut(scheme, "+")
	plain := scheme + "://" + rest
	host, after := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		host, after = rest[:i], rest[i:]
	}
	switch {
	case host != "" && strings.Contains(after, "@"): // what is left of a password would be a path, a query or a fragment
		err = errors.New("Config.URL has an @ after a /, ? or #; " + inPasswords)
	case strings.Contains(rest, "skip_verify"):
		err = errors.New("skip_verify is not possible; name the authority in Config.CAFile")
	case scheme != "redis" && scheme != "rediss" && scheme != "unix":
		err = errBegins
	case kind == "":
		client, err = connectOne(c, plain)
	case kind == "sentinel":
		client, err = connectSentinel(c, plain)
	case kind == "cluster":
		client, err = connectCluster(c, plain)
	default:
		err = errBegins
	}
	if err == nil {
		return client, kind == "cluster", nil
	}
	return nil, false, fmt.Errorf("redis: %w", err)
}

const inPasswords = "in a password these are written as %2F, %3F and %23, @ as %40 and % as %25; better put it into a file, and that into Config.PasswordFile"

// unread is an error of a parser of URLs.
func unread(err error) error {
	if errors.As(err, new(*url.Error)) { // it has the whole URL, and so a part of the password
		return errors.New("Config.URL cannot be read; write it as redis://user@host:6379/0; " + inPasswords)
	}
	return fmt.Errorf("Config.URL cannot be read: %s; write it as redis://user@host:6379/0", strings.TrimPrefix(err.Error(), "redis: "))
}

// CheckURL says what is wrong with a Config.URL, without a connection.
func CheckURL(text string) error {
	client, _, err := connect(Config{URL: text})
	if err != nil {
		return err
	}
	return client.Close()
}

var errBegins = errors.New("Config.URL must begin with redis://, rediss:// or unix://, or for several servers with redis+cluster:// or redis+sentinel://, as redis://user@host:6379/0")

func connectOne(c Config, address string) (redis.UniversalClient, error) {
	o, err := redis.ParseURL(address)
	if err != nil {
		return nil, unread(err)
	}
	if o.TLSConfig, err = c.tls(o.TLSConfig != nil); err != nil {
		return nil, err
	}
	if o.CredentialsProviderContext, err = c.credentials(o.Username, o.Password); err != nil {
		return nil, err
	}
	o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled, o.DisableIdentity = -1, 1, true, true
	o.Protocol = protocol
	o.MaintNotificationsConfig, o.PoolSize, o.PipelinePoolSize = quiet(), poolSize, -1
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = c.limits.dial, c.limits.call, c.limits.call, c.limits.pool
	return redis.NewClient(o), nil
}

func connectSentinel(c Config, address string) (redis.UniversalClient, error) {
	o, err := redis.ParseFailoverURL(address)
	if err != nil {
		return nil, unread(err)
	}
	if o.MasterName == "" {
		return nil, errors.New("Config.URL must say which primary the Sentinels watch, as redis+sentinel://host:26379/0?master_name=errand")
	}
	if o.TLSConfig, err = c.tls(o.TLSConfig != nil); err != nil {
		return nil, err
	}
	if o.CredentialsProviderContext, err = c.credentials(o.Username, o.Password); err != nil {
		return nil, err
	}
	if c.SentinelPasswordFile != "" {
		if o.SentinelPassword, err = readSecret("Config.SentinelPasswordFile", c.SentinelPasswordFile); err != nil {
			return nil, err
		}
	}
	o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled, o.DisableIdentity = -1, 1, true, true
	o.Protocol = protocol
	o.PoolSize, o.PipelinePoolSize = poolSize, -1
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = c.limits.dial, c.limits.call, c.limits.call, c.limits.pool
	return redis.NewFailoverClient(o), nil
}

func connectCluster(c Config, address string) (redis.UniversalClient, error) {
	o, err := redis.ParseClusterURL(address)
	if err != nil {
		return nil, unread(err)
	}
	if o.TLSConfig, err = c.tls(o.TLSConfig != nil); err != nil {
		return nil, err
	}
	if o.CredentialsProviderContext, err = c.credentials(o.Username, o.Password); err != nil {
		return nil, err
	}
	o.MaxRetries, o.DialerRetries, o.ContextTimeoutEnabled, o.DisableIdentity = -1, 1, true, true
	o.Protocol = protocol
	o.DisableRoutingPolicies = true // all that is sent names its slot by its keys
	o.MaintNotificationsConfig, o.PoolSize, o.PipelinePoolSize = quiet(), poolSize, -1
	o.DialTimeout, o.ReadTimeout, o.WriteTimeout, o.PoolTimeout = c.limits.dial, c.limits.call, c.limits.call, c.limits.pool
	return redis.NewClusterClient(o), nil
}

// protocol is RESP2: nothing is pushed to this client, and looking for it costs time in every answer.
const protocol = 2

func quiet() *maintnotifications.Config {
	return &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
}

// tls is how connections are secured; nil for an address that says that they are not. The server's name
// is that of the address that is dialled.
func (c Config) tls(wanted bool) (*tls.Config, error) {
	if !wanted {
		if c.CAFile+c.CertFile+c.KeyFile != "" {
			return nil, errors.New("there is a Config.CAFile or a Config.CertFile, and Config.URL does not say rediss://")
		}
		return nil, nil
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("Config.CAFile: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("Config.CAFile: %s has no certificate in PEM", c.CAFile)
		}
	}
	if c.CertFile == "" && c.KeyFile == "" {
		return out, nil
	}
	load := func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("Config.CertFile and Config.KeyFile: %w", err)
		}
		return &pair, nil
	}
	if _, err := load(); err != nil {
		return nil, err
	}
	// Read for each connection, so that a new certificate needs no restart.
	out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	return out, nil
}

// credentials says who logs in. The file is read for each connection, so that a new password needs no
// restart.
func (c Config) credentials(user, password string) (func(context.Context) (string, string, error), error) {
	if c.PasswordFile == "" {
		return nil, nil // what the URL says
	}
	if password != "" {
		return nil, errors.New("there is a Config.PasswordFile, and Config.URL has a password, too; leave it in the file alone")
	}
	read := func(context.Context) (string, string, error) {
		secret, err := readSecret("Config.PasswordFile", c.PasswordFile)
		return user, secret, err
	}
	if _, _, err := read(context.Background()); err != nil {
		return nil, err
	}
	return read, nil
}

// maxSecret bounds a password file.
const maxSecret = 4096

func readSecret(field, file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s: %w", field, err)
	}
	secret := strings.TrimRight(string(b), "\r\n")
	if secret == "" || len(secret) > maxSecret || strings.ContainsAny(secret, "\r\n") {
		return "", fmt.Errorf("%s: %s must have one line of at most %d bytes", field, file, maxSecret)
	}
	return secret, nil
}
