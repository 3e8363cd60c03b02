package keys_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/errandhq/errand/keys"
)

// record is a shared value in memory, with the clock of a store.
type record struct {
	mu      sync.Mutex
	offset  time.Duration // of the store's clock
	value   []byte
	version uint64
	before  []byte // what the last write replaced
}

var errDown = errors.New("connection refused")

// line is one replica's way to a record, and can be broken.
type line struct {
	*record
	mu       sync.Mutex
	unread   bool   // reads fail
	unwrite  bool   // writes fail, and do nothing
	lostWord bool   // the next write is done, and its answer is lost
	between  func() // happens once, after the next read
}

func (l *line) set(f func(*line)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l)
}

func (l *line) Read(context.Context) ([]byte, uint64, time.Time, error) {
	l.mu.Lock()
	unread, between := l.unread, l.between
	if !unread {
		l.between = nil
	}
	l.mu.Unlock()
	if unread {
		return nil, 0, time.Time{}, errDown
	}
	l.record.mu.Lock()
	value, version, now := bytes.Clone(l.value), l.version, time.Now().Add(l.offset).Round(0)
	l.record.mu.Unlock()
	if between != nil {
		between()
	}
	return value, version, now, nil
}

func (l *line) Write(_ context.Context, value []byte, version uint64) (bool, error) {
	l.mu.Lock()
	unwrite, lost := l.unwrite, l.lostWord
	l.lostWord = false
	l.mu.Unlock()
	if unwrite {
		return false, errDown
	}
	swapped := l.swap(value, version)
	if lost {
		return false, errDown
	}
	return swapped, nil
}

func (r *record) swap(value []byte, version uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.version != version {
		return false
	}
	r.before, r.value, r.version = r.value, bytes.Clone(value), version+1
	return true
}

// cut loses the last write, as a failover can.
func (r *record) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.version > 1 && r.before != nil {
		r.value, r.version, r.before = r.before, r.version-1, nil
	}
}

// lose loses everything.
func (r *record) lose() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.value, r.version, r.before = nil, 0, nil
}

func (r *record) content() ([]byte, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return bytes.Clone(r.value), r.version
}

func newSeal(t failer, fill byte) *keys.Seal {
	t.Helper()
	seal, err := keys.NewSeal(bytes.Repeat([]byte{fill}, keys.SealBytes))
	if err != nil {
		t.Fatalf("%v", err)
	}
	return seal
}

// sharing is a configuration of one of several replicas.
func sharing(t failer, l *line) keys.Config {
	t.Helper()
	return keys.Config{
		Algorithm: keys.Ed25519, Type: typ, Life: life,
		Shared: &keys.Shared{Record: l, Seal: newSeal(t, 7), Name: "https://issuer.test"},
	}
}

// TestAForeignRecordIsLeftAlone: whatever does not open stops the start, says what to do, and stays
// as it is, byte for byte.
func TestAForeignRecordIsLeftAlone(t *testing.T) {
	made := &record{}
	newRing(t, sharing(t, &line{record: made}))
	good, _ := made.content()
	flip := func(at int) []byte {
		value := bytes.Clone(good)
		value[at] ^= 1
		return value
	}
	for name, c := range map[string]struct {
		value []byte
		edit  func(*keys.Config)
		says  string
	}{
		"another key":         {good, func(c *keys.Config) { c.Shared.Seal = newSeal(t, 8) }, "another key file"},
		"another name":        {good, func(c *keys.Config) { c.Shared.Name = "https://other.test" }, "same issuer"},
		"another type":        {good, func(c *keys.Config) { c.Type = "other+jwt" }, "damaged"},
		"a changed first bit": {flip(0), nil, "delete the record"},
		"a changed seal":      {flip(20), nil, "another key file"},
		"a changed nonce":     {flip(32), nil, "delete the record"},
		"a changed last bit":  {flip(len(good) - 1), nil, "delete the record"},
		"cut":                 {good[:len(good)-1], nil, "delete the record"},
		"cut to the header":   {good[:31], nil, "delete the record"},
		"empty":               {nil, nil, "something else"},
		"something else":      {[]byte(`{"keys":[]}`), nil, "something else"},
		"too large":           {append(bytes.Clone(good), make([]byte, keys.MaxRecord)...), nil, "at most 65536"},
	} {
		t.Run(name, func(t *testing.T) {
			stored := &record{value: c.value, version: 3}
			config := sharing(t, &line{record: stored})
			if c.edit != nil {
				c.edit(&config)
			}
			_, err := keys.New(config)
			if !errors.Is(err, keys.ErrSealed) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("New: %v; want ErrSealed that says %q", err, c.says)
			}
			if value, version := stored.content(); !bytes.Equal(value, c.value) || version != 3 {
				t.Errorf("the record was overwritten: version %d, %q", version, value)
			}
		})
	}
}

// placed is a record that can say where it is.
type placed struct{ *line }

func (placed) String() string { return "the key errand:x in Redis" }

// TestWhereARecordIs: who is to delete a record learns what to delete, and what for.
func TestWhereARecordIs(t *testing.T) {
	for name, c := range map[string]struct {
		record func(*line) keys.Record
		says   string
	}{
		"one that says where it is": {func(l *line) keys.Record { return placed{l} }, "stop all replicas and delete the key errand:x in Redis: "},
		"one that does not":         {func(l *line) keys.Record { return l }, "stop all replicas and delete the record: "},
	} {
		config := sharing(t, nil)
		config.Shared.Record = c.record(&line{record: &record{value: []byte("junk"), version: 1}})
		_, err := keys.New(config)
		if err == nil || !strings.Contains(err.Error(), c.says+"they make new keys, and every token that is out is refused") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestARecordIsSealed: nothing of a private key is in it, and no two are alike.
func TestARecordIsSealed(t *testing.T) {
	stored := &record{}
	config := sharing(t, &line{record: stored})
	ring := newRing(t, config)
	first, _ := stored.content()
	plain, err := keys.Unseal(config, first)
	if err != nil || !bytes.Contains(plain, []byte(`"private"`)) || !bytes.Contains(plain, []byte(only(t, ring, keys.Active).ID)) {
		t.Fatalf("what is sealed: %s, %v", plain, err)
	}
	for _, word := range []string{"private", "kid", only(t, ring, keys.Active).ID, only(t, ring, keys.Next).ID} {
		if bytes.Contains(first, []byte(word)) {
			t.Errorf("%q can be read in the record", word)
		}
	}
	if again := keys.Reseal(config, plain); bytes.Equal(again[31:43], first[31:43]) {
		t.Error("a nonce was used twice")
	}
}

// TestTheLargestRecord fits the bound: the longest keys, as many as there can be.
func TestTheLargestRecord(t *testing.T) {
	stored := &record{}
	config := sharing(t, &line{record: stored})
	config.Algorithm = keys.RS256
	config.Life = 30 * 24 * time.Hour
	config.Period = 30 * 24 * time.Hour
	elapsed := time.Duration(0)
	l := &ticking{line: line{record: stored}, elapsed: &elapsed}
	config.Shared.Record = l
	ring := newRing(t, config)
	for range keys.MaxRetiring {
		elapsed += keys.DefaultPublish + keys.SettleTime
		if err := ring.Rotate(); err != nil {
			t.Fatal(err)
		}
		// Rotate again asks for the next key, which only Run makes by itself.
		if err := ring.Rotate(); !errors.Is(err, keys.ErrTooEarly) {
			t.Fatal(err)
		}
	}
	for range keys.MaxGone - 1 {
		if err := ring.Remove(only(t, ring, keys.Next).ID); err != nil {
			t.Fatal(err)
		}
	}
	value, _ := stored.content()
	if len(value) > keys.MaxRecord/2 {
		t.Errorf("the record has %d bytes; half of %d must be enough", len(value), keys.MaxRecord)
	}
	if other := newRing(t, config); len(other.Keys()) != len(ring.Keys()) {
		t.Errorf("another replica reads %d of %d keys", len(other.Keys()), len(ring.Keys()))
	}
}

// ticking is a line to a store whose clock a test moves.
type ticking struct {
	line
	elapsed *time.Duration
}

func (l *ticking) Read(ctx context.Context) ([]byte, uint64, time.Time, error) {
	value, version, now, err := l.line.Read(ctx)
	return value, version, now.Add(*l.elapsed), err
}

func TestSharedIsChecked(t *testing.T) {
	for part, edit := range map[string]func(*keys.Shared){
		"Record": func(s *keys.Shared) { s.Record = nil },
		"Seal":   func(s *keys.Shared) { s.Seal = nil },
		"Name":   func(s *keys.Shared) { s.Name = "" },
	} {
		config := sharing(t, &line{record: &record{}})
		edit(config.Shared)
		if _, err := keys.New(config); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("without %s: %v", part, err)
		}
	}
	config := sharing(t, &line{record: &record{}})
	config.Shared.Seal = &keys.Seal{}
	if _, err := keys.New(config); err == nil || !strings.Contains(err.Error(), "Seal") {
		t.Errorf("with an empty seal: %v", err)
	}
}

// FuzzOpen decodes what a damaged or foreign writer with the right key file could have sealed.
func FuzzOpen(f *testing.F) {
	for _, algorithm := range []keys.Algorithm{keys.ES256, keys.Ed25519, keys.RS256} {
		stored := &record{}
		l := &line{record: stored}
		config := sharing(f, l)
		config.Algorithm = algorithm
		ring := newRing(f, config)
		if err := ring.Remove(only(f, ring, keys.Active).ID); err != nil {
			f.Fatal(err)
		}
		value, _ := stored.content()
		plain, err := keys.Unseal(config, value)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(plain)
	}
	f.Add([]byte(`{"revision":1,"retiring":[{"kid":"a","alg":"ES256","public":{"kty":"EC"}}]}`))
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"gone":[{"kid":"a"},{"kid":"a"}]}`))
	f.Fuzz(func(t *testing.T, plain []byte) {
		again, all, err := keys.Open(plain, typ)
		if err != nil {
			return
		}
		if len(all) > 2+keys.MaxRetiring+keys.MaxGone {
			t.Fatalf("%d keys", len(all))
		}
		if _, _, err := keys.Open(again, typ); err != nil {
			t.Fatalf("what was decoded does not decode again: %v\n%s", err, again)
		}
	})
}
