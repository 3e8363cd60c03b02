package keys

import (
	"slices"
	"time"
)

// schedule is all that there is of a ring's keys at a moment. It is a value: what changes it returns
// another one, and the two share only what neither changes. That makes it the same whether it is in
// this process's memory alone or in a record that replicas share.
type schedule struct {
	revision     uint64 // counts the writes of the shared record
	active, next *key   // nil when there is none
	retiring     []*key // newest first, at most MaxRetiring
	gone         []Key  // newest first, at most MaxGone
}

// same reports whether nothing has happened between two schedules. Everything that happens touches a
// key that is published before or after it.
func (s schedule) same(other schedule) bool {
	return s.active == other.active && s.next == other.next && slices.Equal(s.retiring, other.retiring)
}

func (s schedule) complete() bool { return s.active != nil && s.next != nil }

// published returns the keys that verifiers may know: the active one first, then the next, then the
// retiring ones.
func (s schedule) published() []*key {
	all := append([]*key{s.active, s.next}, s.retiring...)
	return slices.DeleteFunc(all, func(k *key) bool { return k == nil })
}

// find returns the published key of that ID, or nil.
func (s schedule) find(kid string) *key {
	switch {
	case s.active != nil && s.active.id == kid:
		return s.active
	case s.next != nil && s.next.id == kid:
		return s.next
	}
	if i := slices.IndexFunc(s.retiring, func(k *key) bool { return k.id == kid }); i >= 0 {
		return s.retiring[i]
	}
	return nil
}

// advance does what time asks for.
func (s schedule) advance(now time.Time) schedule {
	s = s.expire(now)
	if s.complete() && !now.Before(s.due()) {
		s = s.rotate(now)
	}
	return s
}

// expire buries the keys whose last token is over. It depends on the schedule and the moment alone,
// so replicas that have both agree before any of them has written it.
func (s schedule) expire(now time.Time) schedule {
	over := func(k *key) bool { return !now.Before(k.gone) }
	if !slices.ContainsFunc(s.retiring, over) {
		return s
	}
	for _, k := range slices.Backward(s.retiring) {
		if over(k) {
			s = s.bury(k)
		}
	}
	s.retiring = slices.DeleteFunc(slices.Clone(s.retiring), over)
	return s
}

// due is when the active key is to be replaced by the next.
func (s schedule) due() time.Time {
	due, earliest := s.active.activated.Add(s.active.period), s.earliest()
	if due.Before(earliest) {
		return earliest
	}
	return due
}

// earliest is when the active key may be replaced by the next.
func (s schedule) earliest() time.Time {
	earliest := s.next.from
	if len(s.retiring) < MaxRetiring {
		return earliest
	}
	room := slices.MinFunc(s.retiring, func(a, b *key) int { return a.gone.Compare(b.gone) }).gone
	if earliest.Before(room) {
		return room
	}
	return earliest
}

// add publishes a new key.
func (s schedule) add(k *key) schedule {
	s.next = k
	if s.active == nil {
		s = s.activate(k.created)
	}
	return s
}

// rotate retires the active key in favour of the next.
func (s schedule) rotate(now time.Time) schedule {
	old := s.active.withoutPrivate()
	old.retired, old.gone = now, now.Add(old.tail)
	s.retiring = slices.Insert(slices.Clone(s.retiring), 0, old)
	return s.activate(now)
}

// activate makes the next key the active one.
func (s schedule) activate(now time.Time) schedule {
	k := *s.next
	k.activated = now
	s.active, s.next = &k, nil
	return s
}

// remove takes a published key away; the next one takes the place of the active one, however young
// it is. An ID that is not published changes nothing.
func (s schedule) remove(kid string, now time.Time) schedule {
	found := s.find(kid)
	if found == nil {
		return s
	}
	k := *found
	k.removed, k.gone = true, now
	s = s.bury(&k)
	switch found {
	case s.active:
		s.active = nil
	case s.next:
		s.next = nil
	default:
		s.retiring = slices.DeleteFunc(slices.Clone(s.retiring), func(k *key) bool { return k == found })
	}
	if s.active == nil && s.next != nil {
		s = s.activate(now)
	}
	return s
}

// bury remembers for a while that a key was there.
func (s schedule) bury(k *key) schedule {
	s.gone = slices.Insert(slices.Clone(s.gone), 0, k.describe(Gone))
	s.gone = s.gone[:min(len(s.gone), MaxGone)]
	return s
}

// lengthen has the keys that can still sign stay published for long enough after it, should what
// they sign live longer now than when they were made.
func (s schedule) lengthen(tail time.Duration) schedule {
	for _, at := range []**key{&s.active, &s.next} {
		if *at != nil && (*at).tail < tail {
			k := **at
			k.tail = tail
			*at = &k
		}
	}
	return s
}

// keys is the operators' view.
func (s schedule) keys() []Key {
	var all []Key
	if s.next != nil {
		all = append(all, s.next.describe(Next))
	}
	if s.active != nil {
		all = append(all, s.active.describe(Active))
	}
	for _, k := range s.retiring {
		all = append(all, k.describe(Retiring))
	}
	return slices.Concat(all, s.gone)
}
