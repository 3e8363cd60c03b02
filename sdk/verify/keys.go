package verify

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

const (
	maxKeyAge      = 10 * time.Minute // a key set older than this is not used
	minKeyInterval = 10 * time.Second // between scheduled fetches, whatever max-age says
	maxKeyInterval = time.Minute
	forceInterval  = 5 * time.Second // between fetches that unknown kids cause
	maxMisses      = 128             // kids that are known to be unknown
	maxForceWait   = 2 * time.Second // of one Verify for one such fetch

	maxKeys    = 100
	maxKeyBody = 1 << 20

	minRSABits = 2048
	maxRSABits = 8192
	ed25519Alg = "Ed25519" // RFC 9864's name for what RFC 8037 calls EdDSA on this curve
)

// key is one public key of the issuer. Its algorithm is a property of the key; a token's header can
// only agree with it (RFC 8725 §3.1).
type key struct {
	algorithm jose.SignatureAlgorithm
	public    any // *ecdsa.PublicKey, *rsa.PublicKey, ed25519.PublicKey or fullySpecified
}

func isAlgorithm(alg jose.SignatureAlgorithm) bool {
	return alg == jose.ES256 || alg == jose.RS256 || alg == jose.EdDSA || alg == ed25519Alg
}

// verify returns the payload of a token that the key signed.
func (k *key) verify(token, algorithm string) ([]byte, error) {
	if algorithm != string(k.algorithm) {
		return nil, fmt.Errorf("%w: alg is not that of the key", ErrSignature)
	}
	jws, err := jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{k.algorithm})
	if err != nil {
		return nil, malformed("it is not a compact JWS")
	}
	payload, err := jws.Verify(k.public)
	if err != nil {
		return nil, ErrSignature
	}
	return payload, nil
}

// fullySpecified is an Ed25519 key under the algorithm name of RFC 9864, which go-jose does not
// know. It implements jose.OpaqueVerifier.
type fullySpecified struct{ public ed25519.PublicKey }

func (f fullySpecified) VerifyPayload(payload, signature []byte, alg jose.SignatureAlgorithm) error {
	if alg != ed25519Alg || !ed25519.Verify(f.public, payload, signature) {
		return jose.ErrCryptoFailure
	}
	return nil
}

// jwk has those members of a key that decide whether it is looked at (RFC 7517 §4, RFC 7518 §6).
type jwk struct {
	Type      string   `json:"kty"`
	KeyID     string   `json:"kid"`
	Algorithm string   `json:"alg"`
	Use       string   `json:"use"`
	Ops       []string `json:"key_ops"`

	K    json.RawMessage `json:"k"`
	D    json.RawMessage `json:"d"`
	P    json.RawMessage `json:"p"`
	Q    json.RawMessage `json:"q"`
	DP   json.RawMessage `json:"dp"`
	DQ   json.RawMessage `json:"dq"`
	QI   json.RawMessage `json:"qi"`
	Oth  json.RawMessage `json:"oth"`
	Priv json.RawMessage `json:"priv"`
}

func (j jwk) secret() bool {
	return j.Type == "oct" || slices.ContainsFunc([]json.RawMessage{j.K, j.D, j.P, j.Q, j.DP, j.DQ, j.QI, j.Oth, j.Priv},
		func(m json.RawMessage) bool { return m != nil })
}

// meant reports whether the key is for what this package does. Others of the set are not looked at
// (RFC 7517 §5).
func (j jwk) meant() bool {
	return isKeyID(j.KeyID) && isAlgorithm(jose.SignatureAlgorithm(j.Algorithm)) &&
		(j.Use == "" || j.Use == "sig") && (j.Ops == nil || slices.Contains(j.Ops, "verify"))
}

// stolenError says that the issuer itself has published secrets.
type stolenError struct {
	index int      // of the first
	kids  []string // of all; "", or not the name of a key of this package's, if one is of no use here anyway
}

func (e *stolenError) Error() string {
	return fmt.Sprintf("key %d of the set, %q, is a secret one: it must be considered stolen", e.index, strings.Join(e.kids, " "))
}

// stolen looks for secrets among the keys of a set, also where others of its keys make no sense: who
// publishes one secret by mistake is likely to publish all of them.
func stolen(keys []json.RawMessage) *stolenError {
	var found *stolenError
	for i, raw := range keys {
		var j jwk
		if json.Unmarshal(raw, &j) != nil || !j.secret() {
			continue
		}
		if found == nil {
			found = &stolenError{index: i}
		}
		found.kids = append(found.kids, j.KeyID)
	}
	return found
}

// parseKeys reads a JWK Set (RFC 7517 §5). A set that shows a secret, names a key twice or has a
// broken one is refused whole. An empty one is a set: nothing that was signed is good any more.
func parseKeys(body []byte) (map[string]*key, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(body, &set); err != nil || set.Keys == nil {
		return nil, errors.New("the key set is not a JWK Set")
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("the key set has %d keys; at most %d are allowed", len(set.Keys), maxKeys)
	}
	if secrets := stolen(set.Keys); secrets != nil {
		return nil, secrets
	}
	keys, names := map[string]*key{}, map[string]bool{}
	for i, raw := range set.Keys {
		var j jwk
		if err := json.Unmarshal(raw, &j); err != nil {
			return nil, fmt.Errorf("key %d of the set is not a JWK", i)
		}
		if j.KeyID != "" && names[j.KeyID] {
			return nil, fmt.Errorf("key %d of the set has the kid of another", i)
		}
		names[j.KeyID] = true
		if !j.meant() {
			continue
		}
		public, err := parsePublic(raw, j)
		if err != nil {
			return nil, fmt.Errorf("key %d of the set: %w", i, err)
		}
		keys[j.KeyID] = &key{algorithm: jose.SignatureAlgorithm(j.Algorithm), public: public}
	}
	return keys, nil
}

func parsePublic(raw []byte, j jwk) (any, error) {
	var parsed jose.JSONWebKey
	if err := parsed.UnmarshalJSON(raw); err != nil {
		return nil, errors.New("it is not a public key")
	}
	switch public := parsed.Key.(type) {
	case *ecdsa.PublicKey:
		if j.Algorithm == string(jose.ES256) && public.Curve == elliptic.P256() {
			return public, nil
		}
	case *rsa.PublicKey:
		bits := public.N.BitLen()
		if j.Algorithm == string(jose.RS256) && bits >= minRSABits && bits <= maxRSABits &&
			public.E >= 3 && public.E%2 == 1 && public.N.Bit(0) == 1 {
			return public, nil
		}
	case ed25519.PublicKey:
		if j.Algorithm == ed25519Alg {
			return fullySpecified{public}, nil
		}
		if j.Algorithm == string(jose.EdDSA) {
			return public, nil
		}
	}
	return nil, fmt.Errorf("its type, size or curve does not fit %s", j.Algorithm)
}

// keyring holds the issuer's current key set. Whoever fetches reports with done; whoever misses a
// key asks for a fetch by find, within limits that hold for all callers together.
type keyring struct {
	now  func() time.Time
	wake chan struct{} // asks for a fetch; of capacity 1

	mu      sync.RWMutex // guards all below
	keys    map[string]*key
	body    []byte    // what the keys were read from
	fetched time.Time // when the request for keys was sent
	misses  map[string]struct{}
	forced  time.Time
	flight  chan struct{} // closed when the forced fetch is over; nil when there is none
	failed  bool          // the last fetch has; what is not known may be there all the same
}

func newKeyring(now func() time.Time) *keyring {
	return &keyring{now: now, wake: make(chan struct{}, 1), misses: map[string]struct{}{}}
}

// find returns the key of that name. For one that is unknown it asks for a fetch, at most once in
// forceInterval, and waits for the result.
func (r *keyring) find(ctx context.Context, kid string) (*key, error) {
	if k := r.get(kid); k != nil {
		return k, nil
	}
	flight := r.force(kid)
	if flight == nil {
		return nil, r.unknown("the key is not in the issuer's set")
	}
	timeout := time.NewTimer(maxForceWait)
	defer timeout.Stop()
	select {
	case <-flight:
	case <-timeout.C:
		return nil, fmt.Errorf("%w: the key is not in the issuer's set, and that could not be fetched in time", ErrStale)
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: the key is not in the issuer's set: %w", ErrSignature, context.Cause(ctx))
	}
	if k := r.get(kid); k != nil {
		return k, nil
	}
	r.miss(kid)
	return nil, r.unknown("the key is not in the issuer's set, which was just fetched")
}

// unknown is ErrSignature, or ErrStale when the issuer could not be asked.
func (r *keyring) unknown(why string) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.failed {
		return fmt.Errorf("%w: the key is not known, and the issuer's set could not be fetched", ErrStale)
	}
	return fmt.Errorf("%w: %s", ErrSignature, why)
}

func (r *keyring) get(kid string) *key {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.keys[kid]
}

// force returns the fetch to wait for, or nil if there is to be none.
func (r *keyring) force(kid string) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, missed := r.misses[kid]; missed {
		return nil
	}
	if r.flight != nil {
		return r.flight
	}
	now := r.now()
	if !r.forced.IsZero() && age(now, r.forced) < forceInterval {
		return nil
	}
	r.forced = now
	r.flight = make(chan struct{})
	r.ask()
	return r.flight
}

// ask wakes the fetcher, without waiting.
func (r *keyring) ask() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// miss remembers a kid until the next scheduled fetch, so that a client with an old token does not
// use up everybody's forced fetch.
func (r *keyring) miss(kid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.failed && len(r.misses) < maxMisses {
		r.misses[kid] = struct{}{}
	}
}

// source is what the keys were read from.
func (r *keyring) source() []byte {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.body
}

// done ends a fetch of a body that was sent at that time. Keys of nil mean that it failed, and change
// nothing; else they replace the whole set.
func (r *keyring) done(keys map[string]*key, body []byte, sent time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed = keys == nil; !r.failed {
		r.keys, r.body, r.fetched = keys, body, sent
	}
	switch {
	case r.flight != nil:
		close(r.flight)
		r.flight = nil
	case keys != nil:
		clear(r.misses)
	}
}

// age is how old the key set is.
func (r *keyring) age(now time.Time) time.Duration {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return age(now, r.fetched)
}

// names returns the kids, sorted.
func (r *keyring) names() []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	names := make([]string, 0, len(r.keys))
	for kid := range r.keys {
		names = append(names, kid)
	}
	slices.Sort(names)
	return names
}
