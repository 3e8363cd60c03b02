package verify

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/errandhq/errand/sdk/wire"
)

const (
	reportInterval = 30 * time.Second
	lastReport     = 2 * time.Second // for all that Close sends

	maxUsageScopes = 64  // counted one by one for each grant; the others are in its totals alone
	usageOverhead  = 512 // bytes of a summary, or of a report, beside the scopes, at most
	scopeOverhead  = 128
)

// usage sums up the checks of each grant until the broker has the sums. Whoever checks a token never
// waits for the network: what finds no room is counted.
type usage struct {
	max   int
	early chan struct{} // asks for a report before its time; of capacity 1

	mu     sync.Mutex // guards all below; held for memory work only
	open   map[string]*wire.GrantUsage
	sealed []sealedReport // not known to have arrived, the oldest first
	held   int            // summaries in open and sealed
	lost   int64          // checks that were not counted, and that no report tells of yet
	ever   uint64         // checks that were not counted
}

// sealedReport is sent until there is an answer, and never changes: the broker knows by its batch
// that it has seen it before.
type sealedReport struct {
	body   []byte
	grants int
	checks int64 // in the summaries, and lost
}

func newUsage(limit int) *usage {
	return &usage{max: limit, early: make(chan struct{}, 1), open: map[string]*wire.GrantUsage{}}
}

// note counts one check.
func (u *usage) note(g *Grant, scopes []string, allowed bool, now time.Time) {
	now = now.UTC()
	u.mu.Lock()
	defer u.mu.Unlock()
	sum := u.open[g.ID]
	if sum == nil {
		if u.held >= u.max {
			u.lost++
			u.ever++
			return
		}
		sum = &wire.GrantUsage{Grant: g.ID, First: now}
		u.open[g.ID] = sum
		if u.held++; u.held > u.max/2 {
			u.hurry()
		}
	}
	if sum.Last = now; now.Before(sum.First) {
		sum.First = now // the clock was set back
	}
	count(&sum.Allowed, &sum.Refused, allowed)
	for _, scope := range scopes {
		// Of several scopes of which one would do, a token uses those that it has.
		if !allowed || g.Has(scope) {
			countScope(sum, scope, allowed)
		}
	}
}

func countScope(sum *wire.GrantUsage, scope string, allowed bool) {
	i := slices.IndexFunc(sum.Scopes, func(s wire.ScopeUsage) bool { return s.Scope == scope })
	if i < 0 {
		if len(sum.Scopes) == maxUsageScopes {
			return
		}
		i = len(sum.Scopes)
		sum.Scopes = append(sum.Scopes, wire.ScopeUsage{Scope: scope})
	}
	count(&sum.Scopes[i].Allowed, &sum.Scopes[i].Refused, allowed)
}

func count(yes, no *int64, allowed bool) {
	if allowed {
		*yes++
	} else {
		*no++
	}
}

func (u *usage) hurry() {
	select {
	case u.early <- struct{}{}:
	default:
	}
}

// unreported is how many checks were not counted.
func (u *usage) unreported() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.ever
}

// seal makes reports of everything that was summed up. Only one caller at a time may send.
func (u *usage) seal() {
	u.mu.Lock()
	open, lost := u.open, u.lost
	u.open, u.lost = map[string]*wire.GrantUsage{}, 0
	u.mu.Unlock()
	reports := sealReports(open, lost) // without the lock: it may be much
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sealed = append(u.sealed, reports...)
}

// sealReports divides summaries into reports that the broker takes.
func sealReports(sums map[string]*wire.GrantUsage, lost int64) []sealedReport {
	var out []sealedReport
	var next wire.UsageReport
	size := usageOverhead
	end := func() {
		if len(next.Grants) > 0 || next.Lost > 0 {
			out = append(out, sealReport(next))
		}
		next, size = wire.UsageReport{}, usageOverhead
	}
	next.Lost = lost
	for _, sum := range sums {
		n := usageOverhead
		for _, s := range sum.Scopes {
			n += len(s.Scope)*len(`\u0026`) + scopeOverhead
		}
		if len(next.Grants) == wire.MaxUsageGrants || size+n > wire.MaxUsageBytes {
			end()
		}
		next.Grants = append(next.Grants, *sum)
		size += n
	}
	end()
	return out
}

func sealReport(r wire.UsageReport) sealedReport {
	r.Batch = rand.Text()
	body, err := json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("verify: a report of plain values must marshal: %v", err))
	}
	report := sealedReport{body: body, grants: len(r.Grants), checks: r.Lost}
	for _, g := range r.Grants {
		report.checks += g.Allowed + g.Refused
	}
	return report
}

// next returns the oldest report that is not known to have arrived.
func (u *usage) next() (sealedReport, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.sealed) == 0 {
		return sealedReport{}, false
	}
	return u.sealed[0], true
}

// done takes the oldest report away: it has arrived, or else it never will.
func (u *usage) done(arrived bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := u.sealed[0]
	u.sealed = slices.Delete(u.sealed, 0, 1)
	u.held -= r.grants
	if !arrived {
		u.lost += r.checks
		u.ever += uint64(r.checks)
	}
}

// report sends what was summed up, on schedule or when half of the room is taken, until ctx ends.
func (v *Verifier) report(ctx context.Context) {
	for {
		timer := time.NewTimer(jitter(reportInterval))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-v.usage.early:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
		if err := v.Flush(ctx); err != nil && ctx.Err() == nil {
			v.failed(err)
			v.config.Logger.Debug("verify: usage was not reported; it is tried again", "audience", v.config.Audience, "error", err)
			// What waits must not make it come again at once.
			sleep(ctx, backoff(maxBackoffs))
		}
	}
}

// Flush sends the summaries of usage now. What does not arrive is kept within the bound of
// Config.MaxUsage, and sent with the next; what the broker refuses for good is counted in
// Status.Unreported. It does nothing with NoUsage.
func (v *Verifier) Flush(ctx context.Context) error {
	if v.usage == nil {
		return nil
	}
	select {
	case v.reports <- struct{}{}:
		defer func() { <-v.reports }()
	case <-ctx.Done():
		return fmt.Errorf("verify: usage was not reported: %w", context.Cause(ctx))
	}
	v.usage.seal()
	var refused error
	for {
		report, ok := v.usage.next()
		if !ok {
			return refused
		}
		err := v.issuer.sendUsage(ctx, v.at.Load(), report.body)
		var answer *statusError
		final := errors.As(err, &answer) && slices.Contains([]int{http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity}, answer.status)
		if err != nil {
			err = fmt.Errorf("verify: the usage of %d grants was not reported: %w", report.grants, err)
		}
		switch {
		case err == nil:
			v.usage.done(true)
		case final:
			v.usage.done(false)
			v.config.Logger.Error("verify: the broker refused a report of usage, which is lost", "audience", v.config.Audience, "error", err)
			refused = errors.Join(refused, err)
		default:
			return errors.Join(refused, err)
		}
	}
}
