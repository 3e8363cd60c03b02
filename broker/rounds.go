package broker

import (
	"slices"
	"strings"
	"sync"
)

// The IDs of the events of ends say who was to record them: after the prefix comes the process that has made the ID, then
// the round that it was in, and then what is random. So whoever finds an end in the store knows whose log has
// its event, or should have.
const (
	makerChars = 8
	roundChars = 6

	afterDigits = "~" // after all IDs that have the same beginning
)

// rounds knows which ends this process writes whose events are not in its audit log yet. It keeps no list of them:
// a round is what begins between two notes on the Board, and one counts as open while an end of it is under
// way, pending or in the backlog.
type rounds struct {
	maker string // this process

	mu      sync.Mutex     // guards what follows
	current uint32         // the round that it is, from 1 on
	prefix  string         // of its events
	used    bool           // an end has begun in it
	under   map[uint32]int // ends under way, by the round in which they began
	lost    []uint32       // rounds with ends that only the store knows of any more, the lowest and the highest
}

func newRounds() rounds {
	maker := randomText()[:makerChars]
	return rounds{maker: maker, current: 1, prefix: roundPrefix(maker, 1), under: map[uint32]int{}}
}

// enter begins an end, or several, and returns the round. It must leave that when each of them is pending, handed
// over to the backlog, or known not to have happened.
func (r *rounds) enter() (round uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.used = true
	r.under[r.current]++
	return r.current
}

func (r *rounds) leave(round uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.under[round]--; r.under[round] == 0 {
		delete(r.under, round)
	}
}

// event makes the ID of the event of an end that is under way.
func (r *rounds) event() EventID {
	r.mu.Lock()
	prefix := r.prefix
	r.mu.Unlock()
	return EventID(prefix + randomText()[:randomChars-makerChars-roundChars])
}

// lose notes that nothing is left of ends, which may have happened, but what the store has.
func (r *rounds) lose(ids ...EventID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range ids {
		if round, ok := roundOf(r.maker, id); ok {
			r.lost = append(r.lost, round)
		}
	}
	if len(r.lost) > 2 {
		r.lost = []uint32{slices.Min(r.lost), slices.Max(r.lost)}
	}
}

// lostSince returns the lowest round in which ends were lost, or the current one, which it returns too.
func (r *rounds) lostSince() (lowest, current uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	lowest = r.current
	for _, round := range r.lost {
		lowest = min(lowest, round)
	}
	return lowest, r.current
}

// found forgets what was lost, up to a round.
func (r *rounds) found(upTo uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lost) > 0 && slices.Max(r.lost) <= upTo {
		r.lost = nil
	}
}

// turn begins another round if the current one was used, and returns it with the lowest in which an end is under way
// or lost: the current one if there is none.
func (r *rounds) turn() (current, lowest uint32, used bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if used = r.used; used {
		r.current, r.used = r.current+1, false
		r.prefix = roundPrefix(r.maker, r.current)
	}
	lowest = r.current
	for round := range r.under {
		lowest = min(lowest, round)
	}
	for _, round := range r.lost {
		lowest = min(lowest, round)
	}
	return r.current, lowest, used
}

// roundPrefix is what the events of a process in a round begin with.
func roundPrefix(maker string, round uint32) string {
	var digits [roundChars]byte
	for i := range digits {
		digits[len(digits)-1-i] = alphabet[round%32] // in its order, so that IDs are in that of their rounds
		round /= 32
	}
	return eventPrefix + maker + string(digits[:])
}

// roundOf is the round in which a process has made the ID of an end's event, unless that was another process.
func roundOf(maker string, id EventID) (round uint32, ok bool) {
	rest, ok := strings.CutPrefix(string(id), eventPrefix+maker)
	if !ok || len(rest) < roundChars {
		return 0, false
	}
	for i := range roundChars {
		digit := strings.IndexByte(alphabet, rest[i])
		if digit < 0 {
			return 0, false
		}
		round = round*32 + uint32(digit)
	}
	return round, true
}

// eventsFrom are the events of a process from a round on.
func eventsFrom(maker string, from uint32) EventRange {
	return EventRange{From: EventID(roundPrefix(maker, from)), Until: EventID(eventPrefix + maker + afterDigits)}
}

// eventsOf are the events of a process from a round to another, both included.
func eventsOf(maker string, from, to uint32) EventRange {
	return EventRange{From: EventID(roundPrefix(maker, from)), Until: EventID(roundPrefix(maker, to) + afterDigits)}
}
