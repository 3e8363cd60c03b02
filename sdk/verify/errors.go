package verify

import (
	"errors"
	"slices"
)

// sentinel is an error that is a constant, so that nobody can assign to it.
type sentinel string

// Error returns the reason in a few words. It goes to the client, in error_description.
func (s sentinel) Error() string { return string(s) }

// The reasons for a refusal. Verify returns errors that match one of these, with more detail for
// the log. ErrStale and ErrBusy say nothing about the token: the caller may try again.
const (
	ErrMissing   = sentinel("no token")
	ErrMalformed = sentinel("malformed token")
	ErrSignature = sentinel("bad signature or unknown key")
	ErrIssuer    = sentinel("of another issuer")
	ErrExpired   = sentinel("expired")
	ErrAudience  = sentinel("for another audience")
	ErrRevoked   = sentinel("revoked")
	ErrScope     = sentinel("insufficient scope")
	ErrForbidden = sentinel("not allowed here")
	ErrUnbound   = sentinel("not presented by the workload that it was issued to")
	ErrStale     = sentinel("revocation view too old")
	ErrBusy      = sentinel("too many requests are running")
)

var reasons = []sentinel{
	ErrMissing, ErrMalformed, ErrSignature, ErrIssuer, ErrExpired, ErrAudience, ErrRevoked, ErrScope,
	ErrForbidden, ErrUnbound, ErrStale, ErrBusy,
}

// reason is the sentinel that err matches.
func reason(err error) sentinel {
	for _, s := range reasons {
		if errors.Is(err, s) {
			return s
		}
	}
	return ErrMalformed
}

// known reports whether err matches one of this package's errors.
func known(err error) bool {
	return slices.ContainsFunc(reasons, func(s sentinel) bool { return errors.Is(err, s) })
}
