package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/sdk/wire"
	"github.com/errandhq/errand/store/redis"
	"golang.org/x/sync/errgroup"
)

const (
	batch      = 100 // tasks in one heartbeat
	beaters    = 8   // connections that send them
	beatLease  = 30 * time.Second
	shortLease = broker.MinLease
	beatFor    = 10 * time.Second // how long heartbeats are measured: each task is beaten once
)

// leases measures what keeps tasks alive, and what notices that nobody does.
func (p *place) leases(ctx context.Context, o options, out io.Writer) error {
	if o.tasks > 0 {
		b, err := p.beat(ctx, o.tasks)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\n%s\n", b)
	}
	if o.lapses > 0 {
		l, err := p.lapse(ctx, o.lapses)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\n%s\n", l)
	}
	return nil
}

// beating is what heartbeats of many tasks cost.
type beating struct {
	tasks         int
	batches       int
	took          time.Duration
	broker, redis time.Duration // of processor time, in all of it
	times         durations
}

func (b beating) String() string {
	share := func(d time.Duration) float64 { return 100 * d.Seconds() / b.took.Seconds() }
	return fmt.Sprintf("%d tasks with leases of %s, each beaten every %s in batches of %d, %.0f batches a second: the broker takes %.0f %% of one processor and Redis %.0f %%; a batch is answered in %s ms at p50, %s ms at p99; no task lapsed.",
		b.tasks, beatLease, beatLease/3, batch, float64(b.batches)/b.took.Seconds(), share(b.broker), share(b.redis), milli(b.times.at(50)), milli(b.times.at(99)))
}

// beat begins tasks through the store itself and beats them as their clients would, from the first one on.
func (p *place) beat(ctx context.Context, tasks int) (out beating, err error) {
	store, err := redis.New(ctx, redis.Config{URL: p.url, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return out, err
	}
	defer store.Close()
	h := newHeart(p, tasks, beatLease)
	defer h.stop()
	if err := h.begin(ctx, store, 0); err != nil {
		return out, err
	}
	h.reset() // all are there now
	before, err := p.used()
	if err != nil {
		return out, err
	}
	start := time.Now()
	select {
	case <-time.After(beatFor):
	case <-ctx.Done():
		return out, ctx.Err()
	}
	after, err := p.used()
	if err != nil {
		return out, err
	}
	out = beating{tasks: tasks, took: time.Since(start), broker: after.broker - before.broker, redis: after.redis - before.redis}
	out.times, out.batches, err = h.sum()
	return out, err
}

// heart beats tasks, the oldest first and all of them every third of a lease, until it is stopped.
type heart struct {
	place *place
	lease time.Duration
	all   []broker.TaskID
	begun atomic.Int64 // how many of all are there

	cancel func()
	done   chan struct{}

	mu    sync.Mutex // guards what follows
	times durations
	lost  int64 // tasks that were not active when they were beaten: of none that is beaten in time
	err   error
}

func newHeart(p *place, tasks int, lease time.Duration) *heart {
	h := &heart{place: p, lease: lease, all: make([]broker.TaskID, tasks), done: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	go func() {
		defer close(h.done)
		h.run(ctx)
	}()
	return h
}

func (h *heart) stop() {
	h.cancel()
	<-h.done
}

// begin begins all tasks, with so many grants each.
func (h *heart) begin(ctx context.Context, store broker.Store, grants int) error {
	for from := 0; from < len(h.all); from += batch {
		n := min(batch, len(h.all)-from)
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(fillers)
		for i := range n {
			group.Go(func() error {
				req := treeTask("", grants)
				req.Begin.Lease = h.lease
				reply, err := store.Grant(ctx, req)
				h.all[from+i] = reply.Task.ID
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
		h.begun.Add(int64(n))
	}
	return nil
}

func (h *heart) run(ctx context.Context) {
	batches := make(chan []broker.TaskID)
	var all sync.WaitGroup
	for range beaters {
		c := h.place.caller()
		all.Go(func() {
			defer c.close()
			for ids := range batches {
				h.beat(ctx, c, ids)
			}
		})
	}
	defer all.Wait()
	defer close(batches)
	tick := time.NewTicker(h.lease / 3 * batch / time.Duration(len(h.all)))
	defer tick.Stop()
	for next := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		begun := int(h.begun.Load())
		if begun < batch {
			continue
		}
		if next+batch > begun {
			next = 0
		}
		select {
		case batches <- h.all[next : next+batch]:
			next += batch
		case <-ctx.Done():
			return
		}
	}
}

func (h *heart) beat(ctx context.Context, c *caller, ids []broker.TaskID) {
	start := time.Now()
	lost, err := c.beat(ctx, ids)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.times, h.lost = append(h.times, time.Since(start)), h.lost+lost
	if err != nil && ctx.Err() == nil {
		h.err = errors.Join(h.err, err)
	}
}

func (h *heart) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.times = nil
}

// sum fails when a beat did, or when a task was lost: then the figures are of less than they say.
func (h *heart) sum() (durations, int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	err := h.err
	if h.lost > 0 {
		err = errors.Join(err, fmt.Errorf("%d heartbeats were of tasks that had lapsed, in the midst of being beaten", h.lost))
	}
	return h.times, len(h.times), err
}

// beat sends one heartbeat, and counts those that are not active.
func (c *caller) beat(ctx context.Context, ids []broker.TaskID) (lost int64, err error) {
	req := wire.HeartbeatRequest{Tasks: make([]wire.HeartbeatTask, len(ids))}
	for i, id := range ids {
		req.Tasks[i].ID = string(id)
	}
	body, err := json.Marshal(req)
	if err != nil {
		return 0, err
	}
	var answer wire.HeartbeatResponse
	if err := c.post(ctx, wire.PathHeartbeats, string(body), http.StatusOK, &answer); err != nil {
		return 0, err
	}
	for _, pulse := range answer.Tasks {
		if pulse.State != wire.StateActive {
			lost++
		}
	}
	return lost, nil
}

// lapses is how long after their leases tasks were announced that nobody beat any more.
type lapses struct {
	tasks int
	over  time.Duration // the last lease ended so long after the first one
	late  durations
}

func (l lapses) String() string {
	return fmt.Sprintf("%d leases that end within %s ms are announced %s ms later at p50, %s ms at p99, the last one %s ms.",
		l.tasks, milli(l.over), milli(l.late.at(50)), milli(l.late.at(99)), milli(l.late.at(100)))
}

// lapse begins tasks with a grant each, beats all of them once, within a second, and listens to the feed.
func (p *place) lapse(ctx context.Context, tasks int) (out lapses, err error) {
	store, err := redis.New(ctx, redis.Config{URL: p.url, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return out, err
	}
	defer store.Close()
	h := newHeart(p, tasks, shortLease)
	err = h.begin(ctx, store, 1) // beaten meanwhile
	h.stop()
	if err != nil {
		return out, err
	}
	listening, heard, err := p.listen(ctx)
	if err != nil {
		return out, err
	}
	defer listening.Close()
	due, err := p.beatOnce(ctx, h.all)
	if err != nil {
		return out, err
	}
	out.tasks = len(due)
	first, last := due[h.all[0]], due[h.all[0]]
	for _, at := range due {
		if at.Before(first) {
			first = at
		}
		if at.After(last) {
			last = at
		}
	}
	out.over = last.Sub(first)
	for len(due) > 0 {
		select {
		case told := <-heard:
			for _, e := range told.Entries {
				if at, ok := due[broker.TaskID(e.ID)]; ok {
					out.late = append(out.late, time.Since(at))
					delete(due, broker.TaskID(e.ID))
				}
			}
		case <-time.After(4 * shortLease):
			return out, fmt.Errorf("%d lapses are not announced", len(due))
		case <-ctx.Done():
			return out, ctx.Err()
		}
	}
	return out, nil
}

// beatOnce beats all tasks within about a second, and returns when their leases end: counted from before each heartbeat was sent, so
// that what is measured is never too short.
func (p *place) beatOnce(ctx context.Context, all []broker.TaskID) (map[broker.TaskID]time.Time, error) {
	due := map[broker.TaskID]time.Time{}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(beaters)
	c := p.caller()
	defer c.close()
	tick := time.NewTicker(time.Second * batch / time.Duration(max(batch, len(all))))
	defer tick.Stop()
	for from := 0; from < len(all); from += batch {
		ids := all[from:min(from+batch, len(all))]
		<-tick.C
		group.Go(func() error {
			sent := time.Now()
			lost, err := c.beat(ctx, ids)
			if err == nil && lost > 0 {
				err = fmt.Errorf("%d tasks lapsed before they were to", lost)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range ids {
				due[id] = sent.Add(shortLease)
			}
			return err
		})
	}
	return due, group.Wait()
}

// listen follows the feed as a verifier does, and passes on what it says.
func (p *place) listen(ctx context.Context) (interface{ Close() error }, <-chan wire.FeedEvent, error) {
	http1 := &http.Client{Transport: &http.Transport{TLSClientConfig: p.servers[0].ClientTLS()}}
	at := p.at.Broker + wire.PathFeedSnapshot + "?" + url.Values{"aud": {"orders"}}.Encode()
	resp, err := http1.Get(at)
	if err != nil {
		return nil, nil, err
	}
	var snapshot wire.FeedSnapshot
	err = json.NewDecoder(resp.Body).Decode(&snapshot)
	resp.Body.Close()
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.at.Broker+wire.PathFeed+"?aud=orders", nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set(wire.HeaderLastEventID, snapshot.Position)
	if resp, err = http1.Do(req); err != nil {
		return nil, nil, err
	}
	heard := make(chan wire.FeedEvent, 1024)
	go func() {
		defer http1.CloseIdleConnections()
		lines := bufio.NewScanner(resp.Body)
		lines.Buffer(nil, 8<<20)
		for lines.Scan() {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			var event wire.FeedEvent
			if ok && json.Unmarshal([]byte(data), &event) == nil && len(event.Entries) > 0 {
				heard <- event
			}
		}
	}()
	return resp.Body, heard, nil
}
