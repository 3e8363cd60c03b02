package keys

import (
	"crypto"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// What a zero Config means.
const (
	DefaultPeriod  = 24 * time.Hour
	DefaultPublish = 10 * time.Minute
	DefaultMaxAge  = 60 * time.Second
	DefaultSkew    = 5 * time.Second
)

const (
	// FinishTime is how long a Signer that was got before a rotation may still sign after it, so that
	// what is under way then does not fail.
	FinishTime = 5 * time.Second
	// MaxRetiring bounds the retiring keys, and so the published set. The active key stays while there
	// are that many.
	MaxRetiring = 16
	// MaxGone is how many keys Keys remembers after they are gone.
	MaxGone = 16
)

var (
	// ErrNoKey means that nothing can be signed: there is no active key, or the signer's own was
	// retired or removed. Get another Signer.
	ErrNoKey = errors.New("keys: no key to sign with")
	// ErrTooEarly means that a rotation now could have verifiers meet a key that they do not have.
	ErrTooEarly = errors.New("keys: too early to rotate")
	// ErrUnknownKey means that no published key has that ID.
	ErrUnknownKey = errors.New("keys: no such key is published")
)

// Config says how a ring works. Type and Life are required; the rest has safe defaults.
type Config struct {
	// Algorithm is ES256 if empty.
	Algorithm Algorithm
	// Type is the typ header of everything that the ring signs, such as at+jwt. Required: without it
	// one kind of token could be taken for another (RFC 8725 §3.11).
	Type string
	// Life is the longest life of what is signed. Required.
	Life time.Duration
	// Period is how long a key is active: DefaultPeriod if zero, and not less than Publish.
	Period time.Duration
	// Publish is how long a key is published before it signs: DefaultPublish if zero, and not less
	// than MaxAge and Skew together.
	Publish time.Duration
	// MaxAge is how long a verifier may use a fetched set: DefaultMaxAge if zero, and not less than a
	// second, since HTTP tells it in whole seconds.
	MaxAge time.Duration
	// Skew is how far two clocks may be apart: DefaultSkew if zero.
	Skew time.Duration
	// Now is the clock: time.Now if nil. Its monotonic reading is used where it has one, so that a
	// step of the wall clock neither hastens nor delays a rotation.
	Now func() time.Time
}

func (c Config) withDefaults() (Config, error) {
	c.Period = orDefault(c.Period, DefaultPeriod)
	c.Publish = orDefault(c.Publish, DefaultPublish)
	c.MaxAge = orDefault(c.MaxAge, DefaultMaxAge)
	c.Skew = orDefault(c.Skew, DefaultSkew)
	if c.Algorithm == "" {
		c.Algorithm = ES256
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	_, err := ParseAlgorithm(string(c.Algorithm))
	switch {
	case err != nil:
		return c, err
	case c.Type == "":
		return c, errors.New("keys: Type is empty; name the typ header of what is signed, such as at+jwt")
	case c.Life <= 0:
		return c, fmt.Errorf("keys: Life is %v; it must be the longest life of what is signed", c.Life)
	case c.Skew < 0:
		return c, fmt.Errorf("keys: Skew is %v; it cannot be negative", c.Skew)
	case c.MaxAge < time.Second:
		return c, fmt.Errorf("keys: MaxAge is %v; it must be at least %v", c.MaxAge, time.Second)
	case c.Publish < c.MaxAge+c.Skew:
		return c, fmt.Errorf("keys: Publish is %v; it must be at least MaxAge and Skew together, %v, or verifiers meet keys that they do not have",
			c.Publish, c.MaxAge+c.Skew)
	case c.Period < c.Publish:
		return c, fmt.Errorf("keys: Period is %v; it must be at least Publish, %v: no key can be replaced sooner", c.Period, c.Publish)
	}
	return c, nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}

// Ring is a set of keys of which one signs. All its methods may be called at the same time.
type Ring struct {
	config   Config
	generate func() (crypto.Signer, error)
	wake     chan struct{} // tells Run that there is something to do; of capacity 1
	filling  sync.Mutex    // held while a key is made; locked before mu

	mu       sync.Mutex // guards all below; never held while a key is made or used
	active   *key
	next     *key
	retiring []*key // newest first, at most MaxRetiring
	gone     []Key  // newest first, at most MaxGone
	set      Set
}

// New makes a ring with its first key, which is active at once, and the next one. Call Run to have
// them rotate.
func New(config Config) (*Ring, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	return start(config, config.Algorithm.generate)
}

func start(config Config, generate func() (crypto.Signer, error)) (*Ring, error) {
	r := &Ring{config: config, generate: generate, wake: make(chan struct{}, 1)}
	if err := r.fill(); err != nil {
		return nil, err
	}
	return r, nil
}

// Signer returns the signer of the active key. It belongs to one key: get one for each signature. An
// overdue rotation takes place first, so nothing depends on Run being in time.
func (r *Ring) Signer() (*Signer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance(r.config.Now())
	if r.active == nil {
		return nil, fmt.Errorf("%w: the active one was removed and its successor is being made; repeat in a second", ErrNoKey)
	}
	return &Signer{ring: r, key: r.active}, nil
}

// Keys returns the next, the active, the retiring and the last MaxGone gone keys, in this order; the
// newest first.
func (r *Ring) Keys() []Key {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance(r.config.Now())
	var all []Key
	if r.next != nil {
		all = append(all, r.next.describe(r.config.Algorithm, Next))
	}
	if r.active != nil {
		all = append(all, r.active.describe(r.config.Algorithm, Active))
	}
	for _, k := range r.retiring {
		all = append(all, k.describe(r.config.Algorithm, Retiring))
	}
	return slices.Concat(all, r.gone)
}

// String names the ring without its keys.
func (r *Ring) String() string { return "keys.Ring(" + string(r.config.Algorithm) + ", redacted)" }

// GoString is String: no verb of fmt shows a private key.
func (r *Ring) GoString() string { return r.String() }

// LogValue is String, for log/slog.
func (r *Ring) LogValue() slog.Value { return slog.StringValue(r.String()) }
