package keys

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"log/slog"
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
	// MaxRemoved is how many removed keys a ring keeps from coming back, should an older record be
	// read; the latest count.
	MaxRemoved = 64
)

var (
	// ErrNoKey means that nothing can be signed: there is no active key, the signer's own was retired
	// or removed, or the shared record has not been read for StaleTime. Get another Signer.
	ErrNoKey = errors.New("keys: no key to sign with")
	// ErrTooEarly means that a rotation now could have verifiers meet a key that they do not have.
	ErrTooEarly = errors.New("keys: too early to rotate")
	// ErrUnknownKey means that no published key has that ID.
	ErrUnknownKey = errors.New("keys: no such key is published")
	// ErrRecord means that the shared record cannot be read or written now; Run goes on trying.
	ErrRecord = errors.New("keys: the shared record cannot be used")
	// ErrSealed means that the shared record cannot be opened. It is left as it is.
	ErrSealed = errors.New("keys: the shared record does not open")
)

// Config says how a ring works. Type and Life are required; the rest has safe defaults.
type Config struct {
	// Algorithm is ES256 if empty. Shared keys that are there already keep theirs; it counts from the
	// next key that is made.
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
	// Shared is where replicas share their keys. Nil keeps them in memory: for one replica, whose
	// keys end with it.
	Shared *Shared
}

func (c Config) withDefaults() (Config, error) {
	c.Period = cmp.Or(c.Period, DefaultPeriod)
	c.Publish = cmp.Or(c.Publish, DefaultPublish)
	c.MaxAge = cmp.Or(c.MaxAge, DefaultMaxAge)
	c.Skew = cmp.Or(c.Skew, DefaultSkew)
	c.Algorithm = cmp.Or(c.Algorithm, ES256)
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
	case c.Shared != nil:
		return c, c.Shared.check()
	}
	return c, nil
}

// settle is how long something that was decided may need until every replica goes by it.
func (c Config) settle() time.Duration {
	if c.Shared == nil {
		return 0
	}
	return SettleTime
}

// tail is how long a key stays published after it was retired.
func (c Config) tail() time.Duration { return FinishTime + c.settle() + c.Life + c.Skew }

// plan gives a new key its times.
func (c Config) plan(k *key, now time.Time) *key {
	k.created, k.from, k.period, k.tail = now, now.Add(c.Publish+c.settle()), c.Period, c.tail()
	return k
}

// Ring is a set of keys of which one signs. All its methods may be called at the same time.
type Ring struct {
	config    Config
	generate  func() (crypto.Signer, error)
	wake      chan struct{} // tells Run that there is something to do; of capacity 1
	filling   sync.Mutex    // held while a key is made; locked before the others
	recording sync.Mutex    // held while the record is read and written; locked before mu

	mu       sync.Mutex // guards all below; never held while a key is made or used
	schedule schedule   // what this replica goes by: what is recorded, without what it knows to be removed
	set      Set        // of schedule
	removed  []string   // the IDs of removed keys, newest first, at most MaxRemoved
	view     view       // of the shared record
}

// New makes a ring. In memory its first key is active at once; shared keys are read from the record,
// and made only where there are none. Call Run to have them rotate. A record that does not open is
// ErrSealed, one that cannot be read ErrRecord.
func New(config Config) (*Ring, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	return start(config, config.Algorithm.generate)
}

func start(config Config, generate func() (crypto.Signer, error)) (*Ring, error) {
	r := &Ring{config: config, generate: generate, wake: make(chan struct{}, 1)}
	err := r.fill(context.Background())
	if err != nil && !(errors.Is(err, ErrRecord) && r.signs()) {
		return nil, err
	}
	return r, nil
}

// signs reports whether there is a key to sign with.
func (r *Ring) signs() bool {
	_, err := r.Signer()
	return err == nil
}

// Signer returns the signer of the active key. It belongs to one key: get one for each signature. In
// memory an overdue rotation takes place first, so nothing depends on Run being in time. A shared key
// stays active until the record says otherwise; when that has not been read for StaleTime, as when
// Run does not run, the error is ErrNoKey.
func (r *Ring) Signer() (*Signer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance()
	if err := r.fresh(); err != nil {
		return nil, err
	}
	if r.schedule.active == nil {
		return nil, fmt.Errorf("%w: the active one was removed and its successor is being made; repeat in a second", ErrNoKey)
	}
	return &Signer{ring: r, key: r.schedule.active}, nil
}

// Keys returns the next, the active, the retiring and the last MaxGone gone keys, in this order; the
// newest first.
func (r *Ring) Keys() []Key {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance()
	return r.schedule.keys()
}

// String names the ring without its keys.
func (r *Ring) String() string { return "keys.Ring(" + string(r.config.Algorithm) + ", redacted)" }

// GoString is String: no verb of fmt shows a private key.
func (r *Ring) GoString() string { return r.String() }

// LogValue is String, for log/slog.
func (r *Ring) LogValue() slog.Value { return slog.StringValue(r.String()) }
