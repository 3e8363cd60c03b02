package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/errandhq/errand/broker"
	"github.com/errandhq/errand/broker/httpapi"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const (
	// DefaultWithdrawal is how long a trust domain must have been without trust before its tasks end.
	DefaultWithdrawal = 5 * time.Second
	MaxWithdrawal     = time.Hour

	// trustTick is how often the trust domains are looked at; it costs no call of the store.
	trustTick = time.Second

	// lateBegins is how long after a domain has lost its trust a request that came before may still
	// begin a task in its name.
	lateBegins = httpapi.WriteTimeout + 5*time.Second
)

// trustWatch ends the tasks of the trust domains that are not trusted any more. It looks at all active
// tasks when a replica starts, which is how a domain that was taken out of the configuration is
// noticed, and when a domain has lost its trust; and again until none is found that should not be
// there. A store that fails only delays it: the domain's workloads are refused all the while.
type trustWatch struct {
	*Server
	held  map[spiffeid.TrustDomain]time.Time // when each domain was held last
	began time.Time                          // of the first look that found trust
	last  time.Time                          // of the last look
	next  time.Time                          // when to look at the tasks; zero for never
	until time.Time                          // of a loss: until when to look again even if there was nothing

	stuck broker.Fault
}

// watchTrust runs until ctx ends.
func (s *Server) watchTrust(ctx context.Context) error {
	w := &trustWatch{Server: s, held: map[spiffeid.TrustDomain]time.Time{}, stuck: broker.Fault{
		Logger: s.config.Logger, What: "tasks of trust domains that are not trusted any more could not all be found and ended; it is tried again",
		Over: "tasks of trust domains that are not trusted any more are found and ended again",
	}}
	tick := time.NewTicker(min(trustTick, s.config.Withdrawal))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
		w.look(ctx, s.config.Now())
	}
}

// look notices what has lost its trust, and looks at the tasks when it is time.
func (w *trustWatch) look(ctx context.Context, now time.Time) {
	if !w.notice(now) || now.Before(w.next) {
		return
	}
	clean, err := w.withdraw(ctx, now)
	switch {
	case err == nil:
		w.stuck.Ended(w.config.Now())
	case ctx.Err() == nil:
		w.stuck.Met(w.config.Now(), err)
	}
	w.next = w.config.Now().Add(w.config.Withdrawal) // a scan that takes long does not run without a pause
	if clean && now.After(w.until) {
		w.next = time.Time{}
		maps.DeleteFunc(w.held, func(_ spiffeid.TrustDomain, at time.Time) bool { return at.Before(now) })
	}
}

// notice reports whether the tasks are to be looked at, now or later.
func (w *trustWatch) notice(now time.Time) bool {
	domains := w.config.Identity.Held()
	if domains == nil {
		return false // nothing is known yet
	}
	for _, td := range domains {
		w.held[td] = now
	}
	first, lost := w.began.IsZero(), false
	if first {
		w.began = now
	}
	for _, at := range w.held {
		lost = lost || at.Equal(w.last) && at.Before(now)
	}
	w.last = now
	if lost {
		w.until = now.Add(w.config.Withdrawal + lateBegins)
	}
	if (first || lost) && w.next.IsZero() {
		w.next = now.Add(w.config.Withdrawal)
	}
	return !w.next.IsZero()
}

// withdraw ends the tasks of each trust domain that has been without trust for long enough, and
// reports whether there was nothing to do, now or later.
func (w *trustWatch) withdraw(ctx context.Context, now time.Time) (clean bool, err error) {
	domains, err := w.broker.TrustDomains(ctx)
	if err != nil {
		return false, err
	}
	var failed []error
	clean = true
	for _, td := range domains {
		if slices.Contains(w.config.Identity.Held(), td) {
			continue
		}
		clean = false
		since, known := w.held[td]
		if !known {
			since = w.began
		}
		if now.Sub(since) < w.config.Withdrawal {
			continue
		}
		ended, err := w.broker.Withdraw(ctx, td)
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", td, err))
			continue
		}
		w.config.Logger.Warn("a trust domain is not trusted any more, and its tasks have been ended", "trust_domain", td.Name(), "tasks", ended)
	}
	return clean, errors.Join(failed...)
}
