package verify

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

const (
	ackPace  = 250 * time.Millisecond // between two, at least
	ackMoved = 2 * time.Second        // after the position has moved by what was for others, at most
	ackAlive = 15 * time.Second       // after the last one, at most: the broker forgets who is silent for a minute
	ackTime  = 2 * time.Second        // for one
	lastAck  = time.Second            // for the good-bye
)

// acks tell the broker how far this verifier is, so that it can say who has heard of an end. Whoever takes in the feed
// only leaves a mark; one goroutine sends what that amounts to.
type acks struct {
	id  string
	now chan struct{} // asks for one at once; of capacity 1

	mu      sync.Mutex // guards all below
	reached wire.Position
}

func newAcks() *acks { return &acks{id: rand.Text(), now: make(chan struct{}, 1)} }

// reach notes that everything up to a position is in force, and that there was something for this audience in it.
func (a *acks) reach(p wire.Position, news bool) {
	a.mu.Lock()
	a.reached = p
	a.mu.Unlock()
	if news {
		a.hurry()
	}
}

func (a *acks) hurry() {
	select {
	case a.now <- struct{}{}:
	default:
	}
}

// at is how far the verifier is, as text; empty while it has nothing to say.
func (a *acks) at() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reached.Numbers == nil {
		return ""
	}
	return a.reached.String()
}

// acknowledge sends acknowledgements until ctx ends: the first of what is new at once, the next not before ackPace.
// One that was not taken is made up for by the next, which is later with every failure.
func (v *Verifier) acknowledge(ctx context.Context) {
	var told string // what the broker has
	var last time.Time
	failures := 0
	wait := jitter(ackMoved)
	for {
		timer := time.NewTimer(wait)
		hurry := false
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-v.acks.now:
			hurry = true
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
		wait = jitter(ackMoved)
		at := v.acks.at()
		if at == "" || !hurry && failures == 0 && at == told && time.Since(last) < ackAlive-ackMoved {
			continue
		}
		err := v.issuer.sendAck(ctx, v.at.Load(), v.ack(at))
		if err == nil {
			told, last, failures = at, time.Now(), 0
			sleep(ctx, ackPace)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		v.config.Logger.Debug("verify: an acknowledgement was not taken", "audience", v.config.Audience, "error", err)
		// Whatever is new meanwhile, a broker that takes none must not be asked again and again.
		sleep(ctx, ackRetry(err, failures))
		failures++
		wait = 0
	}
}

// ackRetry is how long to wait after an acknowledgement that was not taken: long if the broker will not take the next one
// either.
func ackRetry(err error, failures int) time.Duration {
	var answer *statusError
	if errors.As(err, &answer) && answer.status >= 400 && answer.status < 500 && answer.status != http.StatusGone {
		return jitter(ackAlive)
	}
	return max(ackPace, backoff(failures))
}

func (v *Verifier) ack(at string) wire.AckRequest {
	a := wire.AckRequest{ID: v.acks.id, Position: at, Version: moduleVersion()}
	if v.config.OnStale == Refuse {
		a.MaxStale = int64((v.config.MaxStale + time.Second - 1) / time.Second)
	}
	return a
}

// sayGoodbye has the broker wait for this verifier no longer. Nothing is accepted any more by now.
func (v *Verifier) sayGoodbye() {
	if v.acks.at() == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), lastAck)
	defer cancel()
	if err := v.issuer.sendAck(ctx, v.at.Load(), wire.AckRequest{ID: v.acks.id, Closed: true}); err != nil {
		v.config.Logger.Debug("verify: the broker was not told of the end of this verifier, and forgets it in a minute", "audience", v.config.Audience, "error", err)
	}
}

// moduleVersion is that of this module, if the program knows it.
var moduleVersion = sync.OnceValue(func() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	const path = "github.com/errandhq/errand"
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == path && len(m.Version) <= maxVersion {
			return m.Version
		}
	}
	return ""
})

// maxVersion is how much of a version the broker takes.
const maxVersion = 64

// sendAck hands over one acknowledgement.
func (i *issuer) sendAck(ctx context.Context, e *endpoints, a wire.AckRequest) error {
	body, err := json.Marshal(a)
	if err != nil {
		panic(fmt.Sprintf("verify: an acknowledgement of plain values must marshal: %v", err))
	}
	if e == nil {
		return errNotFound
	}
	ctx, cancel := context.WithTimeout(ctx, ackTime)
	defer cancel()
	return i.post(ctx, e.acks, body)
}
