// Package server makes one replica of the broker out of its parts: start with New and call Run.
//
// New opens the listeners and the audit log, so that a mistake in the configuration shows before
// anything is served. When its context ends, Run says so by Ready, serves on for Config.Drain, and
// returns when everything is closed: readers of the feed are sent elsewhere, requests that are being
// answered have ShutdownTimeout to finish, and only then does the audit log close.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/audit"
	"github.com/errandhq/errand/broker/feed"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/policy"
	"github.com/errandhq/errand/broker/token"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/memory"
	"golang.org/x/sync/errgroup"
)

// Defaults of Config.
const (
	DefaultWorkloadAddr = ":8443"
	DefaultPublicAddr   = ":8444"
	DefaultOpsAddr      = "127.0.0.1:9090"
	DefaultOperatorAddr = "127.0.0.1:9443"

	// ShutdownTimeout is how long requests may take to finish when the replica stops.
	ShutdownTimeout = 10 * time.Second
	// MaxDrain is the most of Config.Drain.
	MaxDrain = 5 * time.Minute
)

// Config describes a replica.
type Config struct {
	// WorkloadAddr, PublicAddr and OpsAddr are where to listen; port 0 picks a free one. OpsAddr
	// must be a loopback address: it asks nobody who they are.
	WorkloadAddr, PublicAddr, OpsAddr string

	// Operators may use the operator listener, each in its role. There is none when this is empty.
	Operators httpapi.Operators
	// OperatorCertificates are of those among them who have no SVID. Optional.
	OperatorCertificates identity.Certificates
	// OperatorAddr is where to listen for them. Optional.
	OperatorAddr string

	// Issuer and BrokerURL are the public and workload listeners' URLs as clients see them.
	// Optional: https and the listener's own address.
	Issuer, BrokerURL string

	Identity *identity.Source // the replica's SVID and trust bundles; Run runs it. Required.
	Registry Inventory        // Required.
	Policy   broker.Policy    // Optional: policy.Ceiling.
	AuditLog string           // the audit log's path. Required.
	Store    broker.Store     // Optional: a memory store, whose content ends with the replica.

	// Withdrawal is how long a trust domain must have been without trust before its tasks end: time
	// for a mistake to be mended, while its workloads are refused already. Optional: DefaultWithdrawal.
	Withdrawal time.Duration

	// Drain is how long the replica serves on when it is told to stop, while Ready says so: time for
	// balancers to notice. At most MaxDrain. Optional: it stops at once.
	Drain time.Duration

	// Limits are what the replica takes on at most. Optional: the defaults of each.
	Limits httpapi.Limits

	Algorithm keys.Algorithm // Optional: ES256.
	KeyPeriod time.Duration  // How long a key signs. Optional: keys.DefaultPeriod.
	// SharedKeys is where the replicas of one store share their keys, and needs Issuer, in whose name
	// they sign. Optional: keys of this replica's own, which end with it.
	SharedKeys *SharedKeys

	// EndKeySecret makes the end keys: broker.EndKeySecretSize random bytes that all replicas share.
	// Optional: derived from what seals SharedKeys; without those random, so that each replica knows
	// its own end keys alone, and until it stops.
	EndKeySecret []byte

	// Around puts something around a listener's handler, by the name that Listening has: faults, for
	// tests. Optional.
	Around func(listener string, h http.Handler) http.Handler

	Version string       // of the program, for GET /v1/whoami. Optional.
	Logger  *slog.Logger // Optional: discards.
	Now     func() time.Time
}

// Inventory is a broker.Registry that can name its revision. *registry.Registry is one.
type Inventory interface {
	broker.Registry
	Revision() string
}

// SharedKeys is a record of the store, and what seals it.
type SharedKeys struct {
	Record keys.Record
	Seal   *keys.Seal
}

// ConfigError is a mistake that New has found, with the field of Config that it is in.
type ConfigError struct {
	Field string
	Err   error
}

func (e *ConfigError) Error() string { return "server: " + e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

// Server is one replica.
type Server struct {
	config  Config
	broker  *broker.Broker
	feed    *feed.Feed
	ring    *keys.Ring
	audit   *audit.File
	servers []listening

	stopping atomic.Bool
}

// listening is a listener with what serves it.
type listening struct {
	name   string
	l      net.Listener
	server *http.Server
}

// New checks the configuration, opens the audit log and binds the listeners. Call Run, or Close to
// give them up.
func New(c Config) (_ *Server, err error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	s := &Server{config: c, feed: feed.New(feed.Config{Now: c.Now})}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.audit, err = audit.Open(c.AuditLog); err != nil {
		return nil, &ConfigError{"AuditLog", err}
	}
	for _, at := range c.listeners() {
		l, err := net.Listen("tcp", at.addr)
		if err != nil {
			return nil, &ConfigError{at.field, fmt.Errorf("the %s listener: %w; stop what is using the address, or choose another", at.name, err)}
		}
		s.servers = append(s.servers, listening{name: at.name, l: l})
	}
	if err := s.locate(); err != nil {
		return nil, err
	}
	return s, s.assemble()
}

func (c *Config) complete() error {
	if c.Identity == nil || c.Registry == nil || c.AuditLog == "" {
		return errors.New("server: Identity, Registry and AuditLog are required")
	}
	c.WorkloadAddr = cmp.Or(c.WorkloadAddr, DefaultWorkloadAddr)
	c.PublicAddr = cmp.Or(c.PublicAddr, DefaultPublicAddr)
	c.OpsAddr = cmp.Or(c.OpsAddr, DefaultOpsAddr)
	c.OperatorAddr = cmp.Or(c.OperatorAddr, DefaultOperatorAddr)
	if !IsLoopback(c.OpsAddr) {
		return &ConfigError{"OpsAddr", fmt.Errorf("the ops address is %q; it must be a loopback address with a port, as %s", c.OpsAddr, DefaultOpsAddr)}
	}
	c.Withdrawal = cmp.Or(c.Withdrawal, DefaultWithdrawal)
	if c.Withdrawal < 0 || c.Withdrawal > MaxWithdrawal {
		return &ConfigError{"Withdrawal", fmt.Errorf("withdrawal is %v; it must be at most %v, or zero for %v", c.Withdrawal, MaxWithdrawal, DefaultWithdrawal)}
	}
	if c.Drain < 0 || c.Drain > MaxDrain {
		return &ConfigError{"Drain", fmt.Errorf("drain is %v; it must be at most %v, or zero to stop at once", c.Drain, MaxDrain)}
	}
	if err := c.Limits.Complete(); err != nil {
		return &ConfigError{"Limits", err}
	}
	if c.SharedKeys != nil && c.Issuer == "" {
		return &ConfigError{"Issuer", errors.New("the issuer is empty; replicas that share their keys sign in the name of one: give all of them the same")}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Policy == nil {
		c.Policy = policy.Ceiling{Revision: c.Registry.Revision}
	}
	if c.Around == nil {
		c.Around = func(_ string, h http.Handler) http.Handler { return h }
	}
	return nil
}

// listener is one to open: its name, and the field of Config that has its address.
type listener struct{ name, field, addr string }

func (c *Config) listeners() []listener {
	all := []listener{
		{"workload", "WorkloadAddr", c.WorkloadAddr}, {"public", "PublicAddr", c.PublicAddr}, {"ops", "OpsAddr", c.OpsAddr},
	}
	if len(c.Operators) > 0 {
		all = append(all, listener{"operator", "OperatorAddr", c.OperatorAddr})
	}
	return all
}

// IsLoopback reports whether only this machine can reach an address, which is host:port.
func IsLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// locate fills in the URLs that were left out, and checks those that were not.
func (s *Server) locate() error {
	for _, at := range []struct {
		field string
		url   *string
		l     net.Listener
	}{{"BrokerURL", &s.config.BrokerURL, s.servers[0].l}, {"Issuer", &s.config.Issuer, s.servers[1].l}} {
		if *at.url == "" {
			*at.url = "https://" + at.l.Addr().String()
		}
		if err := CheckURL(*at.url); err != nil {
			return &ConfigError{at.field, err}
		}
	}
	return nil
}

// CheckURL wants an origin: an issuer has no query and no fragment (RFC 8414 §2), and one with a
// path would need its metadata elsewhere.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || text != "https://"+u.Host {
		return fmt.Errorf("%q; it must be https:// with a host and perhaps a port, and nothing after it", text)
	}
	return nil
}

// assemble wires the parts.
func (s *Server) assemble() error {
	c, metrics := s.config, newMetrics(s)
	var err error
	if s.ring, err = newRing(c); err != nil {
		return err
	}
	if c.EndKeySecret == nil && c.SharedKeys != nil {
		c.EndKeySecret = c.SharedKeys.Seal.Derive("end key")
	}
	minter, err := token.NewMinter(c.Issuer, s.ring)
	if err != nil {
		return err
	}
	if c.Store == nil {
		if c.Store, err = memory.New(memory.Config{Now: c.Now}); err != nil {
			return err
		}
	}
	board, _ := c.Store.(broker.Board)
	if s.broker, err = broker.New(broker.Config{
		Board: board,
		Store: c.Store, Registry: c.Registry, Policy: c.Policy, Minter: minter,
		Auditor: metrics.auditor(s.audit), Announcer: s.feed, Logger: c.Logger, Now: c.Now, EndKeySecret: c.EndKeySecret,
	}); err != nil {
		return err
	}
	s.config.EndKeySecret = nil // the broker has it, and prints it nowhere
	signer, err := s.ring.Signer()
	if err != nil {
		return err
	}
	api, err := httpapi.New(httpapi.Config{
		Broker: s.broker, Registry: c.Registry, Feed: s.feed, Keys: s.ring.Set, AllKeys: s.ring.Keys,
		Identify: c.Identity.Workload, Limits: c.Limits, Operators: c.Operators,
		IdentifyOperator: func(r *http.Request) (broker.Operator, error) { return c.Identity.Operator(r, c.OperatorCertificates) },
		Issuer:           c.Issuer, BrokerURL: c.BrokerURL, Algorithm: signer.Algorithm().Header(), Ready: s.Ready,
		Version: c.Version, Now: c.Now, Logger: c.Logger, Metrics: metrics.handler(), Observe: metrics.observe, Limited: metrics.limited,
	})
	if err != nil {
		return err
	}
	metrics.load(api.Load)
	for i, at := range s.servers {
		s.servers[i].l = metrics.bound(at.name, at.l, c.Limits)
	}
	s.servers[0].server = httpapi.NewServer(c.Around("workload", api.Workload()), c.Limits, identity.ServerTLS(c.Identity), identity.ConnContext, c.Logger)
	s.servers[1].server = httpapi.NewServer(c.Around("public", api.Public()), c.Limits, identity.PublicTLS(c.Identity), nil, c.Logger)
	s.servers[2].server = httpapi.NewServer(c.Around("ops", api.Ops()), c.Limits, nil, nil, c.Logger)
	if len(c.Operators) > 0 {
		s.servers[3].server = httpapi.NewServer(c.Around("operator", api.Operator()), c.Limits, identity.OperatorTLS(c.Identity, c.OperatorCertificates), identity.ConnContext, c.Logger)
	}
	return nil
}

func newRing(c Config) (*keys.Ring, error) {
	config := keys.Config{Algorithm: c.Algorithm, Type: wire.TokenType, Life: broker.MaxTokenLife, Period: c.KeyPeriod, Now: c.Now}
	if c.SharedKeys == nil {
		return keys.New(config)
	}
	config.Shared = &keys.Shared{Record: c.SharedKeys.Record, Seal: c.SharedKeys.Seal, Name: c.Issuer}
	ring, err := keys.New(config)
	if err != nil {
		return nil, &ConfigError{"SharedKeys", err}
	}
	return ring, nil
}

// Config is the configuration with everything filled in, and without the secret.
func (s *Server) Config() Config { return s.config }

// Issuer is the public listener's URL, and the iss of every token.
func (s *Server) Issuer() string { return s.config.Issuer }

// BrokerURL is the workload listener's URL.
func (s *Server) BrokerURL() string { return s.config.BrokerURL }

// Listening has the address of each listener by name: workload, public, ops, and operator if there is
// one.
func (s *Server) Listening() map[string]string {
	out := map[string]string{}
	for _, at := range s.servers {
		out[at.name] = at.l.Addr().String()
	}
	return out
}

// OpsAddr is where /metrics, /healthz and /readyz are.
func (s *Server) OpsAddr() string { return s.servers[2].l.Addr().String() }

// Broker is the replica's domain, for operators' actions.
func (s *Server) Broker() *broker.Broker { return s.broker }

// Keys is the ring that signs the tokens.
func (s *Server) Keys() *keys.Ring { return s.ring }

// Ready returns nil while the replica should get traffic. The error of one that is about to stop, and
// serves until then, is httpapi.ErrStopping.
func (s *Server) Ready() error {
	if s.stopping.Load() {
		return fmt.Errorf("%w: %w", broker.ErrNotReady, httpapi.ErrStopping)
	}
	if err := s.broker.Ready(); err != nil {
		return err
	}
	if _, err := s.ring.Signer(); err != nil {
		return fmt.Errorf("%w: %w", broker.ErrNotReady, err)
	}
	svid, err := s.config.Identity.GetX509SVID()
	if err != nil {
		return fmt.Errorf("%w: no SVID: %w", broker.ErrNotReady, err)
	}
	if !s.config.Now().Before(svid.Certificates[0].NotAfter) {
		return fmt.Errorf("%w: the replica's own SVID has expired", broker.ErrNotReady)
	}
	if _, err := s.config.Identity.GetX509BundleForTrustDomain(svid.ID.TrustDomain()); err != nil {
		return fmt.Errorf("%w: the replica's own trust bundle is too old: %w", broker.ErrNotReady, err)
	}
	return nil
}

// Run serves until ctx ends, and for Drain after that, and returns nil then; any other end is an error.
func (s *Server) Run(ctx context.Context) error {
	// What the handlers stand on outlives them.
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	work, failed := errgroup.WithContext(inner)
	for _, run := range []func(context.Context) error{s.config.Identity.Run, s.ring.Run, s.broker.Run, s.watchTrust} {
		work.Go(func() error { return run(failed) })
	}
	for _, at := range s.servers {
		work.Go(func() error { return at.serve() })
	}
	select {
	case <-ctx.Done():
		s.drain(failed)
	case <-failed.Done():
	}
	s.feed.Close()
	s.broker.Dismiss()
	s.shutdown(ctx)
	stop()
	err := work.Wait()
	s.Close()
	if errors.Is(err, context.Canceled) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// drain serves on for a while, so that balancers notice that the replica is about to stop, or until
// failed ends. A replica that never had an SVID serves nobody.
func (s *Server) drain(failed context.Context) {
	s.stopping.Store(true)
	if _, err := s.config.Identity.GetX509SVID(); err != nil {
		return
	}
	over := time.NewTimer(s.config.Drain)
	defer over.Stop()
	select {
	case <-over.C:
	case <-failed.Done():
	}
}

func (at listening) serve() error {
	var err error
	if at.server.TLSConfig != nil {
		err = at.server.ServeTLS(at.l, "", "")
	} else {
		err = at.server.Serve(at.l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("server: the %s listener: %w", at.name, err)
}

func (s *Server) shutdown(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), ShutdownTimeout)
	defer cancel()
	var all errgroup.Group
	for _, at := range s.servers {
		all.Go(func() error {
			if err := at.server.Shutdown(ctx); err != nil {
				return at.server.Close()
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		s.config.Logger.Warn("a listener did not close cleanly", "error", err)
	}
}

// Close gives up what New has opened. Run does so by itself.
func (s *Server) Close() {
	for _, at := range s.servers {
		// A second close is an error that tells nothing.
		_ = at.l.Close()
	}
	if s.audit != nil {
		if err := s.audit.Close(); err != nil {
			s.config.Logger.Error("the audit log did not close cleanly", "error", err)
		}
	}
}
