package broker

import (
	"context"
	"errors"
	"hash/fnv"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
)

// Config has what a Broker needs. The ports are required; the rest has safe defaults.
type Config struct {
	Store     Store
	Registry  Registry
	Policy    Policy
	Minter    Minter
	Auditor   Auditor
	Announcer Announcer

	Logger *slog.Logger     // nil discards
	Now    func() time.Time // nil is time.Now; never compared with a stored moment

	// SweepInterval is how often ends that nobody called for are looked for: DefaultSweep when
	// zero. It delays the announcement of a lapse, never the lapse.
	SweepInterval time.Duration
}

// DefaultSweep announces a lapse well within a second.
const DefaultSweep = 250 * time.Millisecond

// staleView is how old the view of the store's feed may be before the broker is not ready.
const staleView = 2 * time.Second

// Broker is the one door to tasks and tokens. Make one with New, call Run for as long as it lives,
// and its verbs from any goroutine.
type Broker struct {
	Config
	view    view
	backlog backlog
}

// New checks the configuration. The broker issues nothing before Run has read the store's feed.
func New(c Config) (*Broker, error) {
	for name, missing := range map[string]bool{
		"Store": c.Store == nil, "Registry": c.Registry == nil, "Policy": c.Policy == nil,
		"Minter": c.Minter == nil, "Auditor": c.Auditor == nil, "Announcer": c.Announcer == nil,
	} {
		if missing {
			return nil, errors.New("broker: Config." + name + " is required")
		}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.SweepInterval == 0 {
		c.SweepInterval = DefaultSweep
	}
	return &Broker{Config: c, view: newView(), backlog: backlog{max: maxBacklog}}, nil
}

// Run follows the store's feed, sweeps, and writes the audit backlog, until ctx ends. It returns
// the context's error.
func (b *Broker) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return b.watch(ctx) })
	tasks.Go(func() error { return b.every(ctx, b.SweepInterval, b.Sweep) })
	tasks.Go(func() error { return b.every(ctx, backlogInterval, b.flushBacklog) })
	return tasks.Wait()
}

// Ready returns nil while the broker can issue, and otherwise an error that says what is missing
// and matches ErrNotReady.
func (b *Broker) Ready() error {
	age, ok := b.view.age(b.Now())
	switch {
	case !ok:
		return notReady("the store's feed has not been read yet")
	case age > staleView:
		return notReady("the store's feed has not been heard for " + age.Round(time.Millisecond).String())
	case b.backlog.len() > 0:
		return notReady("the audit log cannot be written; see the broker's log")
	}
	return nil
}

func notReady(why string) error { return &wrapped{ErrNotReady, why} }

// wrapped adds a sentence to a sentinel.
type wrapped struct {
	err error
	why string
}

func (w *wrapped) Error() string { return w.err.Error() + ": " + w.why }
func (w *wrapped) Unwrap() error { return w.err }

// every calls f until ctx ends. An error is logged and the next round tries again.
func (b *Broker) every(ctx context.Context, interval time.Duration, f func(context.Context) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		if err := f(ctx); err != nil && ctx.Err() == nil {
			b.Logger.Error("background work failed; it is tried again", "error", err)
		}
	}
}

// rootShard is where the trees of a workload live: it depends on the ID and the number of shards
// alone, so all replicas agree.
func (b *Broker) rootShard(id spiffeid.ID) int {
	hash := fnv.New32a()
	hash.Write([]byte(id.String()))
	return int(hash.Sum32() % uint32(b.view.shards()))
}
