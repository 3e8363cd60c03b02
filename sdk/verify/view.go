package verify

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

// maxProofs bounds the proofs of freshness that wait for the stream. One comes every third of
// MaxStale and is worthless after MaxStale.
const maxProofs = 4

// Errors of the view. errResync asks for a snapshot; errBackwards does not.
var (
	errResync    = errors.New("a snapshot is needed")
	errBackwards = errors.New("the feed is behind what is known already")
)

// view is what the verifier knows of the feed: how far it is, what is denied, and as of when that
// is all. It only ever learns: nothing but time and a new epoch removes a denial.
type view struct {
	maxStale time.Duration
	accept   bool // OnStale is Accept
	leeway   time.Duration

	mu        sync.RWMutex // guards all below; held for memory work only
	position  wire.Position
	freshAsOf time.Time
	closed    bool    // nobody keeps it up to date any more
	proofs    []proof // waiting for the position to cover them, oldest first

	denials
}

// proof says that everything was known as of a moment to whoever is at a position.
type proof struct {
	asOf     time.Time
	position wire.Position
}

func newView(c Config) *view {
	return &view{maxStale: c.MaxStale, accept: c.OnStale == Accept, leeway: c.Leeway, denials: newDenials(c.Audience, c.MaxEntries)}
}

// snapshot unites a snapshot with what is known. It may be of a new epoch.
func (v *view) snapshot(p wire.Position, entries []wire.FeedEntry, now time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p.Epoch > v.position.Epoch {
		v.enter(p.Epoch)
	}
	if err := v.ahead(p); err != nil {
		return err
	}
	if err := v.add(entries, len(p.Numbers), now); err != nil {
		return err
	}
	v.full = false
	if now.Unix() < v.swept {
		// The clock was set back; what had been dropped too early is there again.
		v.swept = now.Unix()
	}
	v.reach(p)
	return nil
}

// event takes in one event of the stream, which brings the reader to p.
func (v *view) event(p wire.Position, entries []wire.FeedEntry, now time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case p.Epoch > v.position.Epoch:
		v.enter(p.Epoch)
		return fmt.Errorf("%w: the data set is a new one", errResync)
	case v.position.Numbers == nil:
		return fmt.Errorf("%w: what the data set denied before is not known", errResync)
	case v.setBack(now):
		return fmt.Errorf("%w: the clock was set back", errResync)
	}
	if err := v.ahead(p); err != nil {
		return err
	}
	if err := v.add(entries, len(p.Numbers), now); err != nil {
		return err
	}
	v.reach(p)
	return nil
}

// setBack reports whether the clock was so far ahead before that entries were dropped which are
// needed now. It is called with mu held.
func (v *view) setBack(now time.Time) bool { return now.Unix() < v.swept-2*sweepSeconds }

// early takes in entries that the store does not have yet: they move nobody's position.
func (v *view) early(entries []wire.FeedEntry, now time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.add(entries, len(v.position.Numbers), now)
}

// forever is in the year 3058, in Unix seconds: a date that a cache file can have, and be rounded up.
const forever = 1 << 35

// distrust denies a key that the feed has not denied, for ever: nobody says until when.
func (v *view) distrust(kid string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	// If there is no room the view is full, and nothing is accepted.
	_ = v.denyKey(kid, forever)
}

// enter begins a new epoch: data was lost, and every older token is dead, so that what denied them
// can go. Denied keys stay: whoever has one can write any epoch into a token. Until a snapshot is
// in, nothing is accepted. It is called with mu held.
func (v *view) enter(epoch uint64) {
	v.position = wire.Position{Epoch: epoch}
	v.freshAsOf, v.proofs = time.Time{}, nil
	v.forget()
}

// ahead returns errBackwards if p has less than what is known. It is called with mu held.
func (v *view) ahead(p wire.Position) error {
	if p.Epoch < v.position.Epoch || v.position.Numbers != nil && !p.Covers(v.position) {
		return fmt.Errorf("%w: it is at %s, and this verifier at %s", errBackwards, p, v.position)
	}
	return nil
}

// reach moves the position to p. It is called with mu held.
func (v *view) reach(p wire.Position) {
	v.position = wire.Position{Epoch: p.Epoch, Numbers: slices.Clone(p.Numbers)}
	v.settle()
}

// prove takes in a proof of freshness. It counts once the position covers it.
func (v *view) prove(p proof) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case p.position.Epoch > v.position.Epoch:
		v.enter(p.position.Epoch)
		return nil
	case p.position.Epoch < v.position.Epoch:
		return fmt.Errorf("%w: the position is %s", errBackwards, p.position)
	}
	if len(v.proofs) == maxProofs {
		v.proofs = slices.Delete(v.proofs, 0, 1)
	}
	v.proofs = append(v.proofs, p)
	v.settle()
	return nil
}

// settle uses the proofs that the position covers. It is called with mu held.
func (v *view) settle() {
	v.proofs = slices.DeleteFunc(v.proofs, func(p proof) bool {
		covered := v.position.Covers(p.position)
		if covered && p.asOf.After(v.freshAsOf) {
			v.freshAsOf = p.asOf
		}
		return covered
	})
}

// judge returns ErrStale, ErrExpired or ErrRevoked if the grant must not be accepted now. stale is true when it
// was accepted although the view is too old.
func (v *view) judge(g *Grant, now time.Time) (stale bool, err error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	stale = v.tooOld(now)
	if v.closed || v.full || v.setBack(now) || stale && !v.accept {
		return false, ErrStale
	}
	if v.swept >= g.Expires.Add(v.leeway).Unix() {
		// The clock was set back: what denied the grant may have been dropped before.
		return false, ErrExpired
	}
	if err := v.denied(g); err != nil {
		return false, err
	}
	return stale, nil
}

// dead reports whether the grant is known to be, whatever the age of the view.
func (v *view) dead(g *Grant) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.denied(g) == ErrRevoked
}

// denied is called with mu held. It allocates nothing.
func (v *view) denied(g *Grant) error {
	switch {
	case g.epoch < v.position.Epoch:
		return ErrRevoked
	case g.epoch > v.position.Epoch || g.shard >= len(v.position.Numbers):
		return ErrStale
	}
	if v.names(g) {
		return ErrRevoked
	}
	return nil
}

// close makes the view one on which nothing is accepted.
func (v *view) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.closed = true
}

// sweep drops what can deny no token any more.
func (v *view) sweep(now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.drop(now)
}

// tooOld is called with mu held.
func (v *view) tooOld(now time.Time) bool {
	return v.freshAsOf.IsZero() || age(now, v.freshAsOf) > v.maxStale
}

// age is how long ago then was, by the clock that says more: the monotonic one stands still while a
// machine is suspended, and the other one can be set back.
func age(now, then time.Time) time.Duration {
	return max(now.Sub(then), now.Round(0).Sub(then.Round(0)))
}

// at returns the position, and false if a snapshot is needed first.
func (v *view) at() (wire.Position, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.position, v.position.Numbers != nil && !v.full
}

// freshness returns whether the view may be used, and its age, which is negative while it has never
// been fresh.
func (v *view) freshness(now time.Time) (ok bool, old time.Duration) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.freshAsOf.IsZero() {
		return false, -1
	}
	return !v.closed && !v.full && !v.setBack(now) && !v.tooOld(now), age(now, v.freshAsOf)
}

// entries is how many denials are held.
func (v *view) entries() int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.size()
}
