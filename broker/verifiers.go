package broker

import (
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// verifierKey is what an acknowledgement is about. It has the SPIFFE ID that was proved, so that nobody can speak for
// an instance of another one.
type verifierKey struct {
	workload     spiffeid.ID
	audience, id string
}

func (s VerifierState) key() verifierKey { return verifierKey{s.Workload, s.Audience, s.ID} }

// verifiers are those that this replica has heard of, and what it still has to tell the others of them. Its memory
// is bounded by MaxVerifiers.
type verifiers struct {
	mu     sync.Mutex                                // guards what follows; held for memory work only
	of     map[string]map[verifierKey]*VerifierState // by audience
	served map[spiffeid.ID]int                       // how many of one SPIFFE ID
	size   int
	left   map[verifierKey]time.Time // those that have said good-bye within VerifierSilence, of which the Board has a note
	leftOf map[spiffeid.ID]int       // how many of one SPIFFE ID
	news   chan struct{}             // closed and replaced when something has changed and somebody waits

	changed map[verifierKey]boardVerifier // what the Board does not have yet

	waiters map[string]int // how many wait, by for whom
	waiting int
	gone    chan struct{} // closed when the replica goes

	// Readings of the Board have numbers: one that is asked for begins after that. good is the last that has
	// succeeded.
	asked, read, good uint64
	failed            error         // of the last reading
	ask               chan struct{} // has an element when one is asked for
}

func newVerifiers() verifiers {
	return verifiers{
		of: map[string]map[verifierKey]*VerifierState{}, served: map[spiffeid.ID]int{},
		left: map[verifierKey]time.Time{}, leftOf: map[spiffeid.ID]int{}, news: make(chan struct{}),
		changed: map[verifierKey]boardVerifier{}, waiters: map[string]int{}, gone: make(chan struct{}), ask: make(chan struct{}, 1),
	}
}

// heard takes in what a verifier has said to this replica.
func (v *verifiers) heard(s VerifierState) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.of[s.Audience][s.key()] == nil && (v.size >= MaxVerifiers || v.served[s.Workload] >= MaxVerifiersPerServer) {
		v.forget(s.SeenAt)
		switch {
		case v.served[s.Workload] >= MaxVerifiersPerServer:
			return &QuotaExceeded{What: "verifiers", Limit: MaxVerifiersPerServer}
		case v.size >= MaxVerifiers:
			return fmt.Errorf("%w: %d verifiers are remembered", ErrCrowded, v.size)
		}
	}
	v.note(v.learn(s), false)
	return nil
}

// told takes in what another replica has written of a verifier. A clock that is ahead there keeps nobody longer.
func (v *verifiers) told(s VerifierState, closed bool, now time.Time) {
	if s.SeenAt.After(now) {
		s.SeenAt = now
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case closed:
		v.drop(s.key())
	case now.Sub(s.SeenAt) >= VerifierSilence || v.of[s.Audience][s.key()] == nil && v.size >= MaxVerifiers:
	default:
		v.learn(s)
	}
}

// close forgets a verifier that says good-bye, and has the others forget it. Of one SPIFFE ID that is so for
// MaxVerifiersPerServer in VerifierSilence: each takes room on the Board, and must not take that of others. Those
// beyond go as those do that are silent.
func (v *verifiers) close(k verifierKey, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, again := v.left[k]; !again {
		if v.leftOf[k.workload] >= MaxVerifiersPerServer || len(v.left) >= MaxVerifiers {
			return
		}
		v.leftOf[k.workload]++
	}
	v.left[k] = now
	v.drop(k)
	v.note(VerifierState{ID: k.id, Workload: k.workload, Audience: k.audience, SeenAt: now}, true)
}

// learn unites what was known of a verifier with what is said of it: what was in force once stays so, whichever word of it comes last.
// It is called with mu held.
func (v *verifiers) learn(s VerifierState) VerifierState {
	was := v.of[s.Audience][s.key()]
	if was == nil {
		if v.of[s.Audience] == nil {
			v.of[s.Audience] = map[verifierKey]*VerifierState{}
		}
		v.of[s.Audience][s.key()] = &s
		v.served[s.Workload]++
		v.size++
		v.wake()
		return s
	}
	if was.SeenAt.After(s.SeenAt) {
		s.SeenAt, s.MaxStale, s.Version = was.SeenAt, was.MaxStale, was.Version
	}
	if was.Position.covers(s.Position) {
		s.Position = was.Position
	} else {
		v.wake()
	}
	*was = s
	return s
}

// drop is called with mu held.
func (v *verifiers) drop(k verifierKey) {
	if v.of[k.audience][k] == nil {
		return
	}
	if delete(v.of[k.audience], k); len(v.of[k.audience]) == 0 {
		delete(v.of, k.audience)
	}
	if v.served[k.workload]--; v.served[k.workload] == 0 {
		delete(v.served, k.workload)
	}
	v.size--
	v.wake()
}

// forget drops those that have been silent for too long, and those that have left as long ago. It is called with mu held.
func (v *verifiers) forget(now time.Time) {
	for _, of := range v.of {
		for k, s := range of {
			if now.Sub(s.SeenAt) >= VerifierSilence {
				v.drop(k)
			}
		}
	}
	for k, at := range v.left {
		if now.Sub(at) < VerifierSilence {
			continue
		}
		delete(v.left, k)
		if v.leftOf[k.workload]--; v.leftOf[k.workload] == 0 {
			delete(v.leftOf, k.workload)
		}
	}
}

// wake has those who wait look again. It is called with mu held.
func (v *verifiers) wake() {
	if v.waiting > 0 {
		close(v.news)
		v.news = make(chan struct{})
	}
}

// list returns all that are known.
func (v *verifiers) list(now time.Time) []VerifierState {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.forget(now)
	all := make([]VerifierState, 0, v.size)
	for _, of := range v.of {
		for _, s := range of {
			c := *s
			c.Position = c.Position.Clone()
			all = append(all, c)
		}
	}
	return all
}

// count is how many are known.
func (v *verifiers) count() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.size
}

// dismiss ends all waits: the replica goes.
func (v *verifiers) dismiss() {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.gone:
	default:
		close(v.gone)
	}
}
