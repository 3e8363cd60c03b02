package broker

import (
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// DenialKind says what a denial names.
type DenialKind string

// The kinds of denial.
const (
	DenyGrant    DenialKind = "grant"
	DenyTask     DenialKind = "task" // and everything below it
	DenyKey      DenialKind = "key"  // every token signed with it
	DenyAll      DenialKind = "all"
	DenySelector DenialKind = "selector"
)

// Denial is what the feed carries: something whose tokens are dead. One never becomes untrue.
type Denial struct {
	Kind     DenialKind
	Grant    GrantID  // of DenyGrant
	Task     TaskID   // of DenyTask
	Key      string   // of DenyKey: the kid
	Selector Selector // of DenySelector
}

// Entry is one denial in a shard's numbered feed.
type Entry struct {
	Shard  int
	Number uint64 // rising in the shard; changes of the control list take numbers, too
	Denial Denial

	// Audiences are those that had tokens which it kills; nil means every audience.
	Audiences []string

	// Until is when the last token that it can kill has expired, and Margin on top.
	Until time.Time
}

// For reports whether a verifier of the audience needs the entry.
func (e Entry) For(audience string) bool {
	return e.Audiences == nil || slices.Contains(e.Audiences, audience)
}

// Selector is a conjunction: a token matches when every part that is set matches. The empty
// selector is refused; everything is DenyAll.
type Selector struct {
	// Subject is a SPIFFE ID, or one that ends in "/*" and stands for everything below it.
	Subject  string
	Audience string
	Scope    string
}

// Validate returns ErrInvalid for an empty selector or a malformed subject.
func (s Selector) Validate() error {
	if s == (Selector{}) {
		return invalid("selector", "is empty; name a subject, an audience or a scope, or revoke everything by name")
	}
	if s.Subject == "" {
		return nil
	}
	return checkSubject("selector.subject", s.Subject)
}

// checkSubject wants the SPIFFE ID of a workload, or one that ends in /*. There are no other wildcards. A trust domain
// alone is nobody's.
func checkSubject(field, value string) error {
	above, isPrefix := strings.CutSuffix(value, "/*")
	id, err := spiffeid.FromString(above)
	switch {
	case err != nil:
		return invalid(field, "is not a SPIFFE ID, nor one that ends in /*: %v; write it whole, as spiffe://example.org/report", err)
	case id.Path() == "" && !isPrefix:
		return invalid(field, "is a trust domain, and no workload's; %s/* means all of them", value)
	}
	return nil
}

// Matches reports whether a token of any of the subjects, for the audience, with the scopes, is
// meant.
func (s Selector) Matches(subjects []string, audience string, scopes []string) bool {
	return s.MatchesSubject(subjects...) &&
		(s.Audience == "" || s.Audience == audience) &&
		(s.Scope == "" || slices.Contains(scopes, s.Scope))
}

// MatchesSubject reports whether any of the subjects is meant, leaving audience and scope aside.
func (s Selector) MatchesSubject(subjects ...string) bool {
	prefix, isPrefix := strings.CutSuffix(s.Subject, "*")
	return s.Subject == "" || slices.ContainsFunc(subjects, func(subject string) bool {
		return subject == s.Subject || isPrefix && strings.HasPrefix(subject, prefix)
	})
}

// Position says how far a reader is in the feeds of all shards: the data set's epoch, and one
// number for each shard. The zero value is the beginning.
type Position struct {
	Epoch   uint64
	Numbers []uint64
}

// IsZero reports whether it is the beginning.
func (p Position) IsZero() bool { return p.Epoch == 0 && len(p.Numbers) == 0 }

// covers reports whether whoever is at p has everything that one at q has, or q is of a data set that is no
// more.
func (p Position) covers(q Position) bool {
	if p.Epoch != q.Epoch {
		return p.Epoch > q.Epoch
	}
	for shard, n := range q.Numbers {
		if shard >= len(p.Numbers) || p.Numbers[shard] < n {
			return false
		}
	}
	return true
}

// Of is the position without what it says of other shards than one: how far a reader must be to know of
// something there.
func (p Position) Of(shard int) Position {
	out := Position{Epoch: p.Epoch, Numbers: make([]uint64, len(p.Numbers))}
	if shard < len(p.Numbers) {
		out.Numbers[shard] = p.Numbers[shard]
	}
	return out
}

// Clone returns a copy that shares no memory with p.
func (p Position) Clone() Position {
	p.Numbers = slices.Clone(p.Numbers)
	return p
}

// union is the position that covers both, or the one of the later data set.
func (p Position) union(q Position) Position {
	switch {
	case p.Epoch < q.Epoch || len(p.Numbers) == 0:
		return q.Clone()
	case p.Epoch > q.Epoch || len(p.Numbers) != len(q.Numbers):
		return p
	}
	p = p.Clone()
	for i, n := range q.Numbers {
		p.Numbers[i] = max(p.Numbers[i], n)
	}
	return p
}
