package keys

import (
	"fmt"
	"log/slog"

	jose "github.com/go-jose/go-jose/v4"
)

// Signer signs with one key of a ring. It refuses, with ErrNoKey, as soon as that key is removed,
// and FinishTime after it was retired.
type Signer struct {
	ring *Ring
	key  *key
}

// KeyID is the kid of what is signed.
func (s *Signer) KeyID() string { return s.key.id }

// Algorithm is the ring's.
func (s *Signer) Algorithm() Algorithm { return s.ring.config.Algorithm }

// Sign returns the payload as a JWS in its compact form (RFC 7515 §7.1). Its header has exactly alg,
// kid and typ.
func (s *Signer) Sign(payload []byte) (string, error) {
	signer, err := s.permitted()
	if err != nil {
		return "", err
	}
	// Signing what is already JSON spares the detour of go-jose's jwt.Builder, which would decode the
	// claims and encode them again, at twice the cost.
	jws, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("keys: sign with %s: %w", s.key.id, err)
	}
	compact, err := jws.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("keys: encode what %s has signed: %w", s.key.id, err)
	}
	return compact, nil
}

// permitted returns the key's private half while it may sign.
func (s *Signer) permitted() (jose.Signer, error) {
	s.ring.mu.Lock()
	defer s.ring.mu.Unlock()
	s.ring.advance(s.ring.config.Now())
	if s.key.signer == nil {
		return nil, fmt.Errorf("%w: %s was retired or removed", ErrNoKey, s.key.id)
	}
	return s.key.signer, nil
}

// String names the key without showing it.
func (s *Signer) String() string { return "keys.Signer(" + s.key.id + ", redacted)" }

// GoString is String: no verb of fmt shows a private key.
func (s *Signer) GoString() string { return s.String() }

// LogValue is String, for log/slog.
func (s *Signer) LogValue() slog.Value { return slog.StringValue(s.String()) }
