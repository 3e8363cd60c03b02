// Package keys makes, publishes, rotates and forgets the keys that sign tokens. Make a Ring with
// New, keep it going with Run, sign with Signer, and serve what Set returns as the JWK Set
// (RFC 7517 §5). It knows nothing of what is signed.
//
// A key is next, then active, then retiring, then gone. The package promises:
//
//   - Exactly one key is active at every moment, from New on. When it is due and its successor is not
//     there or not published for long enough, it stays active.
//   - A key is published for at least Config.Publish before it signs, so that every verifier that
//     obeys the set's max-age has it by then.
//   - A key that has signed stays published until the last thing it can have signed is over, and
//     Config.Skew longer.
//   - A removed key is neither published nor used from the moment Remove returns.
//
// Two keys are exceptions to the second promise, and sign at once: the very first, since no verifier
// can have cached a set without it, and one that takes the place of a removed key, since anything is
// better than that. A verifier fetches the set again when it meets an unknown kid. If the active key
// is removed at the moment at which its successor is being made, nothing is signed until it is there.
//
// Private keys live in memory only, are never in an error, a log line or the output of fmt, and are
// let go when they may not sign any more.
package keys
