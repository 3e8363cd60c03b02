// Package wire has what both sides of the network share: the paths, the JSON bodies and the claim
// names. It imports nothing of the project's, holds no behaviour but that of a feed position, and
// is the contract that clients in other languages are written against.
//
// JSON throughout: snake_case, times in RFC 3339 UTC, durations as whole seconds in members that
// end in _seconds or _in, IDs as opaque strings. A request member that is not named here is
// refused, and so are duplicates and other letter case.
package wire
