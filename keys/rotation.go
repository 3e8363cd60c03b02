package keys

import (
	"context"
	"fmt"
	"slices"
	"time"
)

const (
	retryTime = time.Second      // between attempts to make a key after one failed
	minWait   = time.Millisecond // a clock that stands still must not make Run spin
	maxWait   = time.Minute      // a clock that jumps is noticed after that
)

// Run makes the next key whenever there is none, and advances the ring on schedule. It returns the
// context's error when that ends. A key that cannot be made is tried again every second; the active
// one stays meanwhile.
func (r *Ring) Run(ctx context.Context) error {
	timer := time.NewTimer(maxWait)
	defer timer.Stop()
	for {
		wait := retryTime
		if r.fill() == nil {
			wait = r.wait()
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-r.wake:
		}
	}
}

// Rotate makes the next key the active one now. Before that has been published for Config.Publish,
// or while MaxRetiring keys are retiring, the error matches ErrTooEarly and says when it can be done.
func (r *Ring) Rotate() error {
	if err := r.fill(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.config.Now()
	r.advance(now)
	if r.next == nil {
		return fmt.Errorf("%w: it has just been done, and the key after that is still being made; repeat later", ErrTooEarly)
	}
	if at := r.earliest(); now.Before(at) {
		return fmt.Errorf("%w: key %s may sign from %s on; repeat then, or remove the active key in an emergency",
			ErrTooEarly, r.next.id, at.UTC().Format(time.RFC3339Nano))
	}
	r.rotate(now)
	return nil
}

// Remove takes a published key away at once, for when its private half may be known to others: what
// it has signed can be verified by nobody who fetches the set from now on. If it was the active one,
// the next one signs from now on, however young it is, and some verifiers have to fetch the set
// before they can accept what it signs. An ID that is not published is ErrUnknownKey; any other error
// means that the key is removed but its replacement could not be made yet.
func (r *Ring) Remove(kid string) error {
	if err := r.remove(kid); err != nil {
		return err
	}
	return r.fill()
}

func (r *Ring) remove(kid string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.config.Now()
	r.advance(now)
	var k *key
	switch i := slices.IndexFunc(r.retiring, func(k *key) bool { return k.id == kid }); {
	case r.active != nil && r.active.id == kid:
		k, r.active = r.active, nil
	case r.next != nil && r.next.id == kid:
		k, r.next = r.next, nil
	case i >= 0:
		k = r.retiring[i]
		r.retiring = slices.Delete(r.retiring, i, i+1)
	default:
		return fmt.Errorf("%w: %q; look at the list of keys", ErrUnknownKey, kid)
	}
	k.removed, k.gone = true, now
	r.bury(k)
	if r.active == nil && r.next != nil {
		r.activate(now)
	}
	r.changed()
	return nil
}

// fill makes the keys that are missing: the next one, and the active one if even that is. Making an
// RSA key takes long, so the ring is not locked meanwhile.
func (r *Ring) fill() error {
	r.filling.Lock()
	defer r.filling.Unlock()
	for r.incomplete() {
		private, err := r.generate()
		if err != nil {
			return fmt.Errorf("keys: make a %s key: %w", r.config.Algorithm, err)
		}
		k, err := newKey(r.config.Algorithm, r.config.Type, private)
		if err != nil {
			return err
		}
		r.add(k)
	}
	return nil
}

func (r *Ring) incomplete() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance(r.config.Now())
	return r.active == nil || r.next == nil
}

// add publishes a new key.
func (r *Ring) add(k *key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.config.Now()
	k.created = now
	r.next = k
	if r.active == nil {
		r.activate(now)
	}
	r.changed()
}

// wait brings the ring up to date and returns how long it stays so.
func (r *Ring) wait() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.config.Now()
	r.advance(now)
	wait := maxWait
	sooner := func(at time.Time) { wait = min(wait, at.Sub(now)) }
	if r.active != nil && r.next != nil {
		sooner(r.due())
	}
	for _, k := range r.retiring {
		sooner(k.gone)
		if k.signer != nil {
			sooner(k.retired.Add(FinishTime))
		}
	}
	return max(wait, minWait)
}

// advance does what the clock asks for. Everything that reads the ring calls it first.
func (r *Ring) advance(now time.Time) {
	for _, k := range r.retiring {
		if !now.Before(k.retired.Add(FinishTime)) {
			k.signer = nil
		}
	}
	for n := len(r.retiring); n > 0 && !now.Before(r.retiring[n-1].gone); n-- {
		r.bury(r.retiring[n-1])
		r.retiring = slices.Delete(r.retiring, n-1, n)
		r.changed()
	}
	if r.active != nil && r.next != nil && !now.Before(r.due()) {
		r.rotate(now)
	}
}

// due is when the active key is to be replaced by the next.
func (r *Ring) due() time.Time {
	due, earliest := r.active.activated.Add(r.config.Period), r.earliest()
	if due.Before(earliest) {
		return earliest
	}
	return due
}

// earliest is when the active key may be replaced by the next.
func (r *Ring) earliest() time.Time {
	earliest := r.next.created.Add(r.config.Publish)
	if n := len(r.retiring); n >= MaxRetiring && earliest.Before(r.retiring[n-1].gone) {
		return r.retiring[n-1].gone
	}
	return earliest
}

// rotate retires the active key in favour of the next.
func (r *Ring) rotate(now time.Time) {
	k := r.active
	k.retired = now
	k.gone = now.Add(FinishTime + r.config.Life + r.config.Skew)
	r.retiring = slices.Insert(r.retiring, 0, k)
	r.activate(now)
	r.changed()
}

// activate makes the next key the active one, and has Run make another.
func (r *Ring) activate(now time.Time) {
	r.active, r.next = r.next, nil
	r.active.activated = now
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// bury forgets the private half of a key, and remembers for a while that it was there.
func (r *Ring) bury(k *key) {
	k.signer = nil
	r.gone = slices.Insert(r.gone, 0, k.describe(r.config.Algorithm, Gone))
	r.gone = r.gone[:min(len(r.gone), MaxGone)]
}
