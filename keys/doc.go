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
// # Replicas
//
// Replicas with the same Config.Shared have one schedule. It is a Record in their store, sealed as a
// whole under a key from a file (LoadSeal), and replaced by compare-and-swap: whoever finds that
// something is due does it, and who comes second reads what the first has done. There is no leader.
// The store's clock decides; each replica knows how far it was at its last reading, at most
// ReadInterval ago. Then the promises hold across replicas, as follows:
//
//   - The key that the record calls active is the one that signs, on each replica from its next
//     reading on. It stays while the record cannot be written.
//   - Publish counts from when every replica has read of the key, for which SettleTime is allowed. A
//     retired key stays published for as much longer.
//   - A replica that has not read the record for StaleTime signs nothing (ErrNoKey), and publishes
//     what it has.
//   - A removed key is out of use at once where Remove was called, even when that could not be
//     written yet (ErrRecord; Run goes on trying), where Deny is called, as for an entry of the feed,
//     and elsewhere from the next reading on, or after StaleTime when there is none. It does not come
//     back, even if the store loses its last writes: each replica remembers the last MaxRemoved.
//   - Replicas put back a record that the store has lost. If none was running, the first to start
//     makes new keys.
//   - A record that does not open is never overwritten: New refuses with ErrSealed, and running
//     replicas become stale.
//
// Who can write to the store can bring back an older record before a replica starts, or destroy the
// record; they cannot read a key, change one, or make the replicas use another.
//
// Private keys live in memory and, sealed, in the record only, are never in an error, a log line or
// the output of fmt, and are let go when they may not sign any more.
package keys
