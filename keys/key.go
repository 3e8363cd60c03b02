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

// Key is what operators may see of a key: nothing of its private half.
type Key struct {
	ID        string    // the kid: the key's SHA-256 thumbprint (RFC 7638), 43 characters of base64url
	Algorithm Algorithm // the ring's
	State     State
	Created   time.Time // when it was published
	Activated time.Time // when it began to sign; zero before
	Retired   time.Time // when it was replaced; zero before
	Gone      time.Time // when it leaves, or has left, the published set; zero until it is retired or removed
	Removed   bool      // by an operator, not by time
}

// key is a key of a ring. The ring's lock guards all that changes.
type key struct {
	id     string
	public json.RawMessage // as a JWK
	signer jose.Signer     // nil when the key may not sign any more

	created, activated, retired, gone time.Time
	removed                           bool
}

// newKey wraps a private key. typ is that of everything it will sign.
func newKey(algorithm Algorithm, typ string, private crypto.Signer) (*key, error) {
	id, err := thumbprint(private.Public())
	if err != nil {
		return nil, err
	}
	alg := algorithm.Header()
	public := jose.JSONWebKey{Key: private.Public(), KeyID: id, Algorithm: alg, Use: "sig"}
	if !public.IsPublic() {
		return nil, errors.New("keys: a private key was about to be published")
	}
	document, err := public.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("keys: encode a public key: %w", err)
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.SignatureAlgorithm(alg), Key: jose.JSONWebKey{Key: private, KeyID: id}},
		(&jose.SignerOptions{}).WithType(jose.ContentType(typ)),
	)
	if err != nil {
		return nil, fmt.Errorf("keys: use a %s key: %w", algorithm, err)
	}
	return &key{id: id, public: document, signer: signer}, nil
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

// describe is the operators' view.
func (k *key) describe(algorithm Algorithm, state State) Key {
	return Key{
		ID: k.id, Algorithm: algorithm, State: state,
		Created: wall(k.created), Activated: wall(k.activated), Retired: wall(k.retired), Gone: wall(k.gone), Removed: k.removed,
	}
}

// wall is a time for people, without the monotonic reading that the ring counts by.
func wall(t time.Time) time.Time { return t.UTC().Round(0) }
