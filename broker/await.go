package broker

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Bounds of those who wait for verifiers.
const (
	MaxWait             = 30 * time.Second
	MaxWaiters          = 512 // at once, on a replica
	MaxWaitersPerCaller = 128 // of these, of one SPIFFE ID: it must not take the others' places

	MaxPendingVerifiers = 100 // that a Propagation names

	// waitPace is the least time between two looks of one who waits, so that many who wait cost little.
	waitPace = 10 * time.Millisecond

	// refusalSlack is what P2 allows beside a verifier's MaxStale.
	refusalSlack = time.Second
)

// Propagation says which of the verifiers that are known now have a position.
type Propagation struct {
	Confirmed int
	Pending   []PendingVerifier // the last to refuse first
	Others    int               // pending, beyond MaxPendingVerifiers
}

// PendingVerifier is one that has not said that it has the position.
type PendingVerifier struct {
	ID        string
	Workload  spiffeid.ID
	Audience  string
	RefusesAt time.Time // from then on it refuses by itself what it has not heard of
}

// Await waits until all verifiers of these audiences, of all audiences for nil, have confirmed the position, but for those that by then
// refuse by themselves; or until wait, at most MaxWait, has passed, or the replica goes. It then says who has.
//
// It is about the verifiers that are known at that moment: those that any replica was told of within VerifierSilence.
// One that begins in between counts like all others, since what it starts from may be older than the position; it
// confirms as soon as it is not. One that another replica was told of first may take boardInterval to be known. What
// is not known confirms nothing, and refuses as every verifier does (P2): a verifier that does not have the position
// cannot prove that it is fresh as of later than the position's entry, so that its MaxStale counts from this call at
// the latest, whenever it was heard last.
//
// The caller is who waits, and has MaxWaitersPerCaller places at most; "" is nobody, who has all that are left.
//
// Errors: ErrInvalid; ctx's; ErrCrowded when too many wait already; those of the Board when nobody can say which
// verifiers the other replicas know.
func (b *Broker) Await(ctx context.Context, caller string, p Position, audiences []string, wait time.Duration) (Propagation, error) {
	if err := checkWait(wait); err != nil {
		return Propagation{}, err
	}
	w, err := b.verifiers.join(caller)
	if err != nil {
		return Propagation{}, err
	}
	defer b.verifiers.leave(caller)
	w.position, w.audiences, w.began = p, audiences, time.Now()
	asked := b.Now()
	over := time.NewTimer(wait)
	defer over.Stop()
	for waiting := true; waiting; {
		news, next, done := b.verifiers.look(w)
		if done {
			break
		}
		// The bound of one that is pending passes without a word.
		bound := time.NewTimer(next)
		select {
		case <-ctx.Done():
			bound.Stop()
			return Propagation{}, ctx.Err()
		case <-over.C:
			waiting = false
		case <-b.verifiers.gone:
			waiting = false
		case <-bound.C:
		case <-news:
			waiting = rest(ctx, over.C, waitPace)
		}
		bound.Stop()
	}
	return b.verifiers.propagation(w, asked, b.Now())
}

func checkWait(wait time.Duration) error {
	if wait < 0 || wait > MaxWait {
		return invalid("wait_seconds", "is %d; it must be 0 to %d", wait/time.Second, MaxWait/time.Second)
	}
	return nil
}

// rest pauses, and returns false if over comes first.
func rest(ctx context.Context, over <-chan time.Time, d time.Duration) bool {
	pause := time.NewTimer(d)
	defer pause.Stop()
	select {
	case <-over:
		return false
	case <-ctx.Done():
	case <-pause.C:
	}
	return true
}

// waiter is one who waits for verifiers.
type waiter struct {
	position  Position
	audiences []string // nil for all
	began     time.Time
	reading   uint64      // of the Board, without which nobody knows whom to wait for
	last      verifierKey // whom it waits for: as long as it does, there is no need to look at the others
}

// pending reports whether a verifier has not confirmed, and for how long yet it may accept what it does not know.
func (w *waiter) pending(s *VerifierState) (bool, time.Duration) {
	return !s.Position.covers(w.position), s.bound() - time.Since(w.began)
}

// bound is how long after a position was written the verifier may accept what that denies, if it does not hear of it.
func (s VerifierState) bound() time.Duration {
	if s.MaxStale == 0 {
		return MaxTokenLife + Margin // it accepts until the token expires, by its own clock
	}
	return s.MaxStale + refusalSlack
}

func (v *verifiers) join(caller string) (*waiter, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.waiting >= MaxWaiters || v.waiters[caller] >= MaxWaitersPerCaller && caller != "" {
		return nil, &wrapped{ErrCrowded, "too many wait for verifiers already"}
	}
	v.waiting++
	v.waiters[caller]++
	return &waiter{reading: v.want()}, nil
}

func (v *verifiers) leave(caller string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting--
	if v.waiters[caller]--; v.waiters[caller] == 0 {
		delete(v.waiters, caller)
	}
}

// look reports whether there is nobody left to wait for. If there is, it returns what is closed when that may have
// changed, and when it changes by itself.
func (v *verifiers) look(w *waiter) (news <-chan struct{}, next time.Duration, done bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.good < w.reading {
		return v.news, MaxWait, false
	}
	if s := v.of[w.last.audience][w.last]; s != nil {
		if pending, left := w.pending(s); pending && left > 0 {
			return v.news, left, false
		}
	}
	for k, s := range v.meant(w.audiences) {
		if pending, left := w.pending(s); pending && left > 0 {
			w.last = k
			return v.news, left, false
		}
	}
	return nil, 0, true
}

// meant yields the verifiers of some audiences, of all for nil. It is called with mu held.
func (v *verifiers) meant(audiences []string) func(func(verifierKey, *VerifierState) bool) {
	return func(yield func(verifierKey, *VerifierState) bool) {
		for audience, of := range v.of {
			if audiences != nil && !slices.Contains(audiences, audience) {
				continue
			}
			for k, s := range of {
				if !yield(k, s) {
					return
				}
			}
		}
	}
}

// propagation is who has the position now.
func (v *verifiers) propagation(w *waiter, asked, now time.Time) (Propagation, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.good < w.reading {
		return Propagation{}, cmp.Or(v.failed, error(&wrapped{ErrUnavailable, "other replicas' verifiers are not known yet"}))
	}
	v.forget(now)
	var out Propagation
	for _, s := range v.meant(w.audiences) {
		if pending, _ := w.pending(s); !pending {
			out.Confirmed++
			continue
		}
		out.Pending = append(out.Pending, PendingVerifier{s.ID, s.Workload, s.Audience, asked.Add(s.bound())})
	}
	slices.SortFunc(out.Pending, func(x, y PendingVerifier) int {
		return cmp.Or(y.RefusesAt.Compare(x.RefusesAt), cmp.Compare(x.Audience, y.Audience),
			cmp.Compare(x.Workload.String(), y.Workload.String()), cmp.Compare(x.ID, y.ID))
	})
	if out.Others = len(out.Pending) - MaxPendingVerifiers; out.Others > 0 {
		out.Pending = out.Pending[:MaxPendingVerifiers]
	} else {
		out.Others = 0
	}
	return out, nil
}
