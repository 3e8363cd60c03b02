package keys

import (
	"fmt"
	"log/slog"
)

// Signer signs with one key of a ring. It refuses, with ErrNoKey, as soon as that key is removed,
// FinishTime after it was retired, and while the ring does not know whether it is.
type Signer struct {
	ring *Ring
	key  *key
}

// KeyID is the kid of what is signed.
func (s *Signer) KeyID() string { return s.key.id }

// Algorithm is the key's.
func (s *Signer) Algorithm() Algorithm { return s.key.algorithm }

// Sign returns the payload as a JWS in its compact form (RFC 7515 §7.1). Its header has exactly alg,
// kid and typ.
func (s *Signer) Sign(payload []byte) (string, error) {
	if err := s.ring.permits(s.key.id); err != nil {
		return "", err
	}
	compact, err := s.key.signer.sign(payload)
	if err != nil {
		return "", fmt.Errorf("keys: sign with %s: %w", s.key.id, err)
	}
	return compact, nil
}

// permits reports whether something may be signed with a key now.
func (r *Ring) permits(kid string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.advance()
	if err := r.fresh(); err != nil {
		return err
	}
	switch k := r.schedule.find(kid); {
	case k == nil || k == r.schedule.next,
		k != r.schedule.active && !now.Before(k.retired.Add(FinishTime)):
		return fmt.Errorf("%w: %s was retired or removed", ErrNoKey, kid)
	}
	return nil
}

// String names the key without showing it.
func (s *Signer) String() string { return "keys.Signer(" + s.key.id + ", redacted)" }

// GoString is String: no verb of fmt shows a private key.
func (s *Signer) GoString() string { return s.String() }

// LogValue is String, for log/slog.
func (s *Signer) LogValue() slog.Value { return slog.StringValue(s.String()) }
