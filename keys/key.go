package keys

import (
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// State is where a key is on its one-way road.
type State string

// The states of a key, in their order.
const (
	Next     State = "next"     // published, and not yet used
	Active   State = "active"   // signs
	Retiring State = "retiring" // published until what it has signed is over
	Gone     State = "gone"     // not published
)

// Key is what operators may see of a key: nothing of its private half. Its moments are the store's
// when replicas share their keys.
type Key struct {
	ID        string    // the kid: the key's SHA-256 thumbprint (RFC 7638), 43 characters of base64url
	Algorithm Algorithm // what it signs with
	State     State
	Created   time.Time // when it was published
	Activated time.Time // when it began to sign; zero before
	Retired   time.Time // when it was replaced; zero before
	Gone      time.Time // when it leaves, or has left, the published set; zero until it is retired or removed
	Removed   bool      // by an operator, not by time
}

// key is a key of a schedule. It is never changed, but replaced by a changed copy.
type key struct {
	id        string
	algorithm Algorithm
	public    json.RawMessage // as a JWK
	private   crypto.Signer   // nil when the key may not sign any more
	signer    *jws            // of the private half; nil with it

	from   time.Time     // when it may sign, unless it has to take the place of a removed key
	period time.Duration // how long it is to be active
	tail   time.Duration // how long it is published after it was retired

	created, activated, retired, gone time.Time
	removed                           bool
}

// newKey wraps a private key. typ is that of everything it will sign.
func newKey(algorithm Algorithm, typ string, private crypto.Signer) (*key, error) {
	k, err := publicKey(algorithm, private.Public())
	if err != nil {
		return nil, err
	}
	k.private = private
	if k.signer, err = newJWS(algorithm, k.id, typ, private); err != nil {
		return nil, err
	}
	return k, nil
}

// publicKey is a key that cannot sign.
func publicKey(algorithm Algorithm, public crypto.PublicKey) (*key, error) {
	id, err := thumbprint(public)
	if err != nil {
		return nil, err
	}
	jwk := jose.JSONWebKey{Key: public, KeyID: id, Algorithm: algorithm.Header(), Use: "sig"}
	if !jwk.IsPublic() {
		return nil, errors.New("keys: a private key was about to be published")
	}
	document, err := jwk.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("keys: encode a public key: %w", err)
	}
	return &key{id: id, algorithm: algorithm, public: document}, nil
}

// thumbprint is the SHA-256 thumbprint of a public key (RFC 7638 §3, for Ed25519 RFC 8037 appendix A.3).
func thumbprint(public crypto.PublicKey) (string, error) {
	jwk := jose.JSONWebKey{Key: public}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", fmt.Errorf("keys: name a key: %w", err)
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// withoutPrivate is a copy that cannot sign. A Signer that was got before has its own.
func (k *key) withoutPrivate() *key {
	public := *k
	public.private, public.signer = nil, nil
	return &public
}

// describe is the operators' view.
func (k *key) describe(state State) Key {
	return Key{
		ID: k.id, Algorithm: k.algorithm, State: state,
		Created: wall(k.created), Activated: wall(k.activated), Retired: wall(k.retired), Gone: wall(k.gone), Removed: k.removed,
	}
}

// wall is a time for people, without the monotonic reading that a ring in memory counts by.
func wall(t time.Time) time.Time { return t.UTC().Round(0) }
