package brokertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/errandhq/errand/broker/devmode"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/errandhq/errand/broker/identity"
	"github.com/errandhq/errand/broker/registry"
	"github.com/errandhq/errand/broker/server"
	"github.com/errandhq/errand/keys"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/store/memory"
)

// TB is the part of testing.TB that is used here, so that other frameworks fit.
type TB interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

const (
	// startTimeout bounds the start of one part.
	startTimeout = 20 * time.Second
	// settleTimeout bounds how long something that must come to pass is waited for.
	settleTimeout = 20 * time.Second

	// certificateLife is longer than any test moves the time; MaxAdvance leaves some of it.
	certificateLife = 20 * 365 * 24 * time.Hour
	// MaxAdvance bounds all that Advance moves the time by.
	MaxAdvance = 10 * 365 * 24 * time.Hour
)

// Broker is a broker for one test. Make one with New.
type Broker struct {
	tb        TB
	leaks     bool
	domain    spiffeid.TrustDomain
	inventory *inventory
	policy    *rules
	clock     *clock
	store     *store
	front     *front
	ca        *devmode.CA
	agent     *devmode.WorkloadAPI
	server    *server.Server
	checked   checks

	advancing sync.Mutex // held while time is moved

	mu        sync.Mutex // guards all below
	people    map[spiffeid.ID]*person
	clients   []*sdk.Client
	verifiers []*verify.Verifier
	dropped   map[string]bool // tasks whose heartbeats were dropped at some time
	undo      []func()        // what to do at the end, the last first
}

// Option changes what New starts.
type Option func(*options)

type options struct {
	inventory string
	realTime  bool
	leaks     bool
}

// AllowAll is the default: every workload that the test names may have every scope that its task
// names, at every audience. A task that names no audience has all that the test has named so far;
// one that names no scope gets no token.
func AllowAll() Option { return func(o *options) { o.inventory = "" } }

// WithInventory uses the registry file that you deploy: its workloads, audiences and ceilings. All
// IDs that a test uses are of one trust domain, that of most of the file's workloads.
func WithInventory(file string) Option { return func(o *options) { o.inventory = file } }

// RealTime lets time run.
func RealTime() Option { return func(o *options) { o.realTime = true } }

// AllowLeaks does not fail the test for tasks that are left open.
func AllowLeaks() Option { return func(o *options) { o.leaks = true } }

// New starts a broker that ends with the test. The test then fails if it has left a task open, and
// so tokens alive, unless AllowLeaks.
func New(tb TB, opts ...Option) *Broker {
	tb.Helper()
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	b := &Broker{
		tb: tb, leaks: o.leaks, clock: newClock(o.realTime), front: newFront(), checked: checks{},
		people: map[spiffeid.ID]*person{}, dropped: map[string]bool{},
	}
	tb.Cleanup(b.close)
	if err := b.start(o); err != nil {
		tb.Fatalf("brokertest: the broker does not start: %v", err)
	}
	return b
}

// Start is New where there is no test, as in an Example or in TestMain. What would fail a test
// panics. Call stop at the end.
func Start(opts ...Option) (b *Broker, stop func()) {
	tb := &alone{}
	return New(tb, opts...), tb.end
}

// alone is the TB of Start.
type alone struct {
	cleanups []func()
	failed   []string
}

func (a *alone) Helper()          {}
func (a *alone) Cleanup(f func()) { a.cleanups = append(a.cleanups, f) }

func (a *alone) Errorf(format string, args ...any) {
	a.failed = append(a.failed, fmt.Sprintf(format, args...))
}

func (a *alone) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func (a *alone) end() {
	for i := len(a.cleanups) - 1; i >= 0; i-- {
		a.cleanups[i]()
	}
	if a.failed != nil {
		panic(strings.Join(a.failed, "\n"))
	}
}

func (b *Broker) start(o options) error {
	if err := b.register(o.inventory); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "errand-") // short, since a socket's path is bounded
	if err != nil {
		return err
	}
	b.later(func() { _ = os.RemoveAll(dir) })
	if b.ca, err = devmode.NewCA(b.domain.Name(), devmode.Options{Life: 2 * certificateLife}); err != nil {
		return err
	}
	b.agent = devmode.NewWorkloadAPI(b.ca, dir, certificateLife)
	b.run(b.agent.Run)
	socket, err := b.agent.Add(b.brokerID())
	if err != nil {
		return err
	}
	return b.serve(socket, filepath.Join(dir, "audit.jsonl"))
}

// register finds out who there is.
func (b *Broker) register(file string) (err error) {
	b.inventory = &inventory{named: map[string]*named{}}
	if b.domain, err = spiffeid.TrustDomainFromString("test"); err != nil {
		return err
	}
	if file != "" {
		if b.inventory.file, err = registry.Load(file); err != nil {
			return err
		}
		if b.domain, err = domainOf(b.inventory.file); err != nil {
			return err
		}
	}
	b.inventory.server = b.serverOf
	b.policy = newRules(b.inventory)
	return nil
}

// serve starts the replica. Its keys are made a while ago, so that the next one may sign already.
func (b *Broker) serve(socket, auditLog string) error {
	b.clock.move(-keys.DefaultPublish - time.Minute)
	kept, err := memory.New(memory.Config{Now: b.clock.now})
	if err != nil {
		return err
	}
	b.store = newStore(kept, b.clock)
	source := identity.FromWorkloadAPI(socket, slog.New(slog.DiscardHandler))
	source.MaxSVIDLife = 2 * certificateLife
	if b.server, err = server.New(server.Config{
		WorkloadAddr: "127.0.0.1:0", PublicAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		Identity: source, Registry: b.inventory, Policy: b.policy, Store: b.store, AuditLog: auditLog,
		Around: b.front.around, Now: b.clock.now,
		// The test's clock may stand still, and no bucket would fill up then.
		Limits: httpapi.Limits{IssueBurst: httpapi.MaxRate, Burst: httpapi.MaxRate},
	}); err != nil {
		return err
	}
	b.clock.move(keys.DefaultPublish + time.Minute)
	b.run(b.server.Run)
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := source.Wait(ctx); err != nil {
		return err
	}
	return until(ctx, b.server.Ready)
}

// run runs a part until the end of the test.
func (b *Broker) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	b.later(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			b.tb.Errorf("brokertest: a part of the broker has failed: %v", err)
		}
	})
}

// later has something done at the end of the test, before what was there first.
func (b *Broker) later(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.undo = append(b.undo, f)
}

// close looks for leaks, and then takes everything away.
func (b *Broker) close() {
	b.tb.Helper()
	if b.server != nil {
		b.front.mend()
		b.checkLeaks()
	}
	for {
		b.mu.Lock()
		last := len(b.undo) - 1
		if last < 0 {
			b.mu.Unlock()
			return
		}
		f := b.undo[last]
		b.undo = b.undo[:last]
		b.mu.Unlock()
		f()
	}
}

// URL is that of the broker's workload listener, as for sdk.WithBroker.
func (b *Broker) URL() string { return b.server.BrokerURL() }

// Issuer is the iss of the tokens, as for verify.Config.Issuer.
func (b *Broker) Issuer() string { return b.server.Issuer() }

// ID is the broker's SPIFFE ID.
func (b *Broker) ID() string { return b.brokerID().String() }

func (b *Broker) brokerID() spiffeid.ID { return spiffeid.RequireFromSegments(b.domain, "errand") }

// Now is the broker's time.
func (b *Broker) Now() time.Time { return b.clock.now() }

// must fails the test if something that cannot fail in a test that is right has failed.
func (b *Broker) must(err error) {
	b.tb.Helper()
	if err != nil {
		b.tb.Fatalf("brokertest: %v", err)
	}
}

// until waits until f returns nil, or returns what it has returned last.
func until(ctx context.Context, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		timer := time.NewTimer(500 * time.Microsecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}
