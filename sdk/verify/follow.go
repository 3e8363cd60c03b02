package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/errandhq/errand/sdk/internal/sse"
	"github.com/errandhq/errand/sdk/wire"
)

// Errors that end a stream. After these the next one begins where this one was.
var (
	errReset  = errors.New("the broker asked to connect again")
	errSilent = fmt.Errorf("the feed was silent for %s", streamSilence)
)

// follow keeps the view up to date: a snapshot where one is needed, then the stream, again and
// again.
func (v *Verifier) follow(ctx context.Context) {
	failures := 0
	resync := false
	for ctx.Err() == nil {
		heard, err := v.followOnce(ctx, resync)
		if ctx.Err() != nil {
			return
		}
		if heard {
			failures = 0
		} else {
			v.lost.Store(true)
			v.keys.ask()
		}
		resync = errors.Is(err, errResync) || errors.Is(err, sse.ErrTooLong)
		if !errors.Is(err, errReset) && !errors.Is(err, io.EOF) {
			v.failed(err)
		}
		v.config.Logger.Debug("verify: the feed was interrupted", "audience", v.config.Audience, "error", err)
		sleep(ctx, backoff(failures))
		failures++
	}
}

// followOnce follows one stream to its end, which has a reason. heard says whether it was of use:
// one that ends as soon as it has begun is not, or the next would come at once.
func (v *Verifier) followOnce(ctx context.Context, resync bool) (heard bool, err error) {
	if v.at.Load() == nil {
		return false, errNotFound
	}
	if _, ok := v.view.at(); !ok || resync {
		if err := v.takeSnapshot(ctx); err != nil {
			return false, fmt.Errorf("the feed's snapshot: %w", err)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(streamSilence, func() { cancel(errSilent) })
	defer silence.Stop()
	position, _ := v.view.at()
	body, err := v.issuer.openStream(ctx, v.at.Load(), position)
	if err != nil {
		return false, fmt.Errorf("the feed: %w", because(ctx, err))
	}
	defer body.Close()
	defer v.connected.Store(false)
	begun := time.Now()
	checked := begun
	stream := sse.New(body)
	for {
		e, err := stream.Next()
		if err == nil && time.Since(checked) > v.config.MaxStale/proofsPerS {
			err = body.trusted()
			checked = time.Now()
		}
		if err == nil {
			silence.Reset(streamSilence)
			err = v.takeEvent(e)
		}
		if err != nil {
			return time.Since(begun) > streamOfUse, fmt.Errorf("the feed: %w", because(ctx, err))
		}
		if !v.connected.Swap(true) {
			v.wantProof()
			v.acks.hurry() // it may be another replica, which does not know this verifier yet
		}
	}
}

// streamOfUse is how long a stream must have lived for the next one to be tried without a pause.
const streamOfUse = 2 * time.Second

// because prefers the reason that a context was canceled for to what that looked like.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (v *Verifier) wantProof() {
	select {
	case v.proofNow <- struct{}{}:
	default:
	}
}

// takeSnapshot unites the view with a snapshot.
func (v *Verifier) takeSnapshot(ctx context.Context) error {
	before, _ := v.view.at()
	p, entries, err := v.issuer.fetchSnapshot(ctx, v.at.Load())
	if err != nil {
		return err
	}
	err = v.view.snapshot(p, entries, v.config.Now())
	// Even if only a part of it was taken in, that part counts.
	v.applied(entries, p.Epoch != before.Epoch)
	if err == nil {
		v.confirm(p, true)
	}
	v.noteFresh()
	return err
}

// takeEvent takes in one sse.Event of the stream.
func (v *Verifier) takeEvent(e sse.Event) error {
	switch e.Name {
	case wire.EventReset:
		return errReset
	case wire.EventDenials, wire.EventBeat:
	default:
		v.ignored.Add(1)
		return nil
	}
	body, err := parseFeedEvent(e.Data)
	if err != nil {
		return fmt.Errorf("%w: an event: %w", errResync, err)
	}
	before, _ := v.view.at()
	err = v.look(e.ID, body)
	after, _ := v.view.at()
	if !errors.Is(err, errBackwards) {
		v.applied(body.Entries, after.Epoch != before.Epoch)
	}
	if err == nil {
		v.confirm(after, e.ID != "" && len(body.Entries) > 0)
	}
	v.noteFresh()
	return err
}

// look shows the view one sse.Event. Without an id it says what is denied, and not how far that is.
func (v *Verifier) look(id string, body wire.FeedEvent) error {
	now := v.config.Now()
	if id == "" {
		return v.view.early(body.Entries, now)
	}
	p, err := parsePosition(body.Position)
	if err != nil || id != body.Position {
		return fmt.Errorf("%w: an event's id is not its position", errResync)
	}
	return v.view.event(p, body.Entries, now)
}
