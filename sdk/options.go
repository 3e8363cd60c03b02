package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Environment variables that New reads where no option says otherwise.
const (
	EnvBrokerURL      = "ERRAND_BROKER_URL" // several are separated by commas
	EnvBrokerID       = "ERRAND_BROKER_ID"  // a SPIFFE ID
	EnvIdentityDir    = "ERRAND_IDENTITY_DIR"
	EnvWorkloadSocket = "SPIFFE_ENDPOINT_SOCKET"
)

// DefaultStartupTimeout is how long New tries.
const DefaultStartupTimeout = 30 * time.Second

// MaxBrokers bounds the URLs of WithBroker.
const MaxBrokers = 16

// Option configures New.
type Option func(*config)

// WithBroker names the workload listeners of the broker's replicas, as "https://broker:8443". They
// are tried in order, and the one that answers is kept. The default is ERRAND_BROKER_URL.
func WithBroker(urls ...string) Option { return func(c *config) { c.urls = urls } }

// WithBrokerID names the SPIFFE ID that a broker must present: any other workload of the trust
// domain could pose as it otherwise. The default is ERRAND_BROKER_ID.
func WithBrokerID(id spiffeid.ID) Option { return func(c *config) { c.brokerID = id } }

// WithIdentity says where the SVID comes from. The default is the Workload API at
// SPIFFE_ENDPOINT_SOCKET, and then the directory ERRAND_IDENTITY_DIR.
func WithIdentity(s IdentitySource) Option { return func(c *config) { c.identity = s } }

// WithStartupTimeout says how long New tries; 30 s by default.
func WithStartupTimeout(d time.Duration) Option { return func(c *config) { c.startup = d } }

// WithLogger says where to log; slog.Default() by default. Tokens are never logged.
func WithLogger(l *slog.Logger) Option { return func(c *config) { c.log = l } }

// WithHooks sets functions that are told what the client does, for metrics and traces.
func WithHooks(h Hooks) Option { return func(c *config) { c.hooks = h } }

// Hooks are told what the client does. Each may be nil, must not block, and may be called from
// several goroutines at once.
type Hooks struct {
	// OnIssue is called for each token that Token hands out, and says whether it was in memory.
	OnIssue func(ctx context.Context, t *Token, cached bool, took time.Duration)
	// OnHeartbeat is called for each request, with the number of tasks in it.
	OnHeartbeat func(ctx context.Context, tasks int, took time.Duration, err error)
	// OnEnd is called once for each task. The receipt is empty unless this client has ended it and
	// the broker has confirmed that; err is nil then, and else says why the task is over.
	OnEnd func(ctx context.Context, task string, s State, r Receipt, err error)
	// OnLeak is called once for a task that nobody has any more and that has not been ended.
	OnLeak func(ctx context.Context, task string)
	// OnDenied is called for each refusal: by policy, ceiling, quarantine or a missing registration.
	OnDenied func(ctx context.Context, e *Error)
}

// config is what the options fill in.
type config struct {
	urls     []string
	brokerID spiffeid.ID
	identity IdentitySource
	startup  time.Duration
	log      *slog.Logger
	hooks    Hooks
	defaults TaskSpec

	bases []*url.URL // of urls

	clock    func() instant
	connect  func(*generation, spiffeid.ID) // makes the transports of a generation
	getenv   func(string) string
	maxTasks int
}

// newConfig applies the options, the environment and the defaults, and checks the result.
func newConfig(opts []Option) (*config, error) {
	c := &config{
		startup: DefaultStartupTimeout, log: slog.Default(),
		clock: clock, connect: connectTLS, getenv: os.Getenv, maxTasks: MaxTasks,
	}
	for _, opt := range opts {
		opt(c)
	}
	if len(c.urls) == 0 {
		c.urls = strings.FieldsFunc(c.getenv(EnvBrokerURL), func(r rune) bool { return r == ',' || r == ' ' })
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	return c, errors.Join(c.checkBrokers(), c.checkBrokerID(), c.checkStartup())
}

func (c *config) checkBrokers() error {
	switch {
	case len(c.urls) == 0:
		return fmt.Errorf("sdk: the broker's URL is not known; set %s or use WithBroker, as https://broker.example.com:8443", EnvBrokerURL)
	case len(c.urls) > MaxBrokers:
		return fmt.Errorf("sdk: %d broker URLs; give %d at most", len(c.urls), MaxBrokers)
	}
	for _, text := range c.urls {
		u, err := url.Parse(text)
		if err != nil {
			return fmt.Errorf("sdk: the broker URL must be https:// with a host, as https://broker.example.com:8443: %w", err)
		}
		if u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("sdk: the broker URL %q must be https:// with a host, and have no user, query or fragment", u.Redacted())
		}
		c.bases = append(c.bases, u)
	}
	return nil
}

func (c *config) checkBrokerID() error {
	if text := c.getenv(EnvBrokerID); c.brokerID.IsZero() && text != "" {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return fmt.Errorf("sdk: %s is %q, which is not a SPIFFE ID: %w", EnvBrokerID, text, err)
		}
		c.brokerID = id
	}
	if c.brokerID.IsZero() {
		return fmt.Errorf("sdk: the broker's SPIFFE ID is not known; set %s or use WithBrokerID, as spiffe://example.com/errand", EnvBrokerID)
	}
	return nil
}

func (c *config) checkStartup() error {
	if c.startup <= 0 {
		return fmt.Errorf("sdk: the startup timeout is %s; it must be more than nothing", c.startup)
	}
	return nil
}
