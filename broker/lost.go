package broker

import (
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxLostEnds bounds the ends of tasks that the store does not have: of one workload, at one replica,
// in lostPeriod. For so long each is kept by the store and by every verifier, and no quota bounds them:
// a store cannot tell what it has lost from what it has forgotten, as it does with every task that has
// ended. One more is ErrNotFound, and its tokens die by their expiry.
const MaxLostEnds = 1000

const lostPeriod = MaxTokenLife + Margin

// lostEnds counts them. Those at the same time may be some more.
type lostEnds struct {
	mu      sync.Mutex          // guards what follows
	since   time.Time           // the counts begin anew after lostPeriod
	callers map[spiffeid.ID]int // those that have had such an end since then
}

func newLostEnds() lostEnds { return lostEnds{callers: map[spiffeid.ID]int{}} }

// within is the ending as the store may be asked for it.
func (l *lostEnds) within(e Ending, now time.Time) Ending {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.since) >= lostPeriod {
		l.since = now
		clear(l.callers)
	}
	if l.callers[e.Workload] >= MaxLostEnds {
		e.Lost = time.Time{}
	}
	return e
}

// count takes note of the store's answers.
func (l *lostEnds) count(ends []Ending, replies []EndReply) {
	for i, r := range replies {
		// What was lost does not say when it began.
		if ends[i].Lost.IsZero() || r.Err != nil || r.Receipt.Event != ends[i].Event || !r.Task.Begun.IsZero() {
			continue
		}
		l.mu.Lock()
		l.callers[ends[i].Workload]++
		l.mu.Unlock()
	}
}
