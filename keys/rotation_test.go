package keys_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/errandhq/errand/keys"
)

// The road of one key, to the nanosecond.
func TestLifeOfAKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(t, keys.Config{})
		defer run(t, ring)()
		state := func(id string) keys.State {
			all := ring.Keys()
			return all[slices.IndexFunc(all, func(k keys.Key) bool { return k.ID == id })].State
		}
		start := time.Now().UTC()
		first, second := only(t, ring, keys.Active), only(t, ring, keys.Next)
		if !first.Created.Equal(start) || !first.Activated.Equal(start) || !first.Retired.IsZero() || !first.Gone.IsZero() {
			t.Errorf("the first key: %+v", first)
		}
		if !second.Created.Equal(start) || !second.Activated.IsZero() {
			t.Errorf("the next key: %+v", second)
		}
		for _, step := range []struct {
			after         time.Duration
			first, second keys.State
		}{
			{keys.DefaultPeriod - 1, keys.Active, keys.Next},
			{1, keys.Retiring, keys.Active},
			{keys.FinishTime + life + keys.DefaultSkew - 1, keys.Retiring, keys.Active},
			{1, keys.Gone, keys.Active},
			{keys.DefaultPeriod - (keys.FinishTime + life + keys.DefaultSkew), keys.Gone, keys.Retiring},
		} {
			sleep(step.after)
			if got := state(first.ID); got != step.first {
				t.Errorf("after %v the first key is %s; want %s", time.Since(start), got, step.first)
			}
			if got := state(second.ID); got != step.second {
				t.Errorf("after %v the second key is %s; want %s", time.Since(start), got, step.second)
			}
			if slices.Contains(published(t, ring), first.ID) != (step.first != keys.Gone) {
				t.Errorf("after %v the first key is %s, and the set has %v", time.Since(start), step.first, published(t, ring))
			}
		}
		gone := only(t, ring, keys.Gone)
		if gone.Removed || !gone.Retired.Equal(start.Add(keys.DefaultPeriod)) || !gone.Gone.Equal(gone.Retired.Add(keys.FinishTime+life+keys.DefaultSkew)) {
			t.Errorf("the first key in the end: %+v", gone)
		}
	})
}

func TestRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(t, keys.Config{})
		defer run(t, ring)()
		first, next := only(t, ring, keys.Active).ID, only(t, ring, keys.Next).ID
		allowed := time.Now().Add(keys.DefaultPublish).UTC().Format(time.RFC3339Nano)
		sleep(keys.DefaultPublish - 1)
		if err := ring.Rotate(); !errors.Is(err, keys.ErrTooEarly) || !strings.Contains(err.Error(), allowed) {
			t.Errorf("a nanosecond too early: %v; want ErrTooEarly and %s", err, allowed)
		}
		if got := only(t, ring, keys.Active).ID; got != first {
			t.Fatalf("a refused rotation made %s the active key", got)
		}
		sleep(1)
		if err := ring.Rotate(); err != nil {
			t.Fatal(err)
		}
		if got := only(t, ring, keys.Active).ID; got != next {
			t.Errorf("the active key is %s; want %s", got, next)
		}
		if err := ring.Rotate(); !errors.Is(err, keys.ErrTooEarly) {
			t.Errorf("twice at once: %v; want ErrTooEarly", err)
		}
		if kid := only(t, ring, keys.Next).ID; !slices.Contains(published(t, ring), kid) {
			t.Errorf("the key after that, %s, is not published", kid)
		}
	})
}

func TestRemove(t *testing.T) {
	for _, state := range []keys.State{keys.Next, keys.Active, keys.Retiring} {
		t.Run(string(state), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ring := newRing(t, keys.Config{})
				sleep(keys.DefaultPublish)
				if err := ring.Rotate(); err != nil {
					t.Fatal(err)
				}
				// Rotate again asks for the next key, which only Run makes by itself.
				if err := ring.Rotate(); !errors.Is(err, keys.ErrTooEarly) {
					t.Fatal(err)
				}
				active, next := only(t, ring, keys.Active).ID, only(t, ring, keys.Next).ID
				kid := only(t, ring, state).ID
				if err := ring.Remove(kid); err != nil {
					t.Fatal(err)
				}
				if slices.Contains(published(t, ring), kid) {
					t.Error("it is still published")
				}
				want := active
				if state == keys.Active {
					want = next // however young it is
				}
				if got := signer(t, ring).KeyID(); got != want {
					t.Errorf("%s signs; want %s", got, want)
				}
				only(t, ring, keys.Active)
				only(t, ring, keys.Next)
				if k := only(t, ring, keys.Gone); k.ID != kid || !k.Removed || !k.Gone.Equal(time.Now()) {
					t.Errorf("what is said of it: %+v", k)
				}
				if err := ring.Remove(kid); !errors.Is(err, keys.ErrUnknownKey) || !strings.Contains(err.Error(), kid) {
					t.Errorf("removed twice: %v; want ErrUnknownKey with the ID", err)
				}
			})
		})
	}
}

// Published keys have a bound: with so many retiring ones the active key stays, and the oldest
// makes room.
func TestMaxRetiring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ring := newRing(t, keys.Config{Life: 24 * time.Hour})
		defer run(t, ring)()
		for i := range keys.MaxRetiring {
			sleep(keys.DefaultPublish)
			if err := ring.Rotate(); err != nil {
				t.Fatalf("rotation %d: %v", i, err)
			}
		}
		sleep(keys.DefaultPublish)
		retiring := inState(ring, keys.Retiring)
		if len(retiring) != keys.MaxRetiring {
			t.Fatalf("%d keys are retiring; want %d", len(retiring), keys.MaxRetiring)
		}
		oldest := retiring[len(retiring)-1]
		room := oldest.Gone.Format(time.RFC3339Nano)
		if err := ring.Rotate(); !errors.Is(err, keys.ErrTooEarly) || !strings.Contains(err.Error(), room) {
			t.Errorf("one more: %v; want ErrTooEarly until %s", err, room)
		}
		sleep(time.Until(oldest.Gone))
		if err := ring.Rotate(); err != nil {
			t.Errorf("after the oldest is gone: %v", err)
		}
	})
}

func TestMaxGone(t *testing.T) {
	ring := newRing(t, keys.Config{})
	for range keys.MaxGone + 1 {
		if err := ring.Remove(only(t, ring, keys.Active).ID); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(inState(ring, keys.Gone)); n != keys.MaxGone {
		t.Errorf("%d gone keys are remembered; want %d", n, keys.MaxGone)
	}
}

const shortPeriod = 2 * keys.DefaultPublish

// source makes keys, or not, as a test tells it.
type source struct {
	broken atomic.Bool
	made   atomic.Int64
	hold   chan struct{} // when not nil, a key is made as soon as it is closed
}

var errNoEntropy = errors.New("no entropy")

func (s *source) generate() (crypto.Signer, error) {
	if s.broken.Load() {
		return nil, errNoEntropy
	}
	if s.hold != nil {
		<-s.hold
	}
	s.made.Add(1)
	_, private, err := ed25519.GenerateKey(rand.Reader)
	return private, err
}

func newRingFrom(t *testing.T, s *source) *keys.Ring {
	t.Helper()
	ring, err := keys.NewWith(keys.Config{Algorithm: keys.Ed25519, Type: typ, Life: life, Period: shortPeriod}, s.generate)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// Run keeps the schedule by itself, although nobody signs and nobody fetches the set: each rotation
// shows in the key that is made for the one after it.
func TestRunIsInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keySource := &source{}
		ring := newRingFrom(t, keySource)
		defer run(t, ring)()
		for rotation := range int64(10) {
			sleep(shortPeriod - time.Nanosecond)
			if made := keySource.made.Load(); made != rotation+2 {
				t.Fatalf("%d keys were made before rotation %d", made, rotation)
			}
			sleep(time.Nanosecond)
			if made := keySource.made.Load(); made != rotation+3 {
				t.Fatalf("%d keys were made at rotation %d; want one more than before", made, rotation)
			}
		}
	})
}

// When no key can be made the active one stays, and Run goes on trying.
func TestNoNextKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keySource := &source{}
		ring := newRingFrom(t, keySource)
		keySource.broken.Store(true)
		defer run(t, ring)()
		sleep(shortPeriod)
		active := only(t, ring, keys.Active).ID
		if n := len(inState(ring, keys.Next)); n != 0 {
			t.Fatalf("there are %d next keys", n)
		}
		if err := ring.Rotate(); !errors.Is(err, errNoEntropy) {
			t.Errorf("Rotate: %v; want the reason", err)
		}
		sleep(3 * shortPeriod)
		if got := signer(t, ring).KeyID(); got != active {
			t.Errorf("%s signs; want %s to stay", got, active)
		}
		keySource.broken.Store(false)
		sleep(time.Second)
		made := only(t, ring, keys.Next)
		sleep(keys.DefaultPublish - time.Since(made.Created) - 1)
		if got := signer(t, ring).KeyID(); got != active {
			t.Errorf("%s signs, although it is too young", got)
		}
		sleep(1)
		if got := signer(t, ring).KeyID(); got != made.ID {
			t.Errorf("%s signs; want %s, which is old enough now", got, made.ID)
		}
	})
}

// The removal of the only key that can sign counts at once, even if nothing can replace it.
func TestRemoveTheLastKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keySource := &source{}
		ring := newRingFrom(t, keySource)
		keySource.broken.Store(true)
		for range 2 {
			kid := only(t, ring, keys.Active).ID
			if err := ring.Remove(kid); !errors.Is(err, errNoEntropy) {
				t.Fatalf("Remove: %v; want the reason why there is no replacement", err)
			}
			if slices.Contains(published(t, ring), kid) {
				t.Error("it is still published")
			}
		}
		if s, err := ring.Signer(); !errors.Is(err, keys.ErrNoKey) || s != nil {
			t.Errorf("Signer: %v, %v; want ErrNoKey", s, err)
		}
		if got := string(ring.Set().JSON); got != `{"keys":[]}` {
			t.Errorf("the set is %s", got)
		}
		keySource.broken.Store(false)
		defer run(t, ring)()
		synctest.Wait()
		if !verifies(t, parse(t, ring.Set()), sign(t, signer(t, ring))) {
			t.Error("Run has not made a key that can be used")
		}
		only(t, ring, keys.Next)
	})
}

// RSA keys take long to make. Nobody waits for that.
func TestMakingAKeyBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keySource := &source{}
		ring := newRingFrom(t, keySource)
		keySource.hold = make(chan struct{})
		defer run(t, ring)()
		sleep(shortPeriod)
		if n := len(inState(ring, keys.Next)); n != 0 {
			t.Fatalf("there are %d next keys; want Run to be making one", n)
		}
		if !verifies(t, parse(t, ring.Set()), sign(t, signer(t, ring))) {
			t.Error("it is not verifiable")
		}
		close(keySource.hold)
		synctest.Wait()
		only(t, ring, keys.Next)
	})
}
