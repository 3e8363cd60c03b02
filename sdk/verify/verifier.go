package verify

import (
	"context"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	minBackoff    = 100 * time.Millisecond
	maxBackoff    = 2 * time.Second
	maxBackoffs   = 10                     // failures after which the wait is maxBackoff
	tickInterval  = 250 * time.Millisecond // between looks at the clock
	keyRetry      = 5 * time.Second        // after a failed fetch
	sayAgain      = 30 * time.Second       // how often the log has that no keys come
	streamSilence = 5 * time.Second        // without an event: the broker beats each second
	proofsPerS    = 3                      // proofs of freshness in each MaxStale
	maxProofRetry = time.Second
)

// Verifier checks tokens for one audience of one issuer. It is safe for concurrent use. Make one
// with New for the life of the process, and Close it.
type Verifier struct {
	config  Config
	issuer  *issuer
	keys    *keyring
	view    *view
	running *running
	usage   *usage // nil with NoUsage
	acks    *acks  // nil in Explain, which listens to nothing

	metadata string // where the resource's metadata is; empty without Config.Resource

	at       atomic.Pointer[endpoints]
	proofNow chan struct{} // asks for a proof of freshness; of capacity 1
	reports  chan struct{} // held by whoever sends usage; of capacity 1
	fresh    chan struct{} // closed once the view was fresh
	cancel   context.CancelFunc
	tasks    sync.WaitGroup

	connected     atomic.Bool
	lost          atomic.Bool // the feed was not found where the metadata says
	ignored       atomic.Uint64
	bare          sync.Once // a caller showed no certificate
	acceptedStale atomic.Uint64

	mu        sync.Mutex // guards lastError
	lastError error
}

// Status is how a verifier is doing.
type Status struct {
	ID        string        // of this instance, as errand verifiers list shows it
	Position  string        // in the feed; empty before the first snapshot
	FeedAge   time.Duration // how old the view is; negative while it was never fresh
	Entries   int           // denials that are held
	Keys      []string      // the kids of the issuer's keys
	Connected bool          // to the feed
	LastError string        // of the latest failure to hear from the broker; empty if none

	Ignored       uint64 // messages of the broker that made no sense, or came from the past
	AcceptedStale uint64 // tokens that passed because of OnStale: Accept
	Unreported    uint64 // checks that no report of usage has, or will have, since there was no room
}

// New makes a verifier, and blocks until it has keys and a fresh view of the feed, or ctx is done;
// the error then says what was tried last. A CacheFile that is fresh enough will do. A configuration that cannot work is an error at once.
// ctx bounds nothing after that: Close ends the verifier.
func New(ctx context.Context, c Config) (*Verifier, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	private, public, err := clientTLS(c)
	if err != nil {
		return nil, err
	}
	v := &Verifier{
		reports: make(chan struct{}, 1),
		config:  c, issuer: newIssuer(c, private, public), keys: newKeyring(c.Now), view: newView(c), running: newRunning(c.MaxRunning),
		acks:     newAcks(),
		proofNow: make(chan struct{}, 1), fresh: make(chan struct{}),
	}
	if c.Resource != "" {
		v.metadata = metadataURL(c.Resource)
	}
	if !c.NoUsage {
		v.usage = newUsage(c.MaxUsage)
	}
	heard := c.CacheFile != "" && v.hear(ctx)
	restored := !heard && v.restore()
	if !heard && !restored {
		if err := v.start(ctx); err != nil {
			v.issuer.close()
			return nil, err
		}
	}
	run, cancel := context.WithCancel(context.Background())
	v.cancel = cancel
	v.tasks.Go(func() { v.follow(run) })
	v.tasks.Go(func() { v.prove(run) })
	v.tasks.Go(func() { v.refreshKeys(run) })
	v.tasks.Go(func() { v.tick(run) })
	v.tasks.Go(func() { v.acknowledge(run) })
	if v.usage != nil {
		v.tasks.Go(func() { v.report(run) })
	}
	if c.CacheFile != "" {
		v.tasks.Go(func() { v.saveCache(run) })
	}
	if restored && c.OnStale == Accept {
		return v, nil // it may be stale, and stay so
	}
	select {
	case <-v.fresh:
		return v, nil
	case <-ctx.Done():
		_ = v.Close()
		return nil, v.notReady(ctx)
	}
}

// hearFirst is how long the broker is asked before the CacheFile is: what has ended since that was
// written, a broker that answers knows.
const hearFirst = time.Second

// hear tries to start once.
func (v *Verifier) hear(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, hearFirst)
	defer cancel()
	err := v.tryStart(ctx)
	if err != nil {
		v.failed(err)
	}
	return err == nil
}

// sayWhy is after how many tries of the start the log says what it is waiting for: some seconds.
const sayWhy = 4

// start gets the first metadata, keys and snapshot.
func (v *Verifier) start(ctx context.Context) error {
	for try := 0; ; try++ {
		err := v.tryStart(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || v.error() == nil {
			v.failed(err)
		}
		if try == sayWhy {
			v.config.Logger.Warn("errand: still waiting for the broker", "audience", v.config.Audience, "issuer", v.config.Issuer, "error", err)
		}
		if !sleep(ctx, backoff(try)) {
			return v.notReady(ctx)
		}
	}
}

func (v *Verifier) tryStart(ctx context.Context) error {
	if _, err := v.fetchKeys(ctx); err != nil {
		return err
	}
	if len(v.keys.names()) == 0 {
		return errors.New("the issuer's key set has no key that can sign a token")
	}
	return v.takeSnapshot(ctx)
}

func (v *Verifier) notReady(ctx context.Context) error {
	return fmt.Errorf("verify: not ready for %q of %s: %w; the last error: %w", v.config.Audience, v.config.Issuer, context.Cause(ctx), v.lastOr())
}

// Close ends the verifier's work and waits for it, and ends the requests that it watches: close it
// after the server. Verify refuses everything from then on. It tells the broker so, and sends the last report of usage,
// for which it waits 3 s at most; the error says what of that was lost.
func (v *Verifier) Close() error {
	v.cancel()
	v.view.close()
	v.running.close()
	v.tasks.Wait()
	if v.config.CacheFile != "" {
		if err := v.saveOnce(); err != nil {
			v.config.Logger.Warn("verify: the cache file was not written", "audience", v.config.Audience, "file", v.config.CacheFile, "error", err)
		}
	}
	v.sayGoodbye()
	ctx, cancel := context.WithTimeout(context.Background(), lastReport)
	defer cancel()
	err := v.Flush(ctx)
	v.issuer.close()
	return err
}

// Ready is nil while tokens are judged on fresh data. Use it for a readiness probe.
func (v *Verifier) Ready() error {
	now := v.config.Now()
	if old := v.keys.age(now); old > maxKeyAge {
		return fmt.Errorf("%w: the keys are from %s ago; the last error: %w", ErrStale, old.Truncate(time.Second), v.lastOr())
	}
	if ok, old := v.view.freshness(now); !ok {
		return fmt.Errorf("%w: it is from %s ago; the last error: %w", ErrStale, old.Truncate(time.Millisecond), v.lastOr())
	}
	return nil
}

func (v *Verifier) lastOr() error {
	if err := v.error(); err != nil {
		return err
	}
	return errors.New("none")
}

// Status reports how the verifier is doing.
func (v *Verifier) Status() Status {
	_, old := v.view.freshness(v.config.Now())
	s := Status{
		ID: v.acks.id, FeedAge: old, Entries: v.view.entries(), Keys: v.keys.names(), Connected: v.connected.Load(),
		Ignored: v.ignored.Load(), AcceptedStale: v.acceptedStale.Load(),
	}
	if v.usage != nil {
		s.Unreported = v.usage.unreported()
	}
	if p, _ := v.view.at(); p.Epoch != 0 {
		s.Position = p.String()
	}
	if err := v.error(); err != nil {
		s.LastError = err.Error()
	}
	return s
}

// failed notes that the broker could not be heard.
func (v *Verifier) failed(err error) {
	if errors.Is(err, errBackwards) || errors.Is(err, errResync) {
		v.ignored.Add(1)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.lastError = err
}

func (v *Verifier) error() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.lastError
}

// backoff is how long to wait after so many failures in a row.
func backoff(failures int) time.Duration {
	return jitter(min(minBackoff<<min(failures, maxBackoffs), maxBackoff))
}

// jitter returns between half of d and d, so that verifiers do not all come back at once.
func jitter(d time.Duration) time.Duration { return d/2 + mathrand.N(d/2+1) }

// sleep returns false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
