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

// Run makes the next key whenever there is none, and advances the ring on schedule; shared keys it
// reads every ReadInterval. It returns the context's error when that ends. A key that cannot be made,
// and a record that cannot be read or written, is tried again every second; the active key stays
// meanwhile.
func (r *Ring) Run(ctx context.Context) error {
	timer := time.NewTimer(maxWait)
	defer timer.Stop()
	for {
		wait := retryTime
		if r.fill(ctx) == nil {
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

// Rotate makes the next key the active one now. Before that has been published for Config.Publish (of
// shared keys: by every replica), or while MaxRetiring keys are retiring, the error matches
// ErrTooEarly and says when it can be done. ErrRecord means that it may or may not have happened.
func (r *Ring) Rotate() error {
	ctx := context.Background()
	if err := r.fill(ctx); err != nil {
		return err
	}
	return r.update(ctx, func(s schedule, now time.Time) (schedule, error) {
		if !s.complete() {
			return s, fmt.Errorf("%w: it has just been done, and the key after that is still being made; repeat later", ErrTooEarly)
		}
		if at := s.earliest(); now.Before(at) {
			return s, fmt.Errorf("%w: key %s may sign from %s on; repeat then, or revoke the active key in an emergency",
				ErrTooEarly, s.next.id, at.UTC().Add(time.Second-1).Truncate(time.Second).Format(time.RFC3339))
		}
		return s.rotate(now), nil
	})
}

// Remove takes a published key away at once, for when its private half may be known to others: what
// it has signed can be verified by nobody who fetches the set from now on. If it was the active one,
// the next one signs from now on, however young it is, and some verifiers have to fetch the set
// before they can accept what it signs.
//
// An ID that is not published is ErrUnknownKey. ErrRecord means that the key is removed on this
// replica, which goes on trying to tell the others; they use it until they are told by Deny, or until
// they can read the record again. Repeating the call says how that went. Any other error means that
// the key is removed but its replacement could not be made yet.
func (r *Ring) Remove(kid string) error {
	ctx := context.Background()
	known := r.remove(kid)
	if !known { // another replica may have made it a moment ago
		if err := r.update(ctx, keep); err != nil {
			return fmt.Errorf("whether key %q is published is not known: %w", kid, err)
		}
		known = r.remove(kid)
	}
	if !known {
		return fmt.Errorf("%w: %q; look at the list of keys", ErrUnknownKey, kid)
	}
	if err := r.update(ctx, keep); err != nil {
		return fmt.Errorf("key %s is removed on this replica, and not yet for the others: %w", kid, err)
	}
	return r.fill(ctx)
}

// Deny takes a key away that was removed elsewhere, at once and for good: it does not come back when
// an older record is read. It does not wait for anything, repeating it changes nothing, and the ID
// may be one that was never heard of.
func (r *Ring) Deny(kid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance()
	r.deny(kid)
}

// remove takes a key away on this replica. It reports whether that was published, here or as far as
// this replica knows for others.
func (r *Ring) remove(kid string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance()
	if r.schedule.find(kid) == nil && r.view.recorded.find(kid) == nil {
		return false
	}
	r.deny(kid)
	return true
}

// deny is called with mu held.
func (r *Ring) deny(kid string) {
	r.remember(kid)
	r.show(r.schedule.remove(kid, r.now()))
}

// remember is called with mu held.
func (r *Ring) remember(kid string) {
	if !slices.Contains(r.removed, kid) {
		r.removed = slices.Insert(r.removed, 0, kid)
		r.removed = r.removed[:min(len(r.removed), MaxRemoved)]
	}
}

// fill brings the ring up to date and makes the keys that are missing: the next one, and the active
// one if even that is. Making an RSA key takes long, so nothing is locked meanwhile but fill itself.
func (r *Ring) fill(ctx context.Context) error {
	r.filling.Lock()
	defer r.filling.Unlock()
	if err := r.update(ctx, keep); err != nil {
		return err
	}
	for !r.complete() {
		private, err := r.generate()
		if err != nil {
			return fmt.Errorf("keys: make a %s key: %w", r.config.Algorithm, err)
		}
		k, err := newKey(r.config.Algorithm, r.config.Type, private)
		if err != nil {
			return err
		}
		if err := r.update(ctx, func(s schedule, now time.Time) (schedule, error) {
			if s.complete() { // another replica was faster
				return s, nil
			}
			return s.add(r.config.plan(k, now)), nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func (r *Ring) complete() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance()
	return r.schedule.complete()
}

// wait brings the ring up to date and returns how long it stays so.
func (r *Ring) wait() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.advance()
	wait := maxWait
	if r.config.Shared != nil {
		wait = ReadInterval
	}
	sooner := func(at time.Time) { wait = min(wait, at.Sub(now)) }
	if r.schedule.complete() {
		sooner(r.schedule.due())
	}
	for _, k := range r.schedule.retiring {
		sooner(k.gone)
	}
	return max(wait, minWait)
}

// keep changes nothing by itself.
func keep(s schedule, _ time.Time) (schedule, error) { return s, nil }

// update brings the ring up to date, and makes of its schedule what change makes of it, everywhere.
func (r *Ring) update(ctx context.Context, change func(schedule, time.Time) (schedule, error)) error {
	if r.config.Shared != nil {
		return r.share(ctx, change)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s, err := change(r.schedule, r.advance())
	if err != nil {
		return err
	}
	r.show(s)
	return nil
}

// advance does what the clock asks for and returns its time. Everything that reads the ring calls it
// first. Of shared keys it takes away what is over; the rest is done where the record is written.
func (r *Ring) advance() time.Time {
	now := r.now()
	if r.config.Shared != nil {
		r.show(r.schedule.expire(now))
	} else {
		r.show(r.schedule.advance(now))
	}
	return now
}

// show makes a schedule the one that this replica goes by, and has Run make the key that it lacks.
func (r *Ring) show(s schedule) {
	before := r.schedule
	r.schedule = s
	if s.same(before) {
		return
	}
	r.set = newSet(s.published(), r.config.MaxAge)
	if before.complete() && !s.complete() {
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}
