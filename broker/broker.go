package broker

import (
	"cmp"
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

	// EndKeySecret makes the end keys: EndKeySecretSize random bytes that all replicas share, and
	// nobody else. nil makes one for this process: the keys of others, and those of before, then
	// count for nothing.
	EndKeySecret []byte

	// Board is where the replicas tell each other which verifiers are how far. nil is one of this replica's own.
	Board Board

	// MaxFollowers and MaxFollowersPerWorkload bound who follows their tasks at once: DefaultFollowers and
	// DefaultFollowersPerWorkload when zero.
	MaxFollowers, MaxFollowersPerWorkload int
}

// DefaultSweep announces a lapse well within a second.
const DefaultSweep = 250 * time.Millisecond

// staleAudit is how long an event may wait for the audit log before the broker is not ready.
const staleAudit = 2 * time.Second

// What one request may take of the store. All of it together stays under a second, so that a store
// that hangs is an answer within one.
const (
	storeBudget = 850 * time.Millisecond // all its calls
	storeTry    = 400 * time.Millisecond // a write, which may need a second try
)

// staleView is how old the view of the store's feed may be before the broker is not ready.
const staleView = 2 * time.Second

// Broker is the one door to tasks and tokens. Make one with New, call Run for as long as it lives,
// and its verbs from any goroutine.
type Broker struct {
	Config
	view     view
	unlogged Fault // the audit log takes nothing
	backlog  backlog
	refusals refusals
	pending  pending
	rounds   rounds
	known    known
	removals removals
	lost     lostEnds
	endKeys  endKeys

	adoptions adoptions
	followers followers
	verifiers verifiers
	watchers  watchers
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
	if c.Board == nil {
		c.Board = &ownBoard{now: c.Now, notes: map[string]map[string]ownNote{}}
	}
	c.SweepInterval = cmp.Or(c.SweepInterval, DefaultSweep)
	c.MaxFollowers = cmp.Or(c.MaxFollowers, DefaultFollowers)
	c.MaxFollowersPerWorkload = cmp.Or(c.MaxFollowersPerWorkload, DefaultFollowersPerWorkload)
	keys, err := newEndKeys(c.EndKeySecret)
	if err != nil {
		return nil, err
	}
	c.EndKeySecret = nil // it is in keys, which does not print it
	return &Broker{
		Config: c, view: newView(), pending: newPending(), rounds: newRounds(), known: newKnown(), removals: newRemovals(), lost: newLostEnds(), followers: newFollowers(), endKeys: keys,
		unlogged:  Fault{Logger: c.Logger, What: "the audit log failed; nothing is issued, and records wait", Over: "the audit log is written again"},
		verifiers: newVerifiers(), watchers: newWatchers(), adoptions: newAdoptions(),
		backlog: backlog{max: maxBacklog, wake: make(chan struct{})},
	}, nil
}

// Run follows the store's feed, sweeps, and writes and records what has happened, until ctx ends. It
// returns the context's error, after a last try to write and record what is left.
func (b *Broker) Run(ctx context.Context) error {
	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error { return b.watch(ctx) })
	tasks.Go(func() error { return b.sweepEvery(ctx, b.SweepInterval) })
	tasks.Go(func() error { return b.writeBacklog(ctx) })
	tasks.Go(func() error { return b.writePending(ctx) })
	tasks.Go(func() error { return b.writeRemovals(ctx) })
	tasks.Go(func() error { return b.recordRefusals(ctx) })
	tasks.Go(func() error { return b.shareVerifiers(ctx) })
	tasks.Go(func() error { return b.tellProgress(ctx) })
	tasks.Go(func() error { return b.reconcile(ctx) })
	err := tasks.Wait()
	b.flushPending(ctx)
	b.flushRemovals(ctx)
	if events := b.refusals.due(b.Now(), true); len(events) > 0 {
		b.handOver(events)
	}
	b.flushBacklog(ctx)
	b.tellLast(ctx)
	return err
}

// Ready returns nil while the broker can issue, and otherwise an error that says what is missing
// and matches ErrNotReady.
func (b *Broker) Ready() error {
	age, skew, ok := b.view.age(b.Now())
	switch {
	case !ok:
		return notReady("the store's feed has not been read yet")
	case age > staleView:
		return notReady("the store's feed has not been heard for " + age.Round(time.Millisecond).String())
	case skew > MaxSkew:
		return skewed(skew)
	case b.backlog.age(b.Now()) > staleAudit:
		return notReady("the audit log cannot be written; see the broker's log")
	}
	return nil
}

func skewed(skew time.Duration) error {
	return notReady("this machine's clock and the store's differ by " + skew.Round(time.Millisecond).String() + "; set them right")
}

func notReady(why string) error { return &wrapped{ErrNotReady, why} }

// wrapped adds a sentence to a sentinel.
type wrapped struct {
	err error
	why string
}

func (w *wrapped) Error() string { return w.err.Error() + ": " + w.why }
func (w *wrapped) Unwrap() error { return w.err }

// sweepEvery sweeps until ctx ends. After an error the next round tries again.
func (b *Broker) sweepEvery(ctx context.Context, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	stuck := Fault{Logger: b.Logger, What: "what is due could not be ended; it is tried again", Over: "what is due is ended again"}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		switch err := b.Sweep(ctx); {
		case err == nil:
			stuck.Ended(b.Now())
		case ctx.Err() == nil:
			stuck.Met(b.Now(), err)
		}
	}
}

// rootShard is where the trees of a workload live: it depends on the ID and the number of shards
// alone, so all replicas agree.
func (b *Broker) rootShard(id spiffeid.ID) (int, error) {
	shards := b.view.shards()
	if shards == 0 {
		return 0, notReady("the store's feed has not been read yet")
	}
	hash := fnv.New32a()
	hash.Write([]byte(id.String()))
	return int(hash.Sum32() % uint32(shards)), nil
}
