package brokertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/errandhq/errand/sdk/wire"
)

// maxBody is more than the broker reads of a heartbeat, in bytes.
const maxBody = 4 << 20

// front stands between the broker and everybody else, and is the network that fails.
type front struct {
	mu      sync.Mutex // guards all below
	away    int        // Outages
	paused  int        // PauseFeeds
	flow    chan struct{}
	dropped map[string]int               // DropHeartbeats by task
	seen    map[string]*x509.Certificate // of peers, by thumbprint
}

func newFront() *front {
	flow := make(chan struct{})
	close(flow)
	return &front{flow: flow, dropped: map[string]int{}, seen: map[string]*x509.Certificate{}}
}

// around implements server.Config.Around.
func (f *front) around(_ string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.meet(r.TLS)
		switch {
		case strings.HasPrefix(r.URL.Path, wire.PathFeed):
			// A silent line, and not a closed one: it goes on as soon as it is mended.
			if f.wait(r.Context()) != nil {
				panic(http.ErrAbortHandler)
			}
			w = &line{w, f, r.Context()}
		case f.isAway():
			panic(http.ErrAbortHandler) // closes the connection
		case r.URL.Path == wire.PathEvents:
			w = &call{w, f}
		case r.URL.Path == wire.PathHeartbeats:
			f.dropFrom(r)
		}
		next.ServeHTTP(w, r)
	})
}

// line is an answer that stops while the feed is paused.
type line struct {
	http.ResponseWriter
	front *front
	ctx   context.Context
}

func (l *line) Unwrap() http.ResponseWriter { return l.ResponseWriter }

func (l *line) Write(p []byte) (int, error) {
	if err := l.front.wait(l.ctx); err != nil {
		return 0, err
	}
	return l.ResponseWriter.Write(p)
}

// call is an answer that breaks off while the broker is away.
type call struct {
	http.ResponseWriter
	front *front
}

func (c *call) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *call) Write(p []byte) (int, error) {
	if c.front.isAway() {
		return 0, net.ErrClosed
	}
	return c.ResponseWriter.Write(p)
}

// wait returns when the feed flows.
func (f *front) wait(ctx context.Context) error {
	f.mu.Lock()
	flow := f.flow
	f.mu.Unlock()
	select {
	case <-flow:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// breaks makes something fail, and returns what mends it again, once.
func (f *front) breaks(change func(by int)) (mend func()) {
	apply := func(by int) {
		f.mu.Lock()
		defer f.mu.Unlock()
		change(by)
		f.settle()
	}
	apply(1)
	var once sync.Once
	return func() { once.Do(func() { apply(-1) }) }
}

// settle opens or closes the feed. It is called with mu held.
func (f *front) settle() {
	closed := f.away > 0 || f.paused > 0
	select {
	case <-f.flow:
		if closed {
			f.flow = make(chan struct{})
		}
	default:
		if !closed {
			close(f.flow)
		}
	}
}

// mend ends everything that is broken. Whoever mends a part of it later changes nothing.
func (f *front) mend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away, f.paused = 0, 0
	clear(f.dropped)
	f.settle()
}

func (f *front) isAway() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.away > 0
}

// silent reports whether the feed is not heard now.
func (f *front) silent() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.away > 0 || f.paused > 0
}

// dropFrom takes the tasks out of a heartbeat that are not to be heard of.
func (f *front) dropFrom(r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	var beats wire.HeartbeatRequest
	if json.Unmarshal(body, &beats) == nil {
		n := len(beats.Tasks)
		beats.Tasks = slices.DeleteFunc(beats.Tasks, func(t wire.HeartbeatTask) bool { return f.drops(t.ID) })
		switch len(beats.Tasks) {
		case n:
		case 0:
			panic(http.ErrAbortHandler)
		default:
			if body, err = json.Marshal(beats); err != nil {
				panic(http.ErrAbortHandler)
			}
		}
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
}

func (f *front) drops(task string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.dropped[task] > 0
}

// meet remembers the certificate of a peer.
func (f *front) meet(state *tls.ConnectionState) {
	if state != nil && len(state.PeerCertificates) > 0 {
		f.remember(state.PeerCertificates[0])
	}
}

func (f *front) remember(leaf *x509.Certificate) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen[thumbprint(leaf)] = leaf
}

func (f *front) find(thumbprint string) *x509.Certificate {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seen[thumbprint]
}

// thumbprint is the x5t#S256 of a certificate (RFC 8705 §3.1).
func thumbprint(leaf *x509.Certificate) string {
	sum := sha256.Sum256(leaf.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// Outage takes the broker away: calls fail, and its feed is silent, until restore is called.
func (b *Broker) Outage() (restore func()) {
	return b.front.breaks(func(by int) { b.front.away = max(0, b.front.away+by) })
}

// PauseFeed silences the feed alone, until resume is called: verifiers hear of no end, and refuse
// everything once Advance has made their view too old.
func (b *Broker) PauseFeed() (resume func()) {
	return b.front.breaks(func(by int) { b.front.paused = max(0, b.front.paused+by) })
}

// DropHeartbeats loses the heartbeats of a task, until restore is called, as if its process hung or
// had died. Such a task is no leak.
func (b *Broker) DropHeartbeats(task string) (restore func()) {
	b.mu.Lock()
	b.dropped[task] = true
	b.mu.Unlock()
	return b.front.breaks(func(by int) { b.front.dropped[task] = max(0, b.front.dropped[task]+by) })
}
