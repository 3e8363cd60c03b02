package verify

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// tick looks at the clock: it drops what has expired, ends what runs on it, and tells when the view has become too old.
func (v *Verifier) tick(ctx context.Context) {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	stale := false
	var asked time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := v.config.Now()
		// After a suspend the schedule, which stood still, must not be waited for.
		if v.keys.age(now) > maxKeyAge && now.Sub(asked) > keyRetry {
			asked = now
			v.keys.ask()
		}
		v.view.sweep(now)
		v.running.expire(now)
		ok, old := v.view.freshness(now)
		switch {
		case ok && stale:
			v.config.Logger.Info("verify: the view of the feed is fresh again", "audience", v.config.Audience)
		case !ok && !stale && old >= 0:
			v.wantProof()
			v.config.Logger.Warn("verify: the view of the feed is too old", "audience", v.config.Audience, "age", old, "error", v.lastOr())
			if hook := v.config.Hooks.OnStale; hook != nil {
				hook(old)
			}
		}
		stale = !ok && old >= 0
	}
}

// refreshKeys replaces the key set on schedule, and when asked to.
func (v *Verifier) refreshKeys(ctx context.Context) {
	wait := minKeyInterval
	var said time.Time // when the log had that there are none; zero when there are
	for {
		timer := time.NewTimer(jitter(wait))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-v.keys.wake:
		}
		timer.Stop()
		if ctx.Err() != nil {
			v.keys.done(nil, nil, time.Time{})
			return
		}
		next, err := v.fetchKeys(ctx)
		if wait = next; err != nil {
			wait = keyRetry
			v.failed(err)
			if now := v.config.Now(); said.IsZero() || now.Sub(said) >= sayAgain {
				said = now
				v.config.Logger.Warn("verify: the issuer's keys were not fetched; the old ones stay, and it is tried again", "issuer", v.config.Issuer, "error", err)
			}
		} else {
			said = time.Time{}
		}
	}
}

// fetchKeys replaces the key set, and reads the metadata first if that is old.
func (v *Verifier) fetchKeys(ctx context.Context) (next time.Duration, err error) {
	now := v.config.Now()
	var keys map[string]*key
	var body []byte
	defer func() { v.keys.done(keys, body, now) }()
	at := v.at.Load()
	if at == nil || age(now, at.read) > maxMetadataAge || v.lost.Load() && age(now, at.read) > keyRetry {
		found, err := v.issuer.discover(ctx, now)
		switch {
		case err == nil:
			at = found
			v.at.Store(found)
			v.lost.Store(false)
		case at == nil:
			return 0, err
		default:
			v.failed(err)
		}
	}
	keys, body, next, err = v.issuer.fetchKeys(ctx, at)
	var stolen *stolenError
	if errors.As(err, &stolen) {
		v.distrust(stolen)
	}
	return next, err
}

// distrust denies the keys whose secrets the issuer has published. The set that has them was refused, so
// that each would else stay what it was.
func (v *Verifier) distrust(stolen *stolenError) {
	for _, kid := range stolen.kids {
		if v.keys.get(kid) == nil {
			continue
		}
		v.view.distrust(kid)
		v.config.Logger.Error("verify: the issuer publishes the secret of one of its keys; its tokens are refused, and it must be revoked",
			"issuer", v.config.Issuer, "kid", kid)
	}
	v.running.endIf(v.view.dead)
}

// prove keeps proving how fresh the view is.
func (v *Verifier) prove(ctx context.Context) {
	interval := v.config.MaxStale / proofsPerS
	for {
		wait := interval
		err := v.proveOnce(ctx, interval)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			v.failed(err)
			wait = jitter(min(interval, maxProofRetry))
		}
		v.noteFresh()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-v.proofNow:
		}
		timer.Stop()
	}
}

func (v *Verifier) proveOnce(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	at := v.at.Load()
	if at == nil {
		return errNotFound
	}
	p, err := v.issuer.fetchPosition(ctx, at, rand.Text(), v.config.Now)
	if err != nil {
		return err
	}
	before, _ := v.view.at()
	err = v.view.prove(p)
	if after, _ := v.view.at(); after.Epoch != before.Epoch {
		v.applied(nil, true)
	}
	return err
}

// noteFresh lets New return, the first time that the view is fresh.
func (v *Verifier) noteFresh() {
	if ok, _ := v.view.freshness(v.config.Now()); !ok {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.fresh:
	default:
		close(v.fresh)
	}
}

// applied makes a change of the view felt: requests end, keys are looked at, hooks are told.
func (v *Verifier) applied(entries []wire.FeedEntry, newEpoch bool) {
	var ids []string
	wide := newEpoch
	for _, e := range entries {
		switch e.Kind {
		case wire.KindGrant, wire.KindTask:
			ids = append(ids, e.ID)
		case wire.KindKey:
			wide = true
			v.keys.ask()
		default:
			wide = true
		}
	}
	v.running.end(ids)
	if wide {
		v.running.endIf(v.view.dead)
	}
	if hook := v.config.Hooks.OnApply; hook != nil {
		for _, e := range entries {
			hook(e)
		}
	}
}

// confirm has the broker told of a position that the view had before what it brought was made felt.
func (v *Verifier) confirm(p wire.Position, news bool) {
	if v.acks != nil && p.Numbers != nil {
		v.acks.reach(p, news)
	}
}
