package brokertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk"
	"github.com/errandhq/errand/sdk/internal/steer"
	"github.com/errandhq/errand/sdk/verify"
	"github.com/errandhq/errand/sdk/wire"
)

// clock is the time of everything here. It stands still, or runs, and is moved.
type clock struct {
	runs bool

	mu    sync.Mutex // guards all below
	start time.Time
	moved time.Duration
	moves chan struct{} // closed and replaced by every move
}

func newClock(runs bool) *clock {
	return &clock{runs: runs, start: time.Now(), moves: make(chan struct{})}
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.runs {
		return time.Now().Add(c.moved)
	}
	return c.start.Add(c.moved)
}

func (c *clock) move(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.moved += d
	close(c.moves)
	c.moves = make(chan struct{})
}

// ahead is how far it was moved in all.
func (c *clock) ahead() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.moved
}

// next is closed when the clock is moved.
func (c *clock) next() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.moves
}

// Advance moves the time forward, and returns when everything that was due has happened and every
// verifier knows of it. On the way the clients send their heartbeats.
func (b *Broker) Advance(d time.Duration) {
	b.tb.Helper()
	if d < 0 || d > MaxAdvance-b.clock.ahead() {
		b.tb.Fatalf("brokertest: Advance by %v: time moves forward alone, and by %v in all", d, MaxAdvance)
	}
	b.advancing.Lock()
	defer b.advancing.Unlock()
	for d > 0 {
		step := b.stride(d)
		b.clock.move(step)
		b.beat()
		d -= step
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	err := until(ctx, b.server.Ready)
	if err == nil {
		err = b.server.Broker().Sweep(ctx)
	}
	if err == nil {
		b.beat() // what was swept is told
		err = b.settle(ctx)
	}
	b.must(err)
}

// stride is the next step of so much time: no more than lets every task be heard of in time.
func (b *Broker) stride(d time.Duration) time.Duration {
	for _, c := range b.allClients() {
		if most := steer.Stride(c); most > 0 {
			d = min(d, most)
		}
	}
	return d
}

func (b *Broker) beat() {
	for _, c := range b.allClients() {
		// The client gives up by the real clock, and on a busy machine that may be too soon: its time stands still.
		for give := time.Now().Add(settleTimeout); steer.Stride(c) > 0; {
			if err := steer.Beat(c); !errors.Is(err, context.DeadlineExceeded) || time.Now().After(give) {
				break
			}
		}
	}
}

func (b *Broker) allClients() []*sdk.Client {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]*sdk.Client(nil), b.clients...)
}

// Settle returns when every verifier that was made here knows everything that has happened so far, and
// can prove it. While the feed is paused it returns at once. It fails the test when ctx ends before.
func (b *Broker) Settle(ctx context.Context) {
	b.tb.Helper()
	b.must(b.settle(ctx))
}

func (b *Broker) settle(ctx context.Context) error {
	if b.front.silent() {
		return nil
	}
	target, err := b.position(ctx)
	if err != nil {
		return err
	}
	b.mu.Lock()
	verifiers := append([]*verify.Verifier(nil), b.verifiers...)
	b.mu.Unlock()
	for _, v := range verifiers {
		if err := until(ctx, func() error { return caughtUp(v, target) }); err != nil {
			return fmt.Errorf("a verifier does not catch up: %w", err)
		}
	}
	return nil
}

// caughtUp says what a verifier lacks. One that is closed lacks nothing.
func caughtUp(v *verify.Verifier, target wire.Position) error {
	at, err := wire.ParsePosition(v.Status().Position)
	if err == nil && at.Covers(target) {
		if err = v.Ready(); err == nil {
			return nil
		}
	}
	if !steer.Catch(v) {
		return nil
	}
	return fmt.Errorf("it is at %s of %s: %w", at, target, err)
}

// errSeen ends a look at the store's feed.
var errSeen = errors.New("seen")

// position is how far the store's feed is.
func (b *Broker) position(ctx context.Context) (at wire.Position, err error) {
	err = b.store.Store.Watch(ctx, broker.Position{}, func(u broker.Update) error {
		at = wire.Position(u.Position)
		return errSeen
	})
	if errors.Is(err, errSeen) {
		err = nil
	}
	return at, err
}
