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

// The promises between replicas are tested on a short schedule.
const (
	sharedPeriod  = 3 * time.Minute
	sharedPublish = 20 * time.Second
	sharedLife    = 30 * time.Second
	sharedSkew    = 5 * time.Second
	sharedGlance  = time.Second // how often they are looked at
	members       = 3
)

// TestReplicasKeepTheirPromises takes several rings on one record through random sequences of what can
// happen to them, and compares what they do with what was promised.
func TestReplicasKeepTheirPromises(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(drawSharedStep), 10, 40).Draw(rt, "steps")
		offsets := rapid.SliceOfN(rapid.Int64Range(-int64(sharedSkew), int64(sharedSkew)), members+1, members+1).Draw(rt, "offsets")
		var broken *breach
		synctest.Test(t, func(*testing.T) {
			defer func() {
				if r := recover(); r != nil {
					broken = r.(*breach)
				}
			}()
			w := newCrowd(offsets)
			defer w.stop()
			for _, s := range steps {
				w.take(s)
				w.check()
			}
			w.converge()
		})
		if broken != nil {
			rt.Fatalf("%s", broken.text)
		}
	})
}

func drawSharedStep(t *rapid.T) step {
	return step{
		do: rapid.SampledFrom([]string{
			"sleep", "sleep", "nap", "nap", "sign", "sign", "sign", "rotate", "rotate", "remove", "deny", "race",
			"cannot read", "cannot write", "lose an answer", "heal", "heal", "restart", "lose a write", "lose everything", "converge",
		}).Draw(t, "do"),
		time:  time.Duration(rapid.Int64Range(1, int64(100*time.Second)).Draw(t, "time")),
		which: rapid.IntRange(0, 99).Draw(t, "which"),
	}
}

// crowd remembers what all the rings did. It is a failer.
type crowd struct {
	stored     *record
	members    []*member
	removed    map[string]bool      // by anybody
	recorded   map[string]time.Time // when a removal was surely written
	lastActive map[string]time.Time // when a key was last active anywhere
	hurried    map[string]bool      // keys that took the place of a removed one, and the first
	signed     []signedByMember
}

// member is one replica.
type member struct {
	line   *line
	config keys.Config
	ring   *keys.Ring
	end    func()
	etag   string
	seen   map[string]time.Time // since when it publishes a key
	live   time.Time            // since when it knows its keys to be good; zero when it does not
	denied map[string]bool
}

type signedByMember struct {
	kid       string
	at, until time.Time
}

func (w *crowd) Helper() {}

func (w *crowd) Fatalf(format string, args ...any) { panic(&breach{fmt.Sprintf(format, args...)}) }

func newCrowd(offsets []int64) *crowd {
	w := &crowd{
		stored: &record{offset: time.Duration(offsets[members])}, removed: map[string]bool{}, recorded: map[string]time.Time{},
		lastActive: map[string]time.Time{}, hurried: map[string]bool{},
	}
	for i := range members {
		m := &member{line: &line{record: w.stored}}
		m.config = sharing(w, m.line)
		m.config.Period, m.config.Publish, m.config.MaxAge, m.config.Skew = sharedPeriod, sharedPublish, sharedSkew, sharedSkew
		m.config.Life = sharedLife
		m.config.Now = func() time.Time { return time.Now().Add(time.Duration(offsets[i])) }
		w.members = append(w.members, m)
		w.start(m)
	}
	w.hurried[only(w, w.members[0].ring, keys.Active).ID] = true
	w.check()
	return w
}

func (w *crowd) start(m *member) {
	m.ring = newRing(w, m.config)
	m.end = run(w, m.ring)
	m.etag, m.seen, m.live, m.denied = "", map[string]time.Time{}, time.Time{}, map[string]bool{}
}

func (w *crowd) stop() {
	for _, m := range w.members {
		m.end()
	}
}

func (w *crowd) take(s step) {
	m := w.members[s.which%members]
	other := w.members[(s.which+1)%members]
	switch s.do {
	case "sleep":
		w.sleep(s.time)
	case "nap":
		w.sleep(s.time / 20)
	case "sign":
		w.sign(m)
	case "rotate":
		w.rotate(m)
	case "remove":
		w.remove(m, s.which)
	case "deny":
		w.deny(m, s.which)
	case "race":
		m.line.set(func(l *line) { l.between = func() { w.rotate(other); w.remove(other, s.which) } })
		w.rotate(m)
		m.line.set(func(l *line) { l.between = nil })
	case "cannot read":
		m.line.set(func(l *line) { l.unread = true })
	case "cannot write":
		m.line.set(func(l *line) { l.unwrite = true })
	case "lose an answer":
		m.line.set(func(l *line) { l.lostWord = true })
	case "heal":
		m.line.set(func(l *line) { l.unread, l.unwrite = false, false })
	case "restart":
		if !m.line.unread && !m.line.unwrite {
			m.end()
			w.start(m)
		}
	case "lose a write", "lose everything":
		// What replicas know they put back; that takes one that does, and a moment.
		w.converge()
		if s.do == "lose a write" {
			w.stored.cut()
		} else {
			w.stored.lose()
		}
		w.converge()
	case "converge":
		w.converge()
	}
}

func (w *crowd) sleep(d time.Duration) {
	for end := time.Now().Add(d); time.Until(end) > 0; {
		time.Sleep(min(time.Until(end), sharedGlance))
		w.check()
	}
}

// converge lets every replica reach the record again, and wants them all to say the same.
func (w *crowd) converge() {
	for _, m := range w.members {
		m.line.set(func(l *line) { l.unread, l.unwrite, l.lostWord = false, false, false })
	}
	w.sleep(4 * keys.ReadInterval)
	var rings []*keys.Ring
	for _, m := range w.members {
		rings = append(rings, m.ring)
	}
	agree(w, rings)
	only(w, rings[0], keys.Active)
	only(w, rings[0], keys.Next)
}

// check looks at every replica.
func (w *crowd) check() {
	synctest.Wait()
	for _, m := range w.members {
		w.look(m)
	}
	for i, m := range w.members {
		if m.live.IsZero() {
			continue
		}
		for kid := range m.seen {
			if at, ok := w.recorded[kid]; m.denied[kid] || ok && time.Since(at) > keys.StaleTime {
				w.Fatalf("replica %d publishes %s, which was removed", i, kid)
			}
		}
		for _, s := range w.signed {
			arriving := w.hurried[s.kid] && time.Since(s.at) <= keys.StaleTime
			if m.seen[s.kid].IsZero() && !w.removed[s.kid] && time.Now().Before(s.until) && !arriving {
				w.Fatalf("replica %d does not publish %s; what that signed is good for another %v", i, s.kid, time.Until(s.until))
			}
		}
	}
	w.signed = slices.DeleteFunc(w.signed, func(s signedByMember) bool { return !time.Now().Before(s.until) })
}

// look brings what is known of a replica up to date.
func (w *crowd) look(m *member) {
	now := time.Now()
	_, err := m.ring.Signer()
	switch stale := errors.Is(err, errDown); {
	case stale:
		m.live = time.Time{}
	case m.live.IsZero():
		m.live = now
	}
	if err == nil != (len(inState(m.ring, keys.Active)) == 1) && !m.live.IsZero() {
		w.Fatalf("Signer returns %v with these keys: %+v", err, m.ring.Keys())
	}
	if len(inState(m.ring, keys.Active)) == 0 && len(inState(m.ring, keys.Next)) > 0 {
		w.Fatalf("there is a next key and no active one: %+v", m.ring.Keys())
	}
	for _, k := range m.ring.Keys() {
		if k.State != keys.Active {
			continue
		}
		if w.lastActive[k.ID].IsZero() {
			for gone, at := range w.lastActive {
				if w.removed[gone] && now.Sub(at) <= keys.StaleTime {
					w.hurried[k.ID] = true
				}
			}
		}
		w.lastActive[k.ID] = now
	}
	if set := m.ring.Set(); set.ETag != m.etag {
		seen := map[string]time.Time{}
		for _, kid := range published(w, m.ring) {
			if seen[kid] = m.seen[kid]; seen[kid].IsZero() {
				seen[kid] = now
			}
		}
		m.etag, m.seen = set.ETag, seen
	}
}

func (w *crowd) sign(m *member) {
	s, err := m.ring.Signer()
	if err != nil {
		if !errors.Is(err, keys.ErrNoKey) {
			w.Fatalf("Signer: %v", err)
		}
		return
	}
	kid := s.KeyID()
	if !verifies(w, parse(w, m.ring.Set()), sign(w, s)) {
		w.Fatalf("what %s signs cannot be verified", kid)
	}
	for i, other := range w.members {
		if other.live.IsZero() || w.hurried[kid] || other.denied[kid] || w.removed[kid] {
			continue
		}
		since := other.seen[kid]
		if since.IsZero() || time.Since(since) < sharedPublish-sharedGlance && since.After(other.live) {
			w.Fatalf("%s signs, and replica %d publishes it since %v ago, being there for %v", kid, i, time.Since(since), time.Since(other.live))
		}
	}
	w.signed = append(w.signed, signedByMember{kid, time.Now(), time.Now().Add(sharedLife + sharedSkew)})
}

func (w *crowd) rotate(m *member) {
	if err := m.ring.Rotate(); err != nil && !errors.Is(err, keys.ErrTooEarly) && !errors.Is(err, keys.ErrRecord) {
		w.Fatalf("Rotate: %v", err)
	}
}

func (w *crowd) remove(m *member, which int) {
	kids := published(w, m.ring)
	if len(kids) == 0 {
		return
	}
	kid := kids[which%len(kids)]
	w.look(m) // it may have become active a moment ago
	err := m.ring.Remove(kid)
	if err != nil && !errors.Is(err, keys.ErrRecord) {
		w.Fatalf("Remove: %v", err)
	}
	w.removed[kid], m.denied[kid] = true, true
	if err == nil {
		w.recorded[kid] = time.Now()
	}
	if slices.Contains(published(w, m.ring), kid) {
		w.Fatalf("%s is published after Remove returned %v", kid, err)
	}
}

// deny tells some of the replicas of a key that one publishes.
func (w *crowd) deny(m *member, which int) {
	kids := published(w, m.ring)
	if len(kids) == 0 {
		return
	}
	kid := kids[which%len(kids)]
	w.look(m)
	w.removed[kid] = true
	for i, m := range w.members {
		if which>>i&1 == 0 {
			m.ring.Deny(kid)
			m.denied[kid] = true
		}
	}
}
