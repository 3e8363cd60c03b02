package broker

import (
	"crypto/sha256"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// SourceRegistration is the inventory's record of something outside that sees work end, as whoever watches
// the Jobs of a cluster or the runs of a CI system: who answers for it, and whose tasks it may end by what
// reference. It can do nothing else.
type SourceRegistration struct {
	Name    string
	Owner   string
	Contact string

	// URIs are what it calls itself in what it says: the source of its CloudEvents.
	URIs []string

	// One of these is how it proves itself: its SPIFFE ID, or the SHA-256 of its bearer token.
	ID    spiffeid.ID
	Token [sha256.Size]byte

	// Kinds are the kinds of reference that it may speak of.
	Kinds []string

	// Workloads are those whose tasks it may end: SPIFFE IDs, and ones that end in /* and mean all below.
	Workloads []string
}

// Actor is how audit events name the source.
func (s SourceRegistration) Actor() string { return "source " + s.Name }

// mayEnd reports whether the tasks of a workload are among those that it may end.
func (s SourceRegistration) mayEnd(id spiffeid.ID) bool {
	return slices.ContainsFunc(s.Workloads, func(subject string) bool {
		return Selector{Subject: subject}.MatchesSubject(id.String())
	})
}

// CheckRefKind wants what the kind of a reference can be. Error: ErrInvalid.
func CheckRefKind(kind string) error {
	if kind == "" {
		return invalid("kinds", `has an empty one; name a kind of thing, as "k8s/job"`)
	}
	return checkName("kinds", kind, MaxRefKind)
}
