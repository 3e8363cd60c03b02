package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/errandhq/errand/sdk/internal/sse"
	"github.com/errandhq/errand/sdk/wire"
)

const (
	// followAfter is how long a task lives before the client listens for its end: most tasks are over
	// before, and cost the broker nothing.
	followAfter = time.Second
	// followMore is how often the stream is changed for one that names more tasks. Until then their
	// heartbeats have to do.
	followMore = 5 * time.Second
	// followSilence is how long a stream may be silent, which has a beat every second.
	followSilence = 4 * time.Second
	// followPause is the longest pause between tries, and presencePause the one where a task depends on it.
	followPause   = 30 * time.Second
	presencePause = 200 * time.Millisecond
)

// Reasons for which a stream ends.
const (
	errReset  = sentinel("the replica asked to connect again")
	errSilent = sentinel("the stream was silent")
)

// stream is the events of one replica, until it ends.
type stream struct {
	id    string          // as the replica names it
	tasks map[string]bool // that it follows, by name
	over  *generation     // its connection's
	base  int             // the replica
	close context.CancelCauseFunc
	done  chan struct{} // closed when it has ended; err says why
	err   error
}

// ended returns whether it has.
func (s *stream) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// follower keeps a stream.
type follower struct {
	*Client
	stream  *stream   // nil without
	first   int       // the replica to ask first
	opened  time.Time // when the stream was
	notYet  time.Time // after a failure: when to try again
	failure int       // so many in a row
	urgent  int       // so many of the tasks depend on it
}

// follow listens for the ends of the client's tasks until the client is closed. It goes by timers alone:
// what it brings is news, and the clocks decide without it.
func (c *Client) follow() {
	f := &follower{Client: c}
	defer func() { f.change(nil) }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var due <-chan time.Time
		if wait, ok := f.keep(); ok {
			timer.Reset(wait)
			due = timer.C
		}
		var ended <-chan struct{}
		if f.stream != nil {
			ended = f.stream.done
		}
		select {
		case <-c.life.Done():
			return
		case <-c.news:
		case <-ended:
		case <-due:
		}
	}
}

// keep has the stream that there should be, and returns when to look again; false when a task must come
// first.
func (f *follower) keep() (wait time.Duration, ok bool) {
	names, urgent, any := f.toFollow()
	f.urgent = urgent
	if s := f.stream; s != nil && s.ended() {
		f.lost(s)
	}
	switch {
	case len(names) == 0:
		f.change(nil)
	case time.Now().Before(f.notYet):
		return time.Until(f.notYet), true
	case f.wants(names):
		f.open(names)
		if f.stream == nil {
			return time.Until(f.notYet), true
		}
	}
	return followAfter, any
}

// lost is told of the end of a stream. The next one is to come soon, but not from all clients at once.
func (f *follower) lost(s *stream) {
	f.log.Debug("errand: the stream of events has ended", "broker", f.bases[s.base].Host, "error", s.err)
	if f.first = s.base; errors.Is(s.err, errReset) {
		f.first = (s.base + 1) % len(f.bases)
	}
	f.stream, f.notYet = nil, time.Now().Add(rand.N(firstPause))
}

// wants reports whether another stream is needed.
func (f *follower) wants(names []string) bool {
	if f.stream == nil {
		return true
	}
	if now, err := f.links.use(); err == nil && now != f.stream.over {
		return true
	}
	new := func(name string) bool { return !f.stream.tasks[name] }
	return slices.ContainsFunc(names[:f.urgent], new) || slices.ContainsFunc(names, new) && time.Since(f.opened) >= followMore
}

// open tries all replicas, and keeps what there was if none answers.
func (f *follower) open(names []string) {
	var failed line
	for i := range f.bases {
		n := (f.first + i) % len(f.bases)
		sent := f.clock()
		s, err := f.openOne(n, names)
		if err == nil {
			f.attached(s, sent)
			f.failure = 0
			f.opened = time.Now()
			f.change(s)
			return
		}
		failed = append(failed, err)
	}
	f.failure++
	wait := min(followPause, firstPause<<min(f.failure-1, 10))
	if f.urgent > 0 {
		wait = min(wait, presencePause)
	}
	f.notYet = time.Now().Add(wait/2 + rand.N(wait/2))
	f.log.Debug("errand: ends of tasks are heard of by heartbeats alone", "error", failed)
}

// change goes over to another stream, or to none. The one before ends after the other has begun.
func (f *follower) change(to *stream) {
	f.hearing.Store(to)
	if f.stream != nil {
		f.stream.close(nil)
		<-f.stream.done
	}
	f.stream = to
}

// attached: the tasks with presence are the stream's, and have a whole lease.
func (c *Client) attached(s *stream, sent instant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for t := range c.tasks {
		if t.presence && s.tasks[t.name()] {
			t.attached(sent)
		}
	}
}

// streamOpen names the stream for a heartbeat that is sent now; "" while there is none.
func (c *Client) streamOpen() string {
	if s := c.hearing.Load(); s != nil && !s.ended() {
		return s.id
	}
	return ""
}

// toFollow returns which tasks are to be followed, those with presence first, which are so many, and then the
// oldest; and whether there is any task.
func (c *Client) toFollow() (names []string, urgent int, any bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var tasks []*task
	for t := range c.tasks {
		if t.presence {
			urgent++
		}
		if t.presence || time.Since(t.began) >= followAfter {
			tasks = append(tasks, t)
		}
	}
	slices.SortFunc(tasks, func(a, b *task) int {
		if a.presence != b.presence {
			return map[bool]int{true: -1, false: 1}[a.presence]
		}
		return a.began.Compare(b.began)
	})
	for _, t := range tasks[:min(len(tasks), wire.MaxFollowed)] {
		names = append(names, t.name())
	}
	return names, urgent, len(c.tasks) > 0
}

// openOne asks one replica. It has answered when it has begun to follow.
func (c *Client) openOne(n int, names []string) (*stream, error) {
	g, err := c.links.use()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(c.life)
	silence := time.AfterFunc(patience, func() { cancel(errSilent) })
	give := func(err error) (*stream, error) {
		silence.Stop()
		cancel(nil)
		return nil, fmt.Errorf("%s: %w", c.bases[n].Host, err)
	}
	target := c.bases[n].JoinPath(wire.PathEvents)
	target.RawQuery = url.Values{"task": names}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), http.NoBody)
	if err != nil {
		return give(err)
	}
	req.Header.Set("Accept", wire.TypeEvents+", "+wire.TypeProblem)
	resp, err := g.broker.RoundTrip(req)
	if err != nil {
		return give(err)
	}
	if kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); resp.StatusCode != http.StatusOK || kind != wire.TypeEvents {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, MaxAnswer)) // the status is enough
		resp.Body.Close()
		return give(problem(resp, text))
	}
	s := &stream{id: resp.Header.Get(wire.HeaderStream), tasks: map[string]bool{}, over: g, base: n, close: cancel, done: make(chan struct{})}
	for _, name := range names {
		s.tasks[name] = true
	}
	if !c.start(func() {
		defer close(s.done)
		defer cancel(nil)
		defer silence.Stop()
		defer resp.Body.Close()
		s.err = c.hear(sse.New(resp.Body), silence, s.tasks)
		if cause := context.Cause(ctx); cause != nil {
			s.err = cause
		}
	}) {
		resp.Body.Close()
		return give(ErrClosed)
	}
	return s, nil
}

// hear takes in events of a stream that follows some names until it ends.
func (c *Client) hear(events *sse.Reader, silence *time.Timer, names map[string]bool) error {
	for {
		silence.Reset(followSilence)
		e, err := events.Next()
		if err != nil {
			return err
		}
		switch e.Name {
		case wire.EventReset:
			return errReset
		case wire.EventTaskEnded:
			var ended wire.TaskEnded
			if err := json.Unmarshal(e.Data, &ended); err != nil {
				return fmt.Errorf("an event that cannot be read: %w", err)
			}
			t := c.find(ended.ID)
			switch state := State(ended.State); {
			case t == nil || state == Active || state == "":
			case state == Adopted && !names[t.name()]: // that was said to the Task before, which this client has adopted it from
			default:
				t.overBy(state, ended.Cause)
			}
		}
	}
}

// find returns the task with an ID that has not ended, or nil.
func (c *Client) find(id string) *task {
	c.mu.Lock()
	defer c.mu.Unlock()
	for t := range c.tasks {
		if t.id == id {
			return t
		}
	}
	return nil
}
