package sdk

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/errandhq/errand/sdk/wire"
)

// MaxTasks bounds the tasks that one client has at once.
const MaxTasks = 10_000

// Client talks to one broker. It is safe for concurrent use. Make one for a process, and Close it
// at the end.
type Client struct {
	*config
	links     *links
	preferred atomic.Int32           // the replica that answered last
	hearing   atomic.Pointer[stream] // the stream of events, nil without; for the heartbeats

	life context.Context // of all that the client does by itself
	stop context.CancelFunc
	wake chan struct{} // the heartbeats are to look at the tasks
	late chan struct{} // there is a new unconfirmed end
	news chan struct{} // there is a task to follow, where there was none

	closing sync.Once
	closed  chan struct{} // Close has done its work
	failed  error         // what Close returns

	mu        sync.Mutex // guards what follows
	state     phase
	tasks     map[*task]struct{} // that have not ended
	leaks     map[*task]struct{} // of which nobody has the Task; they get no heartbeats
	beginning int                // tasks that are about to come
	present   int                // tasks with presence, those included
	beatAt    time.Time          // of the next heartbeat, by the steady clock
	ends      map[*task]*ending  // that the broker has not confirmed
	work      sync.WaitGroup     // goroutines; none is added once the phase is shut
}

// Format prints whose client it is, whatever the verb.
func (c *Client) Format(f fmt.State, _ rune) { fmt.Fprint(f, "errand client of ", c.ID()) }

// phase is where a client is in its life. It never goes back.
type phase int

const (
	open    phase = iota
	leaving       // no task begins any more
	shut          // nothing does
)

// New returns once there is an SVID and the broker has accepted it, or fails within the startup
// timeout. What it waits for is in the log after two seconds. The error says which sources and replicas were tried, what each has answered, and what to
// do. ctx bounds New alone. The caller closes the client.
func New(ctx context.Context, opts ...Option) (*Client, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.startup)
	defer cancel()
	from, err := openIdentity(ctx, c)
	if err != nil {
		return nil, err
	}
	links, err := newLinks(from, c.brokerID, c.connect)
	if err != nil {
		return nil, errors.Join(err, from.release())
	}
	client := &Client{
		config: c, links: links, wake: make(chan struct{}, 1), late: make(chan struct{}, 1), news: make(chan struct{}, 1),
		closed: make(chan struct{}), tasks: map[*task]struct{}{}, leaks: map[*task]struct{}{}, ends: map[*task]*ending{},
	}
	client.life, client.stop = context.WithCancel(context.Background())
	if err := client.introduce(ctx); err != nil {
		client.stop()
		return nil, errors.Join(err, links.close())
	}
	client.work.Go(client.heartbeats)
	client.work.Go(client.confirmations)
	client.work.Go(client.follow)
	return client, nil
}

// quietStart is how long New is silent while it waits; then the log says for what.
const quietStart = 2 * time.Second

// introduce waits until the broker knows the workload. A refusal is final, since waiting does not
// mend it.
func (c *Client) introduce(ctx context.Context) error {
	start := time.Now()
	var who wire.Whoami
	var told sync.Once
	err := again(ctx, 0, func() error {
		_, err := c.ask(ctx, question{method: http.MethodGet, path: wire.PathWhoami}, &who)
		if errors.Is(err, ErrUnavailable) && time.Since(start) > quietStart && ctx.Err() == nil {
			told.Do(func() { c.log.Warn("errand: still waiting for the broker", "error", err) })
		}
		return err
	})
	switch {
	case errors.Is(err, ErrBrokerID) && !errors.Is(err, ErrUnavailable):
		return fmt.Errorf("sdk: %w", err)
	case errors.Is(err, ErrUnavailable) || ctx.Err() != nil:
		return fmt.Errorf("sdk: no answer for %s after %s: %w. Check that the broker runs there, that its SPIFFE ID is %s, and that both know each other's trust bundle; run \"errand doctor\"",
			c.ID(), time.Since(start).Round(100*time.Millisecond), err, c.brokerID)
	case err != nil:
		return fmt.Errorf("sdk: the broker does not accept %s: %w", c.ID(), err)
	case who.Owner == "" && who.Source == "" && len(who.Serves) > 0:
		return fmt.Errorf("sdk: %w: %s is a server of %q, and has no registration of its own; add one to the inventory", ErrUnregistered, c.ID(), who.Serves)
	case who.Workload != c.ID().String():
		return fmt.Errorf("sdk: %w: the broker takes %s for %q; is there a proxy in between that ends TLS?", ErrUnauthenticated, c.ID(), who.Workload)
	}
	return nil
}

// ID is the workload's own SPIFFE ID.
func (c *Client) ID() spiffeid.ID { return c.links.id }

// Bundle has the authorities of the workload's own trust domain, as they are now. It is for programs
// that make their own connections; HTTPClient needs no help. Error: ErrNoIdentity.
func (c *Client) Bundle() (*x509bundle.Bundle, error) {
	g, err := c.links.use()
	if err != nil {
		return nil, err
	}
	return g.bundles[0].Clone(), nil
}

// SVID is the workload's, as it is now: what connections that are made now present. It is for programs
// that make their own, as Bundle is. Error: ErrNoIdentity.
func (c *Client) SVID() (*x509svid.SVID, error) {
	g, err := c.links.use()
	if err != nil {
		return nil, err
	}
	return g.svid, nil
}

// Healthy returns nil while a Begin would be tried: the client is open and has an SVID that has not
// expired. It asks nobody. It is for a readiness probe.
func (c *Client) Healthy() error {
	c.mu.Lock()
	state := c.state
	c.mu.Unlock()
	if state != open {
		return fmt.Errorf("sdk: %w", ErrClosed)
	}
	g, err := c.links.use()
	if err != nil {
		return err
	}
	if until := g.svid.Certificates[0].NotAfter; c.clock().wall.After(until) {
		return fmt.Errorf("sdk: %w: the SVID has expired at %s; is the agent running?", ErrNoIdentity, until.UTC().Format(time.RFC3339))
	}
	return nil
}

// Close ends the open tasks as canceled, tries once more to confirm ends that are not, and stops
// all that the client does. ctx bounds the wait for the broker. The error matches ErrEndUnconfirmed
// when an end was not confirmed. A second call waits for the first and returns the same.
func (c *Client) Close(ctx context.Context) error {
	c.closing.Do(func() {
		defer close(c.closed)
		c.enter(leaving)
		err := c.endAll(ctx)
		c.enter(shut)
		c.stop()
		c.work.Wait()
		c.failed = errors.Join(err, c.links.close())
	})
	<-c.closed
	return c.failed
}

func (c *Client) enter(p phase) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = p
}

// start runs f unless the client is shut.
func (c *Client) start(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == shut {
		return false
	}
	c.work.Go(f)
	return true
}

// nudge wakes whoever waits on the channel, now or as soon as it does.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// denied tells the hook of a refusal.
func (c *Client) denied(ctx context.Context, err error) {
	var e *Error
	if c.hooks.OnDenied != nil && errors.As(err, &e) && e.refusal() {
		c.hooks.OnDenied(ctx, e)
	}
}
