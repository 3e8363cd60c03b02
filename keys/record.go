package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	jose "github.com/go-jose/go-jose/v4"
)

// Record is a small named value that all replicas share, replaced by compare-and-swap. It is the
// port that a store fills. A fmt.Stringer says by that where it is, for errors.
type Record interface {
	// Read returns the value and its version, and the store's time; nil and 0 before the first Write.
	Read(ctx context.Context) (value []byte, version uint64, now time.Time, err error)
	// Write replaces the value, whose version becomes version+1, if it still is at version. After an
	// error it may or may not have happened.
	Write(ctx context.Context, value []byte, version uint64) (swapped bool, err error)
}

// MaxRecord bounds the value of a Record, in bytes.
const MaxRecord = 64 << 10

// Shared says where replicas keep the keys that they share. All of it is required.
type Shared struct {
	Record Record
	Seal   *Seal
	// Name says whose keys these are, such as the issuer's URL. It is sealed in with them: a record
	// of another name does not open.
	Name string
}

// place names the record to people.
func (s *Shared) place() string {
	if named, ok := s.Record.(fmt.Stringer); ok {
		return named.String()
	}
	return "the record"
}

func (s *Shared) check() error {
	switch {
	case s.Record == nil:
		return errors.New("keys: Shared.Record is missing")
	case s.Seal == nil || s.Seal.secret == nil:
		return errors.New("keys: Shared.Seal is missing; load one with LoadSeal")
	case s.Name == "":
		return errors.New("keys: Shared.Name is empty; name whose keys these are, such as the issuer")
	}
	return nil
}

// The value of a record is a line that says what it is and which Seal opens it, and then the
// document, sealed as a whole: no key, state or moment of it can be changed, left out, or moved to
// another record, name or type.
const (
	recordFormat = "errand keys 1 "
	newline      = "\n"
)

func (c Config) header() string { return recordFormat + c.Shared.Seal.fingerprint() + newline }

// bound is what the sealed document is bound to.
func (c Config) bound() []byte {
	bound, err := json.Marshal([]string{recordFormat, c.Shared.Name, c.Type})
	if err != nil {
		panic("keys: strings can be encoded: " + err.Error())
	}
	return bound
}

// encode seals a schedule.
func (c Config) encode(s schedule) ([]byte, error) {
	plain, err := marshal(s)
	if err != nil {
		return nil, err
	}
	value := append([]byte(c.header()), c.Shared.Seal.seal(plain, c.bound())...)
	if len(value) > MaxRecord {
		return nil, fmt.Errorf("keys: the shared record would have %d bytes; at most %d are allowed", len(value), MaxRecord)
	}
	return value, nil
}

// decode opens what encode has sealed. Its errors match ErrSealed.
func (c Config) decode(value []byte) (schedule, error) {
	header := c.header()
	switch sealed, ok := bytes.CutPrefix(value, []byte(header)); {
	case len(value) > MaxRecord:
		return schedule{}, c.damaged(fmt.Errorf("it has %d bytes, and at most %d are allowed", len(value), MaxRecord))
	case ok:
		plain, err := c.Shared.Seal.open(sealed, c.bound())
		if err != nil {
			return schedule{}, c.damaged(fmt.Errorf("%w for %q", err, c.Shared.Name))
		}
		s, err := unmarshal(plain, c.Type)
		if err != nil {
			return schedule{}, c.damaged(err)
		}
		return s, nil
	}
	if rest, ok := bytes.CutPrefix(value, []byte(recordFormat)); ok && len(value) >= len(header) && value[len(header)-1] == newline[0] {
		return schedule{}, fmt.Errorf("%w: it was sealed with another key file (fingerprint %q; this one's is %s); give every replica the file that the others have",
			ErrSealed, rest[:len(header)-len(recordFormat)-len(newline)], c.Shared.Seal.fingerprint())
	}
	return schedule{}, c.damaged(errors.New("it is something else"))
}

func (c Config) damaged(why error) error {
	place := c.Shared.place()
	return fmt.Errorf("%w: %w: it was changed or damaged in the store, or sealed for another issuer; "+
		"name the same issuer on every replica, or restore %s, or stop all replicas and delete %s: they make new keys, and every token that is out is refused",
		ErrSealed, why, place, place)
}

// document is a schedule as JSON.
type document struct {
	Revision uint64     `json:"revision"`
	Active   *keyEntry  `json:"active,omitempty"`
	Next     *keyEntry  `json:"next,omitempty"`
	Retiring []keyEntry `json:"retiring,omitempty"`
	Gone     []keyEntry `json:"gone,omitempty"`
}

// keyEntry has the private half of keys that may sign, and the public one of the retiring.
type keyEntry struct {
	ID        string          `json:"kid"`
	Algorithm Algorithm       `json:"alg"`
	Private   []byte          `json:"private,omitempty"` // PKCS #8
	Public    json.RawMessage `json:"public,omitempty"`  // as a JWK

	From   time.Time     `json:"from,omitzero"`
	Period time.Duration `json:"period,omitempty"`
	Tail   time.Duration `json:"tail,omitempty"`

	Created   time.Time `json:"created,omitzero"`
	Activated time.Time `json:"activated,omitzero"`
	Retired   time.Time `json:"retired,omitzero"`
	Gone      time.Time `json:"gone,omitzero"`
	Removed   bool      `json:"removed,omitempty"`
}

func marshal(s schedule) ([]byte, error) {
	d := document{Revision: s.revision}
	for _, at := range []struct {
		key   *key
		entry **keyEntry
	}{{s.active, &d.Active}, {s.next, &d.Next}} {
		if at.key == nil {
			continue
		}
		entry := newEntry(at.key)
		var err error
		if entry.Private, err = x509.MarshalPKCS8PrivateKey(at.key.private); err != nil {
			return nil, fmt.Errorf("keys: encode a private key: %w", err)
		}
		*at.entry = &entry
	}
	for _, k := range s.retiring {
		entry := newEntry(k)
		entry.Public = k.public
		d.Retiring = append(d.Retiring, entry)
	}
	for _, k := range s.gone {
		d.Gone = append(d.Gone, keyEntry{
			ID: k.ID, Algorithm: k.Algorithm, Created: k.Created, Activated: k.Activated, Retired: k.Retired, Gone: k.Gone, Removed: k.Removed,
		})
	}
	return json.Marshal(d)
}

func newEntry(k *key) keyEntry {
	return keyEntry{
		ID: k.id, Algorithm: k.algorithm, From: wall(k.from), Period: k.period, Tail: k.tail,
		Created: wall(k.created), Activated: wall(k.activated), Retired: wall(k.retired), Gone: wall(k.gone),
	}
}

// unmarshal checks everything that marshal promises.
func unmarshal(plain []byte, typ string) (schedule, error) {
	var d document
	decoder := json.NewDecoder(bytes.NewReader(plain))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return schedule{}, fmt.Errorf("its content is not what this version writes: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return schedule{}, errors.New("something follows its content")
	}
	if len(d.Retiring) > MaxRetiring || len(d.Gone) > MaxGone {
		return schedule{}, fmt.Errorf("it has %d retiring and %d gone keys, and at most %d and %d are allowed",
			len(d.Retiring), len(d.Gone), MaxRetiring, MaxGone)
	}
	s := schedule{revision: d.Revision}
	var err error
	if s.active, err = d.Active.private(typ); err != nil {
		return schedule{}, err
	}
	if s.next, err = d.Next.private(typ); err != nil {
		return schedule{}, err
	}
	for _, entry := range d.Retiring {
		k, err := entry.public()
		if err != nil {
			return schedule{}, err
		}
		s.retiring = append(s.retiring, k)
	}
	for _, entry := range d.Gone {
		s.gone = append(s.gone, Key{
			ID: entry.ID, Algorithm: entry.Algorithm, State: Gone, Removed: entry.Removed,
			Created: wall(entry.Created), Activated: wall(entry.Activated), Retired: wall(entry.Retired), Gone: wall(entry.Gone),
		})
	}
	return s, s.distinct()
}

// distinct refuses a key that is in two states at once.
func (s schedule) distinct() error {
	seen := map[string]bool{}
	for _, k := range s.keys() {
		if seen[k.ID] {
			return fmt.Errorf("key %q is in two states", k.ID)
		}
		seen[k.ID] = true
	}
	return nil
}

func (e *keyEntry) private(typ string) (*key, error) {
	if e == nil {
		return nil, nil
	}
	parsed, err := x509.ParsePKCS8PrivateKey(e.Private)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", e.ID, err)
	}
	private, ok := parsed.(crypto.Signer)
	if !ok || !e.Algorithm.fits(private.Public()) {
		return nil, fmt.Errorf("key %q is not a key of %q", e.ID, e.Algorithm)
	}
	k, err := newKey(e.Algorithm, typ, private)
	if err != nil {
		return nil, err
	}
	return e.moments(k)
}

func (e *keyEntry) public() (*key, error) {
	var jwk jose.JSONWebKey
	if err := jwk.UnmarshalJSON(e.Public); err != nil {
		return nil, fmt.Errorf("key %q: %w", e.ID, err)
	}
	if !jwk.IsPublic() || !e.Algorithm.fits(jwk.Key) {
		return nil, fmt.Errorf("key %q is not a public key of %q", e.ID, e.Algorithm)
	}
	k, err := publicKey(e.Algorithm, jwk.Key)
	if err != nil {
		return nil, err
	}
	return e.moments(k)
}

func (e *keyEntry) moments(k *key) (*key, error) {
	if k.id != e.ID || e.Period < 0 || e.Tail < 0 {
		return nil, fmt.Errorf("key %q has another name or impossible times", e.ID)
	}
	k.from, k.period, k.tail = e.From, e.Period, e.Tail
	k.created, k.activated, k.retired, k.gone = e.Created, e.Activated, e.Retired, e.Gone
	return k, nil
}

// fits reports whether a public key is one that the algorithm's generate makes.
func (a Algorithm) fits(public crypto.PublicKey) bool {
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		return a == ES256 && public.Curve == elliptic.P256()
	case ed25519.PublicKey:
		return a == Ed25519
	case *rsa.PublicKey:
		return a == RS256 && public.N.BitLen() == RSABits
	}
	return false
}
