package verify

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// served is a keyring whose fetches are answered, each with the one key "k", and counted.
func served(t *testing.T) (r *keyring, fetches *int) {
	r, fetches = newKeyring(time.Now), new(int)
	keys := map[string]*key{"k": {}}
	r.done(keys, nil, time.Now())
	stop, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for {
			select {
			case <-r.wake:
				*fetches++
				r.done(keys, nil, time.Now())
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-over })
	return r, fetches
}

// TestUnknownKeyIsAskedForOnce: a client with an old token takes nobody's fetch until the next scheduled
// one; of so many clients, and no more.
func TestUnknownKeyIsAskedForOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, fetches := served(t)
		find := func(kid string, fetched int) {
			t.Helper()
			before := *fetches
			time.Sleep(forceInterval)
			if k, err := r.find(t.Context(), kid); k != nil || !errors.Is(err, ErrSignature) || *fetches-before != fetched {
				t.Errorf("%s: %v, %v, after %d fetches; want %d", kid, k, err, *fetches-before, fetched)
			}
		}
		for i := range maxMisses {
			find(fmt.Sprint("old ", i), 1)
		}
		find("old 0", 0)
		find(fmt.Sprint("old ", maxMisses-1), 0)
		for range 2 {
			find("one too many", 1)
		}
		if len(r.misses) != 128 {
			t.Errorf("%d kids are remembered; want 128", len(r.misses))
		}
		r.done(r.keys, nil, time.Now()) // on schedule
		find("old 0", 1)
		find("old 0", 0)
	})
}
