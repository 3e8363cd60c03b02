package httpapi

import (
	"hash/maphash"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// maxOwnRates bounds the buckets that peers have for themselves.
	maxOwnRates = 20_000
	// sharedRates is how many buckets there are for all the others, who share them by chance.
	sharedRates = 1024
	// strangersAtOnce is how many times the rate of one all have together that the inventory does not know.
	// They may come under any number of names.
	strangersAtOnce = 2
	// sweepRates is the least time between two looks for buckets that nobody needs.
	sweepRates = time.Second
)

// rates has a token bucket for each peer: a SPIFFE ID, or an address where nobody has one. Those that the inventory knows have one for themselves; all
// others share a fixed number by the hash of their ID. So nobody can take the room of somebody who is
// known by showing up with many identities, and no bucket is given up that is not full: that would
// give its peer a new burst.
type rates[Peer comparable] struct {
	limit rate.Limit
	burst int
	known func(Peer) bool
	seed  maphash.Seed

	mu        sync.Mutex // guards what follows
	own       map[Peer]*rate.Limiter
	swept     time.Time
	shared    [sharedRates]*rate.Limiter
	strangers *rate.Limiter
}

func newRates[Peer comparable](perSecond, burst int, known func(Peer) bool) *rates[Peer] {
	r := &rates[Peer]{
		limit: rate.Limit(perSecond), burst: burst, known: known, seed: maphash.MakeSeed(), own: map[Peer]*rate.Limiter{},
		strangers: rate.NewLimiter(rate.Limit(perSecond)*strangersAtOnce, burst*strangersAtOnce),
	}
	for i := range r.shared {
		r.shared[i] = r.bucket()
	}
	return r
}

func (r *rates[Peer]) bucket() *rate.Limiter { return rate.NewLimiter(r.limit, r.burst) }

// more is how many requests a request counts as beside itself, if it is like n more: not so many that it
// could never be taken.
func (r *rates[Peer]) more(n int) int { return min(n, r.burst-1) }

// take returns zero for what is like n requests, which is at most the burst, and within the rate; and
// otherwise when as much is.
func (r *rates[Peer]) take(id Peer, now time.Time, n int) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	bucket, stranger := r.of(id, now)
	wait := takeFrom(bucket, now, n)
	if wait == 0 && stranger {
		wait = takeFrom(r.strangers, now, n)
	}
	return wait
}

func takeFrom(bucket *rate.Limiter, now time.Time, n int) time.Duration {
	if bucket.AllowN(now, n) {
		return 0
	}
	missing := float64(n) - bucket.TokensAt(now)
	return max(time.Nanosecond, time.Duration(missing/float64(bucket.Limit())*float64(time.Second)))
}

// of is called with mu held.
func (r *rates[Peer]) of(id Peer, now time.Time) (bucket *rate.Limiter, stranger bool) {
	if bucket := r.own[id]; bucket != nil {
		return bucket, false
	}
	if len(r.own) >= maxOwnRates && now.Sub(r.swept) >= sweepRates {
		r.sweep(now)
	}
	stranger = !r.known(id)
	if stranger || len(r.own) >= maxOwnRates {
		return r.shared[maphash.Comparable(r.seed, id)%sharedRates], stranger
	}
	bucket = r.bucket()
	r.own[id] = bucket
	return bucket, false
}

// sweep forgets the buckets that are full, which are as new ones. It is called with mu held.
func (r *rates[Peer]) sweep(now time.Time) {
	r.swept = now
	for id, bucket := range r.own {
		if bucket.TokensAt(now) >= float64(r.burst) {
			delete(r.own, id)
		}
	}
}
