package verify

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

const (
	// maxProofs bounds the proofs of freshness that wait for the stream. One comes every third of
	// MaxStale and is worthless after MaxStale.
	maxProofs = 4

	// sweepSeconds is how coarse the times are at which entries are dropped. None goes early.
	sweepSeconds = 10

	// keyDenialLife is how long a denied key stays denied at least, whatever its entry says: until
	// no key set that still has it is in use.
	keyDenialLife = maxKeyAge
)

// Errors of the view. errResync asks for a snapshot; errBackwards does not.
var (
	errResync    = errors.New("a snapshot is needed")
	errBackwards = errors.New("the feed is behind what is known already")
)

// view is what the verifier knows of the feed: how far it is, what is denied, and as of when that
// is all. It only ever learns: nothing but time and a new epoch removes a denial.
type view struct {
	audience string
	maxStale time.Duration
	accept   bool // OnStale is Accept
	max      int  // entries

	mu        sync.RWMutex // guards all below; held for memory work only
	position  wire.Position
	freshAsOf time.Time
	proofs    []proof // waiting for the position to cover them, oldest first
	full      bool    // there was no room for an entry; ends with the next whole snapshot

	// Denials, each with the Unix second until which it matters.
	ids       map[string]int64       // of grants and tasks
	keys      map[string]int64       // of keys
	selectors map[string][]selection // by selection.place
	count     int                    // of the selectors
	due       map[int64][]string     // IDs, by the sweep that may drop them
	swept     int64                  // the last sweep
}

// proof says that everything was known as of a moment to whoever is at a position.
type proof struct {
	asOf     time.Time
	position wire.Position
}

// selection is an entry of the kind "selector" or "all": what it leaves empty matches everything.
type selection struct {
	shard   int
	subject string
	scope   string
	number  uint64
	until   int64
}

func newView(c Config) *view {
	return &view{
		audience: c.Audience, maxStale: c.MaxStale, accept: c.OnStale == Accept, max: c.MaxEntries,
		ids: map[string]int64{}, keys: map[string]int64{}, selectors: map[string][]selection{}, due: map[int64][]string{},
	}
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
	if err := v.add(p, entries, now); err != nil {
		return err
	}
	v.full = false
	v.reach(p)
	return nil
}

// event takes in one event of the stream, which brings the reader to p.
func (v *view) event(p wire.Position, entries []wire.FeedEntry, now time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if p.Epoch > v.position.Epoch {
		v.enter(p.Epoch)
		return fmt.Errorf("%w: the data set is a new one", errResync)
	}
	if err := v.ahead(p); err != nil {
		return err
	}
	if err := v.add(p, entries, now); err != nil {
		return err
	}
	v.reach(p)
	return nil
}

// early takes in entries that the store does not have yet: they move nobody's position.
func (v *view) early(entries []wire.FeedEntry, now time.Time) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.add(v.position, entries, now)
}

// enter begins a new epoch: data was lost, and every older token is dead, so that what denied them
// can go. Denied keys stay: whoever has one can write any epoch into a token. Until a snapshot is
// in, nothing is accepted. It is called with mu held.
func (v *view) enter(epoch uint64) {
	v.position = wire.Position{Epoch: epoch}
	v.freshAsOf, v.proofs = time.Time{}, nil
	v.count = 0
	clear(v.ids)
	clear(v.selectors)
	clear(v.due)
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

// add unites entries with what is denied; p says how many shards there are. It is called with mu
// held.
func (v *view) add(p wire.Position, entries []wire.FeedEntry, now time.Time) error {
	for _, e := range entries {
		if e.Shard < 0 || e.Shard >= len(p.Numbers) {
			return fmt.Errorf("%w: an entry is of shard %d of %d", errResync, e.Shard, len(p.Numbers))
		}
		if e.Until.IsZero() {
			return fmt.Errorf("%w: an entry does not say until when", errResync)
		}
		if err := v.deny(e, now); err != nil {
			return err
		}
	}
	return nil
}

// deny adds one entry. It is called with mu held.
func (v *view) deny(e wire.FeedEntry, now time.Time) error {
	// Rounded up, since nothing may be dropped early.
	until := e.Until.Unix() + 1
	if until <= now.Unix() && e.Kind != wire.KindKey {
		return nil
	}
	switch e.Kind {
	case wire.KindGrant, wire.KindTask, wire.KindKey:
		if e.ID == "" {
			return fmt.Errorf("%w: an entry of kind %q names nothing", errResync, e.Kind)
		}
		if e.Kind == wire.KindKey {
			return v.denyKey(e.ID, max(until, now.Add(keyDenialLife).Unix()))
		}
		return v.denyID(e.ID, until)
	case wire.KindSelector:
		if e.Audience != "" && e.Audience != v.audience {
			return nil
		}
		return v.denySelection(selection{shard: e.Shard, subject: e.Subject, scope: e.Scope, number: e.Number, until: until})
	default:
		// "all", and every kind that is not known here: the safe reading is that it means all.
		return v.denySelection(selection{shard: e.Shard, number: e.Number, until: until})
	}
}

func (v *view) denyID(id string, until int64) error {
	before, known := v.ids[id]
	if known && before >= until {
		return nil
	}
	if err := v.room(known); err != nil {
		return err
	}
	v.ids[id] = until
	sweep := until/sweepSeconds + 1
	v.due[sweep] = append(v.due[sweep], id)
	return nil
}

func (v *view) denyKey(kid string, until int64) error {
	before, known := v.keys[kid]
	if err := v.room(known); err != nil {
		return err
	}
	v.keys[kid] = max(before, until)
	return nil
}

func (v *view) denySelection(s selection) error {
	if s.number == 0 {
		return fmt.Errorf("%w: an entry that covers many tokens has no number", errResync)
	}
	place := s.place()
	if place == "" {
		s.subject = ""
	}
	known := v.selectors[place]
	for i := range known {
		if k := &known[i]; k.shard == s.shard && k.scope == s.scope {
			k.number, k.until = max(k.number, s.number), max(k.until, s.until)
			return nil
		}
	}
	if err := v.room(false); err != nil {
		return err
	}
	v.selectors[place] = append(known, s)
	v.count++
	return nil
}

// place is where a selection is found: under the subject, under the part of it that ends in a slash
// when it stands for everything below that, or under nothing when every subject is meant. A subject
// with an asterisk anywhere else is not one that this verifier understands, so it means everybody.
func (s selection) place() string {
	prefix, below := strings.CutSuffix(s.subject, "/*")
	if strings.Contains(prefix, "*") {
		return ""
	}
	if below {
		return s.subject[:len(prefix)+1]
	}
	return s.subject
}

// room returns an error, and makes the view stale, when an entry more would be too much.
func (v *view) room(known bool) error {
	if known || len(v.ids)+len(v.keys)+v.count < v.max {
		return nil
	}
	v.full = true
	return fmt.Errorf("%w: %d entries are held, which is Config.MaxEntries: raise it", errResync, v.max)
}

// judge returns ErrStale or ErrRevoked if the grant must not be accepted now. stale is true when it
// was accepted although the view is too old.
func (v *view) judge(g *Grant, now time.Time) (stale bool, err error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	stale = v.tooOld(now)
	if v.full || stale && !v.accept {
		return false, ErrStale
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
	if _, dead := v.ids[g.ID]; dead {
		return ErrRevoked
	}
	for _, id := range g.Task.Path {
		if _, dead := v.ids[id]; dead {
			return ErrRevoked
		}
	}
	if _, dead := v.keys[g.key]; dead || v.count > 0 && v.selected(g) {
		return ErrRevoked
	}
	return nil
}

// selected reports whether a selector means the grant. It is called with mu held.
func (v *view) selected(g *Grant) bool {
	if v.selectedAt("", g) || v.selectedBy(g.Workload, g) || g.Client != g.Workload && v.selectedBy(g.Client, g) {
		return true
	}
	for _, actor := range g.Actors {
		if v.selectedBy(actor, g) {
			return true
		}
	}
	return false
}

func (v *view) selectedBy(subject string, g *Grant) bool {
	for i := range len(subject) {
		if subject[i] == '/' && v.selectedAt(subject[:i+1], g) {
			return true
		}
	}
	return v.selectedAt(subject, g)
}

func (v *view) selectedAt(place string, g *Grant) bool {
	for i := range v.selectors[place] {
		s := &v.selectors[place][i]
		if s.shard == g.shard && s.number > g.number && (s.scope == "" || g.Has(s.scope)) {
			return true
		}
	}
	return false
}

// sweep drops what can deny no token any more.
func (v *view) sweep(now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	second := now.Unix()
	sweep := second / sweepSeconds
	if sweep == v.swept {
		return
	}
	v.swept = sweep
	for at, ids := range v.due {
		if at > sweep {
			continue
		}
		for _, id := range ids {
			if v.ids[id] <= second {
				delete(v.ids, id)
			}
		}
		delete(v.due, at)
	}
	for kid, until := range v.keys {
		if until <= second {
			delete(v.keys, kid)
		}
	}
	v.sweepSelectors(second)
}

func (v *view) sweepSelectors(second int64) {
	v.count = 0
	for place, list := range v.selectors {
		list = slices.DeleteFunc(list, func(s selection) bool { return s.until <= second })
		v.count += len(list)
		v.selectors[place] = list
		if len(list) == 0 {
			delete(v.selectors, place)
		}
	}
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
	return !v.full && !v.tooOld(now), age(now, v.freshAsOf)
}

// entries is how many denials are held.
func (v *view) entries() int {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return len(v.ids) + len(v.keys) + v.count
}
