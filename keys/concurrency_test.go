package keys_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/errandhq/errand/keys"
)

// Everything at the same time, while a fast clock lets keys come and go.
func TestConcurrentUse(t *testing.T) {
	const rounds = 300
	start := time.Now()
	var elapsed atomic.Int64
	ring := newRing(t, keys.Config{
		Algorithm: keys.Ed25519, Period: 2 * keys.DefaultPublish,
		Now: func() time.Time { return start.Add(time.Duration(elapsed.Load())) },
	})
	ctx, cancel := context.WithCancel(t.Context())
	running := make(chan error)
	go func() { running <- ring.Run(ctx) }()

	var work sync.WaitGroup
	each := func(f func()) {
		work.Go(func() {
			for range rounds {
				f()
			}
		})
	}
	each(func() { elapsed.Add(int64(time.Minute)) })
	for range 4 {
		each(func() {
			if s, err := ring.Signer(); err == nil {
				token, err := s.Sign([]byte("{}"))
				if (err == nil) != (token != "") || err != nil && !errors.Is(err, keys.ErrNoKey) {
					t.Errorf("Sign: %q, %v", token, err)
				}
			} else if !errors.Is(err, keys.ErrNoKey) {
				t.Errorf("Signer: %v", err)
			}
		})
	}
	each(func() { parse(t, ring.Set()) })
	each(func() {
		if err := ring.Rotate(); err != nil && !errors.Is(err, keys.ErrTooEarly) {
			t.Errorf("Rotate: %v", err)
		}
	})
	each(func() {
		if err := ring.Remove(ring.Keys()[0].ID); err != nil && !errors.Is(err, keys.ErrUnknownKey) {
			t.Errorf("Remove: %v", err)
		}
	})
	work.Wait()
	cancel()
	if err := <-running; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	if !verifies(t, parse(t, ring.Set()), sign(t, signer(t, ring))) {
		t.Error("after all that, what it signs cannot be verified")
	}
}
