package verify

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

const (
	// sweepSeconds is how coarse the times are at which entries are dropped. None goes early.
	sweepSeconds = 10

	// keyDenialLife is how long a denied key stays denied at least, whatever its entry says: until
	// no key set that still has it is in use.
	keyDenialLife = maxKeyAge
)

// denials are what is dead, each with the Unix second until which that matters. Looking up a grant
// allocates nothing. They have no lock of their own.
type denials struct {
	audience string
	max      int

	ids       map[string]int64       // of grants and tasks
	keys      map[string]int64       // of keys
	selectors map[string][]selection // by place
	count     int                    // of the selectors
	due       map[int64][]string     // IDs, by the sweep that may drop them
	swept     int64                  // the latest second as of which entries were dropped
	full      bool                   // there was no room for an entry
}

// selection is an entry of the kind "selector" or "all": what it leaves empty matches everything.
type selection struct {
	shard  int
	scope  string
	number uint64
	until  int64
}

func newDenials(audience string, limit int) denials {
	return denials{
		audience: audience, max: limit,
		ids: map[string]int64{}, keys: map[string]int64{}, selectors: map[string][]selection{}, due: map[int64][]string{},
	}
}

// forget drops everything but the keys.
func (d *denials) forget() {
	d.count = 0
	clear(d.ids)
	clear(d.selectors)
	clear(d.due)
}

// size is how many denials are held.
func (d *denials) size() int { return len(d.ids) + len(d.keys) + d.count }

// add unites entries of that many shards with what is denied.
func (d *denials) add(entries []wire.FeedEntry, shards int, now time.Time) error {
	for _, e := range entries {
		if e.Shard < 0 || e.Shard >= shards {
			return fmt.Errorf("%w: an entry is of shard %d of %d", errResync, e.Shard, shards)
		}
		if e.Until.IsZero() {
			return fmt.Errorf("%w: an entry does not say until when", errResync)
		}
		if err := d.deny(e, now); err != nil {
			return err
		}
	}
	return nil
}

// deny adds one entry.
func (d *denials) deny(e wire.FeedEntry, now time.Time) error {
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
			return d.denyKey(e.ID, max(until, now.Add(keyDenialLife).Unix()))
		}
		return d.denyID(e.ID, until)
	case wire.KindSelector:
		if e.Audience != "" && e.Audience != d.audience {
			return nil
		}
		return d.denySelection(place(e.Subject), selection{shard: e.Shard, scope: e.Scope, number: e.Number, until: until})
	default:
		// "all", and every kind that is not known here: the safe reading is that it means all.
		return d.denySelection("", selection{shard: e.Shard, number: e.Number, until: until})
	}
}

func (d *denials) denyID(id string, until int64) error {
	before, known := d.ids[id]
	if known && before >= until {
		return nil
	}
	if err := d.room(known); err != nil {
		return err
	}
	d.ids[id] = until
	sweep := until/sweepSeconds + 1
	d.due[sweep] = append(d.due[sweep], id)
	return nil
}

func (d *denials) denyKey(kid string, until int64) error {
	before, known := d.keys[kid]
	if err := d.room(known); err != nil {
		return err
	}
	d.keys[kid] = max(before, until)
	return nil
}

func (d *denials) denySelection(place string, s selection) error {
	if s.number == 0 {
		return fmt.Errorf("%w: an entry that covers many tokens has no number", errResync)
	}
	known := d.selectors[place]
	for i := range known {
		if k := &known[i]; k.shard == s.shard && k.scope == s.scope {
			k.number, k.until = max(k.number, s.number), max(k.until, s.until)
			return nil
		}
	}
	if err := d.room(false); err != nil {
		return err
	}
	d.selectors[place] = append(known, s)
	d.count++
	return nil
}

// place is where a selection of a subject is found: under the subject, under the part of it that
// ends in a slash when it stands for everything below that, or under nothing when everybody is
// meant. A subject with an asterisk anywhere else is not understood, so it means everybody.
func place(subject string) string {
	prefix, below := strings.CutSuffix(subject, "/*")
	switch {
	case strings.Contains(prefix, "*"):
		return ""
	case below:
		return subject[:len(prefix)+1]
	}
	return subject
}

// room returns an error, and notes it, when one entry more would be too much.
func (d *denials) room(known bool) error {
	if known || d.size() < d.max {
		return nil
	}
	d.full = true
	return fmt.Errorf("%w: %d entries are held, which is Config.MaxEntries: raise it", errResync, d.max)
}

// names reports whether the grant, a task on its path, its key or a selector that means it is
// denied.
func (d *denials) names(g *Grant) bool {
	if _, dead := d.ids[g.ID]; dead {
		return true
	}
	for _, id := range g.Task.Path {
		if _, dead := d.ids[id]; dead {
			return true
		}
	}
	_, dead := d.keys[g.key]
	return dead || d.count > 0 && d.selected(g)
}

// selected reports whether a selector means the grant.
func (d *denials) selected(g *Grant) bool {
	if d.selectedAt("", g) || d.selectedBy(g.Workload, g) || g.Client != g.Workload && d.selectedBy(g.Client, g) {
		return true
	}
	for _, actor := range g.Actors {
		if d.selectedBy(actor, g) {
			return true
		}
	}
	return false
}

func (d *denials) selectedBy(subject string, g *Grant) bool {
	for i := range len(subject) {
		if subject[i] == '/' && d.selectedAt(subject[:i+1], g) {
			return true
		}
	}
	return d.selectedAt(subject, g)
}

func (d *denials) selectedAt(place string, g *Grant) bool {
	for i := range d.selectors[place] {
		s := &d.selectors[place][i]
		if s.shard == g.shard && s.number > g.number && (s.scope == "" || g.Has(s.scope)) {
			return true
		}
	}
	return false
}

// drop forgets what can deny no token any more.
func (d *denials) drop(now time.Time) {
	second := now.Unix()
	sweep := second / sweepSeconds
	if sweep <= d.swept/sweepSeconds {
		return
	}
	d.swept = second
	for at, ids := range d.due {
		if at > sweep {
			continue
		}
		for _, id := range ids {
			if d.ids[id] <= second {
				delete(d.ids, id)
			}
		}
		delete(d.due, at)
	}
	for kid, until := range d.keys {
		if until <= second {
			delete(d.keys, kid)
		}
	}
	d.sweepSelectors(second)
}

func (d *denials) sweepSelectors(second int64) {
	d.count = 0
	for place, list := range d.selectors {
		list = slices.DeleteFunc(list, func(s selection) bool { return s.until <= second })
		d.count += len(list)
		d.selectors[place] = list
		if len(list) == 0 {
			delete(d.selectors, place)
		}
	}
}
