package broker

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Limits of one report of usage. One more is refused with ErrInvalid.
const (
	MaxUsageGrants = 1000
	MaxBatch       = 64 // bytes of its name

	maxChecks = 1 << 53 // of one kind in one report: what every JSON reader can count to
)

// UsageReport is what a verifier has done with the tokens of its audience since its last report.
type UsageReport struct {
	Audience string
	Batch    string // names the report: one that is sent again has the same name and contents
	Grants   []GrantUsage
	Lost     int64 // checks that are in no report, since the verifier had no room
}

// GrantUsage is a summary of the checks of one grant's token.
type GrantUsage struct {
	Grant            GrantID
	First, Last      time.Time // by the verifier's clock
	Allowed, Refused int64
	Scopes           []ScopeUsage // those that the checks asked for
}

// ScopeUsage counts the checks that asked for a scope.
type ScopeUsage struct {
	Scope            string
	Allowed, Refused int64
}

// RecordUsage records what a server of the audience reports, one event for each grant. The caller has
// made sure that it is one of the audience's servers; the store is not asked whether a grant is the
// audience's, so that the event names who says so. When it returns nil, everything is durable. A report
// that comes again, to this replica or another, gets the same events with the same IDs. Errors:
// ErrInvalid, and then nothing is recorded; ErrAudit: send it again.
func (b *Broker) RecordUsage(ctx context.Context, w Workload, r UsageReport) error {
	if err := r.validate(b.Now()); err != nil {
		return err
	}
	events := make([]Event, 0, len(r.Grants)+1)
	for i := range r.Grants {
		e := r.event(EventGrantUsed, w, string(r.Grants[i].Grant), b.Now())
		e.Grant, e.Usage = r.Grants[i].Grant, &r.Grants[i]
		events = append(events, e)
	}
	if r.Lost > 0 {
		e := r.event(EventUsageLost, w, "", b.Now())
		e.Lost = r.Lost
		events = append(events, e)
	}
	ctx, cancel := context.WithTimeout(ctx, recordWait)
	defer cancel()
	for some := range slices.Chunk(events, maxRecord) {
		if err := b.recordNow(ctx, some...); err != nil {
			return &wrapped{ErrAudit, "the report was not recorded; send it again"}
		}
	}
	return nil
}

// event is one of the report's, whose ID is that of every repetition.
func (r UsageReport) event(kind EventKind, w Workload, of string, now time.Time) Event {
	sum := sha256.Sum256([]byte(strings.Join([]string{string(kind), w.ID.String(), r.Audience, r.Batch, of}, "\n")))
	id := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:randomChars]
	return Event{
		ID: EventID(eventPrefix + id), Kind: kind, Time: now, Audience: r.Audience,
		Actor: w.ID.String(), Address: w.Address, Thumbprint: w.Thumbprint,
	}
}

func (r UsageReport) validate(now time.Time) error {
	switch {
	case r.Batch == "" || len(r.Batch) > MaxBatch || strings.ContainsFunc(r.Batch, notBatchRune):
		return invalid("batch", "must be 1 to %d letters, digits, - and _, fresh and random for every report", MaxBatch)
	case len(r.Grants) > MaxUsageGrants:
		return invalid("grants", "has %d entries; at most %d are allowed", len(r.Grants), MaxUsageGrants)
	case r.Lost < 0 || r.Lost > maxChecks:
		return invalid("lost", "is %d; it must be 0 to 2^53", r.Lost)
	case len(r.Grants) == 0 && r.Lost == 0:
		return invalid("grants", "is empty, and so is lost: there is nothing to report")
	}
	seen := make(map[GrantID]bool, len(r.Grants))
	for i, g := range r.Grants {
		field := fmt.Sprintf("grants[%d]", i)
		if _, err := ParseGrantID(string(g.Grant)); err != nil {
			return invalid(field+".grant_id", "is not the ID of a grant")
		}
		if seen[g.Grant] {
			return invalid(field+".grant_id", "is there already; sum up what belongs to one grant")
		}
		seen[g.Grant] = true
		if err := g.validate(field, now); err != nil {
			return err
		}
	}
	return nil
}

func (g GrantUsage) validate(field string, now time.Time) error {
	switch {
	case g.First.IsZero() || g.Last.Before(g.First):
		return invalid(field+".last_used_at", "is before first_used_at, or one of them is missing")
	case g.Last.After(now.Add(MaxSkew)):
		return invalid(field+".last_used_at", "is in the future; set the clocks right")
	}
	if err := checkCounts(field, g.Allowed, g.Refused); err != nil {
		return err
	}
	names := make([]string, len(g.Scopes))
	for i, s := range g.Scopes {
		names[i] = s.Scope
		if err := checkCounts(fmt.Sprintf("%s.scopes[%d]", field, i), s.Allowed, s.Refused); err != nil {
			return err
		}
	}
	if _, err := ParseScopes(names); err != nil {
		return invalid(field+".scopes", "has a name that is not a scope, one twice, or more than %d", MaxScopes)
	}
	return nil
}

func checkCounts(field string, allowed, refused int64) error {
	if allowed < 0 || refused < 0 || allowed > maxChecks || refused > maxChecks || allowed+refused == 0 {
		return invalid(field+".allowed", "and refused must be 0 to 2^53 each, and not both 0")
	}
	return nil
}

func notBatchRune(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
}
