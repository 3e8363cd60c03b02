package keys_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/errandhq/errand/keys"
)

// cache is a verifier that does what max-age allows and no more: it fetches when its set is too old
// by the slowest clock, and never because of an unknown kid. It looks at the kid alone; since that is
// the key's thumbprint, the signature needs to be checked only once.
type cache struct {
	etag    string
	kids    []string
	fetched time.Time
}

func (c *cache) accepts(t failer, ring *keys.Ring, kid string) bool {
	if now := time.Now(); now.Sub(c.fetched) >= keys.DefaultMaxAge+keys.DefaultSkew {
		if set := ring.Set(); set.ETag != c.etag {
			c.etag, c.kids = set.ETag, published(t, ring)
		}
		c.fetched = now
	}
	return slices.Contains(c.kids, kid)
}

// TestP11_RotationRejectsNothingValid lets five days pass for verifiers that fetch as rarely as they
// may, at different times. Each of them accepts each token at its first moment and at its last.
func TestP11_RotationRejectsNothingValid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const tick = 50 * time.Second // so that signing and fetching fall together in all ways
		ring := newRing(t, keys.Config{Algorithm: keys.Ed25519})
		defer run(t, ring)()
		type signed struct {
			kid   string
			until time.Time
		}
		var alive []signed
		caches := []*cache{{}, {fetched: time.Now().Add(-20 * time.Second)}, {fetched: time.Now().Add(-40 * time.Second)}}
		for _, c := range caches {
			c.kids = published(t, ring)
		}
		used := map[string]bool{}
		for start := time.Now(); time.Since(start) < 5*24*time.Hour; sleep(tick) {
			s := signer(t, ring)
			kid := s.KeyID()
			if token := sign(t, s); !used[kid] && !verifies(t, parse(t, ring.Set()), token) {
				t.Fatalf("after %v the published key does not verify what %s signed", time.Since(start), kid)
			}
			used[kid] = true
			alive = append(alive, signed{kid, time.Now().Add(life)})
			for i, c := range caches {
				if !c.accepts(t, ring, kid) {
					t.Fatalf("after %v verifier %d refuses a token that was just signed with %s", time.Since(start), i, kid)
				}
				if !c.accepts(t, ring, alive[0].kid) {
					t.Fatalf("after %v verifier %d refuses a token that lives until %v", time.Since(start), i, alive[0].until)
				}
			}
			if time.Now().Add(tick).After(alive[0].until) {
				alive = alive[1:]
			}
		}
		if len(used) != 5 {
			t.Errorf("%d keys signed in five days; want 5", len(used))
		}
	})
}

// TestP11_RemovalIsAtOnce: who fetches after a removal accepts nothing of that key, and a verifier
// that only obeys max-age stops after that. That the others stop after S is the feed's work.
func TestP11_RemovalIsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(t, keys.Config{})
		defer run(t, ring)()
		sleep(time.Hour)
		s := signer(t, ring)
		kid, token, old := s.KeyID(), sign(t, s), &cache{}
		if !old.accepts(t, ring, kid) || !verifies(t, parse(t, ring.Set()), token) {
			t.Fatal("a valid token is refused")
		}
		if err := ring.Remove(kid); err != nil {
			t.Fatal(err)
		}
		if verifies(t, parse(t, ring.Set()), token) {
			t.Error("a verifier that fetches now accepts a token of the removed key")
		}
		if !old.accepts(t, ring, signer(t, ring).KeyID()) {
			t.Error("the next key was published an hour ago, and a verifier that knows it refuses what it signs")
		}
		sleep(keys.DefaultMaxAge + keys.DefaultSkew)
		if old.accepts(t, ring, kid) {
			t.Error("a verifier that obeys max-age still accepts a token of the removed key")
		}
	})
}

// TestRingKeepsItsPromises compares a ring with a model of what it promised, through random
// sequences of what can happen to it, with Run and without. The sequence is drawn before the bubble,
// in which rapid's own clock would stand still.
func TestRingKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		running := rapid.Bool().Draw(rt, "running")
		steps := rapid.SliceOfN(rapid.Custom(drawStep), 40, 120).Draw(rt, "steps")
		var broken *breach
		synctest.Test(t, func(*testing.T) {
			defer func() {
				if r := recover(); r != nil {
					broken = r.(*breach)
				}
			}()
			w := newWitness()
			if running {
				defer run(w, w.ring)()
			}
			for _, s := range steps {
				w.take(s)
				w.check()
			}
		})
		if broken != nil {
			rt.Fatalf("%s", broken.text)
		}
	})
}

// step is one thing that happens. What it happens to, if there is a choice, is chosen by which.
type step struct {
	do    string
	time  time.Duration
	which int
}

func drawStep(t *rapid.T) step {
	return step{
		do: rapid.SampledFrom([]string{
			"sleep", "nap", "sleep to an expiry", "sleep to maturity", "sign", "sign", "sign with an old signer", "rotate", "rotate", "remove",
		}).Draw(t, "do"),
		time:  time.Duration(rapid.Int64Range(1, int64(witnessPeriod)).Draw(t, "time")),
		which: rapid.IntRange(0, 99).Draw(t, "which"),
	}
}

// breach is a broken promise, as a panic.
type breach struct{ text string }

const (
	witnessPeriod  = 2 * time.Hour
	witnessPublish = 3 * time.Minute
	glance         = time.Minute // how often the witness looks at the set
)

// witness remembers all that a ring did. Its clock is that of the bubble.
type witness struct {
	ring    *keys.Ring
	seen    map[string]time.Time // when a kid was first in the set
	lost    map[string]bool      // kids that were in the set and are not any more
	removed map[string]bool
	hurried map[string]bool // keys that may sign at once: the first, and whatever replaced a removed one
	signed  []signature
	held    []*keys.Signer
}

type signature struct {
	kid   string
	until time.Time
}

func newWitness() *witness {
	w := &witness{seen: map[string]time.Time{}, lost: map[string]bool{}, removed: map[string]bool{}, hurried: map[string]bool{}}
	w.ring = newRing(w, keys.Config{Algorithm: keys.Ed25519, Period: witnessPeriod, Publish: witnessPublish})
	w.hurried[only(w, w.ring, keys.Active).ID] = true
	w.check()
	return w
}

// Helper and Fatalf make the witness a failer.
func (w *witness) Helper() {}

func (w *witness) Fatalf(format string, args ...any) {
	panic(&breach{fmt.Sprintf(format, args...)})
}

func (w *witness) take(s step) {
	switch s.do {
	case "sleep":
		w.sleep(s.time)
	case "nap":
		w.sleep(s.time / 100)
	case "sleep to an expiry":
		if len(w.signed) > 0 {
			w.sleep(time.Until(w.signed[s.which%len(w.signed)].until))
		}
	case "sleep to maturity":
		if next := inState(w.ring, keys.Next); len(next) == 1 {
			w.sleep(witnessPublish - time.Since(next[0].Created))
		}
	case "sign":
		w.sign()
	case "sign with an old signer":
		if len(w.held) > 0 {
			w.signWith(w.held[s.which%len(w.held)])
		}
	case "rotate":
		w.rotate()
	case "remove":
		kids := published(w, w.ring)
		w.remove(kids[s.which%len(kids)])
	}
}

func (w *witness) check() {
	synctest.Wait()
	set := published(w, w.ring)
	only(w, w.ring, keys.Active)
	if n := len(inState(w.ring, keys.Next)); n > 1 {
		w.Fatalf("%d keys are next", n)
	}
	if n := len(inState(w.ring, keys.Retiring)); n > keys.MaxRetiring {
		w.Fatalf("%d keys are retiring", n)
	}
	for _, k := range w.ring.Keys() {
		if (k.State != keys.Gone) != slices.Contains(set, k.ID) {
			w.Fatalf("key %s is %s, and the set has %v", k.ID, k.State, set)
		}
		if !k.Activated.IsZero() && !w.hurried[k.ID] && k.Activated.Sub(k.Created) < witnessPublish {
			w.Fatalf("key %s signs %v after its publication", k.ID, k.Activated.Sub(k.Created))
		}
	}
	for _, kid := range set {
		if w.lost[kid] || w.removed[kid] {
			w.Fatalf("key %s came back", kid)
		}
		if w.seen[kid].IsZero() {
			w.seen[kid] = time.Now()
		}
	}
	for kid := range w.seen {
		w.lost[kid] = !slices.Contains(set, kid)
	}
	for _, s := range w.signed {
		if left := time.Until(s.until); left >= 0 && !w.removed[s.kid] && w.lost[s.kid] {
			w.Fatalf("key %s is gone; what it has signed lives for another %v", s.kid, left)
		}
	}
}

// sleep looks at the ring all the time.
func (w *witness) sleep(d time.Duration) {
	for end := time.Now().Add(d); time.Until(end) > 0; {
		time.Sleep(min(time.Until(end), glance))
		w.check()
	}
}

func (w *witness) sign() {
	s := signer(w, w.ring)
	kid := s.KeyID()
	if kid != only(w, w.ring, keys.Active).ID {
		w.Fatalf("%s signs, and is not the active key", kid)
	}
	if public := time.Since(w.seen[kid]); !w.hurried[kid] && (w.seen[kid].IsZero() || public < witnessPublish-glance) {
		w.Fatalf("key %s signs, and was seen in the set for %v", kid, public)
	}
	w.held = append(w.held, s)
	w.signWith(s)
}

// signWith uses a signer that was got now or earlier.
func (w *witness) signWith(s *keys.Signer) {
	kid := s.KeyID()
	token, err := s.Sign([]byte("{}"))
	switch {
	case errors.Is(err, keys.ErrNoKey) && kid != only(w, w.ring, keys.Active).ID:
		return
	case err != nil:
		w.Fatalf("key %s does not sign: %v", kid, err)
	case w.removed[kid]:
		w.Fatalf("key %s signs, and was removed", kid)
	case !verifies(w, parse(w, w.ring.Set()), token):
		w.Fatalf("what %s signed cannot be verified", kid)
	}
	w.signed = append(w.signed, signature{kid, time.Now().Add(life)})
}

func (w *witness) rotate() {
	next := inState(w.ring, keys.Next)
	err := w.ring.Rotate()
	active := only(w, w.ring, keys.Active).ID
	rotated := err == nil && len(next) == 1 && next[0].ID == active
	if !rotated && !errors.Is(err, keys.ErrTooEarly) {
		w.Fatalf("Rotate: %v; next was %v and the active key is %s", err, next, active)
	}
}

func (w *witness) remove(kid string) {
	active := only(w, w.ring, keys.Active).ID
	if err := w.ring.Remove(kid); err != nil {
		w.Fatalf("Remove: %v", err)
	}
	w.removed[kid] = true
	if kid == active {
		w.hurried[only(w, w.ring, keys.Active).ID] = true
	}
}
